"""Conversations of text and images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from caldera.errors import ConversationError, UsageError

LETTERS = "ABCDEFGH"
"""Labels of several images that are shown together."""

IMAGE_PLACEHOLDER = "<image>"

Role = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image in a turn."""

    path: str
    """Path of the file as in the record: relative to the image folder, or absolute."""


Part = str | ImageRef
"""A text or an image in a turn."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of the user or the assistant: texts and images in order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text without the images."""
        # Nearly every turn is a single text, and data sets have millions of turns.
        if len(self.parts) == 1 and isinstance(self.parts[0], str):
            return self.parts[0]
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The images in order."""
        return tuple(part for part in self.parts if isinstance(part, ImageRef))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Alternating turns, starting with the user's."""

    id: str
    turns: tuple[Turn, ...]
    location: str = field(default="", compare=False, repr=False)
    """File and line or index that it was read from, for messages."""

    allow_empty_turns: bool = field(default=False, compare=False, repr=False)
    """Whether a turn may have neither text nor image, as in a chat with a model that answered nothing."""

    def __post_init__(self) -> None:
        """Check the turns."""
        for number, turn in enumerate(self.turns, start=1):
            expected: Role = "user" if number % 2 else "assistant"
            if turn.role != expected:
                raise ConversationError(
                    f"turn {number} is the {turn.role}'s but should be the {expected}'s; "
                    "turns alternate, starting with the user: merge or remove one"
                )
            text, has_image = turn.text, any(isinstance(part, ImageRef) for part in turn.parts)
            if not (has_image or text.strip() or self.allow_empty_turns):
                raise ConversationError(
                    f"turn {number} is empty; give it text or remove the record"
                )
            if not is_valid_utf8(text):
                raise ConversationError(
                    f"turn {number} holds half a character (a lone surrogate); correct the text"
                )
            if turn.role == "assistant" and has_image:
                raise ConversationError(
                    f"turn {number}, the assistant's, holds {IMAGE_PLACEHOLDER}; only a user shows images"
                )

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of all images in order."""
        return tuple(image.path for turn in self.turns for image in turn.images)

    def require_answer(self) -> "Conversation":
        """Return the conversation itself if it ends with an answer of the assistant."""
        if not self.turns or self.turns[-1].role == "user":
            raise ConversationError(
                "the last turn is not the assistant's; add the answer it should learn"
            )
        return self


def is_valid_utf8(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8; one with a lone surrogate cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def label_images(images: Sequence[ImageRef]) -> tuple[Part, ...]:
    """Return several images with letters as labels, one per line."""
    if len(images) > len(LETTERS):
        raise UsageError(
            f"{len(images)} images are shown together, over the limit of {len(LETTERS)}; show fewer at a time"
        )
    letters = LETTERS[: len(images)]
    lines = (
        (f"Picture {letter}: ", image, "\n") for letter, image in zip(letters, images, strict=True)
    )
    return tuple(part for line in lines for part in line)
