"""Corpus BLEU is what counting by hand gives."""

import math

import pytest

from caldera.evaluation.caption_metrics import bleu


def test_the_example_of_the_paper_clips_repetition() -> None:
    """Papineni et al., section 2.1: of seven words "the", two count, as one reference says it twice."""
    candidates = {"1": "the the the the the the the"}
    references = {"1": ["The cat is on the mat.", "There is a cat on the mat."]}
    assert bleu(candidates, references)[0] == pytest.approx(2 / 7)


def test_counts_are_added_over_images_before_dividing() -> None:
    """By hand: 3 + 1 of 3 + 2 words and 2 + 0 of 2 + 1 pairs are right; 5 words against 3 + 4 are too few."""
    candidates = {"1": "a red dog", "2": "two cats"}
    references = {"1": ["a red dog"], "2": ["there are two birds", "x"]}
    brevity = math.exp(1 - 7 / 5)
    one, two, three, four = bleu(candidates, references)
    # to "two cats", "x" is nearer by a word than four words are by two: 3 + 1 words are asked for
    assert one == pytest.approx(4 / 5)
    assert two == pytest.approx(math.sqrt(4 / 5 * 2 / 3))
    assert three == pytest.approx((4 / 5 * 2 / 3 * 1 / 1) ** (1 / 3))
    assert four == pytest.approx(
        (4 / 5 * 2 / 3 * 1e-6) ** (1 / 4)
    )  # none of none counts as 1e-15 of 1e-9
    references["2"] = ["there are two birds"]
    assert bleu(candidates, references)[0] == pytest.approx(brevity * 4 / 5)


def test_of_two_references_as_near_the_shorter_counts() -> None:
    """Three words between two and four: no punishment for being short."""
    assert bleu({"1": "a b c"}, {"1": ["a b c d", "a b"]})[0] == pytest.approx(1)


def test_an_empty_caption_scores_nothing() -> None:
    """And divides by nothing."""
    assert bleu({"1": ""}, {"1": ["a dog"]}) == pytest.approx([0, 0, 0, 0])
