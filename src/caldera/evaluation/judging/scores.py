"""Relative scores of judged answers, and averages over several judging runs.

LLaVA's relative score of a category is 100 times the mean score of the answers over the mean score of the references;
a mean of single ratios would differ (llava/eval/summarize_gpt_review.py).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from caldera.evaluation.benchmark import Item, Score, ScoredItems
from caldera.evaluation.judging.reply_parsing import HIGHEST
from caldera.evaluation.judging.verdicts import (
    Verdict,
    group_by_answer,
    parse_verdict,
    validity_metrics,
)

_RESAMPLES = 4000
"""Bootstrap resamples; more change the interval by less than is printed."""


def relative_scores(verdicts: Sequence[Verdict]) -> Score:
    """Score answers by verdicts that compare each with a reference.

    An answer without all of its verdicts is skipped and counted.

    Returns:
        Fractions: 0.65 where the published figure is 65; `metrics` as published but not rounded, with both means
        times 10; `item_scores` are the answers' own scores over 10.
    """
    by_answer = group_by_answer(verdicts)
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    item_scores: dict[str, float] = {}
    unparsed: dict[str, str] = {}
    for name, group in by_answer.items():
        if failure := next((verdict.failure for verdict in group if not verdict.scores), ""):
            unparsed[name] = failure
            continue
        reference = fmean(verdict.scores[0] for verdict in group)
        candidate = fmean(verdict.scores[1] for verdict in group)
        for category in filter(None, ("overall", group[0].category)):
            pairs[category].append((reference, candidate))
        item_scores[name] = candidate / HIGHEST
    ratios = {category: _ratio_of_means(pairs[category]) for category in pairs}
    metrics: dict[str, Any] = {category: 100 * ratio for category, ratio in ratios.items()}
    for side, name in enumerate(("reference", "candidate")):
        metrics[name] = {
            category: 10 * fmean(pair[side] for pair in pairs[category]) for category in pairs
        }
    if pairs:
        metrics["interval_95"] = ratio_interval(pairs["overall"])
    if any(len(group) > 1 for group in by_answer.values()):
        metrics |= order_agreement([by_answer[name] for name in item_scores])
    metrics |= validity_metrics(len(by_answer), unparsed)
    overall = ratios.pop("overall", 0.0)
    counts = {category: len(pairs[category]) for category in ratios}
    return Score(overall, ratios, counts, metrics, item_scores, unparsed)


def order_agreement(pairs: Sequence[Sequence[Verdict]]) -> dict[str, Any]:
    """Measure how far a judge agrees with itself, given the verdicts on each answer in both orders.

    Returns:
        `agreement`, percent of answers with the same outcome in both orders; `first_preferred`, percent of the verdicts
        without ties that prefer the first answer (50 is unbiased); `win`, `tie`, `loss` of the answers against the
        references: a win is one in both orders, or in one with a tie in the other. Percentages are None if there is
        nothing to count.
    """
    num_equal, outcomes = 0, Counter[str]()
    prefers_first: list[bool] = []
    for pair in pairs:
        signs = [_sign(verdict.scores[1] - verdict.scores[0]) for verdict in pair]
        num_equal += len(set(signs)) == 1
        outcomes[("tie", "win", "loss")[_sign(sum(signs))]] += 1
        prefers_first += [
            (sign > 0) == (verdict.order == "candidate first")
            for sign, verdict in zip(signs, pair, strict=True)
            if sign
        ]
    return {
        "agreement": 100 * num_equal / len(pairs) if pairs else None,
        "first_preferred": 100 * fmean(prefers_first) if prefers_first else None,
        **{name: outcomes[name] for name in ("win", "tie", "loss")},
    }


def ratio_interval(pairs: Sequence[tuple[float, float]], seed: int = 0) -> dict[str, float]:
    """Return the 95 % bootstrap interval of the ratio of means, in percent, from scores of references and answers.

    For the interval of a plain mean, every reference is 1.
    """
    reference, candidate = np.asarray(pairs).T  # (answers,) each
    weights = np.full(len(pairs), 1 / len(pairs))
    counts = np.random.default_rng(seed).multinomial(len(pairs), weights, size=_RESAMPLES)
    low, high = np.percentile(counts @ candidate / (counts @ reference), [2.5, 97.5])
    return {"low": 100 * float(low), "high": 100 * float(high)}


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _ratio_of_means(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the mean score of the answers over that of the references."""
    return fmean(candidate for _, candidate in pairs) / fmean(reference for reference, _ in pairs)


def average_runs(scores: Sequence[Score], primary_metric: str) -> Score:
    """Return the mean of several runs' scores, metrics rounded to one decimal as the authors print them.

    With several runs the metrics also hold `std`, the population standard deviation of each over the runs, and `runs`,
    each run's primary metric. Counts are sums over the runs.
    """
    metrics = _reduce_metrics([score.metrics for score in scores], fmean)
    if len(scores) > 1:
        metrics["std"] = _reduce_metrics([score.metrics for score in scores], pstdev)
        metrics["std"].pop("interval_95", None)
        metrics["runs"] = [_round(score.metrics.get(primary_metric)) for score in scores]
    for name, value in scores[0].metrics.items():
        if isinstance(value, int) and not isinstance(value, bool):
            metrics[name] = sum(score.metrics[name] for score in scores)
    errors = sum((Counter[str](score.metrics["errors"]) for score in scores), Counter[str]())
    metrics["errors"] = dict(errors.most_common())
    metrics["valid"] = all(score.metrics["valid"] for score in scores)
    return Score(
        fmean(score.overall for score in scores),
        _mean_by_name([score.by_category for score in scores]),
        scores[0].counts,
        metrics,
        _mean_by_name([score.item_scores for score in scores]),
        {name: reason for score in scores for name, reason in score.unparsed.items()},
    )


def _mean_by_name(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each value that all runs have."""
    return {
        name: fmean(run[name] for run in runs)
        for name in runs[0]
        if all(name in run for run in runs)
    }


def _reduce_metrics(
    runs: Sequence[Mapping[str, Any]], reduce: Callable[[Sequence[float]], float]
) -> dict[str, Any]:
    """Reduce the fractional metrics of several runs by name, also in groups; None if a run lacks one."""
    reduced: dict[str, Any] = {}
    for name, first in runs[0].items():
        values = [run.get(name) for run in runs]
        if isinstance(first, Mapping) and name != "errors":
            reduced[name] = _reduce_metrics([value or {} for value in values], reduce)
        elif isinstance(first, float) or first is None:
            numbers = [value for value in values if isinstance(value, float)]
            reduced[name] = _round(reduce(numbers)) if len(numbers) == len(values) else None
    return reduced


def _round(number: float | None) -> float | None:
    return None if number is None else round(number, 1)


def judged_benchmark(
    name: str,
    items: Sequence[Item],
    parse: Callable[[str], tuple[float, ...]],
    score_verdicts: Callable[[Sequence[Verdict]], Score],
    primary_metric: str,
) -> ScoredItems:
    """Return a benchmark of open questions that scores a judge's reply about each answer, with the reference first.

    `parse` parses a reply, and raises RejectedReply.
    """

    def score_replies(items: Sequence[Item], replies: Mapping[str, str]) -> Score:
        verdicts = [
            parse_verdict(item.id, item.category, replies[item.id], parse) for item in items
        ]
        return average_runs([score_verdicts(verdicts)], primary_metric)

    return ScoredItems(name, items, score_replies, max_new_tokens=1024)
