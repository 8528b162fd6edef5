r"""The record every folder exchanges: turns of text and images, read from and written as LLaVA's JSON.

LLaVA's form (spec: one object per conversation) is

    {"id": "7", "image": "dog.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A dog."}]}

with `image` a list where there are several. Each `<image>` in a human value stands for the next image. A mark is
turned into a `Image` when a record is read and never looked for again, so text that merely says `<image>` later on
(a user's question, a model's answer) stays text.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from caldera.errors import ConversationError, UsageError, did_you_mean
from caldera.files.atomic import write_atomic
from caldera.files.records import read_records

LETTERS = "ABCDEFGH"


IMAGE_PLACEHOLDER = "<image>"

Role = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """The place of an image in a turn."""

    path: str
    """Path of the file, as the record gives it: relative to the image folder, or absolute."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Something one speaker said: stretches of text, with images between them."""

    role: Role
    parts: tuple[str | ImageRef, ...]

    @property
    def text(self) -> str:
        """The words alone, without the images."""
        if len(self.parts) == 1 and isinstance(self.parts[0], str):
            return self.parts[0]  # nearly every turn; checking millions of them is slow enough
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The images alone, in order."""
        return tuple(part for part in self.parts if isinstance(part, ImageRef))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that alternate and start with the user."""

    id: str
    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        """Check the order of speakers and that each said something.

        Raises:
            RecordError: The turns do not alternate from the user on, one is empty, or the assistant shows an image.
        """
        for number, turn in enumerate(self.turns):
            wanted: Role = "assistant" if number % 2 else "user"
            if turn.role != wanted:
                raise ConversationError(
                    f"turn {number + 1} is the {turn.role}'s but should be the {wanted}'s; "
                    "turns alternate, starting with the user: merge or remove one"
                )
            text, shows = turn.text, any(isinstance(part, ImageRef) for part in turn.parts)
            if not shows and not text.strip():
                raise ConversationError(
                    f"turn {number + 1} is empty; give it text or remove the record"
                )
            if not _is_valid_utf8(text):
                raise ConversationError(
                    f"turn {number + 1} holds half a character (a lone surrogate); correct the text"
                )
            if turn.role == "assistant" and shows:
                raise ConversationError(
                    f"turn {number + 1}, the assistant's, holds {IMAGE_PLACEHOLDER}; only a user shows images"
                )

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of all images, in the order they are shown."""
        return tuple(image.path for turn in self.turns for image in turn.images)

    def require_answer(self) -> "Conversation":
        """Return the conversation itself if the assistant has the last word.

        Raises:
            RecordError: There is nothing to learn: no turns, or the last is the user's.
        """
        if not self.turns or self.turns[-1].role == "user":
            raise ConversationError(
                "the last turn is not the assistant's; add the answer it should learn"
            )
        return self


def _is_valid_utf8(text: str) -> bool:
    """Tell whether a text can be written as UTF-8, which text with a lone surrogate cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _TurnRecord(BaseModel):
    """One turn as LLaVA's JSON has it."""

    model_config = ConfigDict(extra="forbid", strict=True, title="Turn")

    speaker: Literal["human", "gpt"] = Field(alias="from", description="Who speaks.")
    value: str = Field(description="What is said; each <image> stands for the next image.")


class _ConversationRecord(BaseModel):
    """One conversation as LLaVA's JSON has it."""

    model_config = ConfigDict(extra="forbid", strict=True, title="Conversation")

    id: str | int = Field(description="Name of the record, for messages and reports.")
    image: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="Path of the image, or paths in the order of their marks."
    )
    conversations: list[_TurnRecord] = Field(
        min_length=2, description="Turns, from human and gpt alternately, human first."
    )


def json_schema() -> dict[str, object]:
    """Return the JSON Schema of a data file: a list of conversation records."""
    record = _ConversationRecord.model_json_schema(by_alias=True)
    definitions = record.pop("$defs")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "caldera conversations (LLaVA's JSON)",
        "type": "array",
        "items": record,
        "$defs": definitions,
    }


