"""VQA's soft accuracy is what leaving out each person once makes of it."""

import pytest

from caldera.evaluation.vqa_accuracy import (
    m4c_soft_accuracy,
    vizwiz_soft_accuracy,
    vqa_soft_accuracy,
)


@pytest.mark.parametrize(
    ("agreeing", "worth"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)]
)
def test_ten_people_make_steps_of_three_tenths(agreeing: int, worth: float) -> None:
    """By hand: with three that agree, seven times 3/3 and three times 2/3 make 9 of 10."""
    said = ["dog"] * agreeing + [f"other {number}" for number in range(10 - agreeing)]
    for score in (vqa_soft_accuracy, m4c_soft_accuracy, vizwiz_soft_accuracy):
        assert score("dog", said) == pytest.approx(worth)


def test_vqa_changes_nothing_where_all_agree() -> None:
    """A full stop is forgiven only where people disagree."""
    assert vqa_soft_accuracy("Yes.", ["yes"] * 10) == 0
    assert vqa_soft_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1
    assert vqa_soft_accuracy(" yes\n", ["yes"] * 10) == 1


def test_vqa_puts_what_people_said_into_form_too() -> None:
    """"Two", "2" and "the two" are the same answer."""  # fmt: skip
    assert vqa_soft_accuracy("two", ["Two", "2", "the two", "2."] + ["three"] * 6) == 1


def test_vizwiz_takes_what_people_said_as_it_is() -> None:
    """An answer loses its article, the people's answer does not."""
    assert vizwiz_soft_accuracy("the dog", ["the dog"] * 10) == 0
    assert vizwiz_soft_accuracy("the dog", ["dog"] * 10) == 1


def test_m4c_always_puts_both_into_form() -> None:
    """Also where all people said the same."""
    assert m4c_soft_accuracy("Nine.", ["nine"] * 10) == 1
    assert m4c_soft_accuracy("macys", ["Macy's"] * 10) == 0
