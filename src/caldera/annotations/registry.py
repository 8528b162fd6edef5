"""Registry of annotation readers by exact name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.caption_pairs import read_pairs
from caldera.annotations.coco import CocoOptions, read_coco
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

    captions: Path | None = None
    instances: Path | None = None
    """COCO files of captions and boxes; None for both: found in the folder."""

    boxes: str | None = None
    """Unit and frame of COCO boxes, as in 'percent,stored'; None: decided by the files."""

    columns: str | None = None
    """Columns or fields of the image and the caption of a table, 'file_name,text'; None: by their usual names."""

    with_boxes: bool = True
    """Read boxes if there are any; the kind `caption` needs none."""


AnnotationReader = Callable[[Path, SkippedItems, SourceOptions], AnnotationSet]

ANNOTATION_READERS: dict[str, AnnotationReader] = {
    "coco": lambda path, skipped, options: read_coco(
        path,
        skipped,
        CocoOptions(
            split=options.split,
            images=options.images,
            captions=options.captions,
            instances=options.instances,
            with_boxes=options.with_boxes,
            boxes=options.boxes,
        ),
    ),
    "pairs": lambda path, skipped, options: read_pairs(
        path,
        skipped,
        options.images,
        options.ignore_fields,
        columns=options.columns,
        split=options.split,
    ),
}
"""Readers: `coco` of a COCO folder or an export of a tool, `pairs` of a file of images and captions."""


def read_annotations(
    source: str, path: Path, skipped: SkippedItems, options: SourceOptions
) -> AnnotationSet:
    """Read annotations with the reader named `source`."""
    if source not in ANNOTATION_READERS:
        raise UnknownNameError("annotation source", source, ANNOTATION_READERS)
    return ANNOTATION_READERS[source](path, skipped, options)
