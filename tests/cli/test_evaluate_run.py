"""`caldera evaluate TASK`, `coco` and `compare`: any task by its name, a folder of results, one line for each fault."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from caldera.evaluation.files import read_answers
from caldera.formats.model_folder import save_model_folder
from caldera.model.assistant import LlavaBundle
from tests.teacher_server import Answer, Script, TeacherServer, completion, write_coco

Call = Callable[..., tuple[int, str, str]]
Serve = Callable[[Script], TeacherServer]


@pytest.fixture
def call(in_columns: Callable[[int], Call]) -> Call:
    """Run `caldera evaluate`; returns exit code, stdout and stderr."""
    return lambda *words: in_columns(160)("evaluate", *words)


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    """A folder as LLaVA's users have it: three of POPE's questions in `coco/`, images in `val2014/`."""
    folder = tmp_path / "pope"
    (folder / "coco").mkdir(parents=True)
    (folder / "val2014").mkdir()
    lines = []
    for at, label in enumerate(("yes", "no", "yes"), 1):
        Image.new("RGB", (5, 3), (9 * at, 99, 9)).save(folder / "val2014" / f"{at}.jpg")
        question = {"question_id": at, "image": f"{at}.jpg", "text": f"Is there a dog by {at}?"}
        lines.append(json.dumps({**question, "label": label}))
    (folder / "coco" / "coco_pope_random.json").write_text("\n".join(lines))
    return folder


def says(*answers: str) -> Script:
    """Return a model that answers the question about image n with the n-th answer."""

    def script(request: dict[str, Any], count: int) -> Answer:
        text = request["messages"][-1]["content"][-1]["text"]
        answer = answers[int(text.split("?")[0].split()[-1]) - 1]
        return Answer({"error": {}}, status=400) if answer == "error" else completion(answer)

    return script


def test_a_task_is_asked_by_its_name(call: Call, serve: Serve, pope: Path, tmp_path: Path) -> None:
    """Files are found under --data; a table and where everything is are printed; again, nothing is asked."""
    server = serve(says("Yes", "yes, a dog", "yes"))
    words = ("pope", "--model", server.url, "--served", "m", "--data", pope, "--out", tmp_path / "o")  # fmt: skip
    code, said, fault = call(*words)
    assert code == 0, fault
    assert "f1 80.00 (chance 50), 95 % 0.00 to 100.00 (bootstrap over 3 clusters)" in said
    assert "answered 3 of 3, failed 0, unread 0" in said
    assert "0.208 to 0.939" in said, "Wilson's interval of 2 in 3"
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    assert results["figures"]["accuracy"] == pytest.approx(66.67, abs=0.01)
    assert server.count == 3
    assert call(*words)[0] == 0
    assert server.count == 3
    assert call(*words, "--limit", "1", "--out", tmp_path / "one")[0] == 0
    assert server.count == 4


def test_a_run_that_is_not_valid_ends_with_6(
    call: Call, serve: Serve, pope: Path, tmp_path: Path
) -> None:
    """H2: what failed is named, and the results are there to be looked at."""
    server = serve(says("yes", "error", "yes"))
    words = ("--model", server.url, "--served", "m", "--data", pope, "--out", tmp_path / "o")
    code, said, fault = call("pope", *words)
    assert code == 6
    assert (
        "1 of 3 items failed, over 1 %, so the run is not valid; the first, 2: bad request" in fault
    )
    assert "answered 2 of 3, failed 1" in said
    assert (tmp_path / "o" / "report.html").exists()


def test_runs_are_compared(call: Call, serve: Serve, pope: Path, tmp_path: Path) -> None:
    """Two models on the same items: the difference, and a report; one run alone is refused."""
    for name, script in (("a", says("yes", "no", "no")), ("b", says("no", "no", "yes"))):
        url = serve(script).url
        words = ("--model", url, "--served", "m", "--data", pope, "--out", tmp_path / name)
        assert call("pope", *words)[0] == 0
    report = tmp_path / "c.html"
    code, said, fault = call("compare", tmp_path / "a", tmp_path / "b", "--out", report)
    assert code == 0, fault
    assert "+0.000" in said
    assert "b against a" in report.read_text()
    code, _, fault = call("compare", tmp_path / "a")
    assert (code, "needs two runs or more" in fault) == (2, True)


def test_judged_answers_wait_for_the_judge(
    call: Call, serve: Serve, pope: Path, tmp_path: Path
) -> None:
    """A judged task is asked, and its answers are written as the judge reads them, but nothing is scored."""
    question = {"question_id": 4, "image": "1.jpg", "text": "Tell all of 1?", "category": "conv"}
    (tmp_path / "q.jsonl").write_text(json.dumps(question))
    asked = ("--questions", tmp_path / "q.jsonl", "--images", pope / "val2014")
    server = ("--model", serve(says("A dog.")).url, "--served", "m")
    code, said, fault = call("llava-bench", *server, *asked, "--out", tmp_path / "o")
    assert code == 0, fault
    assert "next: caldera evaluate judge llava-bench --answers" in said
    assert read_answers(tmp_path / "o" / "answers.jsonl") == {"4": "A dog."}
    assert not (tmp_path / "o" / "results.json").exists()


def test_help_of_a_task_says_what_it_is(call: Call) -> None:
    """Size, chance and files, and a command to copy, before the options."""
    code, said, _ = call("pope", "--help")
    assert code == 0
    before = said.split("Options")[0]
    assert "caldera evaluate pope --model" in before
    assert "3 splits of 3,000 questions" in " ".join(before.split())
    assert "accuracy 50" in before
    assert "--images val2014" in before
    assert "evaluate pope [OPTIONS]\n" in re.sub(r" +\n", "\n", before)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("popo", "--model", "x"), 2, "no task or command is called 'popo'; did you mean 'pope'?"),
        (("scor", "x"), 2, "no task or command is called 'scor'; did you mean 'score'?"),
        (("pope", "--model", "x"), 2, "this task needs --truth"),
        (("pope", "--model", "x", "--data", "."), 3, ". holds none of the files of pope: coco, val2014"),
        (("pope", "--model", "nowhere", "--data", "{pope}"), 3, "nowhere"),
        (("pope", "--model", "x", "--data", "{pope}", "--set", "top=1"), 2, "did you mean 'top_p'?"),
    ],
)  # fmt: skip
def test_faults_end_with_one_line(
    call: Call,
    pope: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    """A misspelt task or command, missing files, a folder that is no model, an unknown setting."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    ended, out, fault = call(*(word.format(pope=pope) for word in words))
    assert (ended, out) == (code, "")
    assert fault.startswith("error: ")
    assert said in fault
    assert fault.count("\n") == 1


def test_questions_from_coco_go_the_same_way(
    call: Call, assistant: LlavaBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model folder answers questions written from a COCO folder; the usual place is named after both."""
    save_model_folder(tmp_path / "model", assistant)
    write_coco(tmp_path / "coco", 3)
    monkeypatch.chdir(tmp_path)
    words = ("coco", "--model", "model", "--data", "coco", "--per-image", "2")
    code, said, fault = call(*words, "--dtype", "float32", "--set", "batch_size=4")
    assert code == 0, fault
    folder = tmp_path / "runs" / "evaluate" / "coco" / "model"
    assert "report   runs/evaluate/coco/model/report.html" in said
    results = json.loads((folder / "results.json").read_text())
    assert results["provenance"]["model"]["batch_size"] == "4"
    assert results["provenance"]["model"]["dtype"] == "float32"
