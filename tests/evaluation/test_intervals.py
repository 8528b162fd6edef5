"""Confidence intervals: published values, examples worked by hand, and properties of all scores."""

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
    ("num_correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)  # fmt: skip
def test_wilson_gives_the_published_intervals(
    num_correct: int, total: int, low: float, high: float
) -> None:
    """The four examples of Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    interval = wilson(num_correct, total)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_proportion_and_stays_between_0_and_1(counts: tuple[int, int]) -> None:
    """This includes proportions of 0 and 1."""
    num_correct, total = counts
    interval = wilson(num_correct, total)
    assert 0 <= interval.low <= num_correct / total <= interval.high <= 1


def test_the_bootstrap_of_a_proportion_is_near_the_normal_interval() -> None:
    """For 400 scores, half of them 1: 0.5 plus or minus 1.96 x 0.025; it depends on the seed alone."""
    interval = bootstrap([0.0, 1.0] * 200)
    assert (interval.low, interval.high) == pytest.approx((0.451, 0.549), abs=0.006)
    assert interval == bootstrap([0.0, 1.0] * 200)
    assert interval != bootstrap([0.0, 1.0] * 200, seed=1)


def test_scores_determine_the_method() -> None:
    """Binary scores get Wilson's interval, fractional scores the bootstrap's."""
    assert mean_interval([1.0, 0.0, 1.0]).method == "Wilson"
    assert mean_interval([1.0, 0.3, 1.0]).method == "bootstrap"


@pytest.mark.parametrize(
    ("wins", "losses", "p_value"), [(9, 1, 22 / 1024), (0, 0, 1.0), (4, 4, 1.0), (0, 6, 2 / 64)]
)
def test_mcnemar_worked_by_hand(wins: int, losses: int, p_value: float) -> None:
    """Two tails of the binomial distribution."""
    assert mcnemar(wins, losses) == pytest.approx(p_value)


def test_a_difference_is_paired() -> None:
    """Two runs of equal accuracy differ significantly if the second is correct wherever the first is."""
    first = [0.0, 1.0] * 50
    second = [1.0, 1.0, *first[2:]]
    difference = paired_difference(first, second)
    assert difference.value == pytest.approx(0.01)
    assert (difference.wins, difference.losses) == (1, 0)
    assert difference.low == 0
    assert difference.high < 0.05, "the interval of two unpaired runs would reach to 0.15"
    assert paired_difference(first, first).p_value == 1.0
    swapped = paired_difference(second, first)
    assert swapped.value == pytest.approx(-0.01)
    assert (swapped.wins, swapped.losses) == (0, 1)


def test_mcnemar_is_symmetric_and_sums_to_one() -> None:
    """The probabilities of all splits of a number of items sum to 1; large numbers do not overflow."""
    cumulative = [mcnemar(fewer, 31 - fewer) for fewer in range(16)]
    steps = [after - before for before, after in itertools.pairwise([0.0, *cumulative])]
    assert steps == pytest.approx([2 * math.comb(31, fewer) / 2**31 for fewer in range(16)])
    assert mcnemar(9_000, 9_400) == mcnemar(9_400, 9_000) == pytest.approx(0.00325, abs=2e-4)


def test_equal_items_of_one_image_count_as_one() -> None:
    """Five equal scores for each of 100 images give the interval of 100 scores, not of 500."""
    scores = [float(index // 5 % 2) for index in range(500)]
    groups = [f"{index // 5}.jpg" for index in range(500)]
    interval = mean_interval(scores, groups)
    assert interval.method == "bootstrap over 100 clusters"
    assert (interval.low, interval.high) == pytest.approx((0.402, 0.598), abs=0.011)
    expected = bootstrap(scores[::5])
    assert (interval.low, interval.high) == (expected.low, expected.high)
    assert mean_interval(scores).low > 0.45
    difference = paired_difference(scores, [0.5] * 500, groups)
    assert difference.low < -0.09 < 0.09 < difference.high


def test_groups_of_one_change_nothing() -> None:
    """If no two items share an image, the interval is that of items; if all scores are 1, it is Wilson's."""
    scores = [0.3, 0.9, 0.2, 1.0, 0.0]
    groups = [str(index) for index in range(5)]
    assert mean_interval(scores, groups) == mean_interval(scores)
    assert mean_interval([1.0, 0.0], ["a", "b"]).method == "Wilson"
    interval = mean_interval([1.0] * 6, ["a", "a", "b", "b", "c", "c"])
    expected = wilson(3, 3)
    assert (interval.low, interval.high, interval.method) == (
        expected.low,
        1.0,
        "Wilson over 3 clusters",
    )


def test_a_metric_of_sums_has_the_same_interval_as_a_mean() -> None:
    """The mean as a ratio of sums has the bootstrap's own interval."""
    scores = np.random.default_rng(3).random(40)
    summands = np.stack([scores, np.ones(40)], axis=1)
    interval = statistic_interval(summands, lambda sums: sums[:, 0] / sums[:, 1])
    assert interval == bootstrap(list(scores))
    doubled = statistic_interval(summands, lambda sums: 2 * sums[:, 0] / sums[:, 1])
    assert (doubled.low, doubled.high) == (2 * interval.low, 2 * interval.high)


def test_resampling_in_chunks_gives_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk size changes no number."""
    scores = list(np.random.default_rng(3).random(40))
    expected = bootstrap(scores)
    monkeypatch.setattr(intervals, "_MAX_CELLS", 40 * 7)
    assert bootstrap(scores) == expected
