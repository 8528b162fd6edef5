"""Prompt files of the LLM teacher, and images as text.

An image is written as in the released examples (arXiv 2304.08485, section 3): the captions, one per line; for kinds
with boxes a blank line and `category: [x1, y1, x2, y2]` for each box, with corners as fractions of width and height,
rounded to three decimals. Captions are untrusted data: they can neither start a line, close the delimiters of the
text, change the writing direction, nor exceed a maximum length.

`LANGUAGE/KIND/system.txt` is the system message; pairs `1.image.txt`, `1.reply.txt`, `2.image.txt` ... are examples,
sent as turns before the image in question (arXiv 2304.08485, table 13). `detail` also has `questions.txt`, one
request for a description per line: the reply is the answer alone, and the question is sampled from these.
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
"""Captions and boxes of an image that are sent; COCO has five to seven captions, and at most about ninety boxes."""

PROMPTS_FOLDER = Path(__file__).parents[1] / "prompts"

LANGUAGES = ("english", "chinese")
"""Languages of the packaged prompts."""

_IMAGE_SUFFIXES = (".picture.txt", ".image.txt")
"""File name endings of an example's image; the first is the one of version 0.1, which the second overrides."""


def symbolic_image(image: AnnotatedImage, *, boxes: bool) -> str:
    """Return one image as text."""
    lines = [one_line(caption) for caption in image.captions[:MAX_CAPTIONS]]
    if boxes and image.instances:
        lines.append("")
        for instance in image.instances[:MAX_BOXES]:
            box = instance.box
            corners = [round(corner, 3) for corner in (box.left, box.top, box.right, box.bottom)]
            lines.append(f"{one_line(instance.category)}: {corners}")
    return "\n".join(lines)


def user_message(kind: Kind, images: Sequence[AnnotatedImage]) -> str:
    """Return the images of a dialogue as text; several are labeled by letters."""
    texts = [symbolic_image(image, boxes=kind not in KINDS_WITHOUT_BOXES) for image in images]
    if kind != "context":
        return texts[0]
    return "\n\n".join(
        f"Picture {letter}:\n{text}" for letter, text in zip(LETTERS, texts, strict=False)
    )


def delimit(text: str) -> str:
    """Put an image's text between the delimiters that the system messages mention."""
    return f"<picture>\n{text}\n</picture>"


@dataclass(frozen=True, slots=True)
class TeacherPrompt:
    """Prompt of one kind."""

    system: str
    examples: tuple[tuple[str, str], ...]
    """Images as text, with the expected replies."""

    questions: tuple[str, ...] = ()
    """Requests for a description, to sample from."""

    @property
    def digest(self) -> str:
        """Digest of the whole prompt, twelve characters."""
        # Version 0.1 called the class Prompt; its digests stay valid.
        content = repr(self).replace("TeacherPrompt(", "Prompt(", 1)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def messages(self, kind: Kind, images: Sequence[AnnotatedImage]) -> list[Message]:
        """Return a request: system message, examples as turns, and the images in question."""
        messages: list[Message] = [{"role": "system", "content": self.system}]
        for image, reply in self.examples:
            messages.append({"role": "user", "content": delimit(image)})
            messages.append({"role": "assistant", "content": reply})
        messages.append({"role": "user", "content": delimit(user_message(kind, images))})
        return messages


def load_prompts(
    kinds: Sequence[Kind], language: str = "english", folder: Path | None = None
) -> dict[Kind, TeacherPrompt]:
    """Read the prompts of some kinds."""
    if folder is None and language not in LANGUAGES:
        raise UnknownNameError("language of prompts", language, LANGUAGES)
    root = (folder or PROMPTS_FOLDER) / language
    if folder is not None and not root.is_dir():
        root = folder
    available = sorted(file.parent.name for file in root.glob("*/system.txt"))
    for kind in kinds:
        if kind not in available:
            raise UnknownNameError(f"prompt (KIND/system.txt) in {root}", kind, available)
    return {kind: _load_prompt(root / kind, kind) for kind in kinds}


def _load_prompt(folder: Path, kind: Kind) -> TeacherPrompt:
    """Read the prompt of one kind."""
    images = {
        int(number): file
        for suffix in _IMAGE_SUFFIXES
        for file in folder.glob(f"*{suffix}")
        if (number := file.name.removesuffix(suffix)).isdecimal()
    }
    examples = tuple(
        (_read_text(images[number]), _read_text(folder / f"{number}.reply.txt"))
        for number in sorted(images)
    )
    questions: tuple[str, ...] = ()
    if kind == "detail":
        lines = _read_text(folder / "questions.txt").splitlines()
        questions = tuple(line.strip() for line in lines if line.strip())
    return TeacherPrompt(_read_text(folder / "system.txt"), examples, questions)


def _read_text(path: Path) -> str:
    """Read a text without the white space around it."""
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
