"""Importers by exact name, and the import of a data set into a data file."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from caldera.conversation import write_conversations
from caldera.datasets.captions import import_captions, import_coco
from caldera.datasets.folders import import_folders
from caldera.datasets.hub_dataset import fetch_dataset, parse_hub_dataset
from caldera.datasets.importer import (
    HeldOutQuestion,
    Importer,
    ImportOptions,
    PathRewriter,
    finish_with_records,
    representable_conversations,
)
from caldera.datasets.llava_json import import_llava
from caldera.datasets.origins import write_origins
from caldera.datasets.science_qa import import_science_qa
from caldera.datasets.vqa import import_vqa
from caldera.errors import UnknownNameError
from caldera.files.atomic import write_atomic
from caldera.files.skipped_items import SkippedItems
from caldera.progress import NoProgress, Progress

IMPORTERS: dict[str, Importer] = {
    "llava": import_llava,
    "vqa": import_vqa,
    "scienceqa": import_science_qa,
    "captions": import_captions,
    "coco": import_coco,
    "folders": import_folders,
}
"""Importers by name."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """Counts of an import."""

    total: int
    """Number of records, questions or pairs, skipped ones included."""

    conversations: int
    turns: int
    images: int
    fixes: Counter[str]
    skipped: int

    classes: Counter[str]
    """Number of images by class; empty where images have no classes."""

    held_out: Path | None
    """File of the questions about images that are held out; None where none is."""

    held_out_images: int


def import_dataset(
    kind: str,
    source: str | Path,
    out: Path,
    options: ImportOptions,
    max_bad_fraction: float = 0.0,
    progress: Progress = NoProgress(),  # noqa: B008 - without state
) -> ImportReport:
    """Import a data set into a data file, written whole or not at all; skipped items are listed next to it.

    Args:
        kind: Name of the importer.
        source: File or folder; a text may name a data set on the Hugging Face Hub, `ORG/NAME@REVISION:FILE`, whose
            commit is recorded next to `out`.
        out: The data file.
        options: Options of the importer.
        max_bad_fraction: Fraction of invalid items that may be skipped.
        progress: Reports downloads.

    Raises:
        InputError: The source cannot be read, has no valid record, or too many are invalid.
    """
    if kind not in IMPORTERS:
        raise UnknownNameError("importer", kind, IMPORTERS)
    path, origins = Path(source), []
    if isinstance(source, str) and (dataset := parse_hub_dataset(source)):
        path, origin = fetch_dataset(
            dataset, kind, options.split, with_images=options.images is None, progress=progress
        )
        origins.append(origin)
    skipped = SkippedItems(max_bad_fraction)
    options = replace(options, new_images=out.with_suffix(".images"))
    imported = IMPORTERS[kind](path, skipped, options)
    rewriter = PathRewriter(Path(), out.parent)
    conversations = [
        rewriter.rewrite(conversation)
        for conversation in representable_conversations(imported.conversations, path, skipped)
    ]
    finish_with_records(skipped, len(conversations), imported.total, path, out)
    write_conversations(out, conversations)
    write_origins(out, origins)
    held_out = held_out_path(out) if imported.held_out else None
    if held_out:
        _write_questions(held_out, imported.held_out, rewriter)
    return ImportReport(
        total=imported.total,
        conversations=len(conversations),
        turns=sum(len(conversation.turns) for conversation in conversations),
        images=len({path for conversation in conversations for path in conversation.images}),
        fixes=imported.fixes,
        skipped=len(skipped.items),
        classes=imported.classes,
        held_out=held_out,
        held_out_images=len({question.image for question in imported.held_out}),
    )


def held_out_path(file: Path) -> Path:
    """Return the file of the questions that are held out from a data file."""
    return file.with_suffix(".held_out.jsonl")


def _write_questions(
    file: Path, questions: Sequence[HeldOutQuestion], rewriter: PathRewriter
) -> None:
    """Write questions for `caldera evaluate custom`, with image paths relative to the file's folder."""
    records = (replace(question, image=rewriter(question.image)) for question in questions)
    write_atomic(
        file, (f"{json.dumps(asdict(record), ensure_ascii=False)}\n" for record in records)
    )
