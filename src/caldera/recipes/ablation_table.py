"""Marks of variants in, a table of what each change is worth out, with how sure that is."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from caldera.evaluation.intervals import Difference, paired_difference
from caldera.recipes.ablations import Marks, Variant

WITH_REASONS = "with reasons"
"""The kind of the questions whose answers give reasons; they are the short ones asked again, and counted apart."""


@dataclass(frozen=True, slots=True)
class AblationResult:
    """What one variant came to; shares of right answers."""

    variant: Variant
    by_kind: dict[str, float]
    """Means over seeds and questions; "overall" holds all but those with reasons."""

    lowest: float
    highest: float
    """Overall, of the worst and the best seed."""

    change: Difference | None
    """Of all overall questions from the variant it is compared with, each question's mark a mean over seeds; None for
    the one that others are compared with."""


def summarize(
    variants: Sequence[Variant], marks: Mapping[str, Sequence[Marks]]
) -> list[AblationResult]:
    """Sum marks up, a row for each variant in their order."""
    return [_row(variant, marks) for variant in variants]


def _row(variant: Variant, marks: Mapping[str, Sequence[Marks]]) -> AblationResult:
    """Sum one variant's marks up."""
    mine = marks[variant.name]
    kinds = [*mine[0]]
    by_kind = {kind: _mean([mark for one in mine for mark in one[kind].values()]) for kind in kinds}
    seeds = [_mean([*_overall_scores(one).values()]) for one in mine]
    change = None
    if variant.baseline != variant.name:
        first, second = _over_seeds(marks[variant.baseline]), _over_seeds(mine)
        change = paired_difference(
            [first[name] for name in first], [second[name] for name in first]
        )
    return AblationResult(
        variant, {"overall": _mean(seeds), **by_kind}, min(seeds), max(seeds), change
    )


def _overall_scores(marks: Marks) -> dict[str, float]:
    """Return the marks of all questions but those with reasons."""
    return {
        name: mark
        for kind, some in marks.items()
        if kind != WITH_REASONS
        for name, mark in some.items()
    }


def _over_seeds(marks: Sequence[Marks]) -> dict[str, float]:
    """Return each question's mean mark over seeds."""
    seeds = [_overall_scores(one) for one in marks]
    return {name: _mean([one[name] for one in seeds]) for name in seeds[0]}


def _mean(values: Sequence[float]) -> float:
    """Return a mean."""
    return sum(values) / len(values)


def as_markdown(rows: Sequence[AblationResult], seeds: int, questions: int) -> str:
    """Write the table as docs/results.md has it."""
    head = (
        f"{questions} questions about held-out scenes, {seeds} seed{'s' if seeds > 1 else ''} each; shares of right "
        "answers in %. In brackets the worst and the best seed. Changes with 95 % intervals, by a paired bootstrap "
        "over questions: they say how sure a change is for these seeds, not for all.\n"
    )
    lines = [
        "| variant | what is other | right | with reasons | change | in the papers |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_line(row) for row in rows),
    ]
    return "\n".join([head, *lines, ""])


def _line(row: AblationResult) -> str:
    """Write one row."""
    change = "compared with" if row.change is None else _format_change(row.change)
    named = (
        ""
        if row.variant.baseline == "whole" or row.change is None
        else f" from {row.variant.baseline}"
    )
    right = (
        f"{row.by_kind['overall'] * 100:.1f} ({row.lowest * 100:.1f} to {row.highest * 100:.1f})"
    )
    reasons = f"{row.by_kind[WITH_REASONS] * 100:.1f}" if WITH_REASONS in row.by_kind else ""
    cells = (
        row.variant.name,
        row.variant.description,
        right,
        reasons,
        change + named,
        row.variant.paper,
    )
    return f"| {' | '.join(cells)} |"


def _format_change(change: Difference) -> str:
    """Write a difference with its interval, in points."""
    return f"{change.value * 100:+.1f} ({change.low * 100:+.1f} to {change.high * 100:+.1f})"


def as_results(rows: Sequence[AblationResult]) -> list[dict[str, object]]:
    """Return the table for programs; shares between 0 and 1."""
    return [
        {
            "variant": row.variant.name,
            "baseline": row.variant.baseline,
            "what": row.variant.description,
            "right": row.by_kind,
            "lowest": row.lowest,
            "highest": row.highest,
            "change": row.change and asdict(row.change),
        }
        for row in rows
    ]
