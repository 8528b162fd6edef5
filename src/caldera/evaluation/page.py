"""A template of `pages/` and what it shows in, one HTML file out that needs nothing else to be read.

Everything a model or a file said is escaped, images are inside the file, and its content policy forbids scripts and
requests.
"""

import base64
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined

from caldera.batches.image_files import open_image

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
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
