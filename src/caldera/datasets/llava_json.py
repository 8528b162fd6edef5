"""Import of conversations in LLaVA's JSON and similar formats: mix665k, ShareGPT, messages with roles.

Deviations that can be fixed without a guess are fixed and counted: names of roles and fields, a missing image
placeholder, a first turn of the assistant or a last one of the user (LLaVA's own code drops both), an image suffix that
a download changed. Any other deviation makes the record invalid.
"""

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from caldera.conversation import IMAGE_PLACEHOLDER, from_record
from caldera.datasets.importer import ImportOptions, ImportResult, ResolveImage, image_resolver
from caldera.errors import ConversationError, InputError, did_you_mean, shorten_value
from caldera.files.records import read_records
from caldera.files.skipped_items import SkippedItems

ROLE_ALIASES = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "chatgpt": "gpt",
    "system": "system",
}
"""LLaVA's role for each accepted name, in any letter case."""

IMAGE_SUFFIXES = (".jpg", ".png", ".gif", ".jpeg", ".webp", ".JPG", ".PNG")
"""Suffixes tried for an image; mix665k names all images of OCR-VQA .jpg, but the downloads have other suffixes."""

_TURNS, _IMAGES = ("conversations", "messages"), ("image", "images")


def import_llava(path: Path, skipped: SkippedItems, options: ImportOptions) -> ImportResult:
    """Import a `.json` or `.jsonl` file of conversations and fix its records."""
    resolve_image = image_resolver(options.images or path.parent, check_exists=options.check_exists)
    imported = ImportResult()
    for index, (location, record) in enumerate(read_records(path)):
        imported.total += 1
        fixes: Counter[str] = Counter()
        try:
            fixed = _fix_record(record, location, f"{path.stem}-{index}", fixes)
            _resolve_images(fixed, resolve_image, fixes)
            conversation = from_record(fixed, location)
        except InputError as error:
            skipped.add_or_raise(location, error)
        else:
            imported.conversations.append(conversation)
            imported.fixes.update(fixes)
    skipped.raise_if_over_limit(imported.total)
    return imported


def _fix_record(
    record: object, location: str, default_id: str, fixes: Counter[str]
) -> dict[str, Any]:
    """Return a record in LLaVA's format."""
    if not isinstance(record, dict):
        raise ConversationError(
            f"{location}: a record should be a JSON object, got {shorten_value(record)}"
        )
    turns = _fix_turns(_single_field(record, _TURNS, location), location, fixes)
    turns = _trim_ends(turns, fixes)
    images = _image_paths(record, location)
    if images and turns and not any(IMAGE_PLACEHOLDER in turn["value"] for turn in turns):
        turns[0]["value"] = f"{IMAGE_PLACEHOLDER}\n" * len(images) + turns[0]["value"]
        fixes["image placeholder added to the first question"] += 1
    identity = record.get("id")
    if identity is None or identity == "":
        identity = default_id
        fixes["missing id set from the position"] += 1
    for key in record.keys() - {"id", *_TURNS, *_IMAGES}:
        fixes[f"field {key!r} removed"] += 1
    fixed: dict[str, Any] = {"id": identity, "conversations": turns}
    if images:
        fixed["image"] = images
    return fixed


def _single_field(record: dict[str, Any], names: tuple[str, ...], location: str) -> object:
    """Return the value of the only field among several names; raise if there is none or more than one."""
    present = [name for name in names if record.get(name) is not None]
    if len(present) != 1:
        got = f"both {' and '.join(present)}" if present else f"no field {' or '.join(names)}"
        raise ConversationError(f"{location}: a record has {got}; it needs one of them")
    return record[present[0]]


def _image_paths(record: dict[str, Any], location: str) -> list[str]:
    """Return the paths of a record's images."""
    if not any(record.get(name) for name in _IMAGES):
        return []
    images = _single_field(record, _IMAGES, location)
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(path, str) and path for path in images):
        raise ConversationError(
            f"{location}: images should be a path or a list of paths, got {shorten_value(images)}; "
            "write the images to files and name them"
        )
    return images


def _fix_turns(turns: object, location: str, fixes: Counter[str]) -> list[dict[str, str]]:
    """Return the turns with LLaVA's names, without system turns."""
    if not isinstance(turns, list):
        raise ConversationError(f"{location}: turns should be a list, got {shorten_value(turns)}")
    fixed = []
    for number, turn in enumerate(turns, start=1):
        turn_location = f"{location}: turn {number}"
        if not isinstance(turn, dict):
            raise ConversationError(
                f"{turn_location} should be a JSON object, got {shorten_value(turn)}"
            )
        given_role = turn.get("from", turn.get("role"))
        text = _text(turn.get("value", turn.get("content")), turn_location)
        role = ROLE_ALIASES.get(given_role.lower()) if isinstance(given_role, str) else None
        if role is None:
            raise ConversationError(
                f"{turn_location} has the role {given_role!r}; "
                f"{did_you_mean(str(given_role), ROLE_ALIASES)}"
            )
        if role == "system":
            fixes["system turn removed"] += 1
        else:
            fixed.append({"from": role, "value": text})
            if role != given_role:
                fixes[f"role {given_role!r} renamed to {role!r}"] += 1
        for key in turn.keys() - {"from", "role", "value", "content"}:
            fixes[f"field {key!r} of turns removed"] += 1
    return fixed


def _text(content: object, location: str) -> str:
    """Return the text of a turn; in messages it may be a list of parts, whose images become placeholders."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = []
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "image"}:
                texts.append(f"{IMAGE_PLACEHOLDER}\n")
            case _:
                raise ConversationError(
                    f"{location} should have a text, got {shorten_value(content)}"
                )
    return "".join(texts)


def _trim_ends(turns: list[dict[str, str]], fixes: Counter[str]) -> list[dict[str, str]]:
    """Drop an answer without a question at the start, and a question without an answer at the end."""
    if turns and turns[0]["from"] == "gpt":
        turns = turns[1:]
        fixes["first turn, the assistant's, removed"] += 1
    if turns and turns[-1]["from"] == "human":
        turns = turns[:-1]
        fixes["last turn, without an answer, removed"] += 1
    return turns


def _resolve_images(
    record: dict[str, Any], resolve_image: ResolveImage, fixes: Counter[str]
) -> None:
    """Replace image names by paths; if a file does not exist, other suffixes are tried."""
    if "image" not in record:
        return
    paths = []
    for name in record["image"]:
        stem = name.removesuffix(PurePosixPath(name).suffix)
        path = resolve_image(name, *(stem + suffix for suffix in IMAGE_SUFFIXES))
        if not path.endswith(name):
            fixes["image found with another suffix"] += 1
        paths.append(path)
    record["image"] = paths
