"""Tests of COCO folders; errors name file, index, field and remedy."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.annotations.boxes import Box
from caldera.errors import AnnotationError, InputError, UnknownNameError
from caldera.files.skipped_items import SkippedItems
from tests.annotations.coco_folder import (
    HEIGHT,
    PNG,
    WIDTH,
    Files,
    box_of,
    coco_files,
    image_of,
    read_coco,
    without,
    write,
)


def test_a_folder_is_read_as_annotated_images(tmp_path: Path) -> None:
    """Captions are put on one line, boxes become fractions, and counts exclude crowds."""
    annotations = read_coco(write(tmp_path, coco_files()), SkippedItems())

    assert annotations.categories == ("person", "dog")
    assert [image.id for image in annotations.images] == ["1", "2", "3"]
    first = annotations.images[0]
    assert first.path == tmp_path / "tiny" / "1.jpg"
    assert (first.width, first.height) == (WIDTH, HEIGHT)
    assert first.captions == ("A dog number 1 .", "A pet")
    dog, crowd = first.instances
    assert (dog.category, dog.is_crowd, dog.box) == ("dog", False, Box(0.1, 0.2, 0.3, 0.6))
    assert (crowd.category, crowd.is_crowd, crowd.box) == ("person", True, Box(0, 0, 1, 1))
    assert first.counts == {"dog": 1}


@pytest.mark.parametrize("images", ["tiny", "images/tiny", "images", "."])
def test_images_are_found_in_all_usual_folders(tmp_path: Path, images: str) -> None:
    """In a folder with the name of the split, in `images/`, in both, or next to the annotations."""
    annotations = read_coco(write(tmp_path, coco_files(), images=images), SkippedItems())
    assert [image.path for image in annotations.images] == [
        tmp_path / images / f"{n}.jpg" for n in (1, 2, 3)
    ]


def test_a_split_is_read_by_name(tmp_path: Path) -> None:
    """With two splits one must be named, and only that one is read."""
    write(tmp_path, coco_files(), split="a", images="a")
    other = coco_files()
    other["captions"]["annotations"][0]["caption"] = "Another dog"
    write(tmp_path, other, split="b", images="b")

    assert read_coco(tmp_path, SkippedItems(), "a").images[0].captions[0] == "A dog number 1 ."
    assert read_coco(tmp_path, SkippedItems(), "b").images[0].captions[0] == "Another dog"
    with pytest.raises(AnnotationError, match=r"several splits; name one with --split: \['a', 'b'"):
        read_coco(tmp_path, SkippedItems())
    with pytest.raises(UnknownNameError, match=r"no split of .* is called 'c'; known: a, b"):
        read_coco(tmp_path, SkippedItems(), "c")


def test_a_split_without_captions_may_be_named(tmp_path: Path) -> None:
    """The only one with captions is the default."""
    write(tmp_path, coco_files(), split="a", images="a")
    write(tmp_path, {"instances": coco_files()["instances"]}, split="b", images="b")

    assert read_coco(tmp_path, SkippedItems()).images[0].captions == ("A dog number 1 .", "A pet")
    assert read_coco(tmp_path, SkippedItems(), "b").images[0].captions == ()


def test_images_of_the_same_name_in_two_folders_have_different_ids(tmp_path: Path) -> None:
    """The folder is part of the id."""
    files = coco_files()
    for image, name in zip(files["captions"]["images"], ("a/1.jpg", "b/1.jpg"), strict=False):
        image["file_name"] = name
        (tmp_path / "tiny" / name).parent.mkdir(parents=True)
        (tmp_path / "tiny" / name).write_bytes(PNG)
    ids = [image.id for image in read_coco(write(tmp_path, files), SkippedItems()).images]
    assert ids == ["a/1", "b/1", "3"]


def test_images_that_differ_only_in_their_suffix_have_different_ids(tmp_path: Path) -> None:
    """The suffix is part of the id."""
    files = coco_files()
    for image, name in zip(files["captions"]["images"], ("1.jpg", "1.png"), strict=False):
        image["file_name"] = name
        (tmp_path / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tiny" / name).write_bytes(PNG)
    ids = [image.id for image in read_coco(write(tmp_path, files), SkippedItems()).images]
    assert ids == ["1.jpg", "1.png", "3"]


def test_annotations_without_an_image_are_counted(tmp_path: Path) -> None:
    """Annotations of images that 'images' does not list are told once for each file."""
    files, skipped = coco_files(), SkippedItems()
    for name in ("captions", "instances"):
        del files[name]["images"][1:]
    assert len(read_coco(write(tmp_path, files), skipped).images) == 1
    assert ["of 2 images are not used" in note.reason for note in skipped.notes] == [True, True]


edges = st.integers(0, 40)
sides = st.integers(2, 40) | st.just(0)


@given(st.lists(st.tuples(edges, edges, sides, sides), min_size=1, max_size=5, unique=True))
def test_boxes_outside_the_image_are_an_error(
    tmp_path_factory: pytest.TempPathFactory, boxes: list[tuple[int, int, int, int]]
) -> None:
    """A box that exceeds the image by at most a pixel is clipped, one without area dropped, any other is an error."""
    files = coco_files()
    files["instances"]["annotations"] = [
        {"image_id": 7, "category_id": 1, "bbox": [left, top, width, height]}
        for left, top, width, height in boxes
    ]
    for name in ("captions", "instances"):
        del files[name]["images"][1:]
    folder = write(tmp_path_factory.mktemp("coco"), files)
    boxes = [box for box in boxes if box[2] and box[3]]
    fits = all(
        width <= WIDTH + 1 - left and height <= HEIGHT + 1 - top and top < HEIGHT
        for left, top, width, height in boxes
    )
    if not fits:
        with pytest.raises(AnnotationError, match=r"annotations\.\d\.bbox: box "):
            read_coco(folder, SkippedItems())
        return
    [image] = read_coco(folder, SkippedItems()).images
    for instance, (left, top, width, height) in zip(image.instances, boxes, strict=True):
        assert instance.box.left * WIDTH == pytest.approx(left)
        assert instance.box.top * HEIGHT == pytest.approx(top)
        assert instance.box.right * WIDTH == pytest.approx(min(WIDTH, left + width))
        assert instance.box.bottom * HEIGHT == pytest.approx(min(HEIGHT, top + height))


def drop_boxes_and_captions(files: Files) -> None:
    """Remove all that is known about the second image."""
    without(files, "captions")
    without(files, "instances")


INVALID_IMAGES: list[tuple[Callable[[Files], object], str]] = [
    (lambda f: box_of(f, bbox=[45, 4, 10, 8]), "instances_tiny.json: annotations.1.bbox: box "),
    (lambda f: box_of(f, bbox=[45, 4, 10, 8]), "not lie inside its 50 x 20 pixels; correct or"),
    (lambda f: box_of(f, bbox=[-3, 4, 10, 8]), "[-3.0, 4.0, 10.0, 8.0] of image 2.jpg does not"),
    (lambda f: box_of(f, bbox=[50, 4, 1, 8]), "annotations.1.bbox: "),
    (lambda f: box_of(f, bbox=[float("nan"), 4, 10, 8]), "annotations.1.bbox: [nan, 4, 10, 8]"),
    (lambda f: box_of(f, bbox=[0, 0, float("inf"), 8]), "annotations.1.bbox: [0, 0, inf, 8]"),
    (lambda f: box_of(f, bbox=[1, 2, 3]), "annotations.1.bbox: [1, 2, 3] of image 2.jpg is no [l"),
    (lambda f: box_of(f, bbox=None), "annotations.1.bbox: None of image 2.jpg is no [left, top,"),
    (lambda f: f["instances"]["annotations"][1].pop("bbox"), "annotations.1.bbox: None of image"),
    (lambda f: box_of(f, bbox=["a", 2, 3, 4]), "annotations.1.bbox: ['a', 2, 3, 4] of image 2."),
    (lambda f: box_of(f, iscrowd="few"), "annotations.1.iscrowd: 'few' is neither 0 nor 1"),
    (lambda f: box_of(f, category_id=5), "annotations.1.category_id: a box of image 2.jpg has"),
    (lambda f: box_of(f, category_id=5), "category 5, which the file does not list; correct it"),
    (lambda f: box_of(f, category_id=None), "category None, which the file does not list"),
    (drop_boxes_and_captions, "images.1: image 2.jpg has no caption and no box; add one or remo"),
    (lambda f: image_of(f, file_name="gone.jpg"), "gone.jpg does not exist; check --images"),
    (lambda f: image_of(f, file_name="gone.jpg"), "1 of 3 images are missing"),
    (lambda f: image_of(f, file_name="x" * 300), "images.1: "),
    (lambda f: image_of(f, file_name=""), "images.1: '' is no file_name of an image; correct"),
    (lambda f: image_of(f, file_name=None), "images.1: None is no file_name of an image"),
    (lambda f: image_of(f, file_name="a\0.jpg"), "images.1: "),
    (lambda f: image_of(f, id=None), "images.1: None is no id of an image; correct or remove"),
    (lambda f: image_of(f, width=51, height=10), "is annotated as 51 x 10, but has 50 x 20 pixel"),
    (lambda f: image_of(f, width=25, height=10), "25 x 10, but has 50 x 20 pixels; its boxes may"),
]


@pytest.mark.parametrize(("spoil", "message"), INVALID_IMAGES)
def test_an_invalid_image_is_raised_or_skipped(
    tmp_path: Path, spoil: Callable[[Files], object], message: str
) -> None:
    """The message has file, index, field and what to do; the other images are read."""
    files = coco_files()
    spoil(files)
    folder = write(tmp_path, files)
    with pytest.raises(InputError) as caught:
        read_coco(folder, SkippedItems())
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "annotations"))
    assert "\n" not in str(caught.value)

    skipped = SkippedItems(0.34)
    assert [image.id for image in read_coco(folder, skipped).images] == ["1", "3"]
    assert [message in f"{item.location}: {item.reason}" for item in skipped.items] == [True]
    with pytest.raises(InputError, match="1 of 3 items are invalid, over the limit"):
        read_coco(folder, SkippedItems(0.3))


INVALID_FILES: list[tuple[str, Callable[[Files], object], str]] = [
    ("captions", lambda f: f["captions"].pop("images"), "should have 'images' and 'annotations'"),
    ("captions", lambda f: f["captions"].pop("annotations"), "it holds an object with images; it"),
    ("captions", lambda f: f["captions"]["images"].clear(), "lists no images; add them to 'ima"),
    ("instances", lambda f: f["instances"].pop("annotations"), "an object with images, categories"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), INVALID_FILES)
def test_a_file_in_another_format_is_an_error(
    tmp_path: Path, name: str, spoil: Callable[[Files], object], message: str
) -> None:
    """It is raised whatever fraction may be skipped; the message says what the file holds."""
    files = coco_files()
    spoil(files)
    with pytest.raises(AnnotationError) as caught:
        read_coco(write(tmp_path, files), SkippedItems(1.0))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "annotations" / f"{name}_tiny.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["captions", "instances"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; it should be COCO's annotation JSON"),
        (b'{"images": [', "is broken JSON: Expecting value: line 1"),
        (b"\xff\xfe\x00", "is broken JSON"),
        (b"[" * 100_000, "is broken JSON"),
        (b'{"images": ' + b"9" * 5000 + b"}", "is broken JSON"),
        (b"[1]", "is not COCO's annotation JSON: it holds a list; it should have 'images' and"),
        (b"null", "is empty"),
    ],
)
def test_a_broken_file_is_an_annotation_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    """The message names the one of the two files that is broken."""
    folder = write(tmp_path, coco_files())
    path = folder / "annotations" / f"{name}_tiny.json"
    path.write_bytes(content)
    with pytest.raises(AnnotationError) as caught:
        read_coco(folder, SkippedItems(1.0))
    assert str(caught.value).startswith(f"{path} ")
    assert message in str(caught.value)


def test_one_of_the_two_files_is_enough(tmp_path: Path) -> None:
    """Captions alone have no categories, boxes alone no captions; without either the message says what to give."""
    folder = write(tmp_path, coco_files())
    boxes = folder / "annotations" / "instances_tiny.json"
    content = boxes.read_text()
    boxes.unlink()
    annotations = read_coco(folder, SkippedItems())
    assert annotations.categories == ()
    assert [len(image.captions) for image in annotations.images] == [2, 2, 2]
    (folder / "annotations" / "captions_tiny.json").unlink()
    with pytest.raises(AnnotationError, match=r"no annotations: .*; give the folder that holds"):
        read_coco(folder, SkippedItems())
    boxes.write_text(content)
    annotations = read_coco(folder, SkippedItems())
    assert [(image.captions, len(image.instances)) for image in annotations.images][1:] == [
        ((), 1)
    ] * 2
    with pytest.raises(AnnotationError, match=r"no annotations: .*; give the folder that holds"):
        read_coco(tmp_path / "nowhere", SkippedItems())


def test_a_folder_in_place_of_a_file_is_an_annotation_error(tmp_path: Path) -> None:
    """The message contains the system's reason."""
    folder = write(tmp_path, coco_files())
    (folder / "annotations" / "instances_tiny.json").unlink()
    (folder / "annotations" / "instances_tiny.json").mkdir()
    with pytest.raises(AnnotationError, match=r"cannot read .*: Is a directory; check the path"):
        read_coco(folder, SkippedItems())


def test_an_image_must_be_a_regular_file(tmp_path: Path) -> None:
    """A pipe is not opened."""
    folder = write(tmp_path, coco_files())
    (folder / "tiny" / "2.jpg").unlink()
    os.mkfifo(folder / "tiny" / "2.jpg")
    with pytest.raises(AnnotationError, match=r"2\.jpg does not exist"):
        read_coco(folder, SkippedItems())


def test_coco_train2017_is_read(third_party: Path) -> None:
    """80 photos with five captions each, all categories of COCO, and the boxes of the file."""
    folder = third_party / "coco_mini"
    annotations = read_coco(folder, SkippedItems())
    assert len(annotations.images) == 80
    assert len(annotations.categories) == 80
    assert all(len(image.captions) >= 5 for image in annotations.images)
    raw = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    assert sum(len(image.instances) for image in annotations.images) == len(raw["annotations"])
    areas = sorted(
        instance.box.area * image.width * image.height
        for image in annotations.images
        for instance in image.instances
    )
    expected = sorted(entry["bbox"][2] * entry["bbox"][3] for entry in raw["annotations"])
    assert areas == pytest.approx(expected, rel=0.02)
