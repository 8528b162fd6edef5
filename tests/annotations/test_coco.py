"""Tests of COCO folders; errors name file, index, field and remedy."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.annotations.boxes import Box
from caldera.annotations.coco import read_coco
from caldera.errors import AnnotationError, ImageError, InputError, UnknownNameError
from caldera.files.skipped_items import SkippedItems

Files = dict[str, dict[str, list[dict[str, Any]]]]
WIDTH, HEIGHT = 50, 20


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
    """Write a COCO folder; images are arbitrary bytes, as they are never decoded."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / "annotations" / f"{name}_{split}.json").write_text(json.dumps(content))
    for n in (1, 2, 3):
        path = folder / images / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image")
    return folder


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


def test_images_of_the_same_name_in_two_folders_have_different_ids(tmp_path: Path) -> None:
    """The folder is part of the id."""
    files = coco_files()
    for image, name in zip(files["captions"]["images"], ("a/1.jpg", "b/1.jpg"), strict=False):
        image["file_name"] = name
        (tmp_path / "tiny" / name).parent.mkdir(parents=True)
        (tmp_path / "tiny" / name).write_bytes(b"image")
    ids = [image.id for image in read_coco(write(tmp_path, files), SkippedItems()).images]
    assert ids == ["a/1", "b/1", "3"]


