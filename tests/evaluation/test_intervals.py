"""How sure a score is: against published values, worked examples, and what must hold whatever the marks are."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.evaluation import intervals
from caldera.evaluation.intervals import (
    bootstrap,
    mcnemar,
    mean_interval,
    paired_difference,
    statistic_interval,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)  # fmt: skip
def test_wilson_gives_the_published_intervals(
    right: int, total: int, low: float, high: float
) -> None:
    """The four examples of Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    interval = wilson(right, total)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_between_0_and_1(counts: tuple[int, int]) -> None:
    """Also where all or none are right."""
    right, total = counts
    interval = wilson(right, total)
    assert 0 <= interval.low <= right / total <= interval.high <= 1


def test_the_bootstrap_of_shares_is_near_the_normal_interval() -> None:
    """Of 400 marks, half of them right: 0.5 plus or minus 1.96 x 0.025; and a seed gives it again."""
    interval = bootstrap([0.0, 1.0] * 200)
    assert (interval.low, interval.high) == pytest.approx((0.451, 0.549), abs=0.006)
    assert interval == bootstrap([0.0, 1.0] * 200)
    assert interval != bootstrap([0.0, 1.0] * 200, seed=1)


def test_marks_choose_the_method() -> None:
    """Shares of right answers get Wilson's interval, soft marks the bootstrap's."""
    assert mean_interval([1.0, 0.0, 1.0]).method == "Wilson"
    assert mean_interval([1.0, 0.3, 1.0]).method == "bootstrap"


@pytest.mark.parametrize(
    ("better", "worse", "chance"), [(9, 1, 22 / 1024), (0, 0, 1.0), (4, 4, 1.0), (0, 6, 2 / 64)]
)
def test_mcnemar_counts_the_ways(better: int, worse: int, chance: float) -> None:
    """Two tails of a fair coin's throws, worked by hand."""
    assert mcnemar(better, worse) == pytest.approx(chance)


def test_a_difference_is_paired() -> None:
    """Two runs that are right half of the time each differ surely if the second is right wherever the first is."""
    first = [0.0, 1.0] * 50
    second = [1.0, 1.0, *first[2:]]
    found = paired_difference(first, second)
    assert found.value == pytest.approx(0.01)
    assert (found.wins, found.losses) == (1, 0)
    assert found.low == 0
    assert found.high < 0.05, "the interval of two unpaired runs would reach to 0.15"
    assert paired_difference(first, first).p_value == 1.0
    swapped = paired_difference(second, first)
    assert swapped.value == pytest.approx(-0.01)
    assert (swapped.wins, swapped.losses) == (0, 1)


def test_mcnemar_is_symmetric_and_sums_to_one() -> None:
    """All splits of a number of items together have probability 1; so have splits of numbers that are large."""
    below = [mcnemar(fewer, 31 - fewer) for fewer in range(16)]
    steps = [after - before for before, after in itertools.pairwise([0.0, *below])]
    assert steps == pytest.approx([2 * math.comb(31, fewer) / 2**31 for fewer in range(16)])
    assert mcnemar(9_000, 9_400) == mcnemar(9_400, 9_000) == pytest.approx(0.00325, abs=2e-4)


def test_items_about_one_image_count_as_one_where_they_agree() -> None:
    """Five equal marks about each of 100 images are as sure as 100 marks, and less so than 500."""
    marks = [float(at // 5 % 2) for at in range(500)]
    groups = [f"{at // 5}.jpg" for at in range(500)]
    interval = mean_interval(marks, groups)
    assert interval.method == "bootstrap over 100 clusters"
    assert (interval.low, interval.high) == pytest.approx((0.402, 0.598), abs=0.011)
    alone = bootstrap(marks[::5])
    assert (interval.low, interval.high) == (alone.low, alone.high)
    assert mean_interval(marks).low > 0.45
    every = paired_difference(marks, [0.5] * 500, groups)
    assert every.low < -0.09 < 0.09 < every.high


def test_groups_of_one_change_nothing() -> None:
    """Where no two items share an image, the interval is that of items; where all are right, it is Wilson's."""
    marks = [0.3, 0.9, 0.2, 1.0, 0.0]
    lone = [str(at) for at in range(5)]
    assert mean_interval(marks, lone) == mean_interval(marks)
    assert mean_interval([1.0, 0.0], ["a", "b"]).method == "Wilson"
    found = mean_interval([1.0] * 6, ["a", "a", "b", "b", "c", "c"])
    expected = wilson(3, 3)
    assert (found.low, found.high, found.method) == (expected.low, 1.0, "Wilson over 3 clusters")


def test_a_figure_of_sums_is_drawn_whole() -> None:
    """The mean as a ratio of sums has the bootstrap's own interval, drawn in parts or at once; a seed repeats it."""
    marks = np.random.default_rng(3).random(40)
    terms = np.stack([marks, np.ones(40)], axis=1)
    found = statistic_interval(terms, lambda sums: sums[:, 0] / sums[:, 1])
    assert found == bootstrap(list(marks))
    doubled = statistic_interval(terms, lambda sums: 2 * sums[:, 0] / sums[:, 1])
    assert (doubled.low, doubled.high) == (2 * found.low, 2 * found.high)


def test_draws_in_parts_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory changes no number."""
    marks = list(np.random.default_rng(3).random(40))
    whole = bootstrap(marks)
    monkeypatch.setattr(intervals, "_CELLS", 40 * 7)
    assert bootstrap(marks) == whole
