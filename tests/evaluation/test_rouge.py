"""ROUGE-L is what the longest common subsequence, found by hand, gives."""

import pytest

from caldera.evaluation.caption_metrics import mean_rouge_l, rouge_l


def test_the_example_of_the_paper() -> None:
    """Lin, section 3.1: "police kill the gunman" shares three words in order with "police killed the gunman"."""
    assert rouge_l("police kill the gunman", ["police killed the gunman"]) == pytest.approx(3 / 4)


def test_precision_and_recall_may_come_from_two_references() -> None:
    """By hand: the first has precision 2/2 and recall 2/5, the second 1/2 and 1/1."""
    score = (1 + 1.44) * 1 * 1 / (1 + 1.44 * 1)
    assert rouge_l("red dog", ["a red and big dog", "red"]) == pytest.approx(score)


def test_recall_weighs_more() -> None:
    """By hand: precision 1, recall 1/2, beta 1.2."""
    expected = 2.44 * 1 * 0.5 / (0.5 + 1.44 * 1)
    assert rouge_l("a dog", ["a dog runs fast"]) == pytest.approx(expected)


def test_order_counts() -> None:
    """One of two words stays in order when they are swapped."""
    assert rouge_l("dog red", ["red dog"]) == pytest.approx(1 / 2)


def test_the_mean_is_over_images_and_nothing_said_scores_nothing() -> None:
    """One right, one empty."""
    assert mean_rouge_l({"1": "a dog", "2": ""}, {"1": ["a dog"], "2": ["x"]}) == pytest.approx(0.5)
    assert rouge_l("", [""]) == 0
