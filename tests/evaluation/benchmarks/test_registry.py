"""What holds of every benchmark: its official files are read, scored, narrowed, and asked of a server."""

import base64
import json
import sys
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caldera.cli import main
from caldera.evaluation.benchmark import BenchmarkSpec, Item, Sources
from caldera.evaluation.benchmarks.registry import BENCHMARKS, get_benchmark
from caldera.evaluation.files import read_answers
from caldera.evaluation.runs.results import flatten, limit_items, with_items
from tests.evaluation.benchmarks.official import OFFICIAL
from tests.teacher_server import Script, TeacherServer, completion

BEST = {"mme": 2000.0, "captions": 1000.0, "llava-bench": 100.0, "llava-bench-coco": 100.0}
"""The headline of right answers alone; 100 for all others."""

JUDGED = {"llava-bench": "8 8", "llava-bench-coco": "8 8", "mm-vet": "1.0"}
"""What a judge replies about an answer as good as the reference."""

EVERY = pytest.mark.parametrize("task", BENCHMARKS.values(), ids=BENCHMARKS)


def right(task: BenchmarkSpec, item: Item) -> str:
    """Return the right answer, or what a judge says of it."""
    return JUDGED.get(task.name) or item.references[0]


def test_every_task_has_tiny_files() -> None:
    """None of the seventeen is forgotten below."""
    assert list(OFFICIAL) == list(BENCHMARKS)
    assert len(BENCHMARKS) == 17


@EVERY
def test_right_answers_get_the_best_score(task: BenchmarkSpec, tmp_path: Path) -> None:
    """Items have ids of their own and something to ask; all right is the best that the headline can be."""
    benchmark = task.load(OFFICIAL[task.name](tmp_path))
    items = benchmark.items
    assert len({item.id for item in items}) == len(items) >= 2
    assert all(item.conversation.turns[-1].text.strip() for item in items)
    score = benchmark.score({item.id: right(task, item) for item in items})
    assert flatten(score.metrics)[task.primary_metric] == BEST.get(task.name, 100.0)
    assert set(score.item_scores) <= {item.id for item in items}
    wrong = benchmark.score(dict.fromkeys((item.id for item in items), "1 1.0 ?"))
    assert wrong.overall < score.overall or task.name in JUDGED


@EVERY
def test_sums_make_the_headline(task: BenchmarkSpec, tmp_path: Path) -> None:
    """Where a headline is no mean of marks, as of POPE and MME, what is drawn again gives the very figure."""
    benchmark = task.load(OFFICIAL[task.name](tmp_path))
    for said in ("yes", "no", "1.0", *JUDGED.values()):
        answers = {
            item.id: said if at % 3 else right(task, item)
            for at, item in enumerate(benchmark.items)
        }
        score = benchmark.score(answers)
        assert (score.statistic is not None) == (task.name in ("pope", "mme"))
        if score.statistic is not None:
            assert score.statistic.per_item.keys() == answers.keys()
            sums = np.array(list(score.statistic.per_item.values())).sum(axis=0, keepdims=True)
            headline = score.metrics[task.primary_metric]
            assert score.statistic.from_sums(sums) == pytest.approx([headline], abs=1e-5)


@EVERY
def test_a_limit_never_cuts_apart_what_is_scored_together(
    task: BenchmarkSpec, tmp_path: Path
) -> None:
    """For every limit: whole units, no more items than asked for unless one unit has them, and a score."""
    benchmark = task.load(OFFICIAL[task.name](tmp_path))
    sizes = Counter(item.group for item in benchmark.items)
    for limit in range(1, len(benchmark.items) + 1):
        some = limit_items(benchmark.items, limit)
        assert len(some) <= max(limit, sizes[some[0].group] if some[0].group else 1)
        assert [item for item in benchmark.items if item in some] == some
        kept = Counter(item.group for item in some if item.group)
        assert all(count == sizes[unit] for unit, count in kept.items())
        score = with_items(benchmark, some).score({item.id: right(task, item) for item in some})
        assert score.overall == pytest.approx(1) or task.name == "captions"
    assert some == list(benchmark.items)


def test_units_are_images_questions_and_sentences(tmp_path: Path) -> None:
    """The three whose figures hang on several items: MME by image, MMBench by question, NLVR by sentence."""
    sizes = {}
    for name in BENCHMARKS:
        (tmp_path / name).mkdir()
        items = get_benchmark(name).load(OFFICIAL[name](tmp_path / name)).items
        sizes[name] = set(Counter(item.group for item in items if item.group).values())
    assert {name: size for name, size in sizes.items() if size} == {
        "mme": {2}, "mmbench": {2}, "mmbench_cn": {2}, "nlvr": {2},
    }  # fmt: skip