def from_record(record: object, where: str, ignore: frozenset[str] = frozenset()) -> Conversation:
    """Turn one parsed JSON object into a Conversation.

    Args:
        record: The object, in LLaVA's form.
        where: File and line or index, for messages.
        ignore: Names of surplus top-level fields to pass over.

    Raises:
        RecordError: The record breaks the form; the message gives `where`, the field, and what to do.
    """
    if isinstance(record, dict) and ignore:
        record = {key: value for key, value in record.items() if key not in ignore}
    try:
        wire = _ConversationRecord.model_validate(record)
    except ValidationError as error:
        raise ConversationError(f"{where}: {_describe_error(error)}") from None
    images = [wire.image] if isinstance(wire.image, str) else wire.image or []
    marks = sum(turn.value.count(IMAGE_PLACEHOLDER) for turn in wire.conversations)
    if marks != len(images):
        raise ConversationError(
            f"{where}: record {str(wire.id)!r} has {marks} {IMAGE_PLACEHOLDER} mark(s) but {len(images)} "
            "image(s); give each image one mark in a human value"
        )
    paths = iter(images)
    try:
        turns = tuple(
            Turn(
                "user" if turn.speaker == "human" else "assistant",
                _split_placeholders(turn.value, paths),
            )
            for turn in wire.conversations
        )
        return Conversation(str(wire.id), turns).require_answer()
    except ConversationError as error:
        raise ConversationError(f"{where}: record {str(wire.id)!r}: {error}") from None


def _split_placeholders(value: str, paths: Iterator[str]) -> tuple[str | ImageRef, ...]:
    """Cut a value at its marks and put the next images there."""
    if IMAGE_PLACEHOLDER not in value:
        return (value,) if value else ()
    first, *rest = value.split(IMAGE_PLACEHOLDER)
    parts: list[str | ImageRef] = [first]
    for text in rest:
        parts += [ImageRef(next(paths)), text]
    return tuple(part for part in parts if part != "")


def _describe_error(error: ValidationError) -> str:
    """Say in one line what is wrong with a record, by its first fault."""
    fault = error.errors(include_url=False)[0]
    steps = [step for step in fault["loc"] if step not in ("str", "int", "list[str]")]
    field = ".".join(str(step) for step in steps).replace("constrained-", "") or "record"
    got = repr(fault["input"])
    shown = got if len(got) <= 40 else f"{got[:37]}..."
    match fault["type"]:
        case "extra_forbidden":
            known = {"id", "image", "conversations"} if len(steps) == 1 else {"from", "value"}
            hint = did_you_mean(str(steps[-1]), known)
            return f"unknown field {field!r}; {hint} (or pass --ignore-field {steps[-1]})"
        case "model_type":
            return f"{f'field {field!r}' if steps else 'a record'} should be a JSON object, got {shown}"
        case "missing":
            return f"field {field!r} is missing; add it"
        case "too_short" if field == "conversations":
            return "field 'conversations' needs at least a human and a gpt turn"
        case _:
            return f"field {field!r}: {fault['msg'].lower()}, got {shown}"


def to_record(conversation: Conversation) -> dict[str, object]:
    """Turn a Conversation into LLaVA's JSON object.

    Raises:
        RecordError: A text holds the literal mark, which LLaVA's form cannot tell from an image.
    """
    for turn in conversation.turns:
        if IMAGE_PLACEHOLDER in turn.text:
            raise ConversationError(
                f"record {conversation.id!r} says {IMAGE_PLACEHOLDER} in its text, where LLaVA's JSON would "
                "read an image; reword it"
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


def read_conversations(path: Path, ignore: frozenset[str] = frozenset()) -> list[Conversation]:
    """Read a whole data file, stopping at the first fault.

    Raises:
        InputError: The file or a record in it is wrong.
    """
    return [from_record(record, where, ignore) for where, record in read_records(path)]


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write a `.json` or `.jsonl` data file, whole or not at all.

    Raises:
        OutputError: It could not be written.
    """
    lines = (json.dumps(to_record(item), ensure_ascii=False) for item in conversations)
    if path.suffix == ".jsonl":
        write_atomic(path, (f"{line}\n" for line in lines))
    else:
        write_atomic(path, _json_list_chunks(lines))


def _json_list_chunks(lines: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a JSON list that has an item on each line."""
    before = "[\n"
    for line in lines:
        yield before
        yield line
        before = ",\n"
    yield "\n]\n" if before == ",\n" else "[\n\n]\n"


def label_images(images: Sequence[ImageRef]) -> tuple[str | ImageRef, ...]:
    """Lay out several images by their letters: 'Image A: <image>', a line each.

    Raises:
        UsageError: There are more images than letters.
    """
    if len(images) > len(LETTERS):
        raise UsageError(
            f"{len(images)} images are shown together, over the limit of {len(LETTERS)}; show fewer at a time"
        )
    letters = LETTERS[: len(images)]
    lines = (
        (f"Picture {letter}: ", one, "\n") for letter, one in zip(letters, images, strict=True)
    )
    return tuple(part for line in lines for part in line)
