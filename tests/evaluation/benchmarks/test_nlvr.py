"""NLVR: accuracy and consistency, worked by hand and on real data."""

import json
from pathlib import Path

import pytest

from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.nlvr import NLVR
from tests.evaluation.benchmarks.official import score_texts


def test_consistency_counts_sentences_with_all_drawings_correct(tmp_path: Path) -> None:
    """Three of four pairs are correct, and one sentence of two; true counts as yes."""
    lines = [
        {"image": f"dev-{name}-0.png", "sentence": f"There is {name[0]}", "label": label}
        for name, label in {"1-0": "true", "1-1": "false", "2-0": "true", "2-1": "true"}.items()
    ]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, lines)))
    texts = {
        "dev-1-0-0": "Yes",
        "dev-1-1-0": "False.",
        "dev-2-0-0": "true",
        "dev-2-1-0": "the eyes",
    }
    metrics = score_texts(NLVR, tmp_path, tmp_path / "dev.jsonl", texts).metrics
    assert metrics == {
        "accuracy": 75.0, "consistency": 50.0, "accuracy_true": 66.666667, "accuracy_false": 100.0, "questions": 4,
        "sentences": 2, "sentences_with_several_drawings": 2, "parse_failures": 1,
    }  # fmt: skip


def test_the_majority_answer_scores_near_chance(third_party: Path, tmp_path: Path) -> None:
    """Always answering yes is correct for 163 of 300."""
    questions = third_party / "nlvr" / "dev_300.jsonl"
    items = NLVR.load(Sources(questions=questions)).items
    metrics = score_texts(NLVR, tmp_path, questions, {item.id: "yes" for item in items}).metrics
    assert metrics["accuracy"] == pytest.approx(100 * 163 / 300, abs=1e-5)
    assert round(metrics["accuracy"] - NLVR.chance["accuracy"]) == -1
    assert (questions.parent / items[0].conversation.images[0]).exists()