def paint(items: list[Item], folder: Path) -> Path:
    """Paint the images that items ask about, each another color."""
    paths = dict.fromkeys(path for item in items for path in item.conversation.images)
    for at, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 3), (at % 251, 99, 9)).save(folder / path)
    return folder


def given(sources: Sources) -> list[str]:
    """Name files as a user does."""
    roles = {"--questions": sources.questions, "--truth": sources.annotations}
    return [word for role, path in roles.items() if path for word in (role, str(path))]


@EVERY
def test_every_task_is_asked_of_a_server(
    task: BenchmarkSpec,
    tmp_path: Path,
    serve: Callable[[Script], TeacherServer],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each item is one request with its images; the files hold what the benchmark itself scores."""
    sources = OFFICIAL[task.name](tmp_path)
    benchmark = task.load(sources)
    images = paint(list(benchmark.items), tmp_path / "images")
    server = serve(lambda request, count: completion("yes"))
    words = ["--model", server.url, "--served", "m", *given(sources), "--images", str(images)]
    words += ["--out", str(tmp_path / "o")]
    monkeypatch.setattr(sys, "argv", ["caldera", "evaluate", task.name, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr()
    assert ended.value.code in (None, 0), said.err
    assert server.count == len(benchmark.items)
    assert read_answers(tmp_path / "o" / "answers.jsonl") == {item.id: "yes" for item in benchmark.items}  # fmt: skip
    shown = sum(str(body).count("data:image/") for body in server.bodies())
    assert shown == sum(len(item.conversation.images) for item in benchmark.items)
    assert task.needs_judge(benchmark.items) == (task.name in JUDGED)
    if task.name in JUDGED:
        assert f"next: caldera evaluate judge {task.name} --answers" in said.out
        assert not (tmp_path / "o" / "results.json").exists()
        return
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    expected = benchmark.score({item.id: "yes" for item in benchmark.items})
    assert results["metrics"] == json.loads(json.dumps(expected.metrics))
    assert results["primary_metric"]["metric"] == task.primary_metric
    assert results["counts"]["answered"] == len(benchmark.items)
    if expected.statistic is not None:
        method = results["primary_metric"]["method"]
        assert method.startswith("bootstrap over ")
        assert f"({method})</span>" in (tmp_path / "o" / "report.html").read_text()
    assert f"{task.primary_metric} {flatten(expected.metrics)[task.primary_metric]:.2f}" in said.out


def test_mmbenchs_table_alone_suffices(
    tmp_path: Path,
    serve: Callable[[Script], TeacherServer],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Images in base64 are unpacked beside the run, also where a row names another's; broken ones are refused."""
    png = BytesIO()
    Image.new("RGB", (5, 3), (9, 99, 9)).save(png, "PNG")
    packed = base64.b64encode(png.getvalue()).decode()
    rows = [
        "index\tquestion\thint\tA\tB\tanswer\tcategory\timage",
        f"7\tWhich?\tNaN\tred\tgreen\tA\tcolor\t{packed}",
        f"1000007\tWhich?\tNaN\tgreen\tred\tB\tcolor\t{packed}",
        "8\tIs it?\tnan\tyes\tno\tA\tlogic\t7",
        "1000008\tIs it?\t\tno\tyes\tB\tlogic\t7",
    ]
    (tmp_path / "dev.tsv").write_text("\n".join(rows))
    server = serve(lambda request, count: completion("A"))
    words = ["mmbench", "--model", server.url, "--served", "m", "--out", str(tmp_path / "o")]
    words += ["--questions", str(tmp_path / "dev.tsv")]
    monkeypatch.setattr(sys, "argv", ["caldera", "evaluate", *words])
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (None, 0), capfd.readouterr().err
    assert server.count == 4, "what was unpacked again is the same"
    assert [path.name for path in (tmp_path / "o" / "images").iterdir()] == ["7.jpg"]
    for request in server.bodies():
        [image, text] = request["messages"][0]["content"]
        assert image["image_url"]["url"] == f"data:image/png;base64,{packed}"
        assert text["text"].split("\n")[0] in ("Which?", "Is it?"), "an empty hint is no line"
    (tmp_path / "dev.tsv").write_text("\n".join(rows).replace(packed, packed[1:]))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert "dev.tsv:2: the image is not in base64" in capfd.readouterr().err


def test_truth_without_questions_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """MMMU's file of answers can score, but holds no words to ask."""
    truth = {"validation_Math_1": {"question_type": "multiple-choice", "ground_truth": "A"}}
    (tmp_path / "answer_dict_val.json").write_text(json.dumps(truth))
    words = ["mmmu", "--model", "x", "--truth", str(tmp_path / "answer_dict_val.json")]
    monkeypatch.setattr(sys, "argv", ["caldera", "evaluate", *words, "--out", str(tmp_path / "o")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert "have an answer but no question, the first validation_Math_1" in capfd.readouterr().err
