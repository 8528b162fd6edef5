"""LLaVA-Bench: published figures come from the stored reviews, and other layouts are refused with the ids."""

import json
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import InputError
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.benchmarks.registry import get_benchmark
from caldera.evaluation.judging.protocols import DESCRIPTION, FIVE_SENTENCES
from caldera.evaluation.judging.review_files import read_reviews

WILD, COCO = get_benchmark("llava-bench"), get_benchmark("llava-bench-coco")


@pytest.mark.parametrize(
    ("run", "overall", "conv", "detail", "complex_"),
    [(1, 64.8, 59.3, 47.7, 77.6), (2, 65.3, 59.0, 48.5, 78.8), (3, 66.3, 59.0, 50.8, 79.6)],
)
def test_the_official_reviews_give_the_published_figures(
    third_party: Path, run: int, overall: float, conv: float, detail: float, complex_: float
) -> None:
    """Each of LLaVA-1.5-7B's three runs, every verdict read as it is stored."""
    folder = third_party / "llava_bench_wild"
    sources = Sources(questions=folder / "questions.jsonl")
    figures = WILD.score_answer_files(
        sources, folder / f"reviews/llava-v1.5-7b-eval{run}.jsonl"
    ).metrics
    told = [figures[name] for name in ("overall", "conv", "detail", "complex")]
    assert told == [overall, conv, detail, complex_]
    assert (figures["num_valid"], figures["num_invalid"]) == (60, 0)
    assert (figures["num_different"], figures["official_unread"]) == (0, 0)


def test_a_folder_of_reviews_gives_mean_and_spread(third_party: Path) -> None:
    """180 of 180 verdicts, the mean of the three runs and how far they lie apart."""
    figures = WILD.score_answer_files(Sources(), third_party / "llava_bench_wild/reviews").metrics
    assert figures["runs"] == [64.8, 65.3, 66.3]
    assert (figures["overall"], figures["std"]["overall"]) == (65.5, 0.7)
    assert (figures["num_valid"], figures["num_different"]) == (180, 0)


def test_the_official_questions_are_read(third_party: Path) -> None:
    """60 and 90 questions by category, and what a judge is told about each image."""
    wild, coco = third_party / "llava_bench_wild", third_party / "llava_bench_coco"
    items = WILD.load(Sources(questions=wild / "questions.jsonl")).items
    assert [
        sum(item.category == kind for item in items) for kind in ("conv", "detail", "complex")
    ] == [
        17,
        15,
        28,
    ]
    assert items[0].conversation.images == ("001.jpg",)
    assert WILD.judging is not None
    assert COCO.judging is not None
    sources = Sources(
        questions=coco / "qa90_questions.jsonl",
        annotations=coco / "qa90_gpt4_answer.jsonl",
        captions=coco / "caps_boxes_coco2014_val_80.jsonl",
    )
    cases = COCO.judging.build_cases(sources, {str(at): "An answer." for at in range(90)})
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
    first = WILD.judging.build_cases(sources, {str(at): "An answer." for at in range(60)})[0]
    assert first.context == "An aerial view of Diamond Head in the Hawaiian Islands."
    assert (first.context_description, first.reference) == (
        DESCRIPTION,
        "The famous sight in the photo is Diamond Head.",
    )


def write(path: Path, *reviews: dict[str, Any]) -> Path:
    """Write a review file."""
    path.write_text("".join(f"{json.dumps(review)}\n" for review in reviews))
    return path


def test_a_stored_minus_one_is_read_anew(tmp_path: Path) -> None:
    """What the official script stored as (-1, -1) counts where the text has a pair, else it is left out and counted."""
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


def test_reviews_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """An answer judged twice, runs about other answers, and what is no review: each with its ids or place."""
    one = {"question_id": 1, "category": "conv", "content": "8 4"}
    with pytest.raises(InputError, match="judges 1 answers more than once: 1; keep one"):
        read_reviews(write(tmp_path / "twice.jsonl", one, one))
    folder = tmp_path / "runs"
    folder.mkdir()
    write(folder / "a.jsonl", one)
    write(folder / "b.jsonl", one | {"question_id": 2})
    with pytest.raises(InputError, match="do not judge the same answers: only one has 1, 2"):
        read_reviews(folder)
    with pytest.raises(InputError, match="has no content"):
        read_reviews(write(tmp_path / "other.jsonl", {"question_id": 1, "answer": "x"}))


def test_missing_reviews_and_answers_are_listed(tmp_path: Path) -> None:
    """With the questions at hand nothing may be missing or foreign."""
    questions = write(
        tmp_path / "questions.jsonl",
        *({"question_id": at, "image": "1.jpg", "text": "?", "category": "conv"} for at in (1, 2)),
    )
    given = ({"question_id": at, "content": "8 4"} for at in (2, 5))
    reviews = write(tmp_path / "reviews.jsonl", *given)
    with pytest.raises(InputError, match=r"no answer: .*1.*belong to no item: .*5"):
        WILD.score_answer_files(Sources(questions=questions), reviews)
    assert WILD.judging is not None
    truth = write(tmp_path / "truth.jsonl", {"question_id": 1, "text": "A."})
    context = write(tmp_path / "context.jsonl", {"image": "1.jpg", "caption": "A thing."})
    sources = Sources(questions=questions, annotations=truth, captions=context)
    with pytest.raises(InputError, match=r"truth\.jsonl has nothing about 1: 2"):
        WILD.judging.build_cases(sources, {"1": "x", "2": "y"})


def test_answers_are_no_reviews_and_reviews_need_no_category(tmp_path: Path) -> None:
    """LLaVA's answers have a `text` as Vicuna's reviews do, but no `score`; figures have no nameless group."""
    answers = write(
        tmp_path / "answers.jsonl", {"question_id": 1, "prompt": "What?", "text": "8 9"}
    )
    with pytest.raises(InputError, match=r"is an answer and no review; .*evaluate judge"):
        WILD.score_answer_files(Sources(), answers)
    reviews = write(tmp_path / "reviews.jsonl", {"question_id": 1, "text": "8 4", "score": [8, 4]})
    score = WILD.score_answer_files(Sources(), reviews)
    assert score.metrics["overall"] == 50.0
    assert "" not in score.metrics
    assert score.by_category == {}


def test_a_file_of_both_orders_has_both_of_every_answer(tmp_path: Path) -> None:
    """A verdict that was lost would else leave a score in one order among means of two."""
    lines = [
        {"question_id": number, "content": "8 4", "order": order}
        for number in (1, 2)
        for order in ("reference first", "candidate first")
    ]
    assert (
        WILD.score_answer_files(Sources(), write(tmp_path / "all.jsonl", *lines)).metrics["num_valid"]
        == 2
    )
    with pytest.raises(InputError, match="both orders, but 1 answers in one alone: 2"):
        WILD.score_answer_files(Sources(), write(tmp_path / "lost.jsonl", *lines[:-1]))
