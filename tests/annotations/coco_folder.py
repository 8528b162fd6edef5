"""A small COCO folder for tests, and changes of its entries."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.coco import CocoOptions
from caldera.annotations.coco import read_coco as read_unchecked
from caldera.files.skipped_items import SkippedItems

Files = dict[str, dict[str, list[dict[str, Any]]]]
WIDTH, HEIGHT = 50, 20


def encode_png(width: int, height: int) -> bytes:
    """Return the bytes of a blank image."""
    buffer = BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = encode_png(WIDTH, HEIGHT)


def read_coco(folder: Path, skipped: SkippedItems, split: str | None = None) -> AnnotationSet:
    """Read a folder and check the limit of skipped images, as every command does."""
    annotations = read_unchecked(folder, skipped, CocoOptions(split=split))
    skipped.finish(annotations.total)
    return annotations


def coco_files() -> Files:
    """Return the two annotation files of three images, with additional fields."""
    images = [
        {"id": 7 * n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT, "license": 3}
        for n in (1, 2, 3)
    ]
    captions = [
        {"id": n, "image_id": 7 * n, "caption": caption}
        for n in (1, 2, 3)
        for caption in (f"A dog\n  number {n} .", "A pet")
    ]
    boxes = [
        {"id": n, "image_id": 7 * n, "category_id": 18, "bbox": [5, 4, 10.0, 8], "iscrowd": 0}
        for n in (1, 2, 3)
    ]
    boxes.append({"id": 9, "image_id": 7, "category_id": 1, "bbox": [0, 0, 50, 20], "iscrowd": 1})
    categories = [
        {"id": 1, "name": "person", "supercategory": "person"},
        {"id": 18, "name": " dog "},
    ]
    return {
        "captions": {"images": images, "annotations": captions},
        "instances": {"images": list(images), "annotations": boxes, "categories": categories},
    }


def write(folder: Path, files: Files, split: str = "tiny", images: str = "tiny") -> Path:
    """Write a COCO folder of blank images."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / "annotations" / f"{name}_{split}.json").write_text(json.dumps(content))
    for n in (1, 2, 3):
        path = folder / images / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    return folder


def box_of(files: Files, **fields: object) -> None:
    """Change the second image's box."""
    files["instances"]["annotations"][1].update(fields)


def image_of(files: Files, **fields: object) -> None:
    """Change the second image's entry."""
    files["captions"]["images"][1].update(fields)


def without(files: Files, name: str) -> None:
    """Remove the second image's entries from an annotation file."""
    entries = files[name]["annotations"]
    files[name]["annotations"] = [entry for entry in entries if entry["image_id"] != 14]
