"""Annotation sources by exact name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.caption_pairs import read_pairs
from caldera.annotations.coco import read_coco
from caldera.errors import UnknownNameError
from caldera.files.skipped import SkippedItems


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """What some sources need to be told."""

    split: str | None = None
    """Which part of a collection to read."""

    images: Path | None = None
    """Folder that image paths start from."""

    ignore_fields: frozenset[str] = frozenset()
    """Surplus fields of records to pass over."""


AnnotationReader = Callable[[Path, SkippedItems, SourceOptions], AnnotationSet]

ANNOTATION_READERS: dict[str, AnnotationReader] = {
    "coco": lambda path, skips, options: read_coco(path, skips, options.split),
    "pairs": lambda path, skips, options: read_pairs(
        path, skips, options.images, options.ignore_fields
    ),
}
"""Readers: `coco` for a COCO folder, `pairs` for a CSV, JSONL or LLaVA file of images and captions."""


def read_annotations(
    source: str, path: Path, skips: SkippedItems, options: SourceOptions
) -> AnnotationSet:
    """Read annotations with the reader called exactly `source`.

    Raises:
        UnknownNameError: There is none.
        InputError: The annotations cannot be read.
    """
    if source not in ANNOTATION_READERS:
        raise UnknownNameError("annotation source", source, ANNOTATION_READERS)
    return ANNOTATION_READERS[source](path, skips, options)
