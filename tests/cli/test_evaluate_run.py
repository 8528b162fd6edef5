"""`caldera evaluate BENCHMARK`, `coco` and `compare`: a command per benchmark, a run folder, one line per error."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from caldera.evaluation.answer_files import read_answers
from caldera.formats.model_folder import save_model_folder
from caldera.model.bundle import LlavaBundle
from tests.teacher_server import Answer, Script, TeacherServer, completion, write_coco

Call = Callable[..., tuple[int, str, str]]
Serve = Callable[[Script], TeacherServer]


@pytest.fixture
def call(in_columns: Callable[[int], Call]) -> Call:
    """Run `caldera evaluate`; returns exit code, stdout and stderr."""
    return lambda *arguments: in_columns(160)("evaluate", *arguments)


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    """A folder as LLaVA's users have it: three of POPE's questions in `coco/`, images in `val2014/`."""
    folder = tmp_path / "pope"
    (folder / "coco").mkdir(parents=True)
    (folder / "val2014").mkdir()
    lines = []
    for number, label in enumerate(("yes", "no", "yes"), 1):
        Image.new("RGB", (5, 3), (9 * number, 99, 9)).save(folder / "val2014" / f"{number}.jpg")
        question = {
            "question_id": number,
            "image": f"{number}.jpg",
            "text": f"Is there a dog by {number}?",
        }
        lines.append(json.dumps({**question, "label": label}))
    (folder / "coco" / "coco_pope_random.json").write_text("\n".join(lines))
    return folder


def answers_with(*answers: str) -> Script:
    """Return a model that answers the question about image n with the n-th answer."""

    def script(request: dict[str, Any], count: int) -> Answer:
        text = request["messages"][-1]["content"][-1]["text"]
        answer = answers[int(text.split("?")[0].split()[-1]) - 1]
        return Answer({"error": {}}, status=400) if answer == "error" else completion(answer)

    return script


def test_each_benchmark_is_a_command(call: Call, serve: Serve, pope: Path, tmp_path: Path) -> None:
    """Files are found under --data; a table and the paths are printed; a repeated command asks nothing."""
    server = serve(answers_with("Yes", "yes, a dog", "yes"))
    arguments = (
        "pope",
        "--model",
        server.url,
        "--served-model",
        "m",
        "--data",
        pope,
        "--out",
        tmp_path / "o",
    )
    code, stdout, stderr = call(*arguments)
    assert code == 0, stderr
    assert "f1 80.00 (chance 50), 95 % 0.00 to 100.00 (bootstrap over 3 clusters)" in stdout
    assert "answered 3 of 3, failed 0, unparsed 0" in stdout
    assert "0.208 to 0.939" in stdout, "Wilson's interval of 2 in 3"
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    assert results["figures"]["accuracy"] == pytest.approx(66.67, abs=0.01)
    assert server.count == 3
    assert call(*arguments)[0] == 0
    assert server.count == 3
    assert call(*arguments, "--limit", "1", "--out", tmp_path / "one")[0] == 0
    assert server.count == 4


def test_a_run_that_is_not_valid_ends_with_6(
    call: Call, serve: Serve, pope: Path, tmp_path: Path
) -> None:
    """H2: the first failed item is printed, and the results are written."""
    server = serve(answers_with("yes", "error", "yes"))
    arguments = (
        "--model",
        server.url,
        "--served-model",
        "m",
        "--data",
        pope,
        "--out",
        tmp_path / "o",
    )
    code, stdout, stderr = call("pope", *arguments)
    assert code == 6
    assert (
        "1 of 3 items failed, over 1 %, so the run is not valid; the first, 2: bad request"
        in stderr
    )
    assert "answered 2 of 3, failed 1" in stdout
    assert (tmp_path / "o" / "report.html").exists()


def test_runs_are_compared(call: Call, serve: Serve, pope: Path, tmp_path: Path) -> None:
    """Two models on the same items: the difference, and a report; a single run is rejected."""
    for name, script in (
        ("a", answers_with("yes", "no", "no")),
        ("b", answers_with("no", "no", "yes")),
    ):
        url = serve(script).url
        arguments = (
            "--model",
            url,
            "--served-model",
            "m",
            "--data",
            pope,
            "--out",
            tmp_path / name,
        )
        assert call("pope", *arguments)[0] == 0
    report = tmp_path / "c.html"
    code, stdout, stderr = call("compare", tmp_path / "a", tmp_path / "b", "--out", report)
    assert code == 0, stderr
    assert "+0.000" in stdout
    assert "b against a" in report.read_text()
    code, _, stderr = call("compare", tmp_path / "a")
    assert (code, "needs at least two runs" in stderr) == (2, True)


def test_judged_answers_wait_for_the_judge(
    call: Call, serve: Serve, pope: Path, tmp_path: Path
) -> None:
    """A judged benchmark is asked, and its answers are written as the judge reads them, without scores."""
    question = {"question_id": 4, "image": "1.jpg", "text": "Tell all of 1?", "category": "conv"}
    (tmp_path / "q.jsonl").write_text(json.dumps(question))
    files = ("--questions", tmp_path / "q.jsonl", "--images", pope / "val2014")
    server = ("--model", serve(answers_with("A dog.")).url, "--served-model", "m")
    code, stdout, stderr = call("llava-bench", *server, *files, "--out", tmp_path / "o")
    assert code == 0, stderr
    assert "next: caldera evaluate judge llava-bench --answers" in stdout
    assert read_answers(tmp_path / "o" / "answers.jsonl") == {"4": "A dog."}
    assert not (tmp_path / "o" / "results.json").exists()


def test_a_test_split_is_asked_without_scores(
    call: Call, serve: Serve, pope: Path, tmp_path: Path
) -> None:
    """LLaVA's question file of a test split gives answers to submit; some correct answers of all are an error."""
    lines = [{"question_id": n, "image": f"{n}.jpg", "text": f"What is {n}?"} for n in (1, 2)]
    (tmp_path / "q.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    server = serve(answers_with("a dog", "a dog"))
    model = ("--model", server.url, "--served-model", "m", "--questions", tmp_path / "q.jsonl")
    words = (*model, "--images", pope / "val2014", "--out", tmp_path / "o")
    code, stdout, stderr = call("vqav2", *words)
    assert code == 0, stderr
    assert "next: caldera evaluate score vqav2 --answers" in stdout
    assert "submit the answers to the benchmark's server" in " ".join(stdout.split())
    assert read_answers(tmp_path / "o" / "answers.jsonl") == {"1": "a dog", "2": "a dog"}
    assert [body["max_tokens"] for body in server.bodies()] == [128, 128]
    answer = {"answers": [{"answer": "dog"}], "question_type": "what", "answer_type": "other"}
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [answer | {"question_id": 1}]}))
    code, _, stderr = call("vqav2", *words, "--annotations", tmp_path / "a.json")
    assert code == 3
    assert "1 of 2 questions have no correct answer, the first 2; give the files" in stderr
    assert server.count == 2


