"""SEED-Bench: scores by dimension and medium, worked by hand."""

import json
from pathlib import Path

import pytest

from caldera.errors import InputError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.seed_bench import SEED_BENCH
from tests.evaluation.benchmarks.official import score_texts


def test_scores_are_by_dimension_and_by_medium(tmp_path: Path) -> None:
    """LLaVA's rule accepts the bare letter only. Answers about images alone have no score of both media."""
    choices = {"choice_a": "a", "choice_b": "b", "choice_c": "c", "choice_d": "d"}
    rows = [(1, "A", 1, "image"), (2, "B", 1, "image"), ("v0", "D", 10, "video")]
    questions = [
        {"question_id": name, "question": "?", **choices, "answer": letter, "question_type_id": kind,
         "data_type": data_type}
        for name, letter, kind, data_type in rows
    ]  # fmt: skip
    content = {"questions": questions, "question_type": {"Scene": 1, "Action": 10}}
    (tmp_path / "seed.json").write_text(json.dumps(content))
    metrics = score_texts(
        SEED_BENCH, tmp_path, tmp_path / "seed.json", {"1": "A", "2": "B.", "v0": "?"}
    ).metrics
    assert metrics == {
        "accuracy": 66.666667, "Scene": 100.0, "image": 100.0, "Action": 0.0, "video": 0.0, "questions": 3,
        "parse_failures": 1, "accuracy_when_read": 100.0, "official_rule": {"accuracy": 33.333333},
    }  # fmt: skip
    images_only = score_texts(SEED_BENCH, tmp_path, tmp_path / "seed.json", {"1": "A", "2": "A"})
    assert images_only.metrics == {
        "Scene": 50.0,
        "image": 50.0,
        "questions": 2,
        "parse_failures": 0,
    }
    items = SEED_BENCH.load(Sources(questions=tmp_path / "seed.json")).items
    assert items[2].conversation.images == ("SEED-Bench-video-image/10_v0.png",), (
        "as LLaVA's script"
    )
    (tmp_path / "seed.json").write_text("[]")
    with pytest.raises(InputError, match=r"should be SEED-Bench\.json, an object"):
        score_texts(SEED_BENCH, tmp_path, tmp_path / "seed.json", {"1": "A"})