def test_images_that_differ_only_in_their_suffix_have_different_ids(tmp_path: Path) -> None:
    """The suffix is part of the id."""
    files = coco_files()
    for image, name in zip(files["captions"]["images"], ("1.jpg", "1.png"), strict=False):
        image["file_name"] = name
        (tmp_path / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tiny" / name).write_bytes(b"image")
    ids = [image.id for image in read_coco(write(tmp_path, files), SkippedItems()).images]
    assert ids == ["1.jpg", "1.png", "3"]


def test_annotations_without_an_image_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Annotations of images that 'images' does not list are ignored with a warning."""
    files = coco_files()
    for name in ("captions", "instances"):
        del files[name]["images"][1:]
    assert len(read_coco(write(tmp_path, files), SkippedItems()).images) == 1
    assert "2 images are not used" in caplog.text


edges = st.integers(0, 40)


@given(corners=st.lists(st.tuples(edges, edges, edges, edges), min_size=1, max_size=5))
def test_boxes_outside_the_image_are_an_error(
    tmp_path_factory: pytest.TempPathFactory, corners: list[tuple[int, int, int, int]]
) -> None:
    """A box that exceeds the image by at most a pixel is clipped, any other is an error."""
    files = coco_files()
    files["instances"]["annotations"] = [
        {"image_id": 7, "category_id": 1, "bbox": [left, top, width, height]}
        for left, top, width, height in corners
    ]
    for name in ("captions", "instances"):
        del files[name]["images"][1:]
    folder = write(tmp_path_factory.mktemp("coco"), files)
    fits = all(
        0 < width <= WIDTH + 1 - left and 0 < height <= HEIGHT + 1 - top and top < HEIGHT
        for left, top, width, height in corners
    )
    if not fits:
        with pytest.raises(AnnotationError, match=r"annotations\.\d\.bbox: .* does not lie inside"):
            read_coco(folder, SkippedItems())
        return
    [image] = read_coco(folder, SkippedItems()).images
    for instance, (left, top, width, height) in zip(image.instances, corners, strict=True):
        assert instance.box.left * WIDTH == pytest.approx(left)
        assert instance.box.top * HEIGHT == pytest.approx(top)
        assert instance.box.right * WIDTH == pytest.approx(min(WIDTH, left + width))
        assert instance.box.bottom * HEIGHT == pytest.approx(min(HEIGHT, top + height))


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


INVALID_IMAGES: list[tuple[Callable[[Files], None], str]] = [
    (lambda f: box_of(f, bbox=[45, 4, 10, 8]), "instances_tiny.json: annotations.1.bbox: box "),
    (lambda f: box_of(f, bbox=[45, 4, 10, 8]), "not lie inside its 50 x 20 pixels; correct or"),
    (lambda f: box_of(f, bbox=[-3, 4, 10, 8]), "[-3.0, 4.0, 10.0, 8.0] of image 2.jpg does not"),
    (lambda f: box_of(f, bbox=[5, 4, 0, 8]), "annotations.1.bbox: box [5.0, 4.0, 0.0, 8.0]"),
    (lambda f: box_of(f, bbox=[5, 4, 10, -8]), "annotations.1.bbox: "),
    (lambda f: box_of(f, bbox=[float("nan"), 4, 10, 8]), "annotations.1.bbox: "),
    (lambda f: box_of(f, bbox=[0, 0, float("inf"), 8]), "annotations.1.bbox: "),
    (lambda f: box_of(f, bbox=[50, 4, 1, 8]), "annotations.1.bbox: "),
    (lambda f: box_of(f, category_id=5), "annotations.1.category_id: a box of image 2.jpg has"),
    (lambda f: box_of(f, category_id=5), "category 5, which the file does not list; add it to"),
    (lambda f: without(f, "instances"), "captions_tiny.json: images.1: image 2.jpg has captions"),
    (
        lambda f: without(f, "instances"),
        "but no boxes; add boxes, or skip such images with --max-bad-fraction",
    ),
    (lambda f: without(f, "captions"), "images.1: image 2.jpg has no caption; add one or remove"),
    (lambda f: image_of(f, file_name="gone.jpg"), "gone.jpg does not exist, but the annotations"),
    (lambda f: image_of(f, file_name="x" * 300), "images.1: "),
    (lambda f: image_of(f, file_name=""), "images.1: "),
    (lambda f: image_of(f, file_name="a\0.jpg"), "images.1: "),
    (lambda f: image_of(f, id=7), "images.1: id 7 or file_name 2.jpg is that of an image before"),
    (lambda f: image_of(f, file_name="1.jpg"), "file_name 1.jpg is that of an image before; rem"),
]


@pytest.mark.parametrize(("spoil", "message"), INVALID_IMAGES)
def test_an_invalid_image_is_raised_or_skipped(
    tmp_path: Path, spoil: Callable[[Files], None], message: str
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
    assert [message in item.reason for item in skipped.items] == [True]
    with pytest.raises(InputError, match="1 of 3 items are invalid, over the limit"):
        read_coco(folder, SkippedItems(0.3))


def test_blank_captions_are_ignored(tmp_path: Path) -> None:
    """The image keeps its other captions."""
    files = coco_files()
    files["captions"]["annotations"][2]["caption"] = " \n"
    assert read_coco(write(tmp_path, files), SkippedItems()).images[1].captions == ("A pet",)


INVALID_FILES: list[tuple[str, Callable[[Files], object], str]] = [
    ("captions", lambda f: f["captions"].pop("images"), "images: field required"),
    ("captions", lambda f: f["captions"].pop("annotations"), "annotations: field required"),
    ("captions", lambda f: f["captions"]["images"].clear(), "lists no images; add them to 'ima"),
    ("captions", lambda f: image_of(f, width=0), "images.1.width: input should be greater than 0"),
    ("captions", lambda f: image_of(f, height="high"), "images.1.height: input should be a valid"),
    ("captions", lambda f: f["captions"]["images"][1].pop("id"), "images.1.id: field required"),
    (
        "captions",
        lambda f: f["captions"]["annotations"][2].update(caption=None),
        "annotations.2.caption: input should be a valid string",
    ),
    ("instances", lambda f: f["instances"].pop("categories"), "categories: field required"),
    ("instances", lambda f: box_of(f, bbox=[1, 2, 3]), "annotations.1.bbox.3: field required"),
    ("instances", lambda f: box_of(f, bbox=None), "annotations.1.bbox: input should be a valid"),
    (
        "instances",
        lambda f: f["instances"]["categories"][1].update(id=1),
        "categories.1: id 1 is both 'person' and 'dog'; give each its own",
    ),
    (
        "instances",
        lambda f: f["instances"]["categories"][1].update(name=" "),
        "categories.1.name: string should have at least 1 character",
    ),
]


@pytest.mark.parametrize(("name", "spoil", "message"), INVALID_FILES)
def test_a_file_in_another_format_is_an_error(
    tmp_path: Path, name: str, spoil: Callable[[Files], object], message: str
) -> None:
    """It is raised whatever fraction may be skipped; the message has file, index and field."""
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
        (b"[1]", "is not COCO's annotation JSON: file: "),
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


def test_both_files_are_needed(tmp_path: Path) -> None:
    """The message says which one is missing, or which folder to give."""
    folder = write(tmp_path, coco_files())
    boxes = folder / "annotations" / "instances_tiny.json"
    boxes.unlink()
    message = r"instances_tiny\.json is missing; both captions and boxes are needed"
    with pytest.raises(AnnotationError, match=message):
        read_coco(folder, SkippedItems())
    (folder / "annotations" / "captions_tiny.json").unlink()
    with pytest.raises(AnnotationError, match=r"no annotations: .*; give the folder that holds"):
        read_coco(folder, SkippedItems())
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
    with pytest.raises(ImageError, match=r"2\.jpg does not exist"):
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
