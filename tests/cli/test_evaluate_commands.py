"""`caldera evaluate score` and `tasks`: JSON alone on stdout, a table for people, one line for each fault."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from caldera.evaluation.benchmarks.registry import BENCHMARKS

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(in_columns: Callable[[int], Call]) -> Call:
    """Run `caldera evaluate`; returns exit code, stdout and stderr."""
    return lambda *words: in_columns(100)("evaluate", *words)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Two of POPE's questions."""
    lines = [
        {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"},
        {"question_id": 2, "image": "a.jpg", "text": "Is there a cat?", "label": "no"},
    ]
    (tmp_path / "labels.json").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "labels.json"


def test_the_help_names_every_task(call: Call) -> None:
    """So that a newcomer sees what can be asked."""
    _, said, _ = call("--help")
    assert f"Tasks: {', '.join(BENCHMARKS)};" in " ".join(said.split())


def test_a_score_is_json_or_a_table(call: Call, labels: Path, tmp_path: Path) -> None:
    """With --json stdout is one JSON object; without, a table with what guessing gives, and what was not read."""
    (tmp_path / "a.json").write_text('{"1": "yes", "2": "hm"}')
    words = ("score", "pope", "--answers", tmp_path / "a.json", "--truth", labels)
    code, said, _ = call(*words, "--json")
    figures = json.loads(said)
    assert (code, figures["accuracy"]) == (0, 50.0)
    assert figures["accuracy_interval_95"] == [9.45, 90.55]  # Wilson's, one of two
    code, said, warned = call(*words)
    assert code == 0
    assert all(word in said for word in ("POPE", "f1", "66.67", "chance", "yes_ratio", "1.00"))
    assert "1 of 2 answers could not be read, the first: 2" in warned


def test_faults_end_with_one_line(call: Call, labels: Path, tmp_path: Path) -> None:
    """A misspelt task, an answer file that is not whole, and one that is not there."""
    assert call("score", "popo", "--answers", "x")[::2] == (
        2,
        "error: no task is called 'popo'; did you mean 'pope'?\n",
    )
    (tmp_path / "a.json").write_text('{"1": "yes", "7": "no"}')
    code, said, fault = call("score", "pope", "--answers", tmp_path / "a.json", "--truth", labels)
    assert (code, said) == (3, "")
    assert "1 of 2 items have no answer: 2; 1 answers belong to no item: 7" in fault
    code, _, fault = call("score", "pope", "--answers", tmp_path / "b.json", "--truth", labels)
    assert (code, "cannot read" in fault) == (3, True)


def test_every_task_is_listed(call: Call) -> None:
    """The list has each task with its chance and headline."""
    code, said, _ = call("tasks")
    assert code == 0
    assert len(BENCHMARKS) >= 2
    for task in BENCHMARKS.values():
        assert task.name in said
        assert f"papers quote {task.primary_metric}" in said


def test_ids_among_the_figures_are_counted(call: Call, tmp_path: Path) -> None:
    """So that question 3247 is not read as 3,247 questions; of many ids ten are shown."""
    names = [str(number) for number in range(3240, 3260)]
    rows = "".join(f"{name},A,language science,3,0,0\n" for name in names)
    (tmp_path / "truth.csv").write_text(f"pid,answer,subject,grade,has_image,has_context\n{rows}")
    outputs = dict.fromkeys(names, "The answer is A.")
    for differing, told in ((["3247"], "1: 3247"), (names, "20: 3240,")):
        results = {name: int(name in differing) for name in names}
        (tmp_path / "out.json").write_text(json.dumps({"results": results, "outputs": outputs}))
        code, out, _ = call(
            "score", "scienceqa", "--answers", tmp_path / "out.json", "--truth", tmp_path / "truth.csv"
        )  # fmt: skip
        assert code == 0
        assert told in " ".join(out.split())
        assert "3259" not in out


def test_what_users_wrote_is_printed_as_it_is(call: Call, tmp_path: Path) -> None:
    """Names and arguments that rich would take for styles or signs stand in tables and messages to the letter."""
    asked = {"image": "a.jpg", "question": "Which?", "answer": "tea"}
    lines = [{"id": "7", "kind": "shelf [/red]", **asked}, {"id": "8", "kind": "tin :x:", **asked}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "a.json").write_text('{"7": "tea", "8": "tea"}')
    code, said, _ = call(
        "score", "own", "--answers", tmp_path / "a.json", "--questions", tmp_path / "q.jsonl"
    )
    assert code == 0
    assert "shelf [/red]" in said
    assert "tin :x:" in said
    code, _, fault = call("score", "own:x:", "--answers", tmp_path / "a.json")
    assert (code, "'own:x:'" in fault) == (2, True)
