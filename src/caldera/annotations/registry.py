"""Registry of annotation readers by exact name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.caption_pairs import read_pairs
from caldera.annotations.coco import read_coco
from caldera.errors import UnknownNameError
from caldera.files.skipped_items import SkippedItems


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """Options of annotation readers."""

    split: str | None = None
    """Split of the data set to read."""

    images: Path | None = None
    """Folder that image paths are relative to."""

    ignore_fields: frozenset[str] = frozenset()
    """Additional fields of records to ignore."""


AnnotationReader = Callable[[Path, SkippedItems, SourceOptions], AnnotationSet]

ANNOTATION_READERS: dict[str, AnnotationReader] = {
    "coco": lambda path, skipped, options: read_coco(path, skipped, options.split),
    "pairs": lambda path, skipped, options: read_pairs(
        path, skipped, options.images, options.ignore_fields
    ),
}
"""Readers: `coco` of a COCO folder, `pairs` of a CSV, JSONL or LLaVA file of images and captions."""


def read_annotations(
    source: str, path: Path, skipped: SkippedItems, options: SourceOptions
) -> AnnotationSet:
    """Read annotations with the reader named `source`."""
    if source not in ANNOTATION_READERS:
        raise UnknownNameError("annotation source", source, ANNOTATION_READERS)
    return ANNOTATION_READERS[source](path, skipped, options)
