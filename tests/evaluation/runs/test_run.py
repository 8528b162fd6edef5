"""Runs: killed and resumed they give the same bytes, no item is asked twice, and no stale answer is used."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from caldera.devices import choose_device
from caldera.errors import EvaluationError, InputError, LLMClientError
from caldera.evaluation.answerers.answerer import AnswerConfig
from caldera.evaluation.answerers.local_model import load_answerer
from caldera.evaluation.answerers.remote_server import ServerAddress, ServerAnswerer
from caldera.evaluation.runs.answers import read_item_results
from caldera.evaluation.runs.results import BenchmarkInfo, with_items
from caldera.evaluation.runs.run import evaluate
from caldera.formats.model_folder import save_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.progress import Advance, NoProgress
from tests import teacher_server
from tests.evaluation.questions import number_in, questions, right
from tests.teacher_server import Script, TeacherServer

Serve = Callable[[Script], TeacherServer]
COUNT = 23


class KilledAfter(NoProgress):
    """Sends SIGKILL to its own process once this many items were answered."""

    def __init__(self, answered: int) -> None:
        self._answered = answered

    @contextmanager
    def task(self, name: str, total: int, initial: int = 0) -> Iterator[Advance]:
        """Count the steps up to the kill."""
        num_answered = 0

        def tick(steps: int = 1, *, detail: str = "") -> None:
            nonlocal num_answered
            num_answered += steps
            if name.startswith("asking") and num_answered >= self._answered:
                os.kill(os.getpid(), signal.SIGKILL)

        yield tick


class Counting(NoProgress):
    """Counts the items that were asked."""

    def __init__(self) -> None:
        self.num_asked = 0

    @contextmanager
    def task(self, name: str, total: int, initial: int = 0) -> Iterator[Advance]:
        """Count the steps of a job."""

        def tick(steps: int = 1, *, detail: str = "") -> None:
            self.num_asked += steps * name.startswith("asking")

        yield tick


def run(model: Path, photos: Path, out: Path, count: int = COUNT, **changes: Any) -> int:  # noqa: ANN401
    """Evaluate a model folder, and return the number of items that were asked."""
    tail, max_new_tokens = changes.pop("tail", ""), changes.pop("max_new_tokens", None)
    dtype = changes.pop("dtype", "float32")
    counting = Counting()
    evaluate(
        questions(count, tail=tail),
        load_answerer(
            model,
            config=AnswerConfig(batch_size=4, **changes),
            compute=choose_device("cpu", dtype),
        ),
        folder=photos,
        out=out,
        max_new_tokens=max_new_tokens,
        progress=counting,
    )
    return counting.num_asked


@pytest.fixture
def model(assistant: LlavaBundle, tmp_path: Path) -> Path:
    """A random model's folder."""
    save_model_folder(tmp_path / "model", assistant)
    return tmp_path / "model"


