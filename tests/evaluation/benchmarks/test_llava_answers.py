"""LLaVA-1.5-13B's own answers, in its eval.zip, give the figures of its paper (P2, tables 3 and 4)."""

import json
from pathlib import Path
from typing import Any

import pytest

from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.registry import BENCHMARKS
from caldera.evaluation.vqa_accuracy import normalize_submission

MODEL = "llava-v1.5-13b"


def metrics_of(
    name: str, answers: Path, *, annotations: Path | None = None, questions: Path | None = None
) -> dict[str, Any]:
    """Return the metrics of an answer file."""
    sources = Sources(annotations=annotations, questions=questions)
    return BENCHMARKS[name].score_answer_files(sources, answers).metrics


def test_mmes_published_figures(llava_eval: Path, third_party: Path) -> None:
    """1,531.3 of perception and 295.4 of cognition."""
    answers = llava_eval / f"MME/answers/{MODEL}.jsonl"
    metrics = metrics_of("mme", answers, annotations=third_party / "mme/LaVIN")
    assert (round(metrics["perception"], 1), round(metrics["cognition"], 1)) == (1531.3, 295.4)


def test_popes_published_figures(llava_eval: Path) -> None:
    """87.1, 86.2 and 84.5 of the three splits, with POPE's labels of May 2023."""
    metrics = metrics_of(
        "pope",
        llava_eval / f"pope/answers/{MODEL}.jsonl",
        annotations=llava_eval / "pope/coco",
        questions=llava_eval / "pope/llava_pope_test.jsonl",
    )
    f1 = {split: round(figures["f1"], 1) for split, figures in metrics["splits"].items()}
    assert f1 == {"random": 87.1, "popular": 86.2, "adversarial": 84.5}


def test_mmbenchs_published_figure(llava_eval: Path) -> None:
    """67.7, from the table for the server alone."""
    pytest.importorskip("openpyxl")
    table = llava_eval / f"mmbench/answers_upload/mmbench_dev_20230712/{MODEL}.xlsx"
    metrics = metrics_of("mmbench", table)
    assert (round(metrics["accuracy"], 1), metrics["rows"]) == (67.7, 4377)


def test_science_qas_published_figure(llava_eval: Path, third_party: Path) -> None:
    """71.6 of the questions with an image."""
    answers = llava_eval / f"scienceqa/answers/{MODEL}_result.json"
    questions = third_party / "scienceqa/llava_test_CQM-A.json"
    assert round(metrics_of("scienceqa", answers, questions=questions)["IMG"], 1) == 71.6


def test_judged_published_figures(llava_eval: Path, third_party: Path) -> None:
    """36.1 of MM-Vet; the mean of LLaVA-Bench's three reviews is 72.5."""
    grades = llava_eval / f"mm-vet/results/{MODEL}_gpt-4-grade-1runs.json"
    metrics = metrics_of("mm-vet", grades, questions=third_party / "mm_vet/mm-vet.json")
    assert round(metrics["total"], 1) == 36.1
    reviews = llava_eval / "llava-bench-in-the-wild/reviews"
    figures = [
        metrics_of("llava-bench", reviews / f"{MODEL}-eval{run}.jsonl")["overall"]
        for run in (1, 2, 3)
    ]
    assert figures == [72.8, 72.7, 72.1]


def test_answers_are_normalized_as_before_llavas_upload(llava_eval: Path) -> None:
    """8,000 of 8,000 answers to VizWiz equal those of the file that LLaVA submitted."""
    folder = llava_eval / "vizwiz"
    questions, answers = (
        {record["question_id"]: record for record in map(json.loads, path.read_text().splitlines())}
        for path in (folder / "llava_test.jsonl", folder / f"answers/{MODEL}.jsonl")
    )
    upload = json.loads((folder / f"answers_upload/{MODEL}.json").read_text())
    assert len(upload) == 8000
    assert {record["image"]: record["answer"] for record in upload} == {
        questions[name]["image"]: normalize_submission(answers[name]["text"]) for name in questions
    }
