"""Images with class labels: class folders, or tables and JSON records with an image and a label.

The label of an image in class folders is the name of the folder that holds it, at any depth. Folders such as `train`
and `test` above class folders are splits. A folder of such a name that itself holds images, next to class folders, is
a class if it lies in a split or has a noun phrase of its own; else it could be either, which is an error.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from caldera.annotations.caption_pairs import read_pairs
from caldera.annotations.caption_tables import LABEL_COLUMNS
from caldera.annotations.class_names import class_phrase
from caldera.errors import AnnotationError, InputError, UnknownNameError, did_you_mean
from caldera.files.atomic import file_exists
from caldera.files.skipped_items import SkippedItems
from caldera.images.decoding import DEFAULT_DECODING, decode_image, read_bytes
from caldera.images.file_types import START_BYTES, identify_image_format

_TRAINING_SPLITS = ("train", "training")
_TEST_SPLITS = ("test", "testing", "holdout", "eval", "validation", "valid", "val", "dev")
"""Names of folders that hold the class folders of one split; the first test split that exists is the usual one."""

_SPLITS = frozenset((*_TRAINING_SPLITS, *_TEST_SPLITS))

_IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif")
)
"""Suffixes of files that should be images."""

_SEPARATOR = re.compile(r"[|;,]")
"""Separator of several labels in a field."""


@dataclass(frozen=True, slots=True)
class LabeledImage:
    """An image with the classes that it shows."""

    path: Path
    labels: tuple[str, ...]
    """Noun phrases of its classes, 'a t-shirt', in alphabetical order."""

    digest: str
    """SHA-256 of the file; of the path where files are not read."""


@dataclass(slots=True)
class LabeledImages:
    """Images of a data set, each content once."""

    images: list[LabeledImage]
    total: int
    """Number of image files or rows, skipped ones included."""

    @property
    def num_images(self) -> Counter[str]:
        """Number of images by label."""
        return Counter(label for image in self.images for label in image.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelOptions:
    """Options of the readers of labeled images."""

    split: str | None = None
    """Split to read; None where there are no splits."""

    image_folder: Path | None = None
    """Folder that the image names of a table are relative to."""

    columns: str | None = None
    """Columns or fields of image and label, 'file_name,class'."""

    phrases: dict[str, str] = field(default_factory=dict)
    """Noun phrases by class name, for classes whose own phrase is wrong."""

    check_images: bool = True
    """Decode each image, and find identical ones."""


def read_labeled_images(path: Path, skipped: SkippedItems, options: LabelOptions) -> LabeledImages:
    """Read class folders, or a table or JSON records of images and labels.

    Images with the same content are one image with all their labels. Invalid ones are added to `skipped`, whose limit
    the caller checks, and what is merged or not used to its notes.

    Raises:
        AnnotationError: There are no images or no classes, or the splits are not clear.
        ImageError: An image cannot be used, and none may be skipped.
    """
    if path.is_dir():
        rows = _of_split(list(_class_files(path, options.phrases, skipped)), path, options.split)
        total = len(rows)
    else:
        rows, total = _table_rows(path, skipped, options)
    names = {name for _, labels in rows for name in labels}
    if unknown := options.phrases.keys() - names:
        name = min(unknown)
        raise AnnotationError(f"{path} has no class {name!r}; {did_you_mean(name, names)}")
    images = _merge(rows, path, skipped, options)
    labeled = LabeledImages(images, total)
    if len(labeled.num_images) < 2:
        classes = ", ".join(labeled.num_images) or "none"
        raise AnnotationError(
            f"{path} has images of {classes}; at least two classes are needed, each a folder of images or a value of "
            "the label column"
        )
    return labeled


def usual_splits(root: Path) -> tuple[str, str] | None:
    """Return the folder names of the splits to train on and to test with; None where there are no such splits."""
    if not root.is_dir():
        return None
    images = filter(_should_be_image, _files_below(root, (root.resolve(),)))
    splits = {name.lower(): name for path in images if (name := _split_of(path, root))}
    training = next((splits[name] for name in _TRAINING_SPLITS if name in splits), None)
    test = next((splits[name] for name in _TEST_SPLITS if name in splits), None)
    return (training, test) if training and test else None


_Row = tuple[Path, tuple[str, ...]]
"""An image file and its class names."""


def _class_files(root: Path, phrases: Collection[str], skipped: SkippedItems) -> Iterator[_Row]:
    """Yield the images in class folders; other files are noted."""
    images = []
    for path in _files_below(root, (root.resolve(),)):
        if _should_be_image(path):
            images.append(path)
        else:
            skipped.note(str(path), "not used, as it is not an image")
    folders = _class_folders(root, {path.parent for path in images}, phrases)
    for path in images:
        if path.parent in folders:
            yield path, (path.parent.name,)
        else:
            skipped.note(str(path), "not used, as it is in no class folder")


def _class_folders(root: Path, folders: set[Path], phrases: Collection[str]) -> set[Path]:
    """Return those of the folders with images that are classes; one that could be a split too is an error."""
    folders = folders - {root}
    groups = {parent for folder in folders for parent in folder.parents}
    classes = {folder for folder in folders if not _is_split(folder.name)}
    parents_of_classes = {
        folder.parent for folder in classes | groups if not _is_split(folder.name)
    }
    for folder in sorted(folders - classes - groups):
        if folder.parent not in parents_of_classes:
            continue
        if folder.name not in phrases and not _split_of(folder / "image", root):
            raise AnnotationError(
                f"{folder} holds images next to class folders, and is named like a split: if it is the class "
                f"{folder.name!r}, give its noun phrase with --phrases, or rename it, such as 'a {folder.name}'; if it "
                "is a split, put its images into class folders or move it elsewhere"
            )
        classes.add(folder)
    return classes


def _is_split(name: str) -> bool:
    """Return whether a folder is named like a split."""
    return name.lower() in _SPLITS


def _split_of(path: Path, root: Path) -> str:
    """Return the split of an image, by the folders above its class folder; empty if there is none."""
    return next(filter(_is_split, path.relative_to(root).parts[:-2]), "")


def _files_below(folder: Path, ancestors: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files below a folder, in order, without hidden ones; links are followed unless they lead back."""
    try:
        paths = [(path, path.is_dir()) for path in sorted(folder.iterdir())]
    except OSError as error:
        raise AnnotationError(f"cannot read {folder}: {error.strerror}; check the path") from error
    for path, is_folder in paths:
        if path.name.startswith((".", "__MACOSX")):
            continue
        if not is_folder:
            yield path
        elif (target := path.resolve()) not in ancestors:
            yield from _files_below(path, (*ancestors, target))


