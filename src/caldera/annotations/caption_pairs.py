"""Reader of image-caption pairs: tables, JSON records, LLaVA's stage-1 JSON, Karpathy's split of COCO and Flickr."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet, unique_ids
from caldera.annotations.caption_tables import (
    CAPTION_COLUMNS,
    Columns,
    choose_columns,
    parse_columns,
    read_table,
)
from caldera.annotations.coco_entries import clean_caption
from caldera.annotations.image_files import ImageFinder, normalize_name
from caldera.conversation import from_record
from caldera.errors import AnnotationError, ImageError, InputError, UnknownNameError, shorten_value
from caldera.files.atomic import file_exists
from caldera.files.records import read_records
from caldera.files.skipped_items import SkippedItems

_START = 4096
"""Bytes of a file that distinguish JSON from a table."""


def read_pairs(  # noqa: PLR0913 - options of a file, by name
    path: Path,
    skipped: SkippedItems,
    image_folder: Path | None = None,
    ignore_fields: frozenset[str] = frozenset(),
    *,
    columns: str | None = None,
    text_columns: Sequence[str] = CAPTION_COLUMNS,
    split: str | None = None,
    check_images: bool = True,
) -> AnnotationSet:
    """Read pairs of an image and a caption; captions of the same image are merged.

    Invalid rows are added to `skipped`, whose limit the caller checks.

    Args:
        path: A table, JSON records with an image and a caption, LLaVA's stage-1 JSON (whose first gpt value is the
            caption), or Karpathy's JSON; the content decides.
        skipped: Collects invalid rows.
        image_folder: Folder that paths are relative to; by default `images/` next to the file or the file's own folder.
        ignore_fields: Additional fields of records to ignore.
        columns: Names of the columns or fields of image and caption, 'file_name,text'.
        text_columns: Usual names of the column or field of the caption, or of another text in its place.
        split: Split to read, in Karpathy's JSON or by the field `split`; None for all.
        check_images: Check that each image exists.
    """
    column_names = parse_columns(columns)
    total = 0
    pairs: list[tuple[str, str, str]] = []
    is_json, rows = _read_rows(path, column_names, text_columns)
    if split is not None:
        rows = _of_split(path, rows, split)
    for location, row in rows:
        total += 1
        try:
            if is_json and isinstance(row, dict) and "conversations" not in row:
                row = _known_fields(row, location, column_names, text_columns)
            for image, caption in _parse_row(row, location, ignore_fields, text_columns[0]):
                if caption:
                    pairs.append((location, image, caption))
                else:
                    reason = f"one of the {text_columns[0]}s is empty or null; it is not used"
                    skipped.note(location, reason)
        except InputError as error:
            skipped.add_or_raise(location, error)
    if not total:
        raise AnnotationError(
            f"{path} holds no pairs; it should have an image and a {text_columns[0]} a line"
        )
    roots = [image_folder] if image_folder else [path.parent / "images", path.parent]
    images = _merge(pairs, roots, skipped, check_images=check_images)
    return AnnotationSet(images, total=total)


def _merge(
    pairs: Sequence[tuple[str, str, str]],
    roots: Sequence[Path],
    skipped: SkippedItems,
    *,
    check_images: bool,
) -> tuple[AnnotatedImage, ...]:
    """Return the images of (location, image, caption), each with all its captions."""
    finder = ImageFinder(roots, list(dict.fromkeys(image for _, image, _ in pairs)))
    captions: dict[str, list[str]] = {}
    paths = {image: finder.path(image) for _, image, _ in pairs}
    names = {(path, normalize_name(image)) for image, path in paths.items()}
    num_names = Counter(path for path, _ in names)
    for location, image, caption in pairs:
        if check_images and not file_exists(paths[image]):
            message = f"{location}: {paths[image]} does not exist; check --images"
            skipped.add_or_raise(location, ImageError(message))
        elif check_images and num_names[paths[image]] > 1:
            reason = f"{paths[image]} would be the file of two images; correct their names"
            skipped.add_or_raise(location, ImageError(f"{location}: {reason}"))
        else:
            captions.setdefault(image, []).append(caption)
    ids = unique_ids(tuple(captions))
    return tuple(
        AnnotatedImage(ids[image], paths[image], 0, 0, tuple(texts))
        for image, texts in captions.items()
    )


def _read_rows(
    path: Path, column_names: Columns | None, text_columns: Sequence[str]
) -> tuple[bool, Iterator[tuple[str, object]]]:
    """Return whether a file is JSON, and its unchecked rows with their location; those of a table have known names."""
    if path.is_dir():
        raise AnnotationError(
            f"{path} is a folder; give the file of captions in it, such as metadata.csv"
        )
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError as error:
        raise AnnotationError(f"cannot read {path}: {error.strerror}; check the path") from error
    is_json = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
    if is_json:
        return is_json, _json_rows(path)
    return is_json, iter(read_table(path, column_names, text_columns))


def _json_rows(path: Path) -> Iterator[tuple[str, object]]:
    """Yield records, or the images of Karpathy's JSON."""
    broken: list[tuple[str, InputError]] = []
    for location, record in read_records(path, on_broken_line=lambda *item: broken.append(item)):
        yield from broken
        broken.clear()
        if not isinstance(record, dict) or not isinstance(record.get("images"), list):
            yield location, record
        elif "annotations" in record:
            raise AnnotationError(
                f"{path} is a COCO file, not pairs; use the source coco with --captions {path}"
            )
        else:
            yield from _karpathy_rows(path, record["images"])
    yield from broken


