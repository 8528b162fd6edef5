"""MM-Vet: official tables from the official grades, by capability and by combination."""

import csv
import json
from pathlib import Path

import pytest

from caldera.errors import InputError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.mm_vet import MM_VET
from caldera.evaluation.judging.verdicts import Verdict


@pytest.mark.parametrize("runs", [1, 3])
def test_the_official_grades_give_the_official_tables(third_party: Path, runs: int) -> None:
    """Total, standard deviation, the six capabilities and all sixteen integrations equal the csv files."""
    folder = third_party / "mm_vet"
    results = folder / "results"
    name = "llava-v1.5-7b_gpt-4"
    score = MM_VET.score_answer_files(
        Sources(questions=folder / "mm-vet.json"), results / f"{name}-grade-{runs}runs.json"
    )
    metrics = score.metrics
    for suffix, group in (("cap", "capabilities"), ("cap-int", "integrations")):
        with (results / f"{name}-{suffix}-score-{runs}runs.csv").open() as file:
            [row] = [row for row in csv.DictReader(file) if row[""] == "llava-v1.5-7b"]
        actual = {frozenset(key.split("_")): value for key, value in metrics[group].items()}
        other_columns = {"", "total", "std", "runs"}
        expected = {
            frozenset(key.split("_")): float(row[key]) for key in row.keys() - other_columns
        }
        assert actual == expected
        assert metrics["total"] == float(row["total"])
        assert metrics.get("std", {"total": 0.0})["total"] == float(row["std"])
        assert metrics.get("runs", [31.2]) == json.loads(row["runs"])
    assert (metrics["num_valid"], metrics["num_different"]) == (218 * runs, 0)
    if runs == 3:
        assert round(100 * score.overall, 2) == 31.10


def question(*needed: str) -> dict[str, object]:
    """Return a question that needs some capabilities."""
    return {"imagename": "v1_0.png", "question": "What?", "answer": "A", "capability": [*needed]}


def test_a_grade_counts_in_every_capability_and_an_unparsed_one_in_none(tmp_path: Path) -> None:
    """Worked by hand: 1.0 for OCR, 0.4 for OCR and arithmetic, and a reply without a grade."""
    questions, grades = tmp_path / "mm-vet.json", tmp_path / "grades.json"
    records = {"a": question("ocr"), "b": question("math", "ocr"), "c": question("rec")}
    questions.write_text(json.dumps(records))
    replies = {"a": ("1.0", 1.0), "b": ("0.4", 0.4), "c": ("8/10", 0.8)}
    grades.write_text(json.dumps({
        name: {"model": ["m"], "content": [text], "score": [stored]}
        for name, (text, stored) in replies.items()
    }))  # fmt: skip
    score = MM_VET.score_answer_files(Sources(questions=questions), grades)
    assert score.metrics["total"] == 70.0
    assert score.metrics["capabilities"] == {"ocr": 70.0, "math": 40.0}
    assert score.metrics["integrations"] == {"ocr": 100.0, "ocr_math": 40.0}
    assert score.item_scores == {"a": 1.0, "b": 0.4}
    assert score.unparsed == {"c": "no grade"}
    assert score.metrics["num_different"] == 1
    assert score.metrics["valid"] is False


def test_files_of_another_layout_are_rejected(tmp_path: Path) -> None:
    """Unknown capabilities, missing questions and runs of different length are errors with their place."""
    questions, grades = tmp_path / "mm-vet.json", tmp_path / "grades.json"
    questions.write_text(json.dumps({"a": question("smell")}))
    with pytest.raises(
        InputError, match=r"a: capability is \['smell'\]; expected some of rec, ocr"
    ):
        MM_VET.load(Sources(questions=questions))
    questions.write_text(json.dumps({"a": question("ocr"), "b": question("ocr")}))
    grades.write_text(json.dumps({"a": {"content": ["1"], "score": [1]}}))
    with pytest.raises(InputError, match=r"no answer: .*b"):
        MM_VET.score_answer_files(Sources(questions=questions), grades)
    grades.write_text(json.dumps({
        "a": {"content": ["1"], "score": [1]}, "b": {"content": ["1", "0"], "score": [1, 0]},
    }))  # fmt: skip
    with pytest.raises(InputError, match="from 1 to 2 grades per question"):
        MM_VET.score_answer_files(Sources(questions=questions), grades)


def test_a_missing_grade_is_null(tmp_path: Path) -> None:
    """`caldera evaluate judge` writes null for unparsed grades; a word instead of a grade is an error."""
    questions, grades = tmp_path / "mm-vet.json", tmp_path / "grades.json"
    questions.write_text(json.dumps({"a": question("ocr"), "b": question("ocr")}))
    verdicts = [
        Verdict(id="a", category="ocr", scores=(0.5,), text="0.5"),
        Verdict(id="b", category="ocr", failure="no grade", text="good"),
    ]
    assert MM_VET.judging is not None
    grades.write_text(MM_VET.judging.files([verdicts], "")["grades.json"])
    score = MM_VET.score_answer_files(Sources(questions=questions), grades)
    assert score.item_scores == {"a": 0.5}
    assert score.metrics["num_different"] == 0
    grades.write_text(grades.read_text().replace("null", '"good"'))
    with pytest.raises(InputError, match=r"b: score should hold numbers, or null .*, got 'good'"):
        MM_VET.score_answer_files(Sources(questions=questions), grades)
