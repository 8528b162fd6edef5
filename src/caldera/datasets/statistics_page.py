"""HTML page with SVG charts."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from caldera.datasets.statistics import Branch, DatasetStatistics, Histogram, prefix_tree
from caldera.files.atomic import write_atomic

_HUES = (212, 24, 150, 340, 48, 265, 186, 96, 8, 300)
"""Of the first words' colors, in degrees."""

_LEAST_ANGLE = 0.012
"""Radians; narrower arcs are not drawn."""

_LEAST_ARC = 12
"""Length of an arc that has room for a word."""


def histogram(lengths: Histogram, unit: str, columns: int = 40) -> Markup:
    """Draw how often lengths come; what is longer than all but a hundredth is in the last column."""
    end = max(1, lengths.quantile(0.99))
    width = max(1, math.ceil((end + 1) / columns))
    heights = [0] * (end // width + 1)
    for length, count in lengths.counts.items():
        heights[min(length, end) // width] += count
    highest = max(1, *heights)
    step = 440 / len(heights)
    drawn = []
    for at, count in enumerate(heights):
        height, name = 130 * count / highest, f"{at * width} to {at * width + width - 1}"
        drawn.append(
            f'<rect x="{40 + at * step:.1f}" y="{150 - height:.1f}" width="{max(0.8, step - 1):.1f}" '
            f'height="{height:.1f}"><title>{name}: {count:,}</title></rect>'
        )
    ticks = [
        f'<text x="{40 + at * step + step / 2:.1f}" y="166" text-anchor="middle">{at * width}</text>'
        for at in range(0, len(heights), max(1, len(heights) // 6))
    ]
    label = f'<text x="260" y="184" text-anchor="middle">{escape(unit)}</text>'
    top = f'<text x="36" y="26" text-anchor="end">{_compact_number(highest)}</text>'
    return _svg("0 0 490 190", [*drawn, *ticks, label, top], "histogram")


def bars(counts: Mapping[str, int]) -> Markup:
    """Draw counts as bars, in their order."""
    highest = max(1, *counts.values()) if counts else 1
    drawn = []
    for at, (name, count) in enumerate(counts.items()):
        y, width = 4 + 20 * at, 250 * count / highest
        drawn += [
            f'<text x="150" y="{y + 12}" text-anchor="end">{escape(_truncate(name, 22))}</text>',
            f'<rect x="156" y="{y + 2}" width="{width:.1f}" height="13"/>',
            f'<text x="{160 + width:.1f}" y="{y + 12}">{count:,}</text>',
        ]
    return _svg(f"0 0 490 {8 + 20 * len(counts)}", drawn, "bars")


def sunburst(branches: Sequence[Branch], total: int) -> Markup:
    """Draw words that questions begin with as rings, the first word innermost, each arc as wide as its share."""
    drawn: list[str] = []
    start = -math.pi / 2
    for at, branch in enumerate(branches):
        angle = 2 * math.pi * branch.count / max(1, total)
        _sunburst_arcs(drawn, branch, (start, angle), depth=0, hue=_HUES[at % len(_HUES)])
        start += angle
    return _svg("-250 -250 500 500", drawn, "rings")


def _sunburst_arcs(
    drawn: list[str], branch: Branch, place: tuple[float, float], *, depth: int, hue: int
) -> None:
    """Draw a word and what goes on from it, outside."""
    start, angle = place
    if angle < _LEAST_ANGLE:
        return
    inner, outer = 60 + 62 * depth, 120 + 62 * depth
    color = f"hsl({hue} 55% {52 + 11 * depth}%)"
    drawn.append(
        f'<path d="{_arc_path(start, min(angle, 2 * math.pi - 0.001), inner, outer)}" fill="{color}">'
        f"<title>{escape(branch.word)}: {branch.count:,}</title></path>"
    )
    middle, radius = start + angle / 2, (inner + outer) / 2
    if angle * radius >= _LEAST_ARC:
        degrees = math.degrees(middle) + (180 if math.cos(middle) < 0 else 0)
        at = f"translate({radius * math.cos(middle):.1f} {radius * math.sin(middle):.1f})"
        drawn.append(
            f'<text text-anchor="middle" dominant-baseline="central" transform="{at} rotate({degrees:.1f})">'
            f"{escape(_truncate(branch.word, 11))}</text>"
        )
    for inside in branch.branches:
        share = angle * inside.count / branch.count
        _sunburst_arcs(drawn, inside, (start, share), depth=depth + 1, hue=hue)
        start += share


def _arc_path(start: float, angle: float, inner: float, outer: float) -> str:
    """Return the path of a piece of a ring."""
    points = [
        (radius * math.cos(at), radius * math.sin(at))
        for radius, at in ((outer, start), (outer, start + angle), (inner, start + angle), (inner, start))
    ]  # fmt: skip
    (a, b), (c, d), (e, f), (g, h) = points
    wide = int(angle > math.pi)
    return (
        f"M{a:.2f} {b:.2f}A{outer} {outer} 0 {wide} 1 {c:.2f} {d:.2f}"
        f"L{e:.2f} {f:.2f}A{inner} {inner} 0 {wide} 0 {g:.2f} {h:.2f}Z"
    )


def _compact_number(count: int) -> str:
    """Write a count in few characters: 1200 as 1.2k."""
    for limit, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= limit:
            return f"{count / limit:.3g}{letter}"
    return str(count)


def _truncate(word: str, most: int) -> str:
    return word if len(word) <= most else f"{word[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def _svg(box: str, drawn: Sequence[str], kind: str) -> Markup:
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" class="{kind}" role="img">{"".join(drawn)}</svg>'
    )


MOST_WORDS = (24, 12, 8)
"""Words kept in each ring of the figure."""

_BARS = 24


def write_stats(file: Path, figures: DatasetStatistics, title: str) -> None:
    """Write the page, whole or not at all; every text of the data is escaped.

    Raises:
        OutputError: It cannot be written.
    """
    objects: Counter[str] = Counter()
    for kind in figures.kinds.values():
        objects.update(kind.objects)
    template = (files("caldera.datasets") / "stats.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.from_string(template).render(
        title=title,
        figures=figures,
        questions=figures.question_words.counts.total(),
        lengths=(
            ("words of a question", figures.question_words, "words"),
            ("words of an answer", figures.answer_words, "words"),
            ("questions of a record", figures.turns_per_record, "questions"),
            ("words of a record, all turns", figures.record_words, "words"),
            ("images of a record", figures.images_per_record, "images"),
        ),
        branches=prefix_tree(figures.question_prefixes.items(), MOST_WORDS),
        beginning=figures.question_prefixes.total(),
        kinds={name: kind.as_dict() for name, kind in sorted(figures.kinds.items())},
        objects=dict(objects.most_common(_BARS)),
        short_answers=dict(figures.short_answers.most_common(_BARS)),
        histogram=histogram,
        bars=bars,
        rings=sunburst,
    )
    write_atomic(file, page)
