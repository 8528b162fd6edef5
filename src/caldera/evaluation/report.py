"""HTML pages of evaluations: the template loader, and the demo's report.

All text of models and files is escaped, images are embedded, and the content policy forbids scripts and requests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from caldera.files import html_pages
from caldera.files.atomic import write_atomic
from caldera.images.data_urls import encode_data_url, thumbnail_to_data_url

_THUMBNAIL = 224
"""Pixels along the longer side of an image in a gallery."""


def render_page(template: str, **variables: object) -> str:
    """Render a template of `pages/`."""
    return html_pages.render_page("caldera.evaluation/pages", template, **variables)


def inline_image(path: Path) -> str:
    """Return an image as a data URL, scaled down to the size of a gallery."""
    return thumbnail_to_data_url(path, _THUMBNAIL)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the score table."""

    title: str
    description: str
    scores: Mapping[str, float]
    """Fractions by category, with "overall"."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Losses over the steps of a stage."""

    title: str
    training: Sequence[tuple[float, float]]
    """(step, nats per token)."""

    validation: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class GalleryQuestion:
    """One question of the gallery."""

    category: str
    question: str
    answer: str
    reference: str
    right: bool


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """Images of the gallery with the questions about them."""

    images: tuple[Path, ...]
    questions: Sequence[GalleryQuestion]


@dataclass(frozen=True, slots=True)
class Report:
    """Content of the demo's report."""

    title: str
    summary: str
    """Description of the run in a sentence or two."""

    columns: Sequence[Column]
    counts: Mapping[str, int]
    """Number of questions by category."""

    metrics: Mapping[str, str]
    """Single numbers by description."""

    curves: Sequence[Curve]
    gallery: Sequence[GalleryItem]
    seconds: Mapping[str, float]
    facts: Mapping[str, str]
    """Versions and settings that the run used."""


def write_report(file: Path, report: Report) -> None:
    """Write the report atomically."""
    page = render_page(
        "demo.html",
        report=report,
        categories=[category for category in report.counts if category != "overall"],
        inline=inline_image,
        plot=_plot,
        total=sum(report.seconds.values()),
    )
    write_atomic(file, page)


def _plot(curve: Curve) -> str:
    """Return a curve as a PNG data URL."""
    # Imported here: matplotlib is heavy.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curve.training, strict=True), color="#b9c4d4", linewidth=0.8, label="training")
    if curve.validation:
        axes.plot(
            *zip(*curve.validation, strict=True),
            color="#c2410c",
            marker="o",
            markersize=3,
            linewidth=1.4,
            label="held-out rows",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return encode_data_url(buffer.getvalue(), "png")
