"""Results of a run (results.json): scores with intervals, counts, and provenance."""

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
from caldera.conversation import ImageRef, Turn
from caldera.errors import EvaluationError
from caldera.evaluation.answerers.answerer import Answer, Answerer
from caldera.evaluation.benchmark import Benchmark, Item, Score
from caldera.evaluation.intervals import mean_interval, statistic_interval
from caldera.files.fingerprint import digest_file

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "pillow", "jinja2")
"""Packages whose versions are recorded."""

MAX_FAILED = 0.01
"""Maximum fraction of failed items of a valid run."""

Results = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkInfo:
    """Description of a benchmark for results and report."""

    title: str = ""
    measures: str = ""
    primary_metric: str = ""
    """The metric that papers quote; the first one if empty."""

    chance: Mapping[str, float] = field(default_factory=dict)
    """Value of each metric for random guesses."""

    files: Mapping[str, Path] = field(default_factory=dict)
    """Official files by role."""

    split_size: int | None = None
    """Items of the split, if the run has only some of them."""


def provenance(
    answerer: Answerer,
    items: Sequence[Item],
    image_digests: Mapping[str, Sequence[str]],
    info: BenchmarkInfo,
    max_new_tokens: int,
) -> Results:
    """Return what the scores depend on: model, settings, data and library versions.

    Args:
        answerer: The model.
        items: Items of the run.
        image_digests: Digests of each item's images, by item id; none for items whose images cannot be read.
        info: Official files, and the size of the split.
        max_new_tokens: Maximum length of an answer.

    Raises:
        InputError: An official file cannot be read.
    """
    return {
        "model": {**answerer.identity, **answerer.model_info},
        "max_new_tokens": max_new_tokens,
        "data": {
            "items": len(items),
            "split": info.split_size or len(items),
            "digest": _digest_items(items, image_digests),
            "files": {name: _name_and_digest(path) for name, path in info.files.items()},
        },
        "libraries": {
            "caldera": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    }


def _digest_items(items: Sequence[Item], image_digests: Mapping[str, Sequence[str]]) -> str:
    """Return the sha256 of all items: questions, images and references."""
    total = hashlib.sha256()
    for item in items:
        content = (_format_item(item), list(image_digests.get(item.id, ())))
        total.update(repr(content).encode("utf-8", "surrogatepass"))
    return total.hexdigest()


def _format_item(item: Item) -> str:
    """Return an item as version 0.1 printed it, so that runs of both versions on the same data have the same digest."""
    turns = _format_tuple([_format_turn(turn) for turn in item.conversation.turns])
    return (
        f"Item(id={item.id!r}, kind={item.category!r}, form={item.question_type!r}, "
        f"conversation=Conversation(id={item.conversation.id!r}, turns={turns}), references={item.references!r}, "
        f"choices={item.choices!r}, slices={item.slices!r}, unit={item.group!r})"
    )


def _format_turn(turn: Turn) -> str:
    parts = [
        f"Picture(path={part.path!r})" if isinstance(part, ImageRef) else repr(part)
        for part in turn.parts
    ]
    return f"Turn(speaker={turn.role!r}, parts={_format_tuple(parts)})"


def _format_tuple(values: Sequence[str]) -> str:
    return f"({', '.join(values)}{',' if len(values) == 1 else ''})"


def _name_and_digest(path: Path) -> str:
    """Return the name of a file with its sha256."""
    return f"{path.name} sha256:{digest_file(path)}"


def with_items(benchmark: Benchmark, items: Sequence[Item]) -> Benchmark:
    """Return a benchmark with only some of its items.

    Raises:
        TypeError: The benchmark is no dataclass with a field `items`, as all benchmarks of this package are.
    """
    if not is_dataclass(type(benchmark)):
        raise TypeError(
            f"{type(benchmark).__name__} is no dataclass, so its items cannot be chosen"
        )
    dataclass_instance: Any = benchmark
    narrowed: Benchmark = replace(dataclass_instance, items=tuple(items))
    return narrowed


def limit_items(items: Sequence[Item], limit: int) -> list[Item]:
    """Return at most `limit` items from the start without splitting a group; at least the first group."""
    groups = [item.group or item.id for item in items]
    chosen: set[str] = set()
    count = 0
    for group, size in Counter(groups).items():  # in order of first occurrence
        if chosen and count + size > limit:
            break
        chosen.add(group)
        count += size
    return [item for item, group in zip(items, groups, strict=True) if group in chosen]


def scored_items(items: Sequence[Item], answers: Mapping[str, Answer]) -> list[Item]:
    """Return the answered items whose group is complete."""
    incomplete_groups = {item.group for item in items if item.group and answers[item.id].error}
    return [
        item for item in items if not answers[item.id].error and item.group not in incomplete_groups
    ]


def score_answered(benchmark: Benchmark, answers: Mapping[str, Answer]) -> Score:
    """Score the answered items; exclude failed items and every item of their group.

    Raises:
        EvaluationError: No item was answered.
    """
    answered = scored_items(benchmark.items, answers)
    if not answered:
        failed = next(answer for answer in answers.values() if answer.error)
        raise EvaluationError(f"no item was answered; the first, {failed.id}: {failed.error}")
    if len(answered) < len(benchmark.items):
        benchmark = with_items(benchmark, answered)
    return benchmark.score({item.id: answers[item.id].text for item in answered})


def build_results(
    benchmark: Benchmark, answers: Mapping[str, Answer], score: Score, info: BenchmarkInfo
) -> Results:
    """Return the scores of a run as JSON; the same answers give the same bytes."""
    items = benchmark.items
    failed = {item.id: answers[item.id].error for item in items if answers[item.id].error}
    metrics = flatten(score.metrics)
    metric = info.primary_metric or next(iter(metrics), "overall")
    if metric not in metrics:  # such as MME's sum over categories of which some have no items
        metric = "overall"
    return {
        "task": benchmark.name,
        "title": info.title or benchmark.name,
        "measures": info.measures,
        "valid": len(failed) <= MAX_FAILED * len(items),
        "headline": {
            "figure": metric,
            "value": metrics.get(metric, score.overall),
            "chance": info.chance.get(metric),
            **_primary_interval(items, score, metrics.get(metric)),
        },
        "figures": score.metrics,
        "chance": dict(info.chance),
        "overall": _group_result(score.overall, items, score),
        "kinds": _categories(items, score),
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


def with_current_keys(results: Results) -> Results:
    """Return the content of a results.json with the keys of version 0.1 replaced by current ones."""
    former = {"pictures": "images", "unread": "unparsed"}
    results = {former.get(key, key): value for key, value in results.items()}
    if "unread" in results.get("counts", {}):
        counts = results["counts"]
        results["counts"] = {former.get(key, key): value for key, value in counts.items()}
    groups = [*results.get("kinds", {}).values(), *results.get("slices", {}).values()]
    for group in (results.get("overall", {}), *groups):
        if "mean_mark" in group:
            group["mean_score"] = group.pop("mean_mark")
    return results


def flatten(metrics: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Return nested metrics on one level, with joined names."""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            inner = flatten(value, separator)
            flat |= {f"{name}{separator}{key}": entry for key, entry in inner.items()}
        else:
            flat[name] = value
    return flat


def _categories(items: Sequence[Item], score: Score) -> dict[str, Results]:
    """Return the result of each category."""
    by_category: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_category[item.category].append(item)
    return {
        category: _group_result(
            score.by_category.get(category), members, score, score.counts.get(category)
        )
        for category, members in by_category.items()
    }


def _slices(items: Sequence[Item], score: Score) -> dict[str, Results]:
    """Return the mean score of each slice."""
    by_slice: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        for name in item.slices:
            by_slice[name].append(item)
    return {name: _group_result(None, members, score) for name, members in sorted(by_slice.items())}


def _scores_and_clusters(items: Sequence[Item], score: Score) -> tuple[list[float], list[str]]:
    """Return the scores of items that have one, and the cluster of each.

    Items about the same images depend on each other, so they are one cluster.
    """
    scored = [item for item in items if item.id in score.item_scores]
    clusters = ["\n".join(item.conversation.images) or f"item {item.id}" for item in scored]
    return [score.item_scores[item.id] for item in scored], clusters


def _primary_interval(items: Sequence[Item], score: Score, value: float | None) -> Results:
    """Return the interval of the primary metric, if it is a statistic of sums or 100 times the mean score."""
    scores, clusters = _scores_and_clusters(items, score)
    no_interval: Results = {"low": None, "high": None, "method": None}
    if value is None or not scores:
        return no_interval
    if score.statistic is not None:
        per_item = score.statistic.per_item
        terms = [per_item[item.id] for item in items if item.id in score.item_scores]
        return asdict(statistic_interval(np.array(terms), score.statistic.from_sums, clusters))
    mean = sum(scores) / len(scores)
    if math.isclose(100 * mean, value, abs_tol=0.005 + 1e-9):  # metrics are rounded
        interval = mean_interval(scores, clusters)
        return {"low": 100 * interval.low, "high": 100 * interval.high, "method": interval.method}
    return no_interval


def _group_result(
    value: float | None, items: Sequence[Item], score: Score, count: int | None = None
) -> Results:
    """Return a value with its interval if it is the mean score, else with the mean score next to it.

    The value is the mean score where the benchmark defines none.
    """
    scores, clusters = _scores_and_clusters(items, score)
    mean = sum(scores) / len(scores) if scores else None
    value = mean if value is None else value
    result: Results = {
        "n": len(scores) or count,
        "value": value,
        "low": None,
        "high": None,
        "method": None,
    }
    if mean is not None and value is not None and math.isclose(mean, value, abs_tol=1e-9):
        result |= asdict(mean_interval(scores, clusters))
    elif mean is not None:
        result["mean_score"] = {"value": mean, **asdict(mean_interval(scores, clusters))}
    return result
