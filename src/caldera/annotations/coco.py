"""A COCO folder in, AnnotatedImages out: captions_*.json and instances_*.json beside a folder of images.

The layout is that of cocodataset.org: `annotations/captions_SPLIT.json`, `annotations/instances_SPLIT.json` and the
images in `SPLIT/` (or `images/`, or the folder itself).
"""

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet, Instance, unique_ids
from caldera.annotations.boxes import Box
from caldera.errors import (
    AnnotationError,
    ImageError,
    InputError,
    UnknownNameError,
    describe_validation_error,
)
from caldera.files.atomic import file_exists
from caldera.files.skipped import SkippedItems

_BOX_TOLERANCE = 1.0
"""Pixels by which a box may pass the image's edge; it is then cut, as COCO's own are rounded."""


class _CocoModel(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _ImageEntry(_CocoModel):
    id: int
    file_name: str
    width: int = Field(gt=0)
    height: int = Field(gt=0)


class _CaptionEntry(_CocoModel):
    image_id: int
    caption: str


class _InstanceEntry(_CocoModel):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _CategoryEntry(_CocoModel):
    id: int
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _CaptionFile(_CocoModel):
    images: list[_ImageEntry]
    annotations: list[_CaptionEntry]


class _InstanceFile(_CocoModel):
    images: list[_ImageEntry]
    annotations: list[_InstanceEntry]
    categories: list[_CategoryEntry]


log = logging.getLogger(__name__)

_Schema = TypeVar("_Schema", bound=_CocoModel)


def read_coco(folder: Path, skips: SkippedItems, split: str | None = None) -> AnnotationSet:
    """Read one split of a COCO folder.

    Args:
        folder: The folder that holds `annotations/`.
        skips: Takes images that are missing or whose annotations are unusable.
        split: Such as "train2017"; may be left out where there is only one.

    Raises:
        InputError: A file is missing, broken, or not COCO's; or an image is bad and may not be left out.
    """
    split = _choose_split(folder, split)
    captions_path = folder / "annotations" / f"captions_{split}.json"
    boxes_path = folder / "annotations" / f"instances_{split}.json"
    captions, boxes = (
        _parse_file(captions_path, _CaptionFile),
        _parse_file(boxes_path, _InstanceFile),
    )
    if not captions.images:
        raise AnnotationError(f"{captions_path} lists no images; add them to 'images'")
    image_folder = _image_folder(folder, split)
    names = _category_names(boxes, boxes_path)
    captions_of: dict[int, list[str]] = defaultdict(list)
    for caption in captions.annotations:
        if text := " ".join(caption.caption.split()):
            captions_of[caption.image_id].append(text)
    boxes_of: dict[int, list[tuple[str, _InstanceEntry]]] = defaultdict(list)
    for index, entry in enumerate(boxes.annotations):
        boxes_of[entry.image_id].append((f"{boxes_path}: annotations.{index}", entry))
    ids = unique_ids([image.file_name for image in captions.images])
    images: list[AnnotatedImage] = []
    met: set[int | str] = set()
    for index, image in enumerate(captions.images):
        where = f"{captions_path}: images.{index}"
        try:
            if met & {image.id, image.file_name}:
                raise AnnotationError(
                    f"{where}: id {image.id} or file_name {image.file_name} is that of an image "
                    "before; remove one of them"
                )
            met |= {image.id, image.file_name}
            instances = tuple(_instance(*each, image, names) for each in boxes_of[image.id])
            read = AnnotatedImage(
                id=ids[image.file_name],
                path=image_folder / image.file_name,
                width=image.width,
                height=image.height,
                captions=tuple(captions_of[image.id]),
                instances=instances,
            )
            _check_size(where, image.file_name, read)
            images.append(read)
        except InputError as fault:
            skips.add_or_raise(f"image {image.file_name}", fault)
    orphans = (captions_of.keys() | boxes_of.keys()) - {image.id for image in captions.images}
    if orphans:
        log.warning(
            "%s: annotations of %d images are not used, as 'images' does not list them",
            captions_path,
            len(orphans),
        )
    skips.raise_if_over_limit(len(captions.images))
    return AnnotationSet(tuple(images), tuple(dict.fromkeys(names.values())))


def read_coco_captions(
    folder: Path,
    skips: SkippedItems,
    split: str | None = None,
    *,
    image_folder: Path | None = None,
    find: bool = True,
) -> AnnotationSet:
    """Read the captions of one split of a COCO folder, without its boxes.

    Args:
        folder: The folder that holds `annotations/`.
        skips: Takes images that are missing or without a caption.
        split: Such as "train2017"; may be left out where there is only one.
        image_folder: Folder of the images; a usual one beside the annotations if left out.
        find: Look whether each image is there.

    Raises:
        InputError: The file is missing, broken, or not COCO's; or an image is bad and may not be left out.
    """
    split = _choose_split(folder, split)
    path = folder / "annotations" / f"captions_{split}.json"
    captions = _parse_file(path, _CaptionFile)
    if not captions.images:
        raise AnnotationError(f"{path} lists no images; add them to 'images'")
    root = image_folder or _image_folder(folder, split)
    captions_of: dict[int, list[str]] = defaultdict(list)
    for caption in captions.annotations:
        if text := " ".join(caption.caption.split()):
            captions_of[caption.image_id].append(text)
    ids = unique_ids([image.file_name for image in captions.images])
    images: dict[int, AnnotatedImage] = {}
    for index, image in enumerate(captions.images):
        where, name = f"{path}: images.{index}", image.file_name
        try:
            if image.id in images:
                raise AnnotationError(f"{where}: id {image.id} is that of an image before")
            if find and not file_exists(root / name):
                raise ImageError(f"{where}: {root / name} does not exist; check --images")
            if not captions_of[image.id]:
                raise AnnotationError(f"{where}: image {name} has no caption; remove it")
        except InputError as fault:
            skips.add_or_raise(f"image {name}", fault)
        else:
            images[image.id] = AnnotatedImage(
                ids[name], root / name, image.width, image.height, tuple(captions_of[image.id])
            )
    skips.raise_if_over_limit(len(captions.images))
    return AnnotationSet(tuple(images.values()))


def _category_names(boxes: _InstanceFile, path: Path) -> dict[int, str]:
    """Return the name of each category by its id.

    Raises:
        AnnotationError: An id has two names.
    """
    names: dict[int, str] = {}
    for index, category in enumerate(boxes.categories):
        if names.setdefault(category.id, category.name) != category.name:
            raise AnnotationError(
                f"{path}: categories.{index}: id {category.id} is both {names[category.id]!r} and "
                f"{category.name!r}; give each its own"
            )
    return names


def _choose_split(folder: Path, wanted: str | None) -> str:
    """Find the split that is wanted, or the only one there is.

    Raises:
        AnnotationError: There is none, or none was named and there are several.
        UnknownNameError: There is no such split.
    """
    found = sorted((folder / "annotations").glob("captions_*.json"))
    if not found:
        raise AnnotationError(
            f"no annotations: {folder}/annotations has no captions_*.json; "
            "give the folder that holds COCO's annotations/"
        )
    splits = [path.stem.removeprefix("captions_") for path in found]
    if wanted is not None:
        if wanted not in splits:
            raise UnknownNameError(f"split of {folder}", wanted, splits)
        return wanted
    if len(splits) > 1:
        raise AnnotationError(f"{folder} has several splits; name one with --split: {splits}")
    return splits[0]


def _image_folder(folder: Path, split: str) -> Path:
    """Find where the images are."""
    for candidate in (folder / split, folder / "images" / split, folder / "images"):
        if candidate.is_dir():
            return candidate
    return folder


def _parse_file(path: Path, form: type[_Schema]) -> _Schema:
    """Read one annotation file.

    Raises:
        AnnotationError: It is missing, empty, broken, or not of the form.
    """
    try:
        content: Any = json.loads(path.read_bytes() or b"null")
    except FileNotFoundError:
        raise AnnotationError(f"{path} is missing; both captions and boxes are needed") from None
    except OSError as error:
        raise AnnotationError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is broken JSON: {error}") from error
    if content is None:
        raise AnnotationError(f"{path} is empty; it should be COCO's annotation JSON")
    try:
        return form.model_validate(content)
    except ValidationError as error:
        raise AnnotationError(
            f"{path} is not COCO's annotation JSON: {describe_validation_error(error)}"
        ) from None


def _instance(
    where: str, entry: _InstanceEntry, image: _ImageEntry, names: dict[int, str]
) -> Instance:
    """Turn [x, y, width, height] in pixels into shares of the image.

    Raises:
        AnnotationError: The box leaves the image or has no area, or its category is unknown.
    """
    left, top, width, height = entry.bbox
    right, bottom = left + width, top + height
    inside = (
        left >= -_BOX_TOLERANCE
        and top >= -_BOX_TOLERANCE
        and right <= image.width + _BOX_TOLERANCE
        and bottom <= image.height + _BOX_TOLERANCE
    )
    box = Box(
        max(0.0, left / image.width),
        max(0.0, top / image.height),
        min(1.0, right / image.width),
        min(1.0, bottom / image.height),
    )
    if not inside or box.area <= 0:
        raise AnnotationError(
            f"{where}.bbox: box {list(entry.bbox)} of image {image.file_name} does not lie inside its "
            f"{image.width} x {image.height} pixels; correct or remove it"
        )
    if entry.category_id not in names:
        raise AnnotationError(
            f"{where}.category_id: a box of image {image.file_name} has category {entry.category_id}, which "
            "the file does not list; add it to 'categories'"
        )
    return Instance(names[entry.category_id], box, bool(entry.iscrowd))


def _check_size(where: str, name: str, image: AnnotatedImage) -> None:
    """Check that there is what a teacher needs.

    Raises:
        InputError: The file is not there, or there is no caption, or no box.
    """
    if not file_exists(image.path):
        raise ImageError(
            f"{where}: {image.path} does not exist, but the annotations list it; add the file or remove the entry"
        )
    if not image.captions:
        raise AnnotationError(f"{where}: image {name} has no caption; add one or remove it")
    if not image.instances:
        raise AnnotationError(
            f"{where}: image {name} has captions but no boxes; add boxes, or leave such "
            "images out with --max-bad"
        )
