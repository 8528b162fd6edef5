"""AnnotatedImages in, the text that stands for them out: LLaVA's symbolic image, all that a teacher ever gets.

The form is that of the released examples (arXiv 2304.08485, section 3): the captions, one a line; for the kinds that
get boxes a blank line and `category: [x1, y1, x2, y2]` for each, corners as shares of width and height, rounded to
three decimals. Captions are data that strangers wrote: none can begin a line of its own, close the marks that the text
stands between, turn the direction of writing, or be longer than a cap.
"""

import unicodedata
from collections.abc import Sequence

from caldera.annotations.annotated_image import AnnotatedImage
from caldera.instructions.context import LETTERS
from caldera.instructions.teacher import Kind

KINDS_WITHOUT_BOXES = frozenset[Kind]({"conversation"})
"""Kinds that get captions alone, as in the released examples."""

MAX_CAPTION = 400
"""Characters of a caption that are sent; COCO's longest has some 250."""

MAX_CAPTIONS, MAX_BOXES = 20, 120
"""Captions and boxes of an image that are sent; COCO has five to seven, and up to some ninety."""

_HIDDEN = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
"""Categories of characters that nobody sees: controls, marks of writing direction, halves of characters."""


def symbolic_image(image: AnnotatedImage, *, boxes: bool) -> str:
    """Write one image as text."""
    lines = [one_line(caption) for caption in image.captions[:MAX_CAPTIONS]]
    if boxes and image.instances:
        lines.append("")
        for thing in image.instances[:MAX_BOXES]:
            box = thing.box
            corners = [round(at, 3) for at in (box.left, box.top, box.right, box.bottom)]
            lines.append(f"{one_line(thing.category)}: {corners}")
    return "\n".join(lines)


def user_message(kind: Kind, images: Sequence[AnnotatedImage]) -> str:
    """Write the images of a dialogue as the kind has them; several are called by their letters."""
    told = [symbolic_image(image, boxes=kind not in KINDS_WITHOUT_BOXES) for image in images]
    if kind != "context":
        return told[0]
    return "\n\n".join(
        f"Picture {letter}:\n{text}" for letter, text in zip(LETTERS, told, strict=False)
    )


def one_line(text: str) -> str:
    """Return a stranger's text on one line, without marks and hidden characters, cut at the cap."""
    seen = "".join(
        " " if char.isspace() else char
        for char in text[: 4 * MAX_CAPTION]
        if char.isspace() or unicodedata.category(char) not in _HIDDEN
    )
    one_line = " ".join(seen.split()).replace("<", "‹").replace(">", "›")
    return one_line if len(one_line) <= MAX_CAPTION else f"{one_line[: MAX_CAPTION - 1]}…"


def delimit(text: str) -> str:
    """Put an image's text between the marks that the system messages speak of."""
    return f"<picture>\n{text}\n</picture>"
