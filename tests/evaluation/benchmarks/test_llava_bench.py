"""LLaVA-Bench: published metrics from the stored reviews, and judge cases from the official files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import InputError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.registry import get_benchmark
from caldera.evaluation.judging.protocols import DESCRIPTION, FIVE_SENTENCES

WILD, COCO = get_benchmark("llava-bench"), get_benchmark("llava-bench-coco")


@pytest.mark.parametrize(
    ("run", "overall", "conv", "detail", "complex_"),
    [(1, 64.8, 59.3, 47.7, 77.6), (2, 65.3, 59.0, 48.5, 78.8), (3, 66.3, 59.0, 50.8, 79.6)],
)
def test_the_official_reviews_give_the_published_figures(
    third_party: Path, run: int, overall: float, conv: float, detail: float, complex_: float
) -> None:
    """Each of LLaVA-1.5-7B's three runs; every verdict is parsed as stored."""
    folder = third_party / "llava_bench_wild"
    sources = Sources(questions=folder / "questions.jsonl")
    metrics = WILD.score_answer_files(
        sources, folder / f"reviews/llava-v1.5-7b-eval{run}.jsonl"
    ).metrics
    values = [metrics[name] for name in ("overall", "conv", "detail", "complex")]
    assert values == [overall, conv, detail, complex_]
    assert (metrics["num_valid"], metrics["num_invalid"]) == (60, 0)
    assert (metrics["num_different"], metrics["official_unread"]) == (0, 0)


def test_a_folder_of_reviews_gives_mean_and_spread(third_party: Path) -> None:
    """All 180 verdicts, the mean of the three runs and their standard deviation."""
    metrics = WILD.score_answer_files(Sources(), third_party / "llava_bench_wild/reviews").metrics
    assert metrics["runs"] == [64.8, 65.3, 66.3]
    assert (metrics["overall"], metrics["std"]["overall"]) == (65.5, 0.7)
    assert (metrics["num_valid"], metrics["num_different"]) == (180, 0)


def test_the_official_questions_are_loaded(third_party: Path) -> None:
    """60 and 90 questions by category, and the context of each image for the judge."""
    wild, coco = third_party / "llava_bench_wild", third_party / "llava_bench_coco"
    items = WILD.load(Sources(questions=wild / "questions.jsonl")).items
    assert Counter(item.category for item in items) == {"conv": 17, "detail": 15, "complex": 28}
    assert items[0].conversation.images == ("001.jpg",)
    assert WILD.judging is not None
    assert COCO.judging is not None
    sources = Sources(
        questions=coco / "qa90_questions.jsonl",
        annotations=coco / "qa90_gpt4_answer.jsonl",
        captions=coco / "caps_boxes_coco2014_val_80.jsonl",
    )
    cases = COCO.judging.build_cases(sources, {str(number): "An answer." for number in range(90)})
    assert len(cases) == 90
    captions, _, boxes = cases[0].context.partition("\n\n")
    assert len(captions.splitlines()) == 5
    assert boxes.splitlines()[0].split(": [")[0] in ("suitcase", "person")
    assert cases[0].context_description == FIVE_SENTENCES
    sources = Sources(
        questions=wild / "questions.jsonl",
        annotations=wild / "answers_gpt4.jsonl",
        captions=wild / "context.jsonl",
    )
    first = WILD.judging.build_cases(sources, {str(number): "An answer." for number in range(60)})[
        0
    ]
    assert first.context == "An aerial view of Diamond Head in the Hawaiian Islands."
    assert (first.context_description, first.reference) == (
        DESCRIPTION,
        "The famous sight in the photo is Diamond Head.",
    )


def write(path: Path, *reviews: dict[str, Any]) -> Path:
    """Write a review file."""
    path.write_text("".join(f"{json.dumps(review)}\n" for review in reviews))
    return path


def test_a_stored_minus_one_is_parsed_again(tmp_path: Path) -> None:
    """Scores stored as (-1, -1) count if the text has a pair, else the answer is skipped and counted."""
    path = write(
        tmp_path / "reviews.jsonl",
        {
            "question_id": 1,
            "category": "llava_bench_conv",
            "content": "8, 4\nWell.",
            "tuple": [-1, -1],
        },
        {"question_id": 2, "category": "llava_bench_conv", "content": "10 5", "tuple": [10.0, 5.0]},
        {"question_id": 3, "category": "llava_bench_conv", "content": "Sorry.", "tuple": [-1, -1]},
    )
    score = WILD.score_answer_files(Sources(), path)
    assert score.metrics["overall"] == score.metrics["conv"] == 50.0
    assert score.metrics["num_different"] == 2
    assert score.metrics["official_unread"] == 2
    assert score.unparsed == {"3": "no scores in the first line"}
    assert score.metrics["valid"] is False


def test_missing_reviews_and_answers_are_listed(tmp_path: Path) -> None:
    """If questions are given, no review may be missing or unknown."""
    questions = write(
        tmp_path / "questions.jsonl",
        *(
            {"question_id": number, "image": "1.jpg", "text": "?", "category": "conv"}
            for number in (1, 2)
        ),
    )
    lines = ({"question_id": number, "content": "8 4"} for number in (2, 5))
    reviews = write(tmp_path / "reviews.jsonl", *lines)
    with pytest.raises(InputError, match=r"no answer: .*1.*belong to no item: .*5"):
        WILD.score_answer_files(Sources(questions=questions), reviews)
    assert WILD.judging is not None
    references = write(tmp_path / "references.jsonl", {"question_id": 1, "text": "A."})
    context = write(tmp_path / "context.jsonl", {"image": "1.jpg", "caption": "A thing."})
    sources = Sources(questions=questions, annotations=references, captions=context)
    with pytest.raises(InputError, match=r"references\.jsonl lacks 1 entries: 2"):
        WILD.judging.build_cases(sources, {"1": "x", "2": "y"})
