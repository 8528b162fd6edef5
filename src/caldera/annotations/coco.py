"""Reader of COCO folders: captions_*.json and instances_*.json next to a folder of images.

The layout is that of cocodataset.org: `annotations/captions_SPLIT.json`, `annotations/instances_SPLIT.json` and the
images in `SPLIT/` (or `images/`, or the folder itself).
"""

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, StringConstraints, ValidationError

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
from caldera.files.skipped_items import SkippedItems

_BOX_TOLERANCE = 1.0
"""Pixels by which a box may exceed the image before it is clipped: COCO's coordinates are rounded."""


class _ImageEntry(BaseModel):
    id: int
    file_name: str
    width: int = Field(gt=0)
    height: int = Field(gt=0)


class _CaptionEntry(BaseModel):
    image_id: int
    caption: str


class _InstanceEntry(BaseModel):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _CategoryEntry(BaseModel):
    id: int
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _CaptionFile(BaseModel):
    images: list[_ImageEntry]
    annotations: list[_CaptionEntry]


class _InstanceFile(BaseModel):
    images: list[_ImageEntry]
    annotations: list[_InstanceEntry]
    categories: list[_CategoryEntry]


log = logging.getLogger(__name__)

_Schema = TypeVar("_Schema", bound=BaseModel)


def read_coco(folder: Path, skipped: SkippedItems, split: str | None = None) -> AnnotationSet:
    """Read captions and boxes of one split of the folder that contains `annotations/`."""
    split = _choose_split(folder, split)
    captions_path, caption_file = _read_caption_file(folder, split)
    boxes_path = folder / "annotations" / f"instances_{split}.json"
    instance_file = _parse_file(boxes_path, _InstanceFile)
    names = _category_names(instance_file, boxes_path)
    captions = _captions_by_image(caption_file)
    boxes: dict[int, list[tuple[str, _InstanceEntry]]] = defaultdict(list)
    for index, entry in enumerate(instance_file.annotations):
        boxes[entry.image_id].append((f"{boxes_path}: annotations.{index}", entry))
    image_folder = _find_image_folder(folder, split)
    ids = unique_ids([image.file_name for image in caption_file.images])
    images: list[AnnotatedImage] = []
    used_keys: set[int | str] = set()
    for index, image in enumerate(caption_file.images):
        location = f"{captions_path}: images.{index}"
        try:
            if used_keys & {image.id, image.file_name}:
                raise AnnotationError(
                    f"{location}: id {image.id} or file_name {image.file_name} is that of an image "
                    "before; remove one of them"
                )
            used_keys |= {image.id, image.file_name}
            annotated = AnnotatedImage(
                id=ids[image.file_name],
                path=image_folder / image.file_name,
                width=image.width,
                height=image.height,
                captions=tuple(captions[image.id]),
                instances=tuple(
                    _to_instance(box_location, entry, image, names)
                    for box_location, entry in boxes[image.id]
                ),
            )
            _check_image(location, image.file_name, annotated)
            images.append(annotated)
        except InputError as error:
            skipped.add_or_raise(f"image {image.file_name}", error)
    unused = (captions.keys() | boxes.keys()) - {image.id for image in caption_file.images}
    if unused:
        log.warning(
            "%s: annotations of %d images are not used, as 'images' does not list them",
            captions_path,
            len(unused),
        )
    skipped.raise_if_over_limit(len(caption_file.images))
    return AnnotationSet(tuple(images), tuple(dict.fromkeys(names.values())))


def read_coco_captions(
    folder: Path,
    skipped: SkippedItems,
    split: str | None = None,
    *,
    image_folder: Path | None = None,
    check_images: bool = True,
) -> AnnotationSet:
    """Read the captions of one split of the folder that contains `annotations/`, without its boxes."""
    split = _choose_split(folder, split)
    path, caption_file = _read_caption_file(folder, split)
    root = image_folder or _find_image_folder(folder, split)
    captions = _captions_by_image(caption_file)
    ids = unique_ids([image.file_name for image in caption_file.images])
    images: dict[int, AnnotatedImage] = {}
    for index, image in enumerate(caption_file.images):
        location, name = f"{path}: images.{index}", image.file_name
        try:
            if image.id in images:
                raise AnnotationError(f"{location}: id {image.id} is that of an image before")
            if check_images and not file_exists(root / name):
                raise ImageError(f"{location}: {root / name} does not exist; check --images")
            if not captions[image.id]:
                raise AnnotationError(f"{location}: image {name} has no caption; remove it")
        except InputError as error:
            skipped.add_or_raise(f"image {name}", error)
        else:
            images[image.id] = AnnotatedImage(
                ids[name], root / name, image.width, image.height, tuple(captions[image.id])
            )
    skipped.raise_if_over_limit(len(caption_file.images))
    return AnnotationSet(tuple(images.values()))


