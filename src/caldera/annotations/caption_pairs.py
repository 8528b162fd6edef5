"""Image-caption pairs in (CSV, JSONL, or LLaVA's stage-1 JSON), AnnotatedImages without boxes out."""

import csv
from collections.abc import Iterator
from pathlib import Path

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet, unique_ids
from caldera.conversation import from_record
from caldera.errors import AnnotationError, ImageError, InputError
from caldera.files.atomic import file_exists
from caldera.files.records import read_records
from caldera.files.skipped import SkippedItems

_COLUMNS = ("image", "caption")


def read_pairs(
    path: Path,
    skips: SkippedItems,
    image_folder: Path | None = None,
    ignore: frozenset[str] = frozenset(),
    *,
    find: bool = True,
) -> AnnotationSet:
    """Read pairs of an image and a caption; several captions of one image are brought together.

    Args:
        path: A `.csv` with the columns image and caption, a `.jsonl` of {"image", "caption"} objects, or LLaVA's
            stage-1 `.json`, whose first gpt value is the caption.
        skips: Takes pairs that are unusable.
        image_folder: The folder that the paths start from; the file's own, or `images/` beside it, if left out.
        ignore: Surplus fields of LLaVA's records to pass over.
        find: Look whether each image is there.

    Raises:
        InputError: The file is missing, empty, broken, or has other fields; or a pair is bad and may not be left out.
    """
    root = image_folder or _image_folder(path)
    captions_of: dict[str, list[str]] = {}
    total = 0
    for where, row in _read_rows(path):
        total += 1
        try:
            name, caption = _to_annotated_image(row, where, ignore)
            if find and not file_exists(root / name):
                raise ImageError(f"{where}: {root / name} does not exist; check --images")
        except InputError as fault:
            skips.add_or_raise(where, fault)
        else:
            captions_of.setdefault(name, []).append(caption)
    if not total:
        raise AnnotationError(
            f"{path} holds no pairs; it should have an image and a caption a line"
        )
    skips.raise_if_over_limit(total)
    ids = unique_ids(tuple(captions_of))
    images = tuple(
        AnnotatedImage(ids[name], root / name, 0, 0, tuple(captions))
        for name, captions in captions_of.items()
    )
    return AnnotationSet(images)


def _image_folder(path: Path) -> Path:
    """Guess the folder of images as such sets are laid out."""
    beside = path.parent / "images"
    return beside if beside.is_dir() else path.parent


def _read_rows(path: Path) -> Iterator[tuple[str, object]]:
    """Yield every raw row with its place."""
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


def _to_annotated_image(row: object, where: str, ignore: frozenset[str]) -> tuple[str, str]:
    """Take image and caption out of a row.

    Raises:
        InputError: They are not there.
    """
    if isinstance(row, dict) and "conversations" in row:
        conversation = from_record(row, where, ignore)
        if not conversation.images:
            raise AnnotationError(f"{where} has no image; a caption needs one")
        if len(conversation.turns) > 2:
            raise AnnotationError(
                f"{where} has {len(conversation.turns)} turns; a pair is a human turn with an image and a gpt turn "
                "with its caption"
            )
        name, caption = conversation.images[0], conversation.turns[1].text
    elif isinstance(row, dict) and None in row:  # where csv puts what is too much
        raise AnnotationError(f"{where} has too many fields; put a caption with commas in quotes")
    elif isinstance(row, dict) and all(isinstance(row.get(key), str) for key in _COLUMNS):
        name, caption = row["image"], row["caption"]
    else:
        raise AnnotationError(f"{where} should have text fields 'image' and 'caption'")
    if not name.strip() or not caption.strip():
        raise AnnotationError(f"{where} has an empty image or caption; fill it or remove the row")
    return name, " ".join(caption.split())
