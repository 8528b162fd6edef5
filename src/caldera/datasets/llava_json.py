"""Conversations as others wrote them in, as LLaVA's JSON has them out: mix665k, ShareGPT, messages with roles.

What can be set right without a guess is, and counted: names of speakers and fields, a mark that is missing, a first
turn of the assistant's or a last one of the user's (LLaVA's own code drops both), a suffix that a download changed. All
else is a bad record.
"""

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from caldera.conversation import IMAGE_PLACEHOLDER, from_record
from caldera.datasets.importer import ImageFolder, ImportOptions, ImportResult
from caldera.errors import ConversationError, InputError, did_you_mean
from caldera.files.records import read_records
from caldera.files.skipped import SkippedItems

ROLE_ALIASES = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "chatgpt": "gpt",
    "system": "system",
}
"""Whom names stand for, in any case of letters."""

IMAGE_SUFFIXES = (".jpg", ".png", ".gif", ".jpeg", ".webp", ".JPG", ".PNG")
"""What an image's name may end in after a download: OCR-VQA's are called .jpg in mix665k, and come as others."""

_TURNS, _IMAGES = ("conversations", "messages"), ("image", "images")


def import_llava(path: Path, skips: SkippedItems, options: ImportOptions) -> ImportResult:
    """Read a `.json` or `.jsonl` file of conversations and set its records right.

    Raises:
        InputError: The file cannot be read, or a record is bad and may not be left out.
    """
    folder = ImageFolder(options.images or path.parent, find=options.check_exists)
    imported = ImportResult()
    for index, (where, record) in enumerate(read_records(path)):
        imported.total += 1
        changes: Counter[str] = Counter()
        try:
            wire = _record(record, where, f"{path.stem}-{index}", changes)
            _resolve_images(wire, folder, changes)
            conversation = from_record(wire, where)
        except InputError as fault:
            skips.add_or_raise(where, fault)
        else:
            imported.conversations.append(conversation)
            imported.fixes.update(changes)
    skips.raise_if_over_limit(imported.total)
    return imported


def _record(record: object, where: str, name: str, changes: Counter[str]) -> dict[str, Any]:
    """Return a record in LLaVA's form."""
    if not isinstance(record, dict):
        raise ConversationError(
            f"{where}: a record should be a JSON object, got {repr(record)[:40]}"
        )
    turns = _trim_ends(_turns(_single_field(record, _TURNS, where), where, changes), changes)
    images = _images(record, where)
    if images and turns and not any(IMAGE_PLACEHOLDER in turn["value"] for turn in turns):
        turns[0]["value"] = f"{IMAGE_PLACEHOLDER}\n" * len(images) + turns[0]["value"]
        changes["mark of the image put in front of the first question"] += 1
    identity = record.get("id")
    if identity is None or identity == "":
        identity = name
        changes["id given by place"] += 1
    for key in record.keys() - {"id", *_TURNS, *_IMAGES}:
        changes[f"field {key!r} left out"] += 1
    wire: dict[str, Any] = {"id": identity, "conversations": turns}
    if images:
        wire["image"] = images
    return wire


def _single_field(record: dict[str, Any], names: tuple[str, ...], where: str) -> object:
    """Return the value of the only one of several names that a record has.

    Raises:
        RecordError: It has none, or several.
    """
    there = [name for name in names if record.get(name) is not None]
    if len(there) != 1:
        got = f"both {' and '.join(there)}" if there else f"no field {' or '.join(names)}"
        raise ConversationError(f"{where}: a record has {got}; it needs one of them")
    return record[there[0]]


def _images(record: dict[str, Any], where: str) -> list[str]:
    """Return the paths of a record's images."""
    if not any(record.get(name) for name in _IMAGES):
        return []
    images = _single_field(record, _IMAGES, where)
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(one, str) and one for one in images):
        raise ConversationError(
            f"{where}: images should be a path or a list of paths, got {repr(images)[:40]}; "
            "write the images to files and name them"
        )
    return images


def _turns(turns: object, where: str, changes: Counter[str]) -> list[dict[str, str]]:
    """Return turns by LLaVA's names, without the system's.

    Raises:
        RecordError: One is not a turn, or its speaker is unknown.
    """
    if not isinstance(turns, list):
        raise ConversationError(f"{where}: turns should be a list, got {repr(turns)[:40]}")
    named = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise ConversationError(
                f"{where}: turn {number} should be a JSON object, got {repr(turn)[:40]}"
            )
        speaker = turn.get("from", turn.get("role"))
        text = _text(turn.get("value", turn.get("content")), f"{where}: turn {number}")
        name = ROLE_ALIASES.get(speaker.lower()) if isinstance(speaker, str) else None
        if name is None:
            raise ConversationError(
                f"{where}: turn {number} is by {speaker!r}; {did_you_mean(str(speaker), ROLE_ALIASES)}"
            )
        if name != speaker and name != "system":
            changes[f"speaker {speaker!r} is {name!r}"] += 1
        for key in turn.keys() - {"from", "role", "value", "content"}:
            changes[f"field {key!r} of turns left out"] += 1
        if name == "system":
            changes["system's turn left out"] += 1
        else:
            named.append({"from": name, "value": text})
    return named


def _text(content: object, where: str) -> str:
    """Return what a turn says; in messages it may be a list of parts, of which images become marks.

    Raises:
        RecordError: It is neither.
    """
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
                raise ConversationError(f"{where} should say a text, got {repr(content)[:40]}")
    return "".join(texts)


def _trim_ends(turns: list[dict[str, str]], changes: Counter[str]) -> list[dict[str, str]]:
    """Drop what nobody asked for at the start, and what nobody answered at the end."""
    if turns and turns[0]["from"] == "gpt":
        turns = turns[1:]
        changes["first turn, the assistant's, left out"] += 1
    if turns and turns[-1]["from"] == "human":
        turns = turns[:-1]
        changes["last turn, without an answer, left out"] += 1
    return turns


def _resolve_images(wire: dict[str, Any], folder: ImageFolder, changes: Counter[str]) -> None:
    """Put whole paths in place of names; of a file that is not there, another suffix may be.

    Raises:
        ImageError: An image is not there.
    """
    if "image" not in wire:
        return
    found = []
    for name in wire["image"]:
        stem = name.removesuffix(PurePosixPath(name).suffix)
        path = folder.resolve(name, *(stem + suffix for suffix in IMAGE_SUFFIXES))
        if not path.endswith(name):
            changes["image found under another suffix"] += 1
        found.append(path)
    wire["image"] = found
