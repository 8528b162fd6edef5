"""Reader of conversation files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from caldera.conversation.turns import IMAGE_PLACEHOLDER, Conversation, ImageRef, Turn
from caldera.conversation.writer import _ConversationRecord
from caldera.errors import (
    ConversationError,
    did_you_mean,
    shorten_value,
    validation_error_field,
)
from caldera.files.records import read_records


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


def read_conversations(
    path: Path, ignore_fields: frozenset[str] = frozenset()
) -> list[Conversation]:
    """Return all conversations of a data file.

    Raises:
        InputError: The file or a record in it is invalid.
    """
    return [from_record(record, location, ignore_fields) for location, record in read_records(path)]