def _read_caption_file(folder: Path, split: str) -> tuple[Path, _CaptionFile]:
    path = folder / "annotations" / f"captions_{split}.json"
    caption_file = _parse_file(path, _CaptionFile)
    if not caption_file.images:
        raise AnnotationError(f"{path} lists no images; add them to 'images'")
    return path, caption_file


def _captions_by_image(caption_file: _CaptionFile) -> dict[int, list[str]]:
    """Return the captions that are not blank by image id."""
    captions: dict[int, list[str]] = defaultdict(list)
    for entry in caption_file.annotations:
        if text := " ".join(entry.caption.split()):
            captions[entry.image_id].append(text)
    return captions


def _category_names(instance_file: _InstanceFile, path: Path) -> dict[int, str]:
    """Return the name of each category by its id, or raise AnnotationError if an id has two names."""
    names: dict[int, str] = {}
    for index, category in enumerate(instance_file.categories):
        if names.setdefault(category.id, category.name) != category.name:
            raise AnnotationError(
                f"{path}: categories.{index}: id {category.id} is both {names[category.id]!r} and "
                f"{category.name!r}; give each its own"
            )
    return names


def _choose_split(folder: Path, split: str | None) -> str:
    """Return the requested split, or the only one."""
    paths = sorted((folder / "annotations").glob("captions_*.json"))
    if not paths:
        raise AnnotationError(
            f"no annotations: {folder}/annotations has no captions_*.json; "
            "give the folder that holds COCO's annotations/"
        )
    splits = [path.stem.removeprefix("captions_") for path in paths]
    if split is not None:
        if split not in splits:
            raise UnknownNameError(f"split of {folder}", split, splits)
        return split
    if len(splits) > 1:
        raise AnnotationError(f"{folder} has several splits; name one with --split: {splits}")
    return splits[0]


def _find_image_folder(folder: Path, split: str) -> Path:
    candidates = (folder / split, folder / "images" / split, folder / "images")
    return next((path for path in candidates if path.is_dir()), folder)


def _parse_file(path: Path, schema: type[_Schema]) -> _Schema:
    """Read and validate one annotation file, or raise AnnotationError."""
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
        return schema.model_validate(content)
    except ValidationError as error:
        raise AnnotationError(
            f"{path} is not COCO's annotation JSON: {describe_validation_error(error)}"
        ) from None


def _to_instance(
    location: str, entry: _InstanceEntry, image: _ImageEntry, names: dict[int, str]
) -> Instance:
    """Convert [x, y, width, height] in pixels to fractions of the image, or raise AnnotationError."""
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
            f"{location}.bbox: box {list(entry.bbox)} of image {image.file_name} does not lie inside its "
            f"{image.width} x {image.height} pixels; correct or remove it"
        )
    if entry.category_id not in names:
        raise AnnotationError(
            f"{location}.category_id: a box of image {image.file_name} has category {entry.category_id}, which "
            "the file does not list; add it to 'categories'"
        )
    return Instance(names[entry.category_id], box, bool(entry.iscrowd))


def _check_image(location: str, name: str, image: AnnotatedImage) -> None:
    """Raise an InputError if the file, the captions or the boxes are missing; a teacher needs all three."""
    if not file_exists(image.path):
        raise ImageError(
            f"{location}: {image.path} does not exist, but the annotations list it; add the file or remove the entry"
        )
    if not image.captions:
        raise AnnotationError(f"{location}: image {name} has no caption; add one or remove it")
    if not image.instances:
        raise AnnotationError(
            f"{location}: image {name} has captions but no boxes; add boxes, or skip such images with "
            "--max-bad-fraction"
        )