def _should_be_image(path: Path) -> bool:
    """Return whether a file is an image by its name or its content; pipes, sockets and devices are not opened."""
    if path.suffix.lower() in _IMAGE_SUFFIXES:
        return True
    if not file_exists(path):
        return False
    try:
        with path.open("rb") as file:
            return identify_image_format(file.read(START_BYTES)) is not None
    except OSError:
        return False


def _of_split(rows: list[_Row], root: Path, split: str | None) -> list[_Row]:
    """Return the images of a split, by the names of the folders above the class folders."""
    by_split: dict[str, list[_Row]] = {}
    for path, labels in rows:
        by_split.setdefault(_split_of(path, root), []).append((path, labels))
    names = ", ".join(name or "no split" for name in by_split)
    if split is not None:
        if not by_split.keys() - {""}:
            raise AnnotationError(
                f"{root} has no split {split!r}: no folder above the class folders is called train, test or the like"
            )
        if split not in by_split:
            raise UnknownNameError(f"split of {root}", split, by_split.keys() - {""})
        return by_split[split]
    if len(by_split) > 1:
        raise AnnotationError(f"{root} has images of {names}; choose one with --split")
    return rows


def _table_rows(path: Path, skipped: SkippedItems, options: LabelOptions) -> tuple[list[_Row], int]:
    """Return images and class names of a table, and the number of rows."""
    pairs = read_pairs(
        path,
        skipped,
        options.image_folder,
        columns=options.columns,
        text_columns=LABEL_COLUMNS,
        split=options.split,
        check_images=options.check_images,
    )
    rows = [
        (image.path, tuple(_split_labels(image.captions, options.phrases)))
        for image in pairs.images
    ]
    return rows, len(skipped.items) + sum(len(image.captions) for image in pairs.images)


def _split_labels(fields: Iterable[str], phrases: dict[str, str]) -> Iterator[str]:
    """Yield the class names in label fields; a name that has a phrase of its own is not split."""
    for text in fields:
        names = [text] if text in phrases else [name.strip() for name in _SEPARATOR.split(text)]
        yield from filter(None, names)


def _merge(
    rows: list[_Row],
    source: Path,
    skipped: SkippedItems,
    options: LabelOptions,
) -> list[LabeledImage]:
    """Return the images, each content once, with the phrases of all their classes."""
    digest_of = _content_digest if options.check_images else _path_digest
    paths: dict[str, Path] = {}
    labels: dict[str, set[str]] = {}
    for path, names in rows:
        try:
            phrases = _phrases(path, names, options.phrases)
            digest = digest_of(path)
        except InputError as error:
            skipped.add_or_raise(str(path), error)
            continue
        is_copy = digest in paths
        first = paths.setdefault(digest, path)
        all_phrases = labels.setdefault(digest, {*phrases})
        if is_copy and phrases == all_phrases:
            skipped.note(str(path), f"merged with the identical file '{first}'")
        elif is_copy:
            all_phrases |= phrases
            classes = ", ".join(sorted(all_phrases))
            skipped.note(
                str(path),
                f"merged with the identical file '{first}', with the classes of both: '{classes}'",
            )
    if not paths and skipped.items:
        item = skipped.items[0]
        raise AnnotationError(
            f"{source} has no valid image with a class; the first that is skipped: {item.location}: {item.reason}"
        )
    if not paths:
        raise AnnotationError(
            f"{source} has no images in class folders; give a folder with a folder of images for each class"
        )
    return [
        LabeledImage(path, tuple(sorted(labels[digest])), digest) for digest, path in paths.items()
    ]


def _phrases(path: Path, names: Collection[str], phrases: dict[str, str]) -> set[str]:
    """Return the noun phrases of the classes of an image."""
    if not names:
        raise AnnotationError(f"{path} has a label without a name; fill it or remove the row")
    return {phrases.get(name) or class_phrase(name) for name in names}


def _content_digest(path: Path) -> str:
    """Return the SHA-256 of an image that can be decoded; raise ImageError for any other."""
    content = read_bytes(path, DEFAULT_DECODING)
    decode_image(content, str(path), DEFAULT_DECODING)
    return hashlib.sha256(content).hexdigest()


def _path_digest(path: Path) -> str:
    """Return the SHA-256 of a path."""
    return hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()
