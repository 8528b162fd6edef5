"""Layouts of COCO folders that tools write: found by content, or given as files."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.coco import CocoOptions, read_coco
from caldera.errors import AnnotationError, UnknownNameError
from caldera.files.skipped_items import SkippedItems
from tests.annotations.coco_folder import PNG, WIDTH, coco_files


def write(folder: Path, files: Mapping[str, object], images: list[str]) -> Path:
    """Write JSON files and blank images."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)
    return folder


def boxes(prefix: str = "") -> dict[str, list[dict[str, Any]]]:
    """Return the content of a file of boxes, with a prefix before each name."""
    content = coco_files()["instances"]
    for image in content["images"]:
        image["file_name"] = prefix + image["file_name"]
    return content


def image_names(folder: str) -> list[str]:
    """Return the names of the three images in a folder."""
    return [f"{folder}{number}.jpg" for number in (1, 2, 3)]


def roboflow(folder: Path) -> Path:
    """Write a split with the project as root of the categories."""
    content = boxes()
    for category in content["categories"]:
        category["supercategory"] = "project"
    content["categories"].insert(0, {"id": 0, "name": "project", "supercategory": "none"})
    return write(folder, {"train/_annotations.coco.json": content}, image_names("train/"))


def via(folder: Path) -> Path:
    """Write VIA's project file, with a rectangle and a polygon."""
    shapes = [
        {"name": "rect", "x": 5, "y": 4, "width": 10, "height": 8},
        {"name": "polygon", "all_points_x": [5, 15, 5], "all_points_y": [4, 4, 12]},
        {"name": "rect", "x": 5, "y": 4, "width": 10, "height": 8},
    ]
    images = {
        f"{number}.jpg123": {
            "filename": f"{number}.jpg",
            "size": 123,
            "file_attributes": {},
            "regions": [{"shape_attributes": shape, "region_attributes": {"type": "dog"}}],
        }
        for number, shape in enumerate(shapes, start=1)
    }
    project = {"_via_settings": {}, "_via_img_metadata": images}
    return write(folder, {"via_project.json": project}, image_names(""))


def datumaro(folder: Path) -> Path:
    """Write datumaro's own JSON."""
    items = [
        {
            "id": str(number),
            "image": {"path": f"{number}.jpg", "size": [20, 50]},
            "annotations": [
                {"type": "bbox", "label_id": 1, "bbox": [5, 4, 10, 8]},
                {"type": "caption", "caption": "A dog"},
            ],
        }
        for number in (1, 2, 3)
    ]
    labels = [{"name": "person", "parent": ""}, {"name": "dog", "parent": ""}]
    content = {"info": {}, "categories": {"label": {"labels": labels}}, "items": items}
    return write(folder, {"annotations/train.json": content}, image_names("images/train/"))


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "Label Studio": lambda f: write(f, {"result.json": boxes("images\\")}, image_names("images/")),
    "Label Studio, local files": lambda f: write(
        f, {"result.json": boxes("../../label-studio/data/media/upload/7/")}, image_names("images/")
    ),
    "Label Studio, uploads": lambda f: write(
        f, {"result.json": boxes("/data/upload/7/0a1b2c3d-")}, image_names("images/")
    ),
    "Label Studio, linked": lambda f: write(
        f, {"result.json": boxes("/data/local-files/?d=my%20photos/")}, image_names("my photos/")
    ),
    "Roboflow": roboflow,
    "CVAT": lambda f: write(
        f, {"annotations/instances_default.json": boxes()}, image_names("images/default/")
    ),
    "FiftyOne": lambda f: write(f, {"labels.json": boxes()}, image_names("data/")),
    "VIA": via,
    "VIA, as COCO": lambda f: write(f, {"via_export_coco.json": boxes()}, image_names("")),
    "X-AnyLabeling": lambda f: write(f, {"annotations/coco.json": boxes()}, image_names("images/")),
    "datumaro": datumaro,
    "datumaro, as COCO": lambda f: write(
        f, {"annotations/instances_train.json": boxes()}, image_names("images/train/")
    ),
    "beside the images": lambda f: write(f, {"anything.json": boxes("./")}, image_names("")),
}


def read(folder: Path, **options: Any) -> AnnotationSet:  # noqa: ANN401
    """Read a folder in which nothing may be skipped."""
    return read_coco(folder, SkippedItems(), CocoOptions(**options))


@pytest.mark.parametrize("name", LAYOUTS)
def test_boxes_of_every_tool_are_found(tmp_path: Path, name: str) -> None:
    """All images with their boxes; a root category is no category."""
    annotations = read(LAYOUTS[name](tmp_path))
    assert sorted(image.path.name for image in annotations.images) == image_names("")
    assert all(image.path.read_bytes() == PNG for image in annotations.images)
    for image in annotations.images:
        dog = image.instances[0]
        assert dog.category == "dog"
        assert dog.box.left == pytest.approx(5 / WIDTH)
    assert "project" not in annotations.categories


