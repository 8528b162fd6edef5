"""HTML template, demo report.

Everything a model or a file said is escaped, images are inside the file, and its content policy forbids scripts and
requests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined

from caldera.files.atomic import write_atomic
from caldera.images.data_urls import encode_data_url, image_to_data_url
from caldera.images.decoding import open_image

_THUMBNAIL = 224
"""Pixels along the longer side of an image in a gallery."""


def render_page(template: str, **shown: object) -> str:
    """Return the page that a template of `pages/` makes of what it is given."""
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(**shown)


def _source(name: str) -> str:
    """Read a template."""
    return (files("caldera.evaluation") / "pages" / name).read_text("utf-8")


def inline_image(path: Path) -> str:
    """Return an image as a data URL, no larger than a gallery shows it.

    Raises:
        ImageError: It cannot be read.
    """
    image = open_image(path)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return image_to_data_url(image, "jpeg", quality=88)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table of scores."""

    title: str
    description: str
    scores: Mapping[str, float]
    """By kind, as fractions; "overall" among them."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A loss over the steps of a stage."""

    title: str
    training: Sequence[tuple[float, float]]
    """(step, nats per token)."""

    validation: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class GalleryQuestion:
    """One question of the gallery."""

    kind: str
    question: str
    answer: str
    reference: str
    right: bool


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """Images of the gallery with what was asked about them."""

    images: tuple[Path, ...]
    asked: Sequence[GalleryQuestion]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a report shows."""

    title: str
    summary: str
    """What the run was, in a sentence or two."""

    columns: Sequence[Column]
    counts: Mapping[str, int]
    """Questions of each kind."""

    figures: Mapping[str, str]
    """Single numbers, by what they are."""

    curves: Sequence[Curve]
    exhibits: Sequence[GalleryItem]
    seconds: Mapping[str, float]
    facts: Mapping[str, str]
    """What it was made with."""


def write_report(file: Path, report: Report) -> None:
    """Write the report, whole or not at all.

    Raises:
        ImageError: An image of the gallery cannot be read.
        OutputError: The file cannot be written.
    """
    page = render_page(
        "demo.html",
        report=report,
        kinds=[kind for kind in report.counts if kind != "overall"],
        inline=inline_image,
        plot=_plot,
        total=sum(report.seconds.values()),
    )
    write_atomic(file, page)


def _plot(curve: Curve) -> str:
    """Return a curve as a PNG data URL."""
    from matplotlib.figure import Figure  # heavy, and only needed here

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
