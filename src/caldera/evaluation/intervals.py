"""Marks of items in, how sure a score is out: 95 % intervals, and whether two runs on the same items differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.959963984540054
"""Standard deviations on either side of the mean that hold 95 % of a normal distribution."""

RESAMPLES = 4000
"""Draws of a bootstrap; its ends then vary by a few hundredths of the interval's width from seed to seed."""

_AT_ONCE = 100
"""Of these, at a time: with a mark of its own for each of 40,000 items, all together would take gigabytes."""


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
    better: int
    """Items on which the second run has the higher mark."""

    worse: int
    chance: float
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


def bootstrap(marks: Sequence[float], seed: int = 0) -> Interval:
    """Return the percentile bootstrap interval of a mean (B. Efron, 1979).

    Drawing items with replacement is drawing how often each distinct mark occurs, which is what is done.
    """
    values, counts = np.unique(np.asarray(marks, dtype=np.float64), return_counts=True)
    low, high = _percentiles(values, counts, seed)
    return Interval(low, high, "bootstrap")


def interval_of(marks: Sequence[float]) -> Interval:
    """Return Wilson's interval where every mark is 0 or 1, else the bootstrap's."""
    if all(mark in (0.0, 1.0) for mark in marks):
        return wilson(round(sum(marks)), len(marks))
    return bootstrap(marks)


def difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference:
    """Compare two runs by their marks of the same items, in the same order: paired bootstrap and McNemar's test."""
    gaps = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    values, counts = np.unique(gaps, return_counts=True)
    low, high = _percentiles(values, counts, seed)
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    return Difference(float(gaps.mean()), low, high, better, worse, mcnemar(better, worse))


def mcnemar(better: int, worse: int) -> float:
    """Return the two-sided exact probability of a split at least so unequal (Q. McNemar, 1947)."""
    total, fewer = better + worse, min(better, worse)
    ways = of_one = 1
    for count in range(
        fewer
    ):  # each number of ways out of the last, as they have thousands of digits
        of_one = of_one * (total - count) // (count + 1)
        ways += of_one
    return min(1.0, 2 * ways / 2**total)


def _percentiles(values: np.ndarray, counts: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the middle 95 % of the means of samples drawn again."""
    total = int(counts.sum())
    rng, means = np.random.default_rng(seed), np.empty(RESAMPLES)
    for at in range(0, RESAMPLES, _AT_ONCE):
        drawn = rng.multinomial(total, counts / total, size=_AT_ONCE)  # (draws, distinct marks)
        means[at : at + _AT_ONCE] = drawn @ values / total
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