def _of_split(
    path: Path, rows: Iterator[tuple[str, object]], split: str
) -> Iterator[tuple[str, object]]:
    """Yield the rows of a split, those that are invalid, and an error for those that name none."""
    splits: set[str] = set()
    for location, row in rows:
        name = row.get("split") if isinstance(row, dict) else None
        if not isinstance(row, dict) or name == split:
            yield location, row
        elif name is None:
            yield location, AnnotationError(f"{location} has no field 'split'; leave --split out")
        splits.add(str(name))
    if split not in splits and splits != {"None"}:
        raise UnknownNameError(f"split of {path}", split, splits - {"None"})


def _karpathy_rows(path: Path, entries: list[Any]) -> Iterator[tuple[str, object]]:
    """Yield the images of Karpathy's JSON as rows with several captions."""
    for index, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        sentences = fields.get("sentences")
        name, folder = fields.get("filename"), fields.get("filepath")
        if isinstance(name, str) and isinstance(folder, str) and folder:
            name = f"{folder}/{name}"
        captions = [
            sentence.get("raw") if isinstance(sentence, dict) else sentence
            for sentence in (sentences if isinstance(sentences, list) else ())
        ]
        row = {"image": name, "caption": captions, "split": fields.get("split")}
        yield f"{path}: images.{index}", row


def _parse_row(
    row: object, location: str, ignore_fields: frozenset[str], text_name: str
) -> list[tuple[str, str]]:
    """Return image path and caption, or each of several captions, '' for a missing one; or raise an InputError."""
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, dict):
        raise AnnotationError(f"{location} should have text fields 'image' and '{text_name}'")
    if "conversations" in row:
        return [_parse_conversation(row, location, ignore_fields)]
    image, captions = row.get("image"), row.get("caption")
    if not isinstance(image, str) or not isinstance(captions, str | list | float | None):
        raise AnnotationError(f"{location} should have text fields 'image' and '{text_name}'")
    values = captions if isinstance(captions, list) else [captions]
    for value in values:
        # NaN is the empty cell of a table.
        if not (isinstance(value, str) or value is None or value != value):
            raise AnnotationError(
                f"{location} has the {text_name} {shorten_value(value)}, which is no text; correct or remove it"
            )
    texts = [clean_caption(value) for value in values]
    if not image.strip() or not any(texts):
        raise AnnotationError(
            f"{location} has an empty image or {text_name}; fill it or remove the row"
        )
    return [(image, text) for text in texts]


def _known_fields(
    row: dict[str, Any], location: str, columns: Columns | None, text_columns: Sequence[str]
) -> dict[str, Any]:
    """Return a record with its image and its text as `image` and `caption`."""
    usual = text_columns is CAPTION_COLUMNS and columns is None
    if usual and "image" in row and "caption" in row:
        return row
    image, text = choose_columns(list(row), columns, location, text_columns)
    value = row[text] if text_columns is CAPTION_COLUMNS else _number_as_text(row[text])
    return {"image": row[image], "caption": value}


def _number_as_text(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a class number, or each of several, as the text that a table would hold; any other value unchanged."""
    if isinstance(value, list):
        return [_number_as_text(item) for item in value]
    return str(value) if isinstance(value, int | float) and value == value else value


def _parse_conversation(
    row: dict[str, Any], location: str, ignore_fields: frozenset[str]
) -> tuple[str, str]:
    """Return the image and the first answer of a LLaVA record."""
    conversation = from_record(row, location, ignore_fields)
    if not conversation.images:
        raise AnnotationError(f"{location} has no image; a caption needs one")
    if len(conversation.turns) > 2:
        raise AnnotationError(
            f"{location} has {len(conversation.turns)} turns; a pair is a human turn with an image and a gpt turn "
            "with its caption"
        )
    caption = " ".join(conversation.turns[1].text.split())
    if not caption:
        raise AnnotationError(
            f"{location} has an empty image or caption; fill it or remove the row"
        )
    return conversation.images[0], caption
