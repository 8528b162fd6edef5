"""Relative scores; several runs.

LLaVA's relative score of a category is 100 times the mean score of the answers over the mean score of the references; a
mean of single ratios would be another number (llava/eval/summarize_gpt_review.py).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from caldera.evaluation.benchmark import Score
from caldera.evaluation.judging.reply_parsing import HIGHEST
from caldera.evaluation.judging.verdicts import Verdict, group_by_answer, validity_metrics

_RESAMPLES = 4000
"""Draws of a bootstrap; more move its ends by less than is printed."""


def relative_scores(verdicts: Sequence[Verdict]) -> Score:
    """Score answers by verdicts that compare each with a reference.

    An answer whose verdict, or one of whose two verdicts, could not be read is left out and counted.

    Returns:
        Fractions: 0.65 where the published figure is 65; `figures` as published but not rounded, with both means
        times 10; `marks` are the answers' own scores over 10.
    """
    gathered = group_by_answer(verdicts)
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    marks: dict[str, float] = {}
    unread: dict[str, str] = {}
    for name, given in gathered.items():
        if failed := next((one.failure for one in given if not one.scores), ""):
            unread[name] = failed
            continue
        reference = fmean(one.scores[0] for one in given)
        candidate = fmean(one.scores[1] for one in given)
        for group in filter(None, ("overall", given[0].category)):
            pairs[group].append((reference, candidate))
        marks[name] = candidate / HIGHEST
    shares = {group: _ratio(pairs[group]) for group in pairs}
    figures: dict[str, Any] = {group: 100 * share for group, share in shares.items()}
    figures["reference"] = {group: _mean_times_ten(pairs[group], 0) for group in pairs}
    figures["candidate"] = {group: _mean_times_ten(pairs[group], 1) for group in pairs}
    if pairs:
        figures["interval_95"] = ratio_interval(pairs["overall"])
    if any(len(given) > 1 for given in gathered.values()):
        figures |= order_agreement(
            [given for name, given in gathered.items() if name not in unread]
        )
    figures |= validity_metrics(len(gathered), unread)
    overall = shares.pop("overall", 0.0)
    counts = {group: len(pairs[group]) for group in shares}
    return Score(overall, shares, counts, metrics=figures, item_scores=marks, unparsed=unread)


def order_agreement(gathered: Sequence[Sequence[Verdict]]) -> dict[str, Any]:
    """Tell how far a judge agrees with itself once the order is turned.

    Args:
        gathered: For each answer both verdicts.

    Returns:
        `agreement`, percent of answers with the same outcome in both orders; `first_preferred`, percent of the verdicts
        that are no tie which prefer the answer shown first (50 is unbiased); `win`, `tie`, `loss` of the answers
        against the references: a win is one in both orders, or in one with a tie in the other. Percentages are None
        where there is nothing to count.
    """
    same, outcomes = 0, Counter[str]()
    first: list[bool] = []
    for given in gathered:
        signs = [_sign(one.scores[1] - one.scores[0]) for one in given]
        same += len(set(signs)) == 1
        outcomes[("tie", "win", "loss")[_sign(sum(signs))]] += 1
        first += [
            (sign > 0) == (one.order == "candidate first")
            for sign, one in zip(signs, given, strict=True)
            if sign
        ]
    return {
        "agreement": 100 * same / len(gathered) if gathered else None,
        "first_preferred": 100 * fmean(first) if first else None,
        **{name: outcomes[name] for name in ("win", "tie", "loss")},
    }


def ratio_interval(pairs: Sequence[tuple[float, float]], seed: int = 0) -> dict[str, float]:
    """Return between which percentages 95 % of the ratios of means lie when the answers are drawn again (bootstrap).

    Args:
        pairs: Scores of the reference and the answer; the interval of a plain mean has 1 for every reference.
        seed: Of the draws.
    """
    reference, candidate = np.asarray(pairs).T  # (answers,) each
    shares = np.full(len(pairs), 1 / len(pairs))
    drawn = np.random.default_rng(seed).multinomial(len(pairs), shares, size=_RESAMPLES)
    low, high = np.percentile(drawn @ candidate / (drawn @ reference), [2.5, 97.5])
    return {"low": 100 * float(low), "high": 100 * float(high)}


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the mean score of the answers over that of the references."""
    return fmean(candidate for _, candidate in pairs) / fmean(reference for reference, _ in pairs)


def _mean_times_ten(pairs: Sequence[tuple[float, float]], side: int) -> float:
    return 10 * fmean(pair[side] for pair in pairs)


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
        _means([score.by_category for score in scores]),
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
