"""Confidence intervals of scores (95 %), and comparison of two runs on the same items.

Questions about one image are not independent: a model that misinterprets it fails many of them. So if items share
images, images are resampled, each with all its items (a cluster bootstrap).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.959963984540054
"""Standard deviations on either side of the mean that contain 95 % of a normal distribution."""

RESAMPLES = 4000
"""Bootstrap resamples; the ends then vary by a few hundredths of the interval's width between seeds."""

_MAX_CELLS = 10_000_000
"""Maximum number of counts of distinct rows in memory."""


@dataclass(frozen=True, slots=True)
class Interval:
    """95 % confidence interval of a score, for items sampled from the same source."""

    low: float
    high: float
    method: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of a second run's mean score from a first's on the same items."""

    value: float
    low: float
    high: float
    wins: int
    """Items on which the second run has the higher score."""

    losses: int
    p_value: float
    """McNemar's exact test: probability of a split of the differing items at least as unequal, for equal runs."""


def wilson(num_correct: int, total: int) -> Interval:
    """Return Wilson's score interval of a proportion (E. B. Wilson, 1927), which is valid near 0 and 1, too."""
    proportion, spread = num_correct / total, _Z**2 / total
    middle = (proportion + spread / 2) / (1 + spread)
    half = (
        _Z / (1 + spread) * math.sqrt(proportion * (1 - proportion) / total + spread / (4 * total))
    )
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    # Rounding may exclude a proportion of 0 or 1.
    return Interval(min(low, proportion), max(high, proportion), "Wilson")


def bootstrap(
    scores: Sequence[float], groups: Sequence[str] | None = None, seed: int = 0
) -> Interval:
    """Return the percentile bootstrap interval of a mean (B. Efron, 1979); whole groups are resampled."""
    summands = np.stack([np.asarray(scores, dtype=np.float64), np.ones(len(scores))], axis=1)
    return statistic_interval(summands, lambda sums: sums[:, 0] / sums[:, 1], groups, seed)


def mean_interval(scores: Sequence[float], groups: Sequence[str] | None = None) -> Interval:
    """Return the interval of a mean.

    Args:
        scores: Scores of items.
        groups: Group of each item, such as its image; items of one group are not independent.

    Returns:
        If no two items share a group: Wilson's interval if every score is 0 or 1, else the bootstrap's. Otherwise the
        bootstrap over groups, or, if all scores are 0 or all are 1, so that resamples are equal, Wilson's over groups.
    """
    is_binary = all(score in (0.0, 1.0) for score in scores)
    if groups is None or len(set(groups)) == len(groups):
        return wilson(round(sum(scores)), len(scores)) if is_binary else bootstrap(scores)
    if is_binary and len(set(scores)) == 1:
        num_groups = len(set(groups))
        interval = wilson(round(scores[0]) * num_groups, num_groups)
        return Interval(interval.low, interval.high, f"Wilson over {num_groups} clusters")
    return bootstrap(scores, groups)


def statistic_interval(
    summands: np.ndarray,
    from_sums: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Interval:
    """Return the percentile bootstrap interval of a metric computed from sums over items, such as F1.

    Args:
        summands: Each item's summands, (items, sums).
        from_sums: Maps sums, (resamples, sums), to the metric of each resample, (resamples,).
        groups: Group of each item; whole groups are resampled. None: items are resampled.
        seed: Random seed.
    """
    method = "bootstrap"
    if groups is not None:
        names, member = np.unique(np.asarray(groups), return_inverse=True)
        group_summands = np.zeros((len(names), summands.shape[1]))
        np.add.at(group_summands, member, summands)
        summands, method = group_summands, f"bootstrap over {len(names)} clusters"
    low, high = np.percentile(from_sums(_resampled_sums(summands, seed)), [2.5, 97.5])
    return Interval(float(low), float(high), method)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Difference:
    """Compare two runs by their scores of the same items, in the same order: paired bootstrap and McNemar's test.

    The bootstrap resamples groups if there are any; McNemar's test assumes independent items.
    """
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    interval = bootstrap(list(differences), groups, seed)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    p_value = mcnemar(wins, losses)
    return Difference(float(differences.mean()), interval.low, interval.high, wins, losses, p_value)


def mcnemar(wins: int, losses: int) -> float:
    """Return the two-sided exact probability of a split at least as unequal (Q. McNemar, 1947)."""
    total, fewer = wins + losses, min(wins, losses)
    ways = binomial = 1
    # Each coefficient is derived from the last, since they have thousands of digits.
    for count in range(fewer):
        binomial = binomial * (total - count) // (count + 1)
        ways += binomial
    return min(1.0, 2 * ways / 2**total)


def _resampled_sums(summands: np.ndarray, seed: int) -> np.ndarray:
    """Return the sums over resampled rows, (resamples, sums), of summands, (rows, sums).

    Instead of rows, the number of occurrences of each distinct row is sampled, in several chunks.
    """
    distinct, counts = np.unique(summands, axis=0, return_counts=True)
    generator, total = np.random.default_rng(seed), len(summands)
    chunk = max(1, _MAX_CELLS // len(distinct))
    sizes = [min(chunk, RESAMPLES - start) for start in range(0, RESAMPLES, chunk)]
    return np.concatenate(
        [generator.multinomial(total, counts / total, size=size) @ distinct for size in sizes]
    )
