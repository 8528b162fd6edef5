"""Reader of image-caption pairs: CSV, JSONL, or LLaVA's stage-1 JSON."""

import csv
from collections.abc import Iterator
from pathlib import Path

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet, unique_ids
from caldera.conversation import from_record
from caldera.errors import AnnotationError, ImageError, InputError
from caldera.files.atomic import file_exists
from caldera.files.records import read_records
from caldera.files.skipped_items import SkippedItems

_COLUMNS = ("image", "caption")


def read_pairs(
    path: Path,
    skipped: SkippedItems,
    image_folder: Path | None = None,
    ignore_fields: frozenset[str] = frozenset(),
    *,
    check_images: bool = True,
) -> AnnotationSet:
    """Read pairs of an image and a caption; captions of the same image are merged.

    The file is a `.csv` with the columns image and caption, a `.jsonl` of {"image", "caption"} objects, or LLaVA's
    stage-1 `.json`, whose first gpt value is the caption. Paths are relative to `image_folder`, by default `images/`
    next to the file or the file's own folder.
    """
    root = image_folder or _default_image_folder(path)
    captions: dict[str, list[str]] = {}
    total = 0
    for location, row in _read_rows(path):
        total += 1
        try:
            image, caption = _parse_pair(row, location, ignore_fields)
            if check_images and not file_exists(root / image):
                raise ImageError(f"{location}: {root / image} does not exist; check --images")
        except InputError as error:
            skipped.add_or_raise(location, error)
        else:
            captions.setdefault(image, []).append(caption)
    if not total:
        raise AnnotationError(
            f"{path} holds no pairs; it should have an image and a caption a line"
        )
    skipped.raise_if_over_limit(total)
    ids = unique_ids(tuple(captions))
    images = tuple(
        AnnotatedImage(ids[image], root / image, 0, 0, tuple(texts))
        for image, texts in captions.items()
    )
    return AnnotationSet(images)


def _default_image_folder(path: Path) -> Path:
    folder = path.parent / "images"
    return folder if folder.is_dir() else path.parent


def _read_rows(path: Path) -> Iterator[tuple[str, object]]:
    """Yield every unchecked row with its location."""
    if path.suffix.lower() != ".csv":
        yield from read_records(path)
        return
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := set(_COLUMNS) - set(reader.fieldnames or ()):
                raise AnnotationError(
                    f"{path} has no column {sorted(missing)}; its first line should be image,caption"
                )
            for row in reader:
                yield f"{path}:{reader.line_num}", row
    except OSError as error:
        raise AnnotationError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise AnnotationError(f"{path} is not UTF-8 CSV: {error}") from error


def _parse_pair(row: object, location: str, ignore_fields: frozenset[str]) -> tuple[str, str]:
    """Return image path and caption of a row, or raise an InputError."""
    if isinstance(row, dict) and "conversations" in row:
        conversation = from_record(row, location, ignore_fields)
        if not conversation.images:
            raise AnnotationError(f"{location} has no image; a caption needs one")
        if len(conversation.turns) > 2:
            raise AnnotationError(
                f"{location} has {len(conversation.turns)} turns; a pair is a human turn with an image and a gpt turn "
                "with its caption"
            )
        image, caption = conversation.images[0], conversation.turns[1].text
    elif isinstance(row, dict) and None in row:
        # csv collects surplus fields under None.
        raise AnnotationError(
            f"{location} has too many fields; put a caption with commas in quotes"
        )
    elif isinstance(row, dict) and all(isinstance(row.get(key), str) for key in _COLUMNS):
        image, caption = row["image"], row["caption"]
    else:
        raise AnnotationError(f"{location} should have text fields 'image' and 'caption'")
    if not image.strip() or not caption.strip():
        raise AnnotationError(
            f"{location} has an empty image or caption; fill it or remove the row"
        )
    return image, " ".join(caption.split())
