"""Tests of COCO's entries: each is validated on its own, and what is not usable costs no more than needed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caldera.annotations.boxes import Box
from caldera.annotations.coco import CocoOptions
from caldera.annotations.coco import read_coco as read_unchecked
from caldera.errors import InputError
from caldera.files.skipped_items import SkippedItems
from tests.annotations.coco_folder import (
    HEIGHT,
    WIDTH,
    box_of,
    coco_files,
    image_of,
    read_coco,
    without,
    write,
)


@pytest.mark.parametrize("caption", [" \n", None, float("nan"), "NaN", "null", 5, ["A dog"]])
def test_an_empty_caption_is_dropped_and_listed(tmp_path: Path, caption: object) -> None:
    """The image keeps its other captions."""
    files, skipped = coco_files(), SkippedItems()
    files["captions"]["annotations"][2]["caption"] = caption
    assert read_coco(write(tmp_path, files), skipped).images[1].captions == ("A pet",)
    assert [note.location.rpartition(" ")[2] for note in skipped.notes] == ["annotations.2"]


@pytest.mark.parametrize("size", [(0, 8), (10, 0), (10, -8), (0, 0)])
def test_a_box_without_area_is_dropped_and_its_category_is_uncertain(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """As in COCO's train2017; the image keeps captions and other boxes, and the category is not absent."""
    files, skipped = coco_files(), SkippedItems()
    box_of(files, bbox=[5, 4, *size])
    image = read_coco(write(tmp_path, files), skipped).images[1]
    assert (image.captions, image.instances) == (("A dog number 2 .", "A pet"), ())
    assert image.uncounted == {"dog"}
    assert [note.reason.endswith("has no area; it is not used") for note in skipped.notes] == [True]


def test_a_box_that_is_there_twice_is_one_object(tmp_path: Path) -> None:
    """Merged exports repeat boxes; the second is listed, and not counted as another object."""
    files, skipped = coco_files(), SkippedItems()
    boxes = files["instances"]["annotations"]
    boxes += [dict(box) for box in boxes]
    annotations = read_coco(write(tmp_path, files), skipped)
    assert annotations.images == read_coco(write(tmp_path, coco_files()), SkippedItems()).images
    assert len(skipped.notes) == len(boxes) / 2


def test_two_spellings_of_a_category_are_one(tmp_path: Path) -> None:
    """Otherwise an image with a dog would have no Dog."""
    files = coco_files()
    files["instances"]["categories"].append({"id": 99, "name": "Dog"})
    assert "Dog" not in read_coco(write(tmp_path, files), SkippedItems()).categories


def test_categories_that_lvis_did_not_look_for_are_never_absent(tmp_path: Path) -> None:
    """Only those of neg_category_ids are; those not boxed everywhere are not counted."""
    files = coco_files()
    files["instances"]["categories"] += [{"id": 98, "name": "fork"}, {"id": 99, "name": "spoon"}]
    for image in files["instances"]["images"]:
        image.update(neg_category_ids=[98], not_exhaustive_category_ids=[])
    annotations = read_coco(write(tmp_path, files), SkippedItems())
    for item in annotations.images:
        boxed = {instance.category for instance in item.instances}
        assert item.uncounted == {*annotations.categories} - boxed - {"fork"}


@pytest.mark.parametrize("crowd", [None, 0, False, "0", 0.0])
def test_a_missing_iscrowd_is_zero(tmp_path: Path, crowd: object) -> None:
    """Some tools write null."""
    files = coco_files()
    box_of(files, iscrowd=crowd)
    [instance] = read_coco(write(tmp_path, files), SkippedItems()).images[1].instances
    assert not instance.is_crowd


@pytest.mark.parametrize("lost", ["captions", "instances"])
def test_an_image_keeps_what_it_has(tmp_path: Path, lost: str) -> None:
    """An image without boxes has its captions, one without captions its boxes."""
    files = coco_files()
    without(files, lost)
    image = read_coco(write(tmp_path, files), SkippedItems()).images[1]
    assert (len(image.captions), len(image.instances)) == ((0, 1) if lost == "captions" else (2, 0))


