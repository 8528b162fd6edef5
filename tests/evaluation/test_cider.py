"""CIDEr-D agrees with its definition worked by hand, and behaves as a measure of captions should."""

import math

import pytest

from caldera.evaluation.caption_metrics import cider_d

REFERENCES = {
    "1": ["a dog on a beach", "a dog runs on the sand"],
    "2": ["two cats in a room", "cats sleep in a room"],
    "3": ["a red car", "a car on a street"],
}


def test_a_one_word_case_worked_by_hand() -> None:
    """One-word captions: only 1-grams count, so the score is 10/4 times the cosine, which is 1 or 0."""
    references = {"1": ["dog"], "2": ["cat"]}
    assert cider_d({"1": "dog", "2": "cat"}, references) == pytest.approx(2.5)
    assert cider_d({"1": "dog", "2": "dog"}, references) == pytest.approx(1.25)


def test_a_two_word_case_worked_by_hand() -> None:
    """Clipped products of idf weights over norms, with the punishment for length."""
    references = {"1": ["red dog"], "2": ["red cat"], "3": ["boat"]}
    red, dog = math.log(3 / 2), math.log(3)
    unigrams = red * red / (red * math.hypot(red, dog))
    expected = 10 / 4 * unigrams * math.exp(-1 / (2 * 36))
    scores = cider_d({"1": "red", "2": "red cat", "3": "boat"}, references)
    two_words = 10 / 4 * 2
    assert scores == pytest.approx((expected + two_words + 2.5) / 3)


def test_what_people_wrote_scores_highest() -> None:
    """A reference beats a changed one, which beats another image's."""
    own = cider_d({key: texts[0] for key, texts in REFERENCES.items()}, REFERENCES)
    part = cider_d({"1": "a dog", "2": "two cats", "3": "a red bus"}, REFERENCES)
    other = cider_d(
        {"1": "two cats in a room", "2": "a red car", "3": "a dog on a beach"}, REFERENCES
    )
    assert own > part > other


def test_repeating_a_word_does_not_pay() -> None:
    """The D variant clips repeated n-grams and punishes length."""
    once = cider_d({"1": "a dog", "2": "x", "3": "x"}, REFERENCES)
    often = cider_d({"1": "a dog dog dog dog dog dog", "2": "x", "3": "x"}, REFERENCES)
    assert often < once


def test_an_empty_caption_scores_nothing() -> None:
    """Nothing said, nothing gained, and no division by zero."""
    assert cider_d(dict.fromkeys(REFERENCES, ""), REFERENCES) == 0
