"""Review files of judges: consistent runs, both orders, and layouts of answers and reviews."""

import json
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import InputError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.llava_bench import LLAVA_BENCH
from caldera.evaluation.judging.review_files import read_reviews


def write(path: Path, *reviews: dict[str, Any]) -> Path:
    """Write a review file."""
    path.write_text("".join(f"{json.dumps(review)}\n" for review in reviews))
    return path


def test_inconsistent_reviews_are_rejected(tmp_path: Path) -> None:
    """A repeated review, runs about different answers, and other records are errors with their ids or place."""
    review = {"question_id": 1, "category": "conv", "content": "8 4"}
    with pytest.raises(InputError, match="judges 1 answers more than once: 1; keep one"):
        read_reviews(write(tmp_path / "twice.jsonl", review, review))
    folder = tmp_path / "runs"
    folder.mkdir()
    write(folder / "a.jsonl", review)
    write(folder / "b.jsonl", review | {"question_id": 2})
    with pytest.raises(InputError, match="do not judge the same answers: only one has 1, 2"):
        read_reviews(folder)
    with pytest.raises(InputError, match="has no content"):
        read_reviews(write(tmp_path / "other.jsonl", {"question_id": 1, "answer": "x"}))


def test_answers_are_rejected_and_reviews_need_no_category(tmp_path: Path) -> None:
    """LLaVA's answers have a `text` like Vicuna's reviews, but no `score`; metrics have no unnamed group."""
    answers = write(
        tmp_path / "answers.jsonl", {"question_id": 1, "prompt": "What?", "text": "8 9"}
    )
    with pytest.raises(InputError, match=r"is an answer and no review; .*evaluate judge"):
        LLAVA_BENCH.score_answer_files(Sources(), answers)
    reviews = write(tmp_path / "reviews.jsonl", {"question_id": 1, "text": "8 4", "score": [8, 4]})
    score = LLAVA_BENCH.score_answer_files(Sources(), reviews)
    assert score.metrics["overall"] == 50.0
    assert "" not in score.metrics
    assert score.by_category == {}


def test_a_file_of_both_orders_must_have_both_of_every_answer(tmp_path: Path) -> None:
    """Otherwise a missing verdict would leave a score of one order among means of two."""
    lines = [
        {"question_id": number, "content": "8 4", "order": order}
        for number in (1, 2)
        for order in ("reference first", "candidate first")
    ]
    assert (
        LLAVA_BENCH.score_answer_files(Sources(), write(tmp_path / "all.jsonl", *lines)).metrics[
            "num_valid"
        ]
        == 2
    )
    with pytest.raises(InputError, match="both orders, but 1 answers in one alone: 2"):
        LLAVA_BENCH.score_answer_files(Sources(), write(tmp_path / "lost.jsonl", *lines[:-1]))
