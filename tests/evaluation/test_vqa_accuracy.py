"""VQA's soft accuracy and the official normalizations of answers, with their oddities."""

import json
from pathlib import Path

import pytest

from caldera.evaluation.vqa_accuracy import (
    m4c_soft_accuracy,
    normalize_submission,
    normalize_vqa,
    vizwiz_soft_accuracy,
    vqa_soft_accuracy,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("the  Red\nDog", "red dog"),
        ("A cat, an owl", "cat owl"),  # a comma next to a space is not replaced by one
        ("black,white", "black white"),
        ("red/white and blue/ green", "redwhite and blue green"),
        ("1,000", "1000"),
        (
            "1,000 well-made",
            "1000 wellmade",
        ),  # a number with a comma changes the rule for other marks
        ("well-made", "well made"),
        ("$3.50", "$3.50"),
        ("3.", "3"),
        ("no.5", "no.5"),
        ("a.m.", "am"),
        ("12:30", "12:30"),
        ("None", "0"),
        ("twenty two", "twenty 2"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),
        ("im", "im"),
        ("somebody'd", "somebodyd"),
        ("", ""),
        (" ?! ", ""),
        ("the", ""),
        ("." * 40, "." * 8),  # at most 32 periods are removed
    ],
)
def test_vqa_v2_normalization(answer: str, expected: str) -> None:
    """Each rule and each oddity, worked by hand."""
    assert normalize_vqa(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Macy's", "macy 's"), ("black,white", "blackwhite"), ("1,000 well-made", "1000 well made")],
)
def test_evalai_splits_possessives_and_removes_commas_first(answer: str, expected: str) -> None:
    """It differs from VQA v2's own evaluator."""
    assert normalize_submission(answer) == expected
    assert normalize_vqa(answer) != expected


def test_normalization_has_no_state() -> None:
    """A repeated word is normalized in the same way."""
    first = [normalize_vqa(word) for word in ("one", "onion", "a", "none")]
    assert [normalize_vqa(word) for word in ("one", "onion", "a", "none")] == first


def test_a_thousand_real_answers_are_normalized_as_officially(third_party: Path) -> None:
    """Raw answers and the official processor's output for each."""
    lines = (third_party / "vqa_normalisation" / "pairs_1000.jsonl").read_text("utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    assert len(pairs) == 1000
    assert [normalize_submission(pair["raw"]) for pair in pairs] == [
        pair["normalised"] for pair in pairs
    ]


@pytest.mark.parametrize(
    ("agreeing", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)]
)
def test_ten_people_give_steps_of_three_tenths(agreeing: int, accuracy: float) -> None:
    """Worked by hand: with three that agree, seven times 3/3 and three times 2/3 are 9 of 10."""
    answers = ["dog"] * agreeing + [f"other {number}" for number in range(10 - agreeing)]
    for score in (vqa_soft_accuracy, m4c_soft_accuracy, vizwiz_soft_accuracy):
        assert score("dog", answers) == pytest.approx(accuracy)


def test_vqa_normalizes_nothing_if_all_agree() -> None:
    """A full stop is accepted only if people disagree."""
    assert vqa_soft_accuracy("Yes.", ["yes"] * 10) == 0
    assert vqa_soft_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1
    assert vqa_soft_accuracy(" yes\n", ["yes"] * 10) == 1


def test_vqa_normalizes_human_answers_too() -> None:
    """"Two", "2" and "the two" are the same answer."""  # fmt: skip
    assert vqa_soft_accuracy("two", ["Two", "2", "the two", "2."] + ["three"] * 6) == 1


def test_vizwiz_does_not_normalize_human_answers() -> None:
    """The article of the answer is removed, that of human answers is not."""
    assert vizwiz_soft_accuracy("the dog", ["the dog"] * 10) == 0
    assert vizwiz_soft_accuracy("the dog", ["dog"] * 10) == 1


def test_m4c_always_normalizes_both() -> None:
    """This includes equal human answers."""
    assert m4c_soft_accuracy("Nine.", ["nine"] * 10) == 1
    assert m4c_soft_accuracy("macys", ["Macy's"] * 10) == 0
