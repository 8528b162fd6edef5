"""Prompt files; images as text.

The form is that of the released examples (arXiv 2304.08485, section 3): the captions, one a line; for the kinds that
get boxes a blank line and `category: [x1, y1, x2, y2]` for each, corners as shares of width and height, rounded to
three decimals. Captions are data that strangers wrote: none can begin a line of its own, close the marks that the text
stands between, turn the direction of writing, or be longer than a cap.

`LANGUAGE/KIND/system.txt` is the system message; pairs `1.image.txt`, `1.reply.txt`, `2.image.txt` ... are worked
examples, sent as turns before the image that is asked about (arXiv 2304.08485, table 13). `detail` also has
`questions.txt`, one request for a description a line: the reply is the answer alone, the question is drawn from these.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caldera.annotations.annotated_image import AnnotatedImage
from caldera.conversation import LETTERS
from caldera.errors import InputError, UnknownNameError
from caldera.instructions.dialogues import Kind
from caldera.llm_client.client import Message, one_line

KINDS_WITHOUT_BOXES = frozenset[Kind]({"conversation"})
"""Kinds that get captions alone, as in the released examples."""


MAX_CAPTIONS, MAX_BOXES = 20, 120
"""Captions and boxes of an image that are sent; COCO has five to seven, and up to some ninety."""


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


def delimit(text: str) -> str:
    """Put an image's text between the marks that the system messages speak of."""
    return f"<picture>\n{text}\n</picture>"


PROMPTS_FOLDER = Path(__file__).parents[1] / "prompts"

LANGUAGES = ("english", "chinese")
"""Languages whose prompts ship with caldera."""


@dataclass(frozen=True, slots=True)
class TeacherPrompt:
    """What a teacher is told about one kind."""

    system: str
    examples: tuple[tuple[str, str], ...]
    """Images as text, and the replies they should get."""

    questions: tuple[str, ...] = ()
    """For descriptions: requests to draw from."""

    @property
    def digest(self) -> str:
        """Twelve characters that stand for every word of it."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]

    def messages(self, kind: Kind, images: Sequence[AnnotatedImage]) -> list[Message]:
        """Assemble a request: system, the examples as turns, the image that is asked about."""
        assembled: list[Message] = [{"role": "system", "content": self.system}]
        for image, reply in self.examples:
            assembled.append({"role": "user", "content": delimit(image)})
            assembled.append({"role": "assistant", "content": reply})
        assembled.append({"role": "user", "content": delimit(user_message(kind, images))})
        return assembled


def load_prompts(
    kinds: Sequence[Kind], language: str = "english", folder: Path | None = None
) -> dict[Kind, TeacherPrompt]:
    """Read the prompts of some kinds, from the user's own folder or those shipped in a language.

    Args:
        kinds: What will be asked for.
        language: Of the shipped prompts, and a folder below `folder` if there is one of that name.
        folder: Holds `KIND/system.txt`, or `LANGUAGE/KIND/system.txt`, instead of the shipped ones.

    Raises:
        UnknownNameError: No prompts ship in the language, or a kind has none.
        InputError: A file is missing, empty or not UTF-8.
    """
    if folder is None and language not in LANGUAGES:
        raise UnknownNameError("language of prompts", language, LANGUAGES)
    place = (folder or PROMPTS_FOLDER) / language
    if folder is not None and not place.is_dir():
        place = folder
    known = sorted(entry.parent.name for entry in place.glob("*/system.txt"))
    for kind in kinds:
        if kind not in known:
            raise UnknownNameError(f"prompt (KIND/system.txt) in {place}", kind, known)
    return {kind: _read(place / kind, kind) for kind in kinds}


def _read(folder: Path, kind: Kind) -> TeacherPrompt:
    """Read one kind's prompt.

    Raises:
        InputError: A file is missing, empty or not UTF-8.
    """
    numbers = sorted(
        int(entry.name.removesuffix(".image.txt"))
        for entry in folder.glob("*.image.txt")
        if entry.name.removesuffix(".image.txt").isdecimal()
    )
    examples = tuple(
        (_text(folder / f"{number}.image.txt"), _text(folder / f"{number}.reply.txt"))
        for number in numbers
    )
    questions: tuple[str, ...] = ()
    if kind == "detail":
        lines = _text(folder / "questions.txt").splitlines()
        questions = tuple(line.strip() for line in lines if line.strip())
    return TeacherPrompt(_text(folder / "system.txt"), examples, questions)


def _text(path: Path) -> str:
    """Read a text without the white space around it.

    Raises:
        InputError: It is missing, empty or not UTF-8.
    """
    try:
        text = path.read_text("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(
            f"cannot read the prompt {path}: {error.strerror}; an example is a pair N.image.txt and N.reply.txt"
        ) from None
    if not text:
        raise InputError(f"the prompt {path} is empty; write it or remove it")
    return text
