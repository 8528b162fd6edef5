r"""Conversations of text and images, read and written as LLaVA's JSON.

One JSON object per conversation:

    {"id": "7", "image": "dog.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A dog."}]}

`image` is a list if there are several. Each `<image>` in a human value is the placeholder of the next image. It is
replaced by an `ImageRef` once, when the record is read; `<image>` in any later text (a user's question, a model's
answer) stays text.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from caldera.errors import (
    ConversationError,
    UsageError,
    did_you_mean,
    shorten_value,
    validation_error_field,
)
from caldera.files.atomic import write_atomic
from caldera.files.records import read_records

LETTERS = "ABCDEFGH"
"""Labels of several images that are shown together."""

IMAGE_PLACEHOLDER = "<image>"

Role = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image in a turn."""

    path: str
    """Path of the file as in the record: relative to the image folder, or absolute."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of the user or the assistant: texts and images in order."""

    role: Role
    parts: tuple[str | ImageRef, ...]

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
            if not has_image and not text.strip():
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


class _TurnRecord(BaseModel):
    """A turn in LLaVA's JSON."""

    model_config = ConfigDict(extra="forbid", strict=True, title="Turn")

    speaker: Literal["human", "gpt"] = Field(alias="from", description="Role of the speaker.")
    value: str = Field(description="Text; each <image> is the placeholder of the next image.")


class _ConversationRecord(BaseModel):
    """A conversation in LLaVA's JSON."""

    model_config = ConfigDict(extra="forbid", strict=True, title="Conversation")

    id: str | int = Field(description="Id of the record, for messages and reports.")
    image: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="Path of the image, or paths in the order of their placeholders."
    )
    conversations: list[_TurnRecord] = Field(
        min_length=2, description="Turns, alternating between human and gpt, human first."
    )


def json_schema() -> dict[str, object]:
    """Return the JSON Schema of a data file, a list of conversation records."""
    record = _ConversationRecord.model_json_schema(by_alias=True)
    definitions = record.pop("$defs")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "caldera conversations (LLaVA's JSON)",
        "type": "array",
        "items": record,
        "$defs": definitions,
    }


def from_record(
    record: object, location: str, ignore_fields: frozenset[str] = frozenset()
) -> Conversation:
    """Return the Conversation of one parsed JSON object, or raise ConversationError with the field and what to do.

    Args:
        record: The object in LLaVA's format.
        location: File and line or index, for messages.
        ignore_fields: Names of additional top-level fields to ignore.
    """
    if isinstance(record, dict) and ignore_fields:
        record = {key: value for key, value in record.items() if key not in ignore_fields}
    try:
        parsed = _ConversationRecord.model_validate(record)
    except ValidationError as error:
        raise ConversationError(f"{location}: {_describe_error(error)}") from None
    images = [parsed.image] if isinstance(parsed.image, str) else parsed.image or []
    num_placeholders = sum(turn.value.count(IMAGE_PLACEHOLDER) for turn in parsed.conversations)
    if num_placeholders != len(images):
        raise ConversationError(
            f"{location}: record {str(parsed.id)!r} has {num_placeholders} {IMAGE_PLACEHOLDER} placeholder(s) but "
            f"{len(images)} image(s); give each image one placeholder in a human value"
        )
    paths = iter(images)
    try:
        turns = tuple(
            Turn(
                "user" if turn.speaker == "human" else "assistant",
                _split_placeholders(turn.value, paths),
            )
            for turn in parsed.conversations
        )
        return Conversation(str(parsed.id), turns).require_answer()
    except ConversationError as error:
        raise ConversationError(f"{location}: record {str(parsed.id)!r}: {error}") from None


def _split_placeholders(value: str, paths: Iterator[str]) -> tuple[str | ImageRef, ...]:
    """Split a value at its placeholders and insert the next images."""
    if IMAGE_PLACEHOLDER not in value:
        return (value,) if value else ()
    first, *rest = value.split(IMAGE_PLACEHOLDER)
    parts: list[str | ImageRef] = [first]
    for text in rest:
        parts += [ImageRef(next(paths)), text]
    return tuple(part for part in parts if part != "")


def _describe_error(error: ValidationError) -> str:
    """Describe the first error of a record in one line, with what to do."""
    first = error.errors(include_url=False)[0]
    location, value = first["loc"], shorten_value(first["input"])
    field = validation_error_field(error) or "record"
    match first["type"]:
        case "extra_forbidden":
            names = {"id", "image", "conversations"} if len(location) == 1 else {"from", "value"}
            hint = did_you_mean(str(location[-1]), names)
            return f"unknown field {field!r}; {hint} (or pass --ignore-field {location[-1]})"
        case "model_type":
            subject = f"field {field!r}" if location else "a record"
            return f"{subject} should be a JSON object, got {value}"
        case "missing":
            return f"field {field!r} is missing; add it"
        case "too_short" if field == "conversations":
            return "field 'conversations' needs at least a human and a gpt turn"
        case _:
            return f"field {field!r}: {first['msg'].lower()}, got {value}"


def to_record(conversation: Conversation) -> dict[str, object]:
    """Return the JSON object of a Conversation; raise ConversationError if a text contains the literal placeholder."""
    for turn in conversation.turns:
        if IMAGE_PLACEHOLDER in turn.text:
            raise ConversationError(
                f"record {conversation.id!r} contains {IMAGE_PLACEHOLDER} in its text, which LLaVA's JSON would "
                "read as an image; reword it"
            )
    record: dict[str, object] = {"id": conversation.id}
    if images := conversation.images:
        record["image"] = images[0] if len(images) == 1 else list(images)
    record["conversations"] = [
        {
            "from": "human" if turn.role == "user" else "gpt",
            "value": "".join(
                IMAGE_PLACEHOLDER if isinstance(part, ImageRef) else part for part in turn.parts
            ),
        }
        for turn in conversation.turns
    ]
    return record


def read_conversations(
    path: Path, ignore_fields: frozenset[str] = frozenset()
) -> list[Conversation]:
    """Return all conversations of a data file.

    Raises:
        InputError: The file or a record in it is invalid.
    """
    return [from_record(record, location, ignore_fields) for location, record in read_records(path)]


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write a `.json` or `.jsonl` data file atomically."""
    lines = (json.dumps(to_record(item), ensure_ascii=False) for item in conversations)
    if path.suffix == ".jsonl":
        write_atomic(path, (f"{line}\n" for line in lines))
    else:
        write_atomic(path, _json_list_chunks(lines))


def _json_list_chunks(lines: Iterable[str]) -> Iterator[str]:
    """Yield the text of a JSON list with one item per line, in chunks."""
    separator = "[\n"
    for line in lines:
        yield separator
        yield line
        separator = ",\n"
    yield "\n]\n" if separator == ",\n" else "[\n\n]\n"


def label_images(images: Sequence[ImageRef]) -> tuple[str | ImageRef, ...]:
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
