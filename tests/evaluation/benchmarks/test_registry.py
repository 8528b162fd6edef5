"""Every benchmark: its official files are loaded, scored, limited, and answered by a server."""

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
from caldera.errors import UnknownNameError
from caldera.evaluation.answer_files import read_answers
from caldera.evaluation.benchmark import BenchmarkSpec, Item, Sources
from caldera.evaluation.benchmarks.registry import BENCHMARKS, OLD_NAMES, get_benchmark
from caldera.evaluation.runs.results import flatten, limit_items, with_items
from tests.evaluation.benchmarks.official import OFFICIAL
from tests.teacher_server import Script, TeacherServer, completion

BEST = {"mme": 2000.0, "captions": 1000.0, "llava-bench": 100.0, "llava-bench-coco": 100.0}
"""The primary metric of correct answers; 100 for all others."""

JUDGE_REPLIES = {"llava-bench": "8 8", "llava-bench-coco": "8 8", "mm-vet": "1.0"}
"""A judge's reply about an answer as good as the reference."""

EACH_BENCHMARK = pytest.mark.parametrize("spec", BENCHMARKS.values(), ids=BENCHMARKS)


def correct_answer(spec: BenchmarkSpec, item: Item) -> str:
    """Return the correct answer, or a judge's reply about it."""
    return JUDGE_REPLIES.get(spec.name) or item.references[0]


def test_every_benchmark_has_tiny_files() -> None:
    """The tests below cover all seventeen benchmarks."""
    assert list(OFFICIAL) == list(BENCHMARKS)
    assert len(BENCHMARKS) == 17


def test_old_names_resolve() -> None:
    """Scripts and run folders of earlier versions may hold them; other unknown names get a suggestion."""
    assert {old: get_benchmark(old).name for old in OLD_NAMES} == {
        "own": "custom",
        "seed": "seed-bench",
    }
    assert not OLD_NAMES.keys() & BENCHMARKS.keys()
    with pytest.raises(UnknownNameError, match="no benchmark is called 'popes'; did you mean"):
        get_benchmark("popes")


@EACH_BENCHMARK
def test_correct_answers_get_the_best_score(spec: BenchmarkSpec, tmp_path: Path) -> None:
    """Items have unique ids and questions; correct answers give the maximum of the primary metric."""
    benchmark = spec.load(OFFICIAL[spec.name](tmp_path))
    items = benchmark.items
    assert len({item.id for item in items}) == len(items) >= 2
    assert all(item.conversation.turns[-1].text.strip() for item in items)
    score = benchmark.score({item.id: correct_answer(spec, item) for item in items})
    assert flatten(score.metrics)[spec.primary_metric] == BEST.get(spec.name, 100.0)
    assert set(score.item_scores) <= {item.id for item in items}
    wrong = benchmark.score(dict.fromkeys((item.id for item in items), "1 1.0 ?"))
    assert wrong.overall < score.overall or spec.name in JUDGE_REPLIES


@EACH_BENCHMARK
def test_sums_give_the_primary_metric(spec: BenchmarkSpec, tmp_path: Path) -> None:
    """If the primary metric is not a mean of scores, as of POPE and MME, the resampled statistic equals it."""
    benchmark = spec.load(OFFICIAL[spec.name](tmp_path))
    for reply in ("yes", "no", "1.0", *JUDGE_REPLIES.values()):
        answers = {
            item.id: reply if index % 3 else correct_answer(spec, item)
            for index, item in enumerate(benchmark.items)
        }
        score = benchmark.score(answers)
        assert (score.statistic is not None) == (spec.name in ("pope", "mme"))
        if score.statistic is not None:
            assert score.statistic.per_item.keys() == answers.keys()
            sums = np.array(list(score.statistic.per_item.values())).sum(axis=0, keepdims=True)
            expected = score.metrics[spec.primary_metric]
            assert score.statistic.from_sums(sums) == pytest.approx([expected], abs=1e-5)


@EACH_BENCHMARK
def test_a_limit_never_splits_groups(spec: BenchmarkSpec, tmp_path: Path) -> None:
    """For every limit: complete groups, no more items than the limit or one group, and a score."""
    benchmark = spec.load(OFFICIAL[spec.name](tmp_path))
    sizes = Counter(item.group for item in benchmark.items)
    for limit in range(1, len(benchmark.items) + 1):
        limited = limit_items(benchmark.items, limit)
        assert len(limited) <= max(limit, sizes[limited[0].group] if limited[0].group else 1)
        assert [item for item in benchmark.items if item in limited] == limited
        groups = Counter(item.group for item in limited if item.group)
        assert all(count == sizes[group] for group, count in groups.items())
        score = with_items(benchmark, limited).score(
            {item.id: correct_answer(spec, item) for item in limited}
        )
        assert score.overall == pytest.approx(1) or spec.name == "captions"
    assert limited == list(benchmark.items)


