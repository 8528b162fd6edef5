"""A score and its items in, `results.json` out: every number with how sure it is, and what could not be scored."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any

from caldera.errors import EvaluationError
from caldera.evaluation.answering.answerer import Answer
from caldera.evaluation.benchmark import Benchmark, Item, Score
from caldera.evaluation.intervals import interval_of
from caldera.evaluation.runs.provenance import About

MAX_FAILED = 0.01
"""Share of items without an answer over which a run is not valid."""

Numbers = dict[str, Any]


def narrowed(benchmark: Benchmark, items: Sequence[Item]) -> Benchmark:
    """Return a benchmark that asks and scores only some of its items.

    Raises:
        TypeError: It is no dataclass with a field `items`, as all benchmarks here are.
    """
    if not is_dataclass(type(benchmark)):
        raise TypeError(f"{type(benchmark).__name__} is no dataclass, so it cannot be narrowed")
    whole: Any = benchmark
    narrow: Benchmark = replace(whole, items=tuple(items))
    return narrow


def score_answered(benchmark: Benchmark, answers: Mapping[str, Answer]) -> Score:
    """Score the items that have an answer; those that failed are no part of it.

    Raises:
        EvaluationError: None has one.
    """
    answered = [item for item in benchmark.items if not answers[item.id].failed]
    if not answered:
        first = next(iter(answers.values()))
        raise EvaluationError(f"not one item was answered; the first, {first.id}: {first.failed}")
    if len(answered) < len(benchmark.items):
        benchmark = narrowed(benchmark, answered)
    return benchmark.score({item.id: answers[item.id].text for item in answered})


def results_of(
    benchmark: Benchmark, answers: Mapping[str, Answer], score: Score, about: About
) -> Numbers:
    """Return a run's numbers as JSON has them; where nothing failed in chance, the same bytes every time."""
    items = benchmark.items
    failed = {item.id: answers[item.id].failed for item in items if answers[item.id].failed}
    figures = flat(score.figures)
    figure = about.headline or next(iter(score.figures), "overall")
    if figure not in figures:  # a sum over sub-tasks that were not all asked
        figure = "overall"
    return {
        "task": benchmark.name,
        "title": about.title or benchmark.name,
        "measures": about.measures,
        "valid": len(failed) <= MAX_FAILED * len(items),
        "headline": {
            "figure": figure,
            "value": figures.get(figure, score.overall),
            "chance": about.chance.get(figure),
        },
        "figures": score.figures,
        "chance": dict(about.chance),
        "overall": _group(score.overall, _marks(items, score)),
        "kinds": _kinds(items, score),
        "slices": _slices(items, score),
        "counts": {
            "items": len(items),
            "answered": len(items) - len(failed),
            "failed": len(failed),
            "unread": len(score.unread),
        },
        "failed": failed,
        "unread": dict(score.unread),
    }


def flat(figures: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return figures on one level, names joined by dots."""
    told: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            told |= flat(value, f"{before}{name}.")
        else:
            told[f"{before}{name}"] = value
    return told


def _marks(items: Sequence[Item], score: Score) -> list[float]:
    """List the marks of items that have one."""
    return [score.marks[item.id] for item in items if item.id in score.marks]


def _kinds(items: Sequence[Item], score: Score) -> dict[str, Numbers]:
    """Return what each kind came to."""
    by_kind: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_kind[item.kind].append(item)
    return {
        kind: _group(score.by_kind.get(kind), _marks(some, score), score.counts.get(kind))
        for kind, some in by_kind.items()
    }


def _slices(items: Sequence[Item], score: Score) -> dict[str, Numbers]:
    """Return what each slice came to, by marks alone."""
    by_slice: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        for name in item.slices:
            by_slice[name].append(item)
    return {name: _group(None, _marks(some, score)) for name, some in sorted(by_slice.items())}


def _group(value: float | None, marks: Sequence[float], count: int | None = None) -> Numbers:
    """Return a number with its interval, where it is the mean of marks; else the number alone.

    Where the benchmark gives no value, the mean mark is it.
    """
    mean = sum(marks) / len(marks) if marks else None
    shown = mean if value is None else value
    told: Numbers = {"n": len(marks) or count, "value": shown, "low": None, "high": None, "method": None}  # fmt: skip
    if mean is not None and shown is not None and math.isclose(mean, shown, abs_tol=1e-9):
        told |= asdict(interval_of(marks))
    elif mean is not None:
        told["mean_mark"] = {"value": mean, **asdict(interval_of(marks))}
    return told
