"""COCO folders with one inconsistency each give the right facts or an invalid image, never wrong facts.

The truth is a set of boxes as fractions of displayed images. A folder is written from it as tools do, one thing is
made inconsistent, and what is read is compared with the truth.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.box_frames import to_displayed
from caldera.annotations.boxes import Box
from caldera.annotations.coco import CocoOptions, read_coco
from caldera.files.skipped_items import SkippedItems

NAMES = ("ant", "bee", "cow")

INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
"""Orientation that undoes another."""

Corners = tuple[float, float, float, float]


@dataclass
class Photo:
    """An image as it is displayed, and how it is stored and annotated."""

    name: str
    size: tuple[int, int]
    boxes: list[tuple[int, Corners]]
    """Number of the category, and left, top, right, bottom as fractions."""

    orientation: int = 1
    frame: str = "displayed"
    factor: float = 1.0
    """Annotated size over that of the file."""

    swaps_size: bool = False
    scales_boxes: bool = True
    """Whether the boxes refer to the annotated size."""

    unit: str = "pixels"
    key: int = 0
    caption_key: int = 0
    category_offset: int = 0

    def stored_size(self) -> tuple[int, int]:
        """Return the size of the file's pixels."""
        return self.size if self.orientation < 5 else (self.size[1], self.size[0])

    def frame_size(self) -> tuple[int, int]:
        """Return the size of the frame that is annotated, without a factor."""
        return self.stored_size() if self.frame == "stored" else self.size

    def numbers(self, corners: Corners) -> list[float]:
        """Return a box in the frame and unit of the annotations."""
        box = Box(*corners)
        if self.frame == "stored":
            box = to_displayed(box, INVERSE[self.orientation])
        width, height = self.frame_size()
        factor = self.factor if self.scales_boxes else 1.0
        across, down = {"fractions": (1.0, 1.0), "percent": (100.0, 100.0)}.get(
            self.unit, (width * factor, height * factor)
        )
        left, top, right, bottom = (
            box.left * across, box.top * down, box.right * across, box.bottom * down,
        )  # fmt: skip
        if self.unit == "corners":
            return [left, top, right, bottom]
        return [left, top, right - left, bottom - top]


@dataclass
class Folder:
    """Photos, and what is inconsistent about all of them."""

    photos: list[Photo]
    categories: list[dict[str, Any]] = field(
        default_factory=lambda: [{"id": n, "name": name} for n, name in enumerate(NAMES)]
    )

    def write(self, folder: Path) -> Path:
        """Write the images and both annotation files."""
        (folder / "annotations").mkdir()
        (folder / "all").mkdir()
        captions: dict[str, list[Any]] = {"images": [], "annotations": []}
        instances: dict[str, list[Any]] = {"images": [], "annotations": []}
        for number, photo in enumerate(self.photos):
            path = folder / "all" / photo.name
            path.write_bytes(encode(photo.stored_size(), photo.orientation))
            width, height = (round(side * photo.factor) for side in photo.frame_size())
            if photo.swaps_size:
                width, height = height, width
            entry = {"file_name": photo.name, "width": width, "height": height}
            captions["images"].append({**entry, "id": photo.caption_key or photo.key})
            instances["images"].append({**entry, "id": photo.key})
            captions["annotations"].append(
                {"image_id": photo.caption_key or number + 1, "caption": f"It is {photo.name}."}
            )
            for category, corners in photo.boxes:
                left, top, right, bottom = corners
                # Areas are in pixels of the file; those of boxes alone tell corners, those of outlines do not.
                area = (right - left) * (bottom - top) * photo.size[0] * photo.size[1]
                area *= 1.0 if photo.unit == "corners" else 0.9
                instances["annotations"].append(
                    {
                        "image_id": number + 1,
                        "category_id": category + photo.category_offset,
                        "bbox": photo.numbers(corners),
                        "area": round(area, 3),
                    }
                )
        instances["categories"] = self.categories
        for name, content in (("captions", captions), ("instances", instances)):
            (folder / "annotations" / f"{name}_all.json").write_text(json.dumps(content))
        return folder


@cache
def encode(size: tuple[int, int], orientation: int) -> bytes:
    """Return a blank image with an EXIF orientation."""
    buffer, exif = BytesIO(), Image.Exif()
    exif[274] = orientation
    Image.new("L", size).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


sizes = st.sampled_from([(400, 300), (300, 400), (224, 224), (640, 480), (301, 401)])
edges = st.tuples(st.floats(0, 0.7), st.floats(0.1, 0.3))


