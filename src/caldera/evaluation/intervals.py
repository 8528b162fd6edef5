"""Marks of items in, how sure a score is out: 95 % intervals, and whether two runs on the same items differ.

Questions about one image are not independent: who cannot make it out is wrong about it many times. So where items
share images it is images that are drawn again, each with all its items (a cluster bootstrap).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.959963984540054
"""Standard deviations on either side of the mean that hold 95 % of a normal distribution."""

RESAMPLES = 4000
"""Draws of a bootstrap; its ends then vary by a few hundredths of the interval's width from seed to seed."""

_MAX_CELLS = 10_000_000
"""Counts of distinct rows that are held at once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a score lies with 95 % confidence, were the items drawn anew from the same source."""

    low: float
    high: float
    method: str


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much a second run's mean mark is above a first's on the same items."""

    value: float
    low: float
    high: float
    wins: int
    """Items on which the second run has the higher mark."""

    losses: int
    p_value: float
    """Probability of so unequal a split of the items that differ, were neither run better; McNemar's exact test."""


def wilson(right: int, total: int) -> Interval:
    """Return Wilson's score interval of a share (E. B. Wilson, 1927), which also holds near 0 and 1.

    Args:
        right: Items that count.
        total: All items, at least one.
    """
    share, spread = right / total, _Z**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(min(low, share), max(high, share), "Wilson")  # rounding may pass 0 or 1


def bootstrap(
    marks: Sequence[float], groups: Sequence[str] | None = None, seed: int = 0
) -> Interval:
    """Return the percentile bootstrap interval of a mean (B. Efron, 1979); groups are drawn whole."""
    terms = np.stack([np.asarray(marks, dtype=np.float64), np.ones(len(marks))], axis=1)
    return statistic_interval(terms, _ratio, groups, seed)


def mean_interval(marks: Sequence[float], groups: Sequence[str] | None = None) -> Interval:
    """Return the interval of a mean.

    Args:
        marks: Of items.
        groups: What each item is about; items of one group are not independent.

    Returns:
        Where no two items share a group Wilson's if every mark is 0 or 1, else the bootstrap's. Else the bootstrap over
        groups; but where all items are right, or all wrong, no draw differs from another, and it is Wilson's of groups.
    """
    shares = all(mark in (0.0, 1.0) for mark in marks)
    if groups is None or len(set(groups)) == len(groups):
        return wilson(round(sum(marks)), len(marks)) if shares else bootstrap(marks)
    if shares and len(set(marks)) == 1:
        found = wilson(round(marks[0]) * len(set(groups)), len(set(groups)))
        return Interval(found.low, found.high, f"Wilson over {len(set(groups))} clusters")
    return bootstrap(marks, groups)


def statistic_interval(
    terms: np.ndarray,
    figure: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Interval:
    """Return the percentile bootstrap interval of a figure that is made of sums over items, such as F1.

    Args:
        terms: What each item adds to each sum, (items, sums).
        figure: Sums, (draws, sums), to the figure of each draw, (draws,).
        groups: What each item is about; groups are drawn whole. Items are drawn where it is None.
        seed: Of the draws.
    """
    method = "bootstrap"
    if groups is not None:
        names, member = np.unique(np.asarray(groups), return_inverse=True)
        of_groups = np.zeros((len(names), terms.shape[1]))
        np.add.at(of_groups, member, terms)
        terms, method = of_groups, f"bootstrap over {len(names)} clusters"
    low, high = np.percentile(figure(_resampled_sums(terms, seed)), [2.5, 97.5])
    return Interval(float(low), float(high), method)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Difference:
    """Compare two runs by their marks of the same items, in the same order: paired bootstrap and McNemar's test.

    The bootstrap draws groups where there are some; McNemar's test takes items as independent.
    """
    gaps = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    found = bootstrap(list(gaps), groups, seed)
    low, high = found.low, found.high
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    return Difference(float(gaps.mean()), low, high, better, worse, mcnemar(better, worse))


def mcnemar(better: int, worse: int) -> float:
    """Return the two-sided exact probability of a split at least so unequal (Q. McNemar, 1947)."""
    total, fewer = better + worse, min(better, worse)
    ways = of_one = 1
    for count in range(fewer):  # each out of the last: these numbers have thousands of digits
        of_one = of_one * (total - count) // (count + 1)
        ways += of_one
    return min(1.0, 2 * ways / 2**total)


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Return the means of draws from the sums of marks and of items, (draws, 2)."""
    return sums[:, 0] / sums[:, 1]


def _resampled_sums(terms: np.ndarray, seed: int) -> np.ndarray:
    """Return the sums over samples drawn again, (draws, sums), of terms, (rows, sums).

    Drawing rows with replacement is drawing how often each distinct row occurs, which is what is done, some draws at a
    time.
    """
    distinct, counts = np.unique(terms, axis=0, return_counts=True)
    generator, total = np.random.default_rng(seed), len(terms)
    at_once = max(1, _MAX_CELLS // len(distinct))
    sizes = [min(at_once, RESAMPLES - at) for at in range(0, RESAMPLES, at_once)]
    return np.concatenate(
        [generator.multinomial(total, counts / total, size=size) @ distinct for size in sizes]
    )