KILLED = """
import sys
from pathlib import Path
from caldera.devices import choose_device
from caldera.evaluation.answerers.answerer import AnswerConfig
from caldera.evaluation.answerers.local_model import load_answerer
from caldera.evaluation.runs.run import evaluate
from tests.evaluation.questions import questions
from tests.evaluation.runs.test_run import COUNT, KilledAfter
model, photos, out, after, dtype = sys.argv[1:]
compute = choose_device("cpu", dtype)
answerer = load_answerer(Path(model), config=AnswerConfig(batch_size=4), compute=compute)
evaluate(questions(COUNT), answerer, folder=Path(photos), out=Path(out), progress=KilledAfter(int(after)))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_run_resumes_to_the_same_bytes(
    model: Path, photos: Path, tmp_path: Path, dtype: str
) -> None:
    """H1: killed by SIGKILL twice, it writes what an uninterrupted run writes; no answered item is asked again."""
    assert run(model, photos, tmp_path / "uninterrupted", dtype=dtype) == COUNT
    out = tmp_path / "killed"
    for after, finished in ((8, 8), (4, 12)):
        arguments = [str(model), str(photos), str(out), str(after), dtype]
        command = [sys.executable, "-c", KILLED, *arguments]
        killed = subprocess.run(command, check=False, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (out / "results.json").exists()
        lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
        assert sum(len(line["answers"]) for line in lines) == finished
    assert run(model, photos, out, dtype=dtype) == COUNT - 12
    for name in ("results.json", "answers.jsonl", "journal.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes()
    assert run(model, photos, out, dtype=dtype) == 0, "all items are answered"


def test_a_truncated_last_line_is_moved_away(model: Path, photos: Path, tmp_path: Path) -> None:
    """Cut anywhere in its last batch, the journal loses only that batch, and the results are the same."""
    run(model, photos, tmp_path / "a")
    journal = (tmp_path / "a" / "journal.jsonl").read_bytes()
    results = (tmp_path / "a" / "results.json").read_bytes()
    start = journal.rstrip(b"\n").rfind(b"\n") + 1
    last = len(json.loads(journal[start:])["answers"])
    for cut in (start + 1, (start + len(journal)) // 2, len(journal) - 1):
        (tmp_path / "a" / "journal.jsonl").write_bytes(journal[:cut])
        assert run(model, photos, tmp_path / "a") == last
        assert (tmp_path / "a" / "results.json").read_bytes() == results
        assert (tmp_path / "a" / "journal.jsonl").read_bytes() == journal
        assert journal[start:cut] in (tmp_path / "a" / "truncated.jsonl").read_bytes()
    (tmp_path / "a" / "journal.jsonl").write_bytes(b'{"sent": "x"}\n' + journal)
    with pytest.raises(InputError, match=r"journal\.jsonl: the line at byte 0 is not a journal's"):
        run(model, photos, tmp_path / "a")


def test_the_cache_key_covers_what_an_answer_depends_on(
    model: Path, assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """H4: another prompt, image, length, decoding or model is asked again; the first answers stay cached."""
    out = tmp_path / "out"
    assert run(model, photos, out) == COUNT
    assert run(model, photos, out) == 0
    assert run(model, photos, out, tail=" Be brief.") == COUNT
    assert run(model, photos, out, max_new_tokens=3) == COUNT
    assert run(model, photos, out, choice_method="letter") == COUNT
    first = (photos / "0.png").read_bytes()
    (photos / "0.png").write_bytes((photos / "6.png").read_bytes())
    num_changed = sum("0.png" in item.conversation.images for item in questions(COUNT).items)
    assert 0 < num_changed < COUNT
    assert run(model, photos, out) == num_changed
    (photos / "0.png").write_bytes(first)
    assert run(model, photos, out) == 0
    with torch.no_grad():
        assistant.model.projector.layers[0].weight[0, 0] += 1
    save_model_folder(tmp_path / "other", assistant)
    assert run(tmp_path / "other", photos, out) == COUNT


def test_sampled_answers_are_not_cached(model: Path, photos: Path, tmp_path: Path) -> None:
    """H5: with a temperature every start asks every item, whether or not there is a journal."""
    assert run(model, photos, tmp_path / "out", temperature=0.7) == COUNT
    assert not (tmp_path / "out" / "journal.jsonl").exists()
    assert run(model, photos, tmp_path / "out") == COUNT
    before = (tmp_path / "out" / "journal.jsonl").read_bytes()
    assert run(model, photos, tmp_path / "out", temperature=0.7) == COUNT
    assert (tmp_path / "out" / "journal.jsonl").read_bytes() == before


def test_other_items_make_other_batches(
    model: Path, serve: Serve, photos: Path, tmp_path: Path
) -> None:
    """With more items a model folder is asked all of them, to the bytes of a new run; a server only the new ones."""
    assert run(model, photos, tmp_path / "fresh") == COUNT
    assert run(model, photos, tmp_path / "grown", count=9) == 9
    assert run(model, photos, tmp_path / "grown") == COUNT
    for name in ("results.json", "answers.jsonl"):
        fresh = (tmp_path / "fresh" / name).read_bytes()
        assert (tmp_path / "grown" / name).read_bytes() == fresh
    server = serve(right)
    answerer = ServerAnswerer(ServerAddress(url=server.url, model="m"), AnswerConfig())
    for count in (9, COUNT):
        evaluate(questions(count), answerer, folder=photos, out=tmp_path / "served")
    assert server.count == COUNT


def ask(server: TeacherServer, photos: Path, out: Path, **settings: Any) -> dict[str, Any]:  # noqa: ANN401
    """Evaluate a server."""
    answerer = ServerAnswerer(ServerAddress(url=server.url, model="m"), AnswerConfig(**settings))
    return evaluate(questions(COUNT), answerer, folder=photos, out=out)


def test_a_primary_metric_that_is_missing_is_replaced_by_the_mean(
    serve: Serve, photos: Path, tmp_path: Path
) -> None:
    """MME's perception is a sum over ten categories: a few questions have only the mean, without a chance level."""
    answerer = ServerAnswerer(ServerAddress(url=serve(right).url, model="m"), AnswerConfig())
    info = BenchmarkInfo(primary_metric="perception", chance={"perception": 750.0})
    results = evaluate(questions(COUNT), answerer, folder=photos, out=tmp_path / "out", info=info)
    accuracy = (COUNT - 1) / COUNT
    assert {"figure": "overall", "value": accuracy, "chance": None}.items() <= results[
        "headline"
    ].items()


