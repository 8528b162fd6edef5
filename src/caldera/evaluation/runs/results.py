"""Results.json, provenance."""

import hashlib
import math
import platform
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from caldera import __version__
from caldera.errors import EvaluationError, InputError
from caldera.evaluation.answerers.answerer import Answer, Answerer
from caldera.evaluation.benchmark import Benchmark, Item, Score
from caldera.evaluation.intervals import mean_interval, statistic_interval

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "pillow", "jinja2")
"""Packages whose versions are noted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkInfo:
    """What is known of a benchmark beside its items."""

    title: str = ""
    measures: str = ""
    headline: str = ""
    """The figure that papers quote."""

    chance: Mapping[str, float] = field(default_factory=dict)
    """What blind guessing gives, by figure."""

    files: Mapping[str, Path] = field(default_factory=dict)
    """Official files, by what they are."""

    split_size: int | None = None
    """Items of the whole split, where only some are asked."""


def provenance(
    answerer: Answerer,
    items: Sequence[Item],
    images: Mapping[str, Sequence[str]],
    about: BenchmarkInfo,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Return what a score depends on, as JSON.

    Args:
        answerer: Who was asked.
        items: What was asked.
        images: Digests of each item's images, by item id; items whose images cannot be read have none.
        about: The official files, and how large the split is.
        max_new_tokens: Longest answer.

    Raises:
        InputError: An official file cannot be read.
    """
    return {
        "model": {**answerer.identity, **answerer.model_info},
        "max_new_tokens": max_new_tokens,
        "data": {
            "items": len(items),
            "split": about.split_size or len(items),
            "digest": _digest_of(items, images),
            "files": {name: _file(path) for name, path in about.files.items()},
        },
        "libraries": {
            "caldera": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    }


def _digest_of(items: Sequence[Item], images: Mapping[str, Sequence[str]]) -> str:
    """Return the sha256 of all items: what is asked, shown and right."""
    total = hashlib.sha256()
    for item in items:
        told = (repr(item), list(images.get(item.id, ())))
        total.update(repr(told).encode("utf-8", "surrogatepass"))
    return total.hexdigest()


def _file(path: Path) -> str:
    """Name a file with its sha256.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with path.open("rb") as opened:
            return f"{path.name} sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error


MAX_FAILED = 0.01
"""Share of items without an answer over which a run is not valid."""

Results = dict[str, Any]


def with_items(benchmark: Benchmark, items: Sequence[Item]) -> Benchmark:
    """Return a benchmark that asks and scores only some of its items.

    Raises:
        TypeError: It is no dataclass with a field `items`, as all benchmarks here are.
    """
    if not is_dataclass(type(benchmark)):
        raise TypeError(f"{type(benchmark).__name__} is no dataclass, so it cannot be narrowed")
    whole: Any = benchmark
    narrow: Benchmark = replace(whole, items=tuple(items))
    return narrow


def limit_items(items: Sequence[Item], limit: int) -> list[Item]:
    """Return the items of the first units, at most `limit` of them, but those of one unit at least."""
    units = [item.group or item.id for item in items]
    sizes = Counter(units)
    chosen: set[str] = set()
    count = 0
    for unit, size in sizes.items():  # in the order that they were met
        if chosen and count + size > limit:
            break
        chosen.add(unit)
        count += size
    return [item for item, unit in zip(items, units, strict=True) if unit in chosen]


def scored_items(items: Sequence[Item], answers: Mapping[str, Answer]) -> list[Item]:
    """Return the items that have an answer, and with them all others of their unit."""
    incomplete_groups = {item.group for item in items if item.group and answers[item.id].error}
    return [
        item for item in items if not answers[item.id].error and item.group not in incomplete_groups
    ]


def score_answered(benchmark: Benchmark, answers: Mapping[str, Answer]) -> Score:
    """Score the items that have an answer; those that failed are no part of it, nor what is scored with them.

    Raises:
        EvaluationError: None has one.
    """
    answered = scored_items(benchmark.items, answers)
    if not answered:
        failed = next(one for one in answers.values() if one.error)
        raise EvaluationError(f"not one item was answered; the first, {failed.id}: {failed.error}")
    if len(answered) < len(benchmark.items):
        benchmark = with_items(benchmark, answered)
    return benchmark.score({item.id: answers[item.id].text for item in answered})


def build_results(
    benchmark: Benchmark, answers: Mapping[str, Answer], score: Score, about: BenchmarkInfo
) -> Results:
    """Return a run's numbers as JSON has them; where nothing failed in chance, the same bytes every time."""
    items = benchmark.items
    failed = {item.id: answers[item.id].error for item in items if answers[item.id].error}
    shown = flatten(score.metrics)
    figure = about.headline or next(iter(shown), "overall")
    if figure not in shown:  # such as MME's sum over sub-tasks of which some are not asked
        figure = "overall"
    return {
        "task": benchmark.name,
        "title": about.title or benchmark.name,
        "measures": about.measures,
        "valid": len(failed) <= MAX_FAILED * len(items),
        "headline": {
            "metric": figure,
            "value": shown.get(figure, score.overall),
            "p_value": about.chance.get(figure),
            **_headline_interval(items, score, shown.get(figure)),
        },
        "metrics": score.metrics,
        "p_value": dict(about.chance),
        "overall": _group(score.overall, items, score),
        "kinds": _kinds(items, score),
        "slices": _slices(items, score),
        "counts": {
            "items": len(items),
            "answered": len(items) - len(failed),
            "failed": len(failed),
            "left_out": len(items) - len(failed) - len(scored_items(items, answers)),
            "unparsed": len(score.unparsed),
        },
        "failed": failed,
        "unparsed": dict(score.unparsed),
    }


def flatten(figures: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return figures on one level, names joined by dots."""
    told: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            told |= flatten(value, f"{before}{name}.")
        else:
            told[f"{before}{name}"] = value
    return told


def _marks(items: Sequence[Item], score: Score) -> tuple[list[float], list[str]]:
    """List the marks of items that have one, and what each is about."""
    marked = [item for item in items if item.id in score.item_scores]
    return [score.item_scores[item.id] for item in marked], [_cluster_key(item) for item in marked]


def _kinds(items: Sequence[Item], score: Score) -> dict[str, Results]:
    """Return what each kind came to."""
    by_category: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_category[item.category].append(item)
    return {
        kind: _group(score.by_category.get(kind), some, score, score.counts.get(kind))
        for kind, some in by_category.items()
    }


def _slices(items: Sequence[Item], score: Score) -> dict[str, Results]:
    """Return what each slice came to, by marks alone."""
    by_slice: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        for name in item.slices:
            by_slice[name].append(item)
    return {name: _group(None, some, score) for name, some in sorted(by_slice.items())}


def _cluster_key(item: Item) -> str:
    """Name what an item is about, its images; itself where it has none. Others about the same depend on it."""
    return "\n".join(item.conversation.images) or f"item {item.id}"


def _headline_interval(items: Sequence[Item], score: Score, value: float | None) -> Results:
    """Return the interval of the headline where it is made of sums, or is the mean mark times 100; in its own unit."""
    marks, groups = _marks(items, score)
    told: Results = {"low": None, "high": None, "method": None}
    if value is None or not marks:
        return told
    if score.statistic is not None:
        terms = {
            item.id: score.statistic.per_item[item.id]
            for item in items
            if item.id in score.item_scores
        }
        return asdict(
            statistic_interval(np.array(list(terms.values())), score.statistic.from_sums, groups)
        )
    if math.isclose(100 * sum(marks) / len(marks), value, abs_tol=0.005 + 1e-9):  # as rounded
        found = mean_interval(marks, groups)
        told |= {"low": 100 * found.low, "high": 100 * found.high, "method": found.method}
    return told


def _group(
    value: float | None, items: Sequence[Item], score: Score, count: int | None = None
) -> Results:
    """Return a number with its interval, where it is the mean of marks; else the number alone.

    Where the benchmark gives no value, the mean mark is it.
    """
    marks, groups = _marks(items, score)
    mean = sum(marks) / len(marks) if marks else None
    shown = mean if value is None else value
    told: Results = {"n": len(marks) or count, "value": shown, "low": None, "high": None, "method": None}  # fmt: skip
    if mean is not None and shown is not None and math.isclose(mean, shown, abs_tol=1e-9):
        told |= asdict(mean_interval(marks, groups))
    elif mean is not None:
        told["mean_mark"] = {"value": mean, **asdict(mean_interval(marks, groups))}
    return told