@st.composite
def photos(draw: st.DrawFn) -> list[Photo]:
    """Draw two to five consistent images with one to four boxes each."""
    drawn_photos: list[Photo] = []
    for number in range(draw(st.integers(2, 5))):
        boxes: list[tuple[int, Corners]] = []
        for _ in range(draw(st.integers(1, 4))):
            (left, width), (top, height) = draw(edges), draw(edges)
            boxes.append((draw(st.integers(0, 2)), (left, top, left + width, top + height)))
        # The same box of a category twice is one object.
        boxes = [*dict.fromkeys(boxes)]
        drawn_photos.append(Photo(f"{'abcde'[number]}.jpg", draw(sizes), boxes, key=number + 1))
    return drawn_photos


def turn(draw: st.DrawFn, changed: list[Photo], folder: Folder) -> None:
    """Store images turned, annotated as stored or as displayed, each by the same tool."""
    frame = draw(st.sampled_from(["stored", "displayed"]))
    for photo in changed:
        photo.orientation, photo.frame = draw(st.integers(2, 8)), frame


def resize(draw: st.DrawFn, changed: list[Photo], folder: Folder) -> None:
    """Annotate another size, with boxes for either."""
    factor, scales = draw(st.sampled_from([0.5, 2.0, 1.7])), draw(st.booleans())
    for photo in changed:
        photo.factor, photo.scales_boxes = factor, scales


def swap(draw: st.DrawFn, changed: list[Photo], folder: Folder) -> None:
    """Swap width and height of the entry."""
    for photo in changed:
        photo.swaps_size = True


def renumber(draw: st.DrawFn, changed: list[Photo], folder: Folder) -> None:
    """Number the images otherwise in the file of captions."""
    keys = draw(st.permutations([photo.key for photo in folder.photos]))
    for photo, key in zip(folder.photos, keys, strict=True):
        photo.caption_key = key


def give_other_id(draw: st.DrawFn, changed: list[Photo], folder: Folder) -> None:
    """Give one image the id of another, or one that no annotation has."""
    changed[0].key = draw(st.integers(1, 7))


def lose_category(draw: st.DrawFn, changed: list[Photo], folder: Folder) -> None:
    """Use ids of categories beyond the list."""
    changed[0].category_offset = 7


def duplicate_category(draw: st.DrawFn, changed: list[Photo], folder: Folder) -> None:
    """Give two categories one id, or list one twice."""
    entry = dict(draw(st.sampled_from(folder.categories)))
    entry["id"] = draw(st.integers(0, 4))
    folder.categories.append(entry)


def change_unit(draw: st.DrawFn, changed: list[Photo], folder: Folder) -> None:
    """Write fractions, percent or corners."""
    unit = draw(st.sampled_from(["fractions", "percent", "corners"]))
    for photo in changed:
        photo.unit = unit


def facts(annotations: AnnotationSet) -> dict[str, list[tuple[str, Corners]]]:
    """Return category and corners of all boxes by file name."""
    return {
        image.path.name: [
            (item.category, (item.box.left, item.box.top, item.box.right, item.box.bottom))
            for item in image.instances
        ]
        for image in annotations.images
    }


INCONSISTENCIES = (
    turn, resize, swap, renumber, give_other_id, lose_category, duplicate_category, change_unit,
)  # fmt: skip


@pytest.mark.parametrize("make_inconsistent", INCONSISTENCIES)
@settings(max_examples=30)
@given(data=st.data())
def test_facts_are_right_or_the_image_is_invalid(
    make_inconsistent: Callable[[st.DrawFn, list[Photo], Folder], None],
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    """One image or all of them are inconsistent; an image may also lose its boxes and keep its captions."""
    folder = Folder(data.draw(photos()))
    changes_all = data.draw(st.booleans())
    changed = folder.photos if changes_all else folder.photos[:1]
    draw: Any = data.draw
    make_inconsistent(draw, changed, folder)
    skipped = SkippedItems(1.0)

    annotations = read_coco(folder.write(tmp_path_factory.mktemp("coco")), skipped, CocoOptions())

    facts_by_name = facts(annotations)
    for photo in folder.photos:
        expected: Any = [
            (NAMES[category], pytest.approx(box, abs=0.01)) for category, box in photo.boxes
        ]
        assert facts_by_name.get(photo.name, []) in ([], expected)
        is_invalid = any(item.location == f"image {photo.name}" for item in skipped.items)
        assert is_invalid == (photo.name not in facts_by_name)
    for image in annotations.images:
        assert image.captions in ((), (f"It is {image.path.name}.",))
