"""Scores of one or several runs of a judge in, one score out: means, their spread, and rounded figures."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from caldera.evaluation.benchmark import Score

Reduce = Callable[[Sequence[float]], float]


def average_runs(scores: Sequence[Score], headline: str) -> Score:
    """Return the mean of several runs' scores, figures rounded to one decimal as the authors print them.

    Of several runs the figures also hold `std`, the standard deviation of each (over the runs themselves, as numpy's
    `std` has it), and `runs`, each run's `headline`. Counts are sums over the runs.
    """
    figures = _reduce_metrics([score.metrics for score in scores], fmean)
    if len(scores) > 1:
        figures["std"] = _reduce_metrics([score.metrics for score in scores], pstdev)
        figures["std"].pop("interval_95", None)
        figures["runs"] = [_rounded(score.metrics.get(headline)) for score in scores]
    for name, value in scores[0].metrics.items():
        if isinstance(value, int) and not isinstance(value, bool):
            figures[name] = sum(score.metrics[name] for score in scores)
    figures["errors"] = dict(
        sum(
            (Counter[str](score.metrics["errors"]) for score in scores), Counter[str]()
        ).most_common()
    )
    figures["valid"] = all(score.metrics["valid"] for score in scores)
    return Score(
        fmean(score.overall for score in scores),
        _means([score.by_kind for score in scores]),
        scores[0].counts,
        metrics=figures,
        item_scores=_means([score.item_scores for score in scores]),
        unparsed={name: why for score in scores for name, why in score.unparsed.items()},
    )


def _means(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of what every run has."""
    return {
        name: fmean(one[name] for one in numbers)
        for name in numbers[0]
        if all(name in one for one in numbers)
    }


def _reduce_metrics(figures: Sequence[Mapping[str, Any]], merge: Reduce) -> dict[str, Any]:
    """Merge fractional numbers of several runs by name, also in groups; one that a run does not have is None."""
    merged: dict[str, Any] = {}
    for name, first in figures[0].items():
        values = [one.get(name) for one in figures]
        if isinstance(first, Mapping) and name != "errors":
            merged[name] = _reduce_metrics([value or {} for value in values], merge)
        elif isinstance(first, float) or first is None:
            numbers = [value for value in values if isinstance(value, float)]
            merged[name] = _rounded(merge(numbers)) if len(numbers) == len(values) else None
    return merged


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 1)
