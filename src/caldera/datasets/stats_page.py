"""Figures of a data file in, one HTML page out that needs nothing else to be read and runs no script."""

from collections import Counter
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from caldera.datasets.charts import bars, histogram, sunburst
from caldera.datasets.figures import DatasetStatistics, prefix_tree
from caldera.storage import write_atomic

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