@pytest.mark.parametrize(
    ("attributes", "category"),
    [
        ({"color": "red", "name": "dog"}, "dog"),
        ({"animal": "dog", "crowd": {"yes": True}}, "dog"),
        ({"name": "", "color": "red"}, None),
        ({"color": "red", "size": "big"}, None),
        ({}, None),
    ],
)
def test_the_category_of_a_region_of_via_is_never_another_attribute(
    tmp_path: Path, attributes: dict[str, Any], category: str | None
) -> None:
    """A region whose category is not certain makes its image invalid."""
    shape = {"name": "rect", "x": 5, "y": 4, "width": 10, "height": 8}
    regions = [{"shape_attributes": shape, "region_attributes": attributes}]
    project = {"1.jpg9": {"filename": "1.jpg", "regions": regions, "file_attributes": {}}}
    skipped = SkippedItems(1.0)
    images = read_coco(write(tmp_path, {"via.json": project}, image_names("")), skipped).images
    assert [image.instances[0].category for image in images] == ([category] if category else [])
    assert len(skipped.items) == (category is None)


def test_a_broken_file_is_named_if_there_is_no_other(tmp_path: Path) -> None:
    """The cause is that an export ends early, not that there is none."""
    (tmp_path / "result.json").write_text('{"images": [')
    with pytest.raises(AnnotationError, match=r"result\.json is broken JSON"):
        read(tmp_path)


def test_splits_in_folders_are_read_by_name(tmp_path: Path) -> None:
    """Roboflow's splits have the same names of files; each is read with its own images."""
    for split in ("train", "valid"):
        write(tmp_path, {f"{split}/_annotations.coco.json": boxes()}, image_names(f"{split}/"))
    paths = [image.path for image in read(tmp_path, split="valid").images]
    assert paths == [tmp_path / name for name in image_names("valid/")]
    with pytest.raises(AnnotationError, match=r"several splits; name one with --split: \['train'"):
        read(tmp_path)
    with pytest.raises(UnknownNameError, match="called 'val'; did you mean 'valid'"):
        read(tmp_path, split="val")


def test_files_may_be_given_and_joined_by_name(tmp_path: Path) -> None:
    """In any folder, with other ids, and with folders before the names in one of them."""
    captions = coco_files()["captions"]
    for entry in captions["images"]:
        entry["id"] = 30 - entry["id"]
    for entry in captions["annotations"]:
        entry["image_id"] = 30 - entry["image_id"]
    files = {"x/c.json": captions, "y/i.json": boxes("photos/")}
    folder = write(tmp_path, files, image_names("all/"))
    annotations = read(
        folder / "all", captions=tmp_path / "x" / "c.json", instances=tmp_path / "y" / "i.json"
    )
    for number, image in enumerate(annotations.images, start=1):
        assert image.captions == (f"A dog number {number} .", "A pet")
        assert image.instances[0].category == "dog"
    assert read(folder / "all", captions=tmp_path / "x" / "c.json").categories == ()
    [image, *_] = read(tmp_path / "y" / "i.json", images=folder / "all").images
    assert (image.captions, len(image.instances)) == ((), 2)


def test_images_without_boxes_are_listed_and_not_invalid(tmp_path: Path) -> None:
    """Exports of boxes list them as backgrounds; with a file of captions they are a fault."""
    content = boxes()
    content["annotations"] = [box for box in content["annotations"] if box["image_id"] != 14]
    folder = write(tmp_path, {"train/_annotations.coco.json": content}, image_names("train/"))
    skipped = SkippedItems()
    annotations = read_coco(folder, skipped)
    assert [image.id for image in annotations.images] == ["1", "3"]
    assert [(item.location, item.action) for item in skipped.notes] == [("image 2.jpg", "changed")]
    (folder / "train" / "2.jpg").unlink()
    with pytest.raises(AnnotationError, match=r"2\.jpg does not exist"):
        read(folder)


def test_an_id_of_two_names_is_refused_by_name(tmp_path: Path) -> None:
    """Where the files list no common name, ids are only trusted if they agree."""
    content = boxes()
    for image in content["images"]:
        image["file_name"] = f"other{image['file_name']}"
    files = {"captions_a.json": coco_files()["captions"], "instances_a.json": content}
    files = {f"annotations/{name}": content for name, content in files.items()}
    with pytest.raises(AnnotationError, match=r"id 7 is 1\.jpg, but other1\.jpg in .*images\.0"):
        read(write(tmp_path, files, image_names("a/")))


def test_several_files_of_one_kind_must_be_named(tmp_path: Path) -> None:
    """The message has the option; a file in another format does not count."""
    files = {"a.json": boxes(), "b.json": boxes(), "settings.json": {"theme": "dark"}}
    folder = write(tmp_path, files, image_names("images/"))
    with pytest.raises(AnnotationError, match=r"several files; name one with --instances: \['a\.j"):
        read(folder)
    assert len(read(folder, instances=folder / "b.json").images) == 3
    shutil.rmtree(folder / "images")
    with pytest.raises(AnnotationError, match=r"1\.jpg does not exist; .*: 3 of 3 images are miss"):
        read(folder, instances=folder / "b.json")