def test_groups_are_images_questions_and_sentences(tmp_path: Path) -> None:
    """Three benchmarks score items in groups: MME by image, MMBench by question, NLVR by sentence."""
    sizes = {}
    for name in BENCHMARKS:
        (tmp_path / name).mkdir()
        items = get_benchmark(name).load(OFFICIAL[name](tmp_path / name)).items
        sizes[name] = set(Counter(item.group for item in items if item.group).values())
    assert {name: size for name, size in sizes.items() if size} == {
        "mme": {2}, "mmbench": {2}, "mmbench_cn": {2}, "nlvr": {2},
    }  # fmt: skip


def create_images(items: list[Item], folder: Path) -> Path:
    """Create the images of items, each in another color."""
    paths = dict.fromkeys(path for item in items for path in item.conversation.images)
    for index, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 3), (index % 251, 99, 9)).save(folder / path)
    return folder


def file_options(sources: Sources) -> list[str]:
    """Return the command-line options for files."""
    options = {"--questions": sources.questions, "--annotations": sources.annotations}
    return [word for name, path in options.items() if path for word in (name, str(path))]


@EACH_BENCHMARK
def test_a_server_answers_every_benchmark(
    spec: BenchmarkSpec,
    tmp_path: Path,
    serve: Callable[[Script], TeacherServer],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each item is one request with its images; the results equal the benchmark's own scores."""
    sources = OFFICIAL[spec.name](tmp_path)
    benchmark = spec.load(sources)
    images = create_images(list(benchmark.items), tmp_path / "images")
    server = serve(lambda request, count: completion("yes"))
    words = [
        "--model",
        server.url,
        "--served-model",
        "m",
        *file_options(sources),
        "--images",
        str(images),
    ]
    words += ["--out", str(tmp_path / "o")]
    monkeypatch.setattr(sys, "argv", ["caldera", "evaluate", spec.name, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capfd.readouterr()
    assert ended.value.code in (None, 0), captured.err
    assert server.count == len(benchmark.items)
    assert read_answers(tmp_path / "o" / "answers.jsonl") == {item.id: "yes" for item in benchmark.items}  # fmt: skip
    num_images = sum(str(body).count("data:image/") for body in server.bodies())
    assert num_images == sum(len(item.conversation.images) for item in benchmark.items)
    assert spec.needs_judge(benchmark.items) == (spec.name in JUDGE_REPLIES)
    if spec.name in JUDGE_REPLIES:
        assert f"next: caldera evaluate judge {spec.name} --answers" in captured.out
        assert not (tmp_path / "o" / "results.json").exists()
        return
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    expected = benchmark.score({item.id: "yes" for item in benchmark.items})
    assert results["figures"] == json.loads(json.dumps(expected.metrics))
    assert results["headline"]["figure"] == spec.primary_metric
    assert results["counts"]["answered"] == len(benchmark.items)
    if expected.statistic is not None:
        method = results["headline"]["method"]
        assert method.startswith("bootstrap over ")
        assert f"({method})</span>" in (tmp_path / "o" / "report.html").read_text()
    assert (
        f"{spec.primary_metric} {flatten(expected.metrics)[spec.primary_metric]:.2f}"
        in captured.out
    )


def test_images_in_mmbenchs_table_are_extracted(
    tmp_path: Path,
    serve: Callable[[Script], TeacherServer],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Images in base64 are written to the run's folder, also if a row refers to another; broken ones are rejected."""
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
    words = ["mmbench", "--model", server.url, "--served-model", "m", "--out", str(tmp_path / "o")]
    words += ["--questions", str(tmp_path / "dev.tsv")]
    monkeypatch.setattr(sys, "argv", ["caldera", "evaluate", *words])
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (None, 0), capfd.readouterr().err
    assert server.count == 4, "the images extracted again are equal"
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


def test_answers_without_questions_cannot_be_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """MMMU's answer file is enough for scoring, but has no questions."""
    correct = {"validation_Math_1": {"question_type": "multiple-choice", "ground_truth": "A"}}
    (tmp_path / "answer_dict_val.json").write_text(json.dumps(correct))
    words = ["mmmu", "--model", "x", "--annotations", str(tmp_path / "answer_dict_val.json")]
    monkeypatch.setattr(sys, "argv", ["caldera", "evaluate", *words, "--out", str(tmp_path / "o")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert "have an answer but no question, the first validation_Math_1" in capfd.readouterr().err