@pytest.mark.parametrize(("name", "scorer"), [("pope", "score"), ("mm-vet", "judge")])
def test_existing_answers_belong_to_another_command(call: Call, name: str, scorer: str) -> None:
    """The message has the command, before anything is said about a missing model."""
    for words in (("--answers", "a.jsonl"), ("--model", "m", "--answers=a.jsonl")):
        code, _, stderr = call(name, *words)
        assert code == 2
        assert f"use: caldera evaluate {scorer} {name} --answers FILE" in " ".join(stderr.split())


def test_the_help_of_a_benchmark_describes_it(call: Call) -> None:
    """Size, chance and files, and a command to copy, before the options."""
    code, stdout, _ = call("pope", "--help")
    assert code == 0
    before = stdout.split("Options")[0]
    assert "caldera evaluate pope --model" in before
    assert "3 splits of 3,000 questions" in " ".join(before.split())
    assert "accuracy 50" in before
    assert "--images val2014" in before
    assert "evaluate pope [OPTIONS]\n" in re.sub(r" +\n", "\n", before)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("popo", "--model", "x"),
            2,
            "no benchmark or command is called 'popo'; did you mean 'pope'?",
        ),
        (("scor", "x"), 2, "no benchmark or command is called 'scor'; did you mean 'score'?"),
        (("own", "--model", "x"), 2, "did you mean evaluate custom?"),
        (("tasks",), 2, "did you mean evaluate benchmarks?"),
        (("pope", "--model", "x"), 2, "this benchmark needs --annotations"),
        (
            ("pope", "--model", "x", "--data", "."),
            3,
            ". has none of the files of pope: coco, val2014",
        ),
        (("pope", "--model", "nowhere", "--data", "{pope}"), 3, "nowhere"),
        (
            ("pope", "--model", "x", "--data", "{pope}", "--set", "top=1"),
            2,
            "did you mean 'top_p'?",
        ),
        (
            ("pope", "--model", "nowhere", "--data", "{pope}", "--set", "temperature=-1"),
            2,
            "temperature is -1.0; it must lie in [0, 10]",
        ),
        (
            ("pope", "--model", "nowhere", "--data", "{pope}", "--images", "{pope}"),
            3,
            "3 of 3 images are not in {pope}, the first 1.jpg; name their folder with --images",
        ),
    ],
)
def test_faults_end_with_one_line(
    call: Call,
    pope: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    """A misspelt or renamed command, missing files, a folder that is no model, settings that are found before it."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    exit_code, stdout, stderr = call(*(word.format(pope=pope) for word in arguments))
    assert (exit_code, stdout) == (code, "")
    assert stderr.startswith("error: ")
    assert message.format(pope=pope) in stderr
    assert stderr.count("\n") == 1


def test_questions_from_coco_are_a_run_as_well(
    call: Call, assistant: LlavaBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model folder answers questions written from a COCO folder; the default run folder is named after both."""
    save_model_folder(tmp_path / "model", assistant)
    write_coco(tmp_path / "coco", 3)
    monkeypatch.chdir(tmp_path)
    arguments = ("coco", "--model", "model", "--data", "coco", "--per-image", "2")
    code, stdout, stderr = call(*arguments, "--dtype", "float32", "--set", "batch_size=4")
    assert code == 0, stderr
    folder = tmp_path / "runs" / "evaluate" / "coco" / "model"
    assert "report   runs/evaluate/coco/model/report.html" in stdout
    results = json.loads((folder / "results.json").read_text())
    assert results["provenance"]["model"]["batch_size"] == "4"
    assert results["provenance"]["model"]["dtype"] == "float32"
