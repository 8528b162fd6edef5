"""`caldera evaluate score` and `benchmarks`: only JSON on stdout, a table for people, one line per error."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from caldera.evaluation.benchmarks.registry import BENCHMARKS

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(in_columns: Callable[[int], Call]) -> Call:
    """Run `caldera evaluate`; returns exit code, stdout and stderr."""
    return lambda *arguments: in_columns(100)("evaluate", *arguments)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Two of POPE's questions."""
    lines = [
        {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"},
        {"question_id": 2, "image": "a.jpg", "text": "Is there a cat?", "label": "no"},
    ]
    (tmp_path / "labels.json").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "labels.json"


def test_the_help_lists_every_benchmark(call: Call) -> None:
    """Each is a command of the group."""
    _, stdout, _ = call("--help")
    listed = re.findall(r"^│ (\S+) {2,}", stdout, re.MULTILINE)
    assert len(BENCHMARKS) >= 17
    assert {*BENCHMARKS, "benchmarks", "coco", "compare", "ensemble", "judge", "score"} <= {*listed}


def test_a_score_is_json_or_a_table(call: Call, labels: Path, tmp_path: Path) -> None:
    """With --json stdout is one JSON object; without, a table with chance levels, and the unparsed answers."""
    (tmp_path / "a.json").write_text('{"1": "yes", "2": "hm"}')
    arguments = ("score", "pope", "--answers", tmp_path / "a.json", "--annotations", labels)
    code, stdout, _ = call(*arguments, "--json")
    figures = json.loads(stdout)
    assert (code, figures["accuracy"]) == (0, 50.0)
    assert figures["accuracy_interval_95"] == [9.45, 90.55]  # Wilson's, one of two
    code, stdout, warned = call(*arguments)
    assert code == 0
    assert all(word in stdout for word in ("POPE", "f1", "66.67", "chance", "yes_ratio", "1.00"))
    assert "1 of 2 answers could not be parsed, the first: 2" in warned


def test_faults_end_with_one_line(call: Call, labels: Path, tmp_path: Path) -> None:
    """A misspelt benchmark, an incomplete answer file, and one that is missing."""
    assert call("score", "popo", "--answers", "x")[::2] == (
        2,
        "error: no benchmark is called 'popo'; did you mean 'pope'?\n",
    )
    (tmp_path / "a.json").write_text('{"1": "yes", "7": "no"}')
    code, stdout, stderr = call(
        "score", "pope", "--answers", tmp_path / "a.json", "--annotations", labels
    )
    assert (code, stdout) == (3, "")
    assert "1 of 2 items have no answer: 2; 1 answers belong to no item: 7" in stderr
    code, _, stderr = call(
        "score", "pope", "--answers", tmp_path / "b.json", "--annotations", labels
    )
    assert (code, "cannot read" in stderr) == (3, True)


def test_every_benchmark_is_described(call: Call) -> None:
    """The list has each benchmark and `coco`, in plain lines of 80 columns that keep addresses whole."""
    code, stdout, _ = call("benchmarks")
    assert code == 0
    assert len(BENCHMARKS) >= 2
    assert max(map(len, stdout.splitlines())) <= 80
    names = [line.split()[0] for line in stdout.splitlines() if line and not line.startswith(" ")]
    assert names == [*BENCHMARKS, "coco"]
    for spec in BENCHMARKS.values():
        assert f"papers quote {spec.primary_metric}" in " ".join(stdout.split())
        assert set(re.findall(r"\(\S+/\S+\)", spec.description)) <= {*stdout.split()}


def test_ids_among_the_metrics_are_counted(call: Call, tmp_path: Path) -> None:
    """So that question 3247 is not read as 3,247 questions; of many ids ten are printed."""
    names = [str(number) for number in range(3240, 3260)]
    rows = "".join(f"{name},A,language science,3,0,0\n" for name in names)
    (tmp_path / "truth.csv").write_text(f"pid,answer,subject,grade,has_image,has_context\n{rows}")
    outputs = dict.fromkeys(names, "The answer is A.")
    for differing, expected in ((["3247"], "1: 3247"), (names, "20: 3240,")):
        results = {name: int(name in differing) for name in names}
        (tmp_path / "out.json").write_text(json.dumps({"results": results, "outputs": outputs}))
        code, out, _ = call(
            "score",
            "scienceqa",
            "--answers",
            tmp_path / "out.json",
            "--annotations",
            tmp_path / "truth.csv",
        )
        assert code == 0
        assert expected in " ".join(out.split())
        assert "3259" not in out


def test_text_of_users_is_printed_literally(call: Call, tmp_path: Path) -> None:
    """Names and arguments that look like styles or emoji to rich appear unchanged in tables and messages."""
    question = {"image": "a.jpg", "question": "Which?", "answer": "tea"}
    lines = [
        {"id": "7", "kind": "shelf [/red]", **question},
        {"id": "8", "kind": "tin :x:", **question},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "a.json").write_text('{"7": "tea", "8": "tea"}')
    code, stdout, _ = call(
        "score", "custom", "--answers", tmp_path / "a.json", "--questions", tmp_path / "q.jsonl"
    )
    assert code == 0
    assert "shelf [/red]" in stdout
    assert "tin :x:" in stdout
    code, _, stderr = call("score", "own:x:", "--answers", tmp_path / "a.json")
    assert (code, "'own:x:'" in stderr) == (2, True)
