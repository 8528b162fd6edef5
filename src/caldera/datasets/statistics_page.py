"""HTML page with SVG charts of a data file's statistics."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup, escape

from caldera.datasets.statistics import Branch, DatasetStatistics, Histogram, prefix_tree
from caldera.files.atomic import write_atomic
from caldera.files.html_pages import render_page

_HUES = (212, 24, 150, 340, 48, 265, 186, 96, 8, 300)
"""Hues of the first words' colors, in degrees."""

_MIN_ANGLE = 0.012
"""Angle in radians of the narrowest arc that is drawn."""

_MIN_LABEL_ARC = 12
"""Length of the shortest arc with a label."""

MAX_WORDS = (24, 12, 8)
"""Maximum number of words in each ring of the sunburst."""

_MAX_BARS = 24


def histogram(lengths: Histogram, unit: str, columns: int = 40) -> Markup:
    """Draw a histogram of lengths; the longest percent is in the last column."""
    end = max(1, lengths.quantile(0.99))
    width = max(1, math.ceil((end + 1) / columns))
    heights = [0] * (end // width + 1)
    for length, count in lengths.counts.items():
        heights[min(length, end) // width] += count
    highest = max(1, *heights)
    step = 440 / len(heights)
    shapes = []
    for column, count in enumerate(heights):
        height, name = 130 * count / highest, f"{column * width} to {column * width + width - 1}"
        shapes.append(
            f'<rect x="{40 + column * step:.1f}" y="{150 - height:.1f}" width="{max(0.8, step - 1):.1f}" '
            f'height="{height:.1f}"><title>{name}: {count:,}</title></rect>'
        )
    ticks = [
        f'<text x="{40 + column * step + step / 2:.1f}" y="166" text-anchor="middle">{column * width}</text>'
        for column in range(0, len(heights), max(1, len(heights) // 6))
    ]
    label = f'<text x="260" y="184" text-anchor="middle">{escape(unit)}</text>'
    top = f'<text x="36" y="26" text-anchor="end">{_compact_number(highest)}</text>'
    return _svg("0 0 490 190", [*shapes, *ticks, label, top], "histogram")


def bars(counts: Mapping[str, int]) -> Markup:
    """Draw counts as bars, in their order."""
    highest = max(1, *counts.values()) if counts else 1
    shapes = []
    for row, (name, count) in enumerate(counts.items()):
        y, width = 4 + 20 * row, 250 * count / highest
        shapes += [
            f'<text x="150" y="{y + 12}" text-anchor="end">{escape(_truncate(name, 22))}</text>',
            f'<rect x="156" y="{y + 2}" width="{width:.1f}" height="13"/>',
            f'<text x="{160 + width:.1f}" y="{y + 12}">{count:,}</text>',
        ]
    return _svg(f"0 0 490 {8 + 20 * len(counts)}", shapes, "bars")


def sunburst(branches: Sequence[Branch], total: int) -> Markup:
    """Draw the first words of questions as rings, the first word innermost, each arc as wide as its share."""
    shapes: list[str] = []
    start = -math.pi / 2
    for index, branch in enumerate(branches):
        angle = 2 * math.pi * branch.count / max(1, total)
        _sunburst_arcs(shapes, branch, (start, angle), depth=0, hue=_HUES[index % len(_HUES)])
        start += angle
    return _svg("-250 -250 500 500", shapes, "rings")


def _sunburst_arcs(
    shapes: list[str], branch: Branch, arc: tuple[float, float], *, depth: int, hue: int
) -> None:
    """Draw a word as an arc (start, angle), and the words that follow it in the next ring."""
    start, angle = arc
    if angle < _MIN_ANGLE:
        return
    inner, outer = 60 + 62 * depth, 120 + 62 * depth
    color = f"hsl({hue} 55% {52 + 11 * depth}%)"
    shapes.append(
        f'<path d="{_arc_path(start, min(angle, 2 * math.pi - 0.001), inner, outer)}" fill="{color}">'
        f"<title>{escape(branch.word)}: {branch.count:,}</title></path>"
    )
    middle, radius = start + angle / 2, (inner + outer) / 2
    if angle * radius >= _MIN_LABEL_ARC:
        degrees = math.degrees(middle) + (180 if math.cos(middle) < 0 else 0)
        center = f"translate({radius * math.cos(middle):.1f} {radius * math.sin(middle):.1f})"
        shapes.append(
            f'<text text-anchor="middle" dominant-baseline="central" transform="{center} rotate({degrees:.1f})">'
            f"{escape(_truncate(branch.word, 11))}</text>"
        )
    for child in branch.branches:
        share = angle * child.count / branch.count
        _sunburst_arcs(shapes, child, (start, share), depth=depth + 1, hue=hue)
        start += share


def _arc_path(start: float, angle: float, inner: float, outer: float) -> str:
    """Return the SVG path of a segment of a ring."""
    end = start + angle
    corners = ((outer, start), (outer, end), (inner, end), (inner, start))
    (a, b), (c, d), (e, f), (g, h) = (
        (radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in corners
    )
    wide = int(angle > math.pi)
    return (
        f"M{a:.2f} {b:.2f}A{outer} {outer} 0 {wide} 1 {c:.2f} {d:.2f}"
        f"L{e:.2f} {f:.2f}A{inner} {inner} 0 {wide} 0 {g:.2f} {h:.2f}Z"
    )


def _compact_number(count: int) -> str:
    """Format a count in few characters: 1200 as 1.2k."""
    for limit, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= limit:
            return f"{count / limit:.3g}{letter}"
    return str(count)


def _truncate(word: str, length: int) -> str:
    return word if len(word) <= length else f"{word[: length - 1]}\N{HORIZONTAL ELLIPSIS}"


def _svg(box: str, shapes: Sequence[str], kind: str) -> Markup:
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" class="{kind}" role="img">{"".join(shapes)}</svg>'
    )


def write_statistics_page(file: Path, statistics: DatasetStatistics, title: str) -> None:
    """Write the page atomically; every text of the data is escaped."""
    objects: Counter[str] = Counter()
    for kind in statistics.kinds.values():
        objects.update(kind.objects)
    page = render_page(
        "caldera.datasets",
        "stats.html",
        title=title,
        statistics=statistics,
        questions=statistics.question_words.counts.total(),
        lengths=(
            ("words of a question", statistics.question_words, "words"),
            ("words of an answer", statistics.answer_words, "words"),
            ("questions of a record", statistics.turns_per_record, "questions"),
            ("words of a record, all turns", statistics.record_words, "words"),
            ("images of a record", statistics.images_per_record, "images"),
        ),
        imbalances=statistics.answer_counts.imbalances(),
        branches=prefix_tree(statistics.question_prefixes.items(), MAX_WORDS),
        num_prefixes=statistics.question_prefixes.total(),
        kinds={name: kind.as_dict() for name, kind in sorted(statistics.kinds.items())},
        objects=dict(objects.most_common(_MAX_BARS)),
        short_answers=dict(statistics.short_answers.most_common(_MAX_BARS)),
        histogram=histogram,
        bars=bars,
        rings=sunburst,
    )
    write_atomic(file, page)