def test_results_have_intervals_and_provenance(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """Scores, intervals by category and slice, prompt, model, data and versions are in the files."""
    server = serve(right)
    info = BenchmarkInfo(
        title="Own", primary_metric="accuracy", chance={"accuracy": 33.3}, split_size=99
    )
    answerer = ServerAnswerer(ServerAddress(url=server.url, model="m"), AnswerConfig())
    results = evaluate(questions(COUNT), answerer, folder=photos, out=tmp_path / "out", info=info)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    accuracy = (COUNT - 1) / COUNT
    headline, overall = results["headline"], results["overall"]
    assert (headline["figure"], headline["chance"]) == ("accuracy", 33.3)
    assert headline["value"] == round(100 * accuracy, 2)
    assert (headline["low"], headline["high"]) == (100 * overall["low"], 100 * overall["high"])
    assert (overall["n"], overall["value"]) == (COUNT, accuracy)
    assert overall["method"] == "bootstrap over 14 clusters", "seven images, seven items without"
    assert 0.7 < overall["low"] < accuracy < overall["high"] <= 1
    assert results["kinds"]["shape"]["method"].startswith("Wilson over "), "all are right"
    assert results["kinds"]["shape"]["value"] == 1
    assert results["kinds"]["colour"]["value"] == 10 / 11
    assert results["slices"]["grade: 1-6"]["n"] == 4
    assert results["counts"] == {
        "items": COUNT,
        "answered": COUNT,
        "failed": 0,
        "left_out": 0,
        "unparsed": 0,
    }
    facts = results["provenance"]
    assert facts["data"]["split"] == 99
    assert len(facts["data"]["digest"]) == 64
    assert facts["libraries"]["torch"] == torch.__version__
    assert facts["model"]["model"] == f"m at {server.url}"
    assert facts["answered by"] == "little-teacher-0613"
    assert "what is there in image 0?" in facts["first prompt"]
    items = read_item_results(tmp_path / "out" / "answers.jsonl")
    assert [item.id for item in items] == [f"q{index}" for index in range(COUNT)]
    wrong = items[5]
    assert (wrong.answer, wrong.score, wrong.state) == ("nothing", 0.0, "wrong")
    assert wrong.references == ["green"]
    assert wrong.prompt.startswith('[{"role": "user"')


def test_failed_items_are_excluded_and_asked_again(
    serve: Serve, photos: Path, tmp_path: Path
) -> None:
    """H2: one item of 23 fails, over 1 %: the run is not valid, its score is of 22, and a new start completes it."""
    broken = {7}

    def script(request: dict[str, Any], count: int) -> teacher_server.Answer:
        if number_in(request) in broken:
            return teacher_server.Answer({"error": {"message": "no"}}, status=400)
        return right(request, count)

    server = serve(script)
    results = ask(server, photos, tmp_path / "out")
    assert not results["valid"]
    assert results["counts"]["failed"] == 1
    assert results["overall"]["value"] == 21 / 22
    assert "HTTP 400" in results["failed"]["q7"]
    item = read_item_results(tmp_path / "out" / "answers.jsonl")[7]
    assert (item.answer, item.score, item.state) == (None, None, "failed")
    assert "is not valid" in (tmp_path / "out" / "report.html").read_text()
    broken.clear()
    before = server.count
    repeated = ask(server, photos, tmp_path / "out")
    assert server.count == before + 1
    assert repeated["valid"]
    assert repeated["overall"]["n"] == COUNT


def test_a_server_that_failed_is_asked_for_the_rest(
    serve: Serve, photos: Path, tmp_path: Path
) -> None:
    """H1: answered items are not asked again, and the files are those of an uninterrupted run."""
    locked = False

    def script(request: dict[str, Any], count: int) -> teacher_server.Answer:
        if locked and count >= COUNT + 9:
            return teacher_server.Answer({"error": {}}, status=401)
        return right(request, count)

    server = serve(script)
    ask(server, photos, tmp_path / "uninterrupted")
    locked = True
    with pytest.raises(LLMClientError, match="does not accept the API key"):
        ask(server, photos, tmp_path / "broken", concurrency=1)
    locked, before = False, server.count
    ask(server, photos, tmp_path / "broken")
    assert server.count == before + COUNT - 9
    for name in ("results.json", "answers.jsonl"):
        expected = (tmp_path / "uninterrupted" / name).read_bytes()
        assert (tmp_path / "broken" / name).read_bytes() == expected


def test_a_run_without_answers_has_no_score(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """It ends with the first error, and writes no results."""
    server = serve(lambda request, count: teacher_server.Answer({"error": {}}, status=400))
    with pytest.raises(EvaluationError, match="no item was answered; the first, q"):
        ask(server, photos, tmp_path / "out", max_consecutive_failures=99)
    assert not (tmp_path / "out" / "results.json").exists()


def test_only_dataclasses_can_be_narrowed() -> None:
    """A benchmark with fewer items scores these; other objects are a TypeError."""
    narrowed = with_items(questions(5), questions(5).items[:2])
    assert narrowed.score({"q0": "red", "q1": "red"}).overall == 0.5
    with pytest.raises(TypeError, match="object is no dataclass"):
        with_items(object(), ())  # type: ignore[arg-type] # on purpose


def test_a_failed_item_excludes_its_group(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """The other items of the group are not scored, and they are counted."""
    items = [
        replace(item, group=f"group {index // 2}") for index, item in enumerate(questions(8).items)
    ]
    benchmark = with_items(questions(8), items)

    def script(request: dict[str, Any], count: int) -> teacher_server.Answer:
        if number_in(request) == 3:
            return teacher_server.Answer({"error": {"message": "no"}}, status=400)
        return right(request, count)

    answerer = ServerAnswerer(ServerAddress(url=serve(script).url, model="m"), AnswerConfig())
    results = evaluate(benchmark, answerer, folder=photos, out=tmp_path / "out")
    assert results["counts"] == {
        "items": 8,
        "answered": 7,
        "failed": 1,
        "left_out": 1,
        "unparsed": 0,
    }
    assert results["overall"]["n"] == 6
    assert read_item_results(tmp_path / "out" / "answers.jsonl")[2].state == "unscored"