@pytest.mark.parametrize("size", [{}, {"width": None, "height": None}, {"width": 0, "height": 0}])
def test_a_missing_size_is_that_of_the_file(tmp_path: Path, size: dict[str, object]) -> None:
    """As in VizWiz; boxes are fractions of it."""
    files = coco_files()
    for entry in files["captions"]["images"]:
        del entry["width"], entry["height"]
        entry.update(size)
    [image, *_] = read_coco(write(tmp_path, files), SkippedItems()).images
    assert (image.width, image.height) == (WIDTH, HEIGHT)
    assert image.instances[0].box == Box(0.1, 0.2, 0.3, 0.6)


def test_captions_alone_need_no_size_and_no_readable_image(tmp_path: Path) -> None:
    """Broken boxes and images do not matter where only captions are read."""
    files = coco_files()
    box_of(files, bbox=None, category_id="?")
    del files["captions"]["images"][1]["width"]
    folder = write(tmp_path, files)
    (folder / "tiny" / "2.jpg").write_bytes(b"broken")
    annotations = read_unchecked(folder, SkippedItems(), CocoOptions(with_boxes=False))
    assert [len(image.captions) for image in annotations.images] == [2, 2, 2]
    assert annotations.categories == ()


def test_categories_that_contain_others_are_never_absent(tmp_path: Path) -> None:
    """Roboflow writes the project's name as a root; equal names are one category."""
    files = coco_files()
    files["instances"]["categories"] = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "person", "supercategory": "person"},
        {"id": 18, "name": "dog", "supercategory": "pets"},
        {"id": 19, "name": "dog", "supercategory": "pets"},
    ]
    annotations = read_coco(write(tmp_path, files), SkippedItems())
    assert annotations.categories == ("person", "dog")
    assert [image.uncounted for image in annotations.images] == [{"pets"}] * 3


def test_a_category_without_a_name_or_with_two_spoils_only_its_boxes(tmp_path: Path) -> None:
    """A box may be of neither; the entry is listed."""
    for entry in ({"id": 18, "name": "cat"}, {"id": 18, "name": None}):
        files, skipped = coco_files(), SkippedItems(1.0)
        files["instances"]["categories"][1] = entry
        files["instances"]["categories"].append({"id": 18, "name": "dog"} if entry["name"] else {})
        files["instances"]["annotations"] = files["instances"]["annotations"][1:]
        images = read_coco(write(tmp_path, files), skipped).images
        assert [image.id for image in images] == ["1"]
        assert len(skipped.items) == 2


@pytest.mark.parametrize("field", ["id", "file_name"])
def test_two_images_with_one_id_or_name_are_both_invalid(tmp_path: Path, field: str) -> None:
    """Nothing tells which of them the annotations are of, unless the name has the id as its number."""
    files = coco_files()
    image_of(files, **{field: files["captions"]["images"][0][field]})
    skipped = SkippedItems(0.7)
    folder = write(tmp_path, files)
    assert [image.id for image in read_coco(folder, skipped).images] == ["3"]
    assert {"is the id or file_name of two images" in item.reason for item in skipped.items} == {
        True
    }

    for image in files["captions"]["images"]:
        image["id"] = {7: 1, 14: 2, 21: 3}[image["id"]]
    for name in ("captions", "instances"):
        for entry in files[name]["annotations"]:
            entry["image_id"] //= 7
    images = read_coco(write(tmp_path, files), SkippedItems(0.4)).images
    assert [image.id for image in images] == ["1", "3"]


JUNK: tuple[Any, ...] = (
    None, "", "x", 0, -1, 7, 1e400, True, [], {}, [1], {"a": 1}, "\ud800", "a\0b", "/", "2.jpg",
)  # fmt: skip


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON value."""
    items: Any = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


@settings(max_examples=60)
@given(data=st.data())
def test_junk_anywhere_is_an_input_error_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever stands in place of a value, the file is read or refused with a short message."""
    files: Any = coco_files()
    *parents, key = data.draw(st.sampled_from(list(places(files))[2:]))
    target = files
    for name in parents:
        target = target[name]
    target[key] = data.draw(st.sampled_from(JUNK))
    message = ""
    try:
        read_coco(write(tmp_path_factory.mktemp("coco"), files), SkippedItems(1.0))
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 500
