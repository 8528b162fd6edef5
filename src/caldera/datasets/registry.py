"""A set that others made in, a data file out: the importers by exact name, and what `data import` calls."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from caldera.conversation import to_record, write_conversations
from caldera.datasets.captions import import_captions, import_coco
from caldera.datasets.importer import Importer, ImportOptions, PathRewriter
from caldera.datasets.llava_json import import_llava
from caldera.datasets.science_qa import import_science_qa
from caldera.datasets.vqa import import_vqa
from caldera.errors import ConversationError, InputError, UnknownNameError
from caldera.files.skipped import SkippedItems

IMPORTERS: dict[str, Importer] = {
    "llava": import_llava,
    "vqa": import_vqa,
    "scienceqa": import_science_qa,
    "captions": import_captions,
    "coco": import_coco,
}
"""Readers of what others made, each in a file of its own."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What came of an import."""

    total: int
    """Records, questions or pairs that were met."""

    conversations: int
    turns: int
    images: int
    changes: Counter[str]
    bad: int


def import_dataset(
    kind: str, path: Path, out: Path, options: ImportOptions, max_bad: float = 0.0
) -> ImportReport:
    """Write a data file of what others made, whole or not at all; what is left out is listed beside it.

    Args:
        kind: A name in IMPORTERS.
        path: File or folder of the set.
        out: `.json` or `.jsonl`; its image paths start from its folder.
        options: What the importer needs to be told.
        max_bad: Share that may be left out.

    Raises:
        UnknownNameError: There is no such importer, split or form.
        InputError: The set is broken, or too much of it is bad.
        OutputError: The file cannot be written.
    """
    if kind not in IMPORTERS:
        raise UnknownNameError("importer", kind, IMPORTERS)
    skips = SkippedItems(max_bad)
    imported = IMPORTERS[kind](path, skips, options)
    moved = PathRewriter(Path(), out.parent)
    conversations = []
    for conversation in imported.conversations:
        try:
            to_record(conversation)  # raises where a text says <image>, which no file could hold
            conversations.append(moved.rewrite(conversation))
        except ConversationError as fault:
            skips.add_or_raise(f"{path}: record {conversation.id}", fault)
    skips.raise_if_over_limit(max(1, imported.total))
    if not conversations:
        raise InputError(f"there is nothing to write of {path}; see what was left out")
    write_conversations(out, conversations)
    if skips.items:
        skips.write(out.with_suffix(".bad.jsonl"))
    return ImportReport(
        total=imported.total,
        conversations=len(conversations),
        turns=sum(len(one.turns) for one in conversations),
        images=len({path for one in conversations for path in one.images}),
        changes=imported.fixes,
        bad=len(skips.items),
    )
