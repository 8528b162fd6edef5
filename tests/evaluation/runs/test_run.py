"""A run: killed and gone on with it ends in the same bytes, nothing is asked twice, nothing old is taken for new."""

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
from caldera.evaluation.runs.answers import read_samples
from caldera.evaluation.runs.results import BenchmarkInfo, with_items
from caldera.evaluation.runs.run import evaluate
from caldera.formats.model_folder import save_model_folder
from caldera.model.assistant import LlavaBundle
from caldera.progress import Advance, NoProgress
from tests import teacher_server
from tests.evaluation.questions import number_in, questions, right
from tests.teacher_server import Script, TeacherServer

Serve = Callable[[Script], TeacherServer]
COUNT = 23


class KilledAfter(NoProgress):
    """Kills its own process, as nothing can prevent, once so many items were answered."""

    def __init__(self, answered: int) -> None:
        self._answered = answered

    @contextmanager
    def task(self, name: str, total: int, initial: int = 0) -> Iterator[Advance]:
        """Follow a job up to the kill."""
        seen = 0

        def tick(steps: int = 1, *, detail: str = "") -> None:
            nonlocal seen
            seen += steps
            if name.startswith("asking") and seen >= self._answered:
                os.kill(os.getpid(), signal.SIGKILL)

        yield tick


class Counting(NoProgress):
    """Counts the items that were answered anew."""

    def __init__(self) -> None:
        self.asked = 0

    @contextmanager
    def task(self, name: str, total: int, initial: int = 0) -> Iterator[Advance]:
        """Follow a job."""

        def tick(steps: int = 1, *, detail: str = "") -> None:
            self.asked += steps * name.startswith("asking")

        yield tick


def run(model: Path, photos: Path, out: Path, count: int = COUNT, **changes: Any) -> int:  # noqa: ANN401
    """Ask a model folder, and return how many items were asked."""
    tail, longest = changes.pop("tail", ""), changes.pop("max_new_tokens", None)
    counting = Counting()
    evaluate(
        questions(count, tail=tail),
        load_answerer(
            model,
            asking=AnswerConfig(batch_size=4, **changes),
            compute=choose_device("cpu", "float32"),
        ),
        folder=photos,
        out=out,
        max_new_tokens=longest,
        progress=counting,
    )
    return counting.asked


@pytest.fixture
def model(assistant: LlavaBundle, tmp_path: Path) -> Path:
    """A random model's folder."""
    save_model_folder(tmp_path / "model", assistant)
    return tmp_path / "model"


KILLED = """
import sys
from pathlib import Path
from caldera.evaluation.answering.answerer import Asking
from caldera.evaluation.answering.engine_answerer import open_engine
from caldera.evaluation.runs.run import evaluate
from caldera.training.devices import choose_compute
from tests.evaluation.questions import questions
from tests.evaluation.runs.test_run import COUNT, KilledAfter
model, photos, out, after = sys.argv[1:]
compute = choose_compute("cpu", "float32")
evaluate(questions(COUNT), open_engine(Path(model), asking=Asking(batch_size=4), compute=compute),
         folder=Path(photos), out=Path(out), progress=KilledAfter(int(after)))
"""


