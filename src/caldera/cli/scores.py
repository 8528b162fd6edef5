"""A score in, a table on the console out."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from caldera.cli.options import stderr_console, stdout_console
from caldera.evaluation.benchmark import Score
from caldera.evaluation.benchmarks.task import Task
from caldera.evaluation.intervals import mean_interval
from caldera.evaluation.official_files import join_names
from caldera.evaluation.shares import mean

_SHOWN = 3
"""Unread answers that are named."""


def print_score(task: Task, score: Score) -> None:
    """Show the figures of a score, what guessing gives beside them, and what could not be read."""
    table = Table("metric", title=task.title)
    table.add_column("value", justify="right")
    table.add_column("95 %", justify="right")
    table.add_column("p_value", justify="right")
    for name, value in _flat(score.metrics):
        chance = f"{task.chance[name]:g}" if name in task.chance else ""
        interval = accuracy_interval(score) if name == "accuracy" else []
        table.add_row(
            name,
            _written(value),
            " to ".join(f"{end:.2f}" for end in interval),
            chance,
            style="bold" if name == task.primary_metric else "",
        )
    stdout_console.print(table)
    if score.unparsed:
        first = ", ".join(list(score.unparsed)[:_SHOWN])
        total = len({*score.item_scores, *score.unparsed})
        stderr_console.print(
            f"{len(score.unparsed)} of {total} answers could not be read, the first: {first}",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def accuracy_interval(score: Score) -> list[float]:
    """Return the two ends of the 95 % interval of `accuracy`, or nothing where that is not the mean of all marks."""
    marks = list(score.item_scores.values())
    accuracy = score.metrics.get("accuracy")
    if not marks or accuracy is None or abs(100 * mean(marks) - accuracy) > 1e-4:
        return []
    interval = mean_interval(marks)
    return [round(100 * interval.low, 2), round(100 * interval.high, 2)]


def _flat(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield figures with those inside others under both names."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} / ")
        else:
            yield f"{before}{name}", value


def _written(value: object) -> str:
    """Write whole numbers as they are, shares below one with four places, others with two."""
    if isinstance(value, float):
        return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"
    if isinstance(value, list):
        if value and isinstance(value[0], str):  # ids, which may be as many as the questions
            return f"{len(value)}: {join_names(value)}"
        return ", ".join(map(str, value)) or "none"
    return str(value)
