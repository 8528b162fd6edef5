"""Marks of items in, means out: over all, by kind, and by every other group that items count in."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from caldera.evaluation.benchmark import Item


def mean(marks: Iterable[float]) -> float:
    """Return the mean of marks, of which there is at least one."""
    values = list(marks)
    return sum(values) / len(values)


def to_percent(share: float) -> float:
    """Return a share times 100, without the dust that division leaves."""
    return round(100 * share, 6)


def scores_by_group(
    items: Iterable[Item], marks: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return the marks of each kind and slice by item id, groups in the order that they were met."""
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for item in items:
        for group in (item.category, *item.slices):
            groups[group][item.id] = marks[item.id]
    return dict(groups)