def test_a_killed_run_goes_on_to_the_same_bytes(model: Path, photos: Path, tmp_path: Path) -> None:
    """H1: a process killed by SIGKILL twice ends as one that was not; no finished item is asked again."""
    assert run(model, photos, tmp_path / "whole") == COUNT
    out = tmp_path / "killed"
    for after, finished in ((8, 8), (4, 12)):
        words = [sys.executable, "-c", KILLED, str(model), str(photos), str(out), str(after)]
        killed = subprocess.run(words, check=False, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (out / "results.json").exists()
        lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
        assert sum(len(line["answers"]) for line in lines) == finished
    assert run(model, photos, out) == COUNT - 12
    for name in ("results.json", "answers.jsonl", "journal.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert run(model, photos, out) == 0, "all is finished"


def test_a_torn_last_line_is_moved_aside(model: Path, photos: Path, tmp_path: Path) -> None:
    """Cut at any byte of its last batch, the journal loses that batch, no more, and the numbers are the same."""
    run(model, photos, tmp_path / "a")
    whole = (tmp_path / "a" / "journal.jsonl").read_bytes()
    results = (tmp_path / "a" / "results.json").read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    last = len(json.loads(whole[start:])["answers"])
    for cut in (start + 1, (start + len(whole)) // 2, len(whole) - 1):
        (tmp_path / "a" / "journal.jsonl").write_bytes(whole[:cut])
        assert run(model, photos, tmp_path / "a") == last
        assert (tmp_path / "a" / "results.json").read_bytes() == results
        assert (tmp_path / "a" / "journal.jsonl").read_bytes() == whole
        assert whole[start:cut] in (tmp_path / "a" / "truncated.jsonl").read_bytes()
    (tmp_path / "a" / "journal.jsonl").write_bytes(b'{"sent": "x"}\n' + whole)
    with pytest.raises(InputError, match=r"journal\.jsonl: the line at byte 0 is not a journal's"):
        run(model, photos, tmp_path / "a")


def test_what_an_answer_depends_on_is_its_key(
    model: Path, assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """H4: another prompt, image, length, decoding or model is asked anew, and only that; the first is still known."""
    out = tmp_path / "out"
    assert run(model, photos, out) == COUNT
    assert run(model, photos, out) == 0
    assert run(model, photos, out, tail=" Be brief.") == COUNT
    assert run(model, photos, out, longest=3) == COUNT
    assert run(model, photos, out, choose_by="letter") == COUNT
    first = (photos / "0.png").read_bytes()
    (photos / "0.png").write_bytes((photos / "6.png").read_bytes())
    shown = sum("0.png" in item.conversation.images for item in questions(COUNT).items)
    assert 0 < shown < COUNT
    assert run(model, photos, out) == shown
    (photos / "0.png").write_bytes(first)
    assert run(model, photos, out) == 0
    with torch.no_grad():
        assistant.model.projector.layers[0].weight[0, 0] += 1
    save_model_folder(tmp_path / "other", assistant)
    assert run(tmp_path / "other", photos, out) == COUNT


def test_drawn_answers_are_never_kept(model: Path, photos: Path, tmp_path: Path) -> None:
    """H5: with a temperature every start asks everything, whether a journal stands there or not."""
    assert run(model, photos, tmp_path / "out", temperature=0.7) == COUNT
    assert not (tmp_path / "out" / "journal.jsonl").exists()
    assert run(model, photos, tmp_path / "out") == COUNT
    before = (tmp_path / "out" / "journal.jsonl").read_bytes()
    assert run(model, photos, tmp_path / "out", temperature=0.7) == COUNT
    assert (tmp_path / "out" / "journal.jsonl").read_bytes() == before


def test_other_items_make_other_batches(
    model: Path, serve: Serve, photos: Path, tmp_path: Path
) -> None:
    """After some items all are asked by a model folder, to the bytes of a run from nothing; a server only the rest."""
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


def ask(server: TeacherServer, photos: Path, out: Path, **asking: Any) -> dict[str, Any]:  # noqa: ANN401
    """Have a server answer a benchmark."""
    answerer = ServerAnswerer(ServerAddress(url=server.url, model="m"), AnswerConfig(**asking))
    return evaluate(questions(COUNT), answerer, folder=photos, out=out)


def test_a_headline_that_the_items_do_not_give_is_named_for_what_it_is(
    serve: Serve, photos: Path, tmp_path: Path
) -> None:
    """MME's perception is a sum over ten sub-tasks: of a few questions the mean alone is told, without its chance."""
    answerer = ServerAnswerer(ServerAddress(url=serve(right).url, model="m"), AnswerConfig())
    about = BenchmarkInfo(headline="perception", chance={"perception": 750.0})
    results = evaluate(questions(COUNT), answerer, folder=photos, out=tmp_path / "out", about=about)
    share = (COUNT - 1) / COUNT
    assert {"figure": "overall", "value": share, "chance": None}.items() <= results[
        "headline"
    ].items()


def test_numbers_come_with_what_they_depend_on(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """Marks, intervals by kind and slice, prompt, model, data and versions are in the files."""
    server = serve(right)
    about = BenchmarkInfo(
        title="Own", headline="accuracy", chance={"accuracy": 33.3}, split_size=99
    )
    answerer = ServerAnswerer(ServerAddress(url=server.url, model="m"), AnswerConfig())
    results = evaluate(questions(COUNT), answerer, folder=photos, out=tmp_path / "out", about=about)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    share = (COUNT - 1) / COUNT
    headline, overall = results["headline"], results["overall"]
    assert (headline["figure"], headline["chance"]) == ("accuracy", 33.3)
    assert headline["value"] == round(100 * share, 2)
    assert (headline["low"], headline["high"]) == (100 * overall["low"], 100 * overall["high"])
    assert (overall["n"], overall["value"]) == (COUNT, share)
    assert overall["method"] == "bootstrap over 14 clusters", "seven images, seven items without"
    assert 0.7 < overall["low"] < share < overall["high"] <= 1
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
    told = results["provenance"]
    assert told["data"]["split"] == 99
    assert len(told["data"]["digest"]) == 64
    assert told["libraries"]["torch"] == torch.__version__
    assert told["model"]["model"] == f"m at {server.url}"
    assert told["answered by"] == "little-teacher-0613"
    assert "what is there in image 0?" in told["first prompt"]
    samples = read_samples(tmp_path / "out" / "answers.jsonl")
    assert [sample.id for sample in samples] == [f"q{at}" for at in range(COUNT)]
    wrong = samples[5]
    assert (wrong.answer, wrong.score, wrong.state) == ("nothing", 0.0, "wrong")
    assert wrong.references == ["green"]
    assert wrong.prompt.startswith('[{"role": "user"')


def test_failed_items_are_in_no_number_and_are_asked_again(
    serve: Serve, photos: Path, tmp_path: Path
) -> None:
    """H2: one item of 23 fails, which is over 1 %: the run is not valid, its share is of 22, and it can be mended."""
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
    sample = read_samples(tmp_path / "out" / "answers.jsonl")[7]
    assert (sample.answer, sample.score, sample.state) == (None, None, "failed")
    assert "is not valid" in (tmp_path / "out" / "report.html").read_text()
    broken.clear()
    before = server.count
    mended = ask(server, photos, tmp_path / "out")
    assert server.count == before + 1
    assert mended["valid"]
    assert mended["overall"]["n"] == COUNT


def test_a_server_that_broke_off_is_asked_for_the_rest(
    serve: Serve, photos: Path, tmp_path: Path
) -> None:
    """H1: what it answered is not asked again, and the files are those of a run without a break."""
    locked = False

    def script(request: dict[str, Any], count: int) -> teacher_server.Answer:
        if locked and count >= COUNT + 9:
            return teacher_server.Answer({"error": {}}, status=401)
        return right(request, count)

    server = serve(script)
    ask(server, photos, tmp_path / "whole")
    locked = True
    with pytest.raises(LLMClientError, match="does not take the key"):
        ask(server, photos, tmp_path / "broken", concurrency=1)
    locked, before = False, server.count
    ask(server, photos, tmp_path / "broken")
    assert server.count == before + COUNT - 9
    for name in ("results.json", "answers.jsonl"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "broken" / name).read_bytes() == whole


def test_a_run_without_one_answer_has_no_score(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """It ends with the first reason, and writes no results."""
    server = serve(lambda request, count: teacher_server.Answer({"error": {}}, status=400))
    with pytest.raises(EvaluationError, match="not one item was answered; the first, q"):
        ask(server, photos, tmp_path / "out", give_up_after=99)
    assert not (tmp_path / "out" / "results.json").exists()


def test_only_what_is_a_dataclass_can_be_narrowed() -> None:
    """A benchmark asks and scores fewer items; another object is a fault of the programmer's."""
    some = with_items(questions(5), questions(5).items[:2])
    assert some.score({"q0": "red", "q1": "red"}).overall == 0.5
    with pytest.raises(TypeError, match="object is no dataclass"):
        with_items(object(), ())  # type: ignore[arg-type] # on purpose


def test_what_is_scored_together_fails_together(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """A failed item takes the others of its unit out of the score, and they are counted."""
    items = [replace(item, group=f"unit {at // 2}") for at, item in enumerate(questions(8).items)]
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
    assert read_samples(tmp_path / "out" / "answers.jsonl")[2].state == "unmarked"
