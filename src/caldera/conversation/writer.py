"""Writer and schema of LLaVA's JSON, the form in which conversations are stored."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from caldera.conversation.turns import IMAGE_PLACEHOLDER, Conversation, ImageRef
from caldera.errors import ConversationError
from caldera.files.atomic import write_atomic


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


def to_record(conversation: Conversation) -> dict[str, object]:
    """Return the JSON object of a Conversation; raise ConversationError if a question contains the placeholder."""
    for turn in conversation.turns:
        if turn.role == "user" and IMAGE_PLACEHOLDER in turn.text:
            raise ConversationError(
                f"record {conversation.id!r} contains {IMAGE_PLACEHOLDER} in a question, which LLaVA's JSON would "
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
