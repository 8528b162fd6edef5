"""Every tenth entry of real COCO annotations damaged: the others give the same records, and each damage is listed."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from caldera.annotations.registry import SourceOptions
from caldera.instructions.generate import GenerateConfig, generate_data
from caldera.progress import NoProgress

Entry = dict[str, Any]

KINDS = "caption,conversation,detail,reasoning,vqa,context"


class DamagedFolder:
    """A copy of a COCO folder whose entries are damaged one by one."""

    def __init__(self, source: Path, folder: Path) -> None:
        """Copy the folder."""
        shutil.copytree(source, folder)
        folder.chmod(0o755)
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        self.folder = folder
        self.paths = [
            folder / "annotations" / f"{name}_train2017.json" for name in ("captions", "instances")
        ]
        self.captions, self.instances = (json.loads(path.read_text()) for path in self.paths)
        self.names = [entry["file_name"] for entry in self.captions["images"]]
        self.ids = [entry["id"] for entry in self.captions["images"]]

    def file(self, index: int) -> Path:
        """Return the file of an image."""
        return self.folder / "train2017" / self.names[index]

    def set_image(self, index: int, **fields: object) -> None:
        """Change the entries of an image in both files; None removes a field."""
        for content in (self.captions, self.instances):
            for entry in content["images"]:
                if isinstance(entry, dict) and entry.get("file_name") == self.names[index]:
                    entry.update(fields)
                    for name in [name for name, value in fields.items() if value is None]:
                        del entry[name]

    def box(self, index: int) -> Entry:
        """Return the largest box of an image."""
        boxes = (box for box in self.instances["annotations"] if box["image_id"] == self.ids[index])
        return max(boxes, key=lambda box: box["bbox"][2] * box["bbox"][3])

    def set_box(self, index: int, **fields: object) -> None:
        """Change the largest box of an image."""
        self.box(index).update(fields)

    def write(self) -> Path:
        """Write the annotations."""
        for path, content in zip(self.paths, (self.captions, self.instances), strict=True):
            path.write_text(json.dumps(content))
        return self.folder


def to_corners(folder: DamagedFolder, index: int) -> None:
    """Write the right and bottom edge of one box in place of its width and height."""
    left, top, width, height = folder.box(index)["bbox"]
    folder.set_box(index, bbox=[left, top, left + width, top + height])


def to_fractions(folder: DamagedFolder, index: int) -> None:
    """Write one box as fractions of the image."""
    left, top, across, down = folder.box(index)["bbox"]
    with Image.open(folder.file(index)) as image:
        width, height = image.size
    folder.set_box(index, bbox=[left / width, top / height, across / width, down / height])


def turn_file(folder: DamagedFolder, index: int) -> None:
    """Give the image the EXIF orientation of a camera held upside down."""
    with Image.open(folder.file(index)) as image:
        exif = image.getexif()
        exif[274] = 3
        image.save(folder.file(index), exif=exif)


def crop_file(folder: DamagedFolder, index: int) -> None:
    """Cut a quarter of the image off."""
    with Image.open(folder.file(index)) as image:
        image.crop((0, 0, image.width * 3 // 4, image.height)).save(folder.file(index))


def set_captions(folder: DamagedFolder, index: int, caption: object) -> None:
    """Replace all captions of an image."""
    for entry in folder.captions["annotations"]:
        if entry["image_id"] == folder.ids[index]:
            entry["caption"] = caption


WAYS: dict[str, Callable[[DamagedFolder, int], object]] = {
    ".jpg does not exist; check --images": lambda f, i: f.file(i).unlink(),
    "is empty (0 bytes)": lambda f, i: f.file(i).write_bytes(b""),
    "not an image": lambda f, i: f.file(i).write_text("<html>not found</html>"),
    "pixels; the shapes differ": crop_file,
    "has EXIF orientation 3": turn_file,
    "None is no file_name": lambda f, i: f.set_image(i, file_name=None),
    "other.jpg does not exist": lambda f, i: f.set_image(i, file_name="other.jpg"),
    ".jpg is the id or file_name of two": lambda f, i: f.set_image(i, file_name=f.names[i - 1]),
    "is annotated as 10 x 1000": lambda f, i: f.set_image(i, width=10, height=1000),
    "is annotated as 2000 x 2000": lambda f, i: f.set_image(i, width=2000, height=2000),
    "bbox: None of image": lambda f, i: f.box(i).pop("bbox"),
    "bbox: 'wide' of image": lambda f, i: f.set_box(i, bbox="wide"),
    "bbox: [nan, 1, 2, 3] of image": lambda f, i: f.set_box(i, bbox=[float("nan"), 1, 2, 3]),
    "bbox: [1, 2, 3] of image": lambda f, i: f.set_box(i, bbox=[1, 2, 3]),
    "box [-50.0, 1.0, 9.0, 9.0] of image": lambda f, i: f.set_box(i, bbox=[-50, 1, 9, 9]),
    "does not lie inside": to_corners,
    "looks like fractions": to_fractions,
    "has no area": lambda f, i: f.set_box(i, bbox=[10, 10, 0, 20]),
    "'maybe' is neither 0 nor 1": lambda f, i: f.set_box(i, iscrowd="maybe"),
    "the caption is empty": lambda f, i: set_captions(f, i, None),
    "the caption is empty, null or no text": lambda f, i: set_captions(f, i, float("nan")),
    "None is no id": lambda f, i: f.set_image(i, id=None),
    " is the id or file_name of two images": lambda f, i: f.set_image(i, id=f.ids[i - 1]),
    "annotated as 1 x 9": lambda f, i: f.instances["images"][i].update(width=1, height=9),
}
"""Damages by a part of the reason that is listed."""


def generate(folder: Path, out: Path, kinds: str = KINDS) -> list[Entry]:
    """Return the records about all images that are not skipped."""
    config = GenerateConfig(
        source="coco", path=folder, options=SourceOptions(), kinds=kinds, max_bad_fraction=0.1
    )
    generate_data(config, out, NoProgress())
    records: list[Entry] = json.loads(out.read_text())
    return records


def about_others(records: Iterable[Entry], names: Iterable[str]) -> list[Entry]:
    """Return the records that show none of the named images."""
    stems = {Path(name).stem for name in names}
    return [
        record for record in records if not stems & {*record["id"].rpartition("-")[0].split("+")}
    ]


@pytest.fixture(scope="module")
def clean(third_party: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Return the records of the whole folder."""
    # Image paths in records are relative to the data file, and so the same for every copy.
    folder = tmp_path_factory.mktemp("clean")
    DamagedFolder(third_party / "coco_mini", folder / "coco")
    return generate(folder / "coco", folder / "data.json")


@pytest.mark.parametrize("start", [3, 6, 9])
def test_nine_tenths_are_unchanged_where_the_tenth_is_damaged(
    clean: list[Entry], third_party: Path, tmp_path: Path, start: int
) -> None:
    """24 kinds of damage, 8 at a time; a related image that was skipped is replaced by no other."""
    folder = DamagedFolder(third_party / "coco_mini", tmp_path / "coco")
    numbers = range(start, 80, 10)
    reasons = [*WAYS][(start // 3 - 1) * len(numbers) :][: len(numbers)]
    for reason, index in zip(reasons, numbers, strict=True):
        WAYS[reason](folder, index)

    records = generate(folder.write(), tmp_path / "data.json")

    damaged = [folder.names[index] for index in numbers]
    assert about_others(records, damaged) == about_others(clean, damaged)
    assert len(about_others(clean, damaged)) > 350
    listed = (tmp_path / "data.skipped.jsonl").read_text().splitlines()
    reasons_listed = [json.loads(line)["reason"] for line in listed]
    assert [
        reason for reason in reasons if not any(reason in text for text in reasons_listed)
    ] == []
    assert len([line for line in listed if '"skipped"' in line]) <= len(numbers)


@pytest.mark.parametrize("fields", [{"category_id": 9999}, {"image_id": None}])
def test_a_box_of_no_known_category_or_image_changes_no_other_image(
    clean: list[Entry], third_party: Path, tmp_path: Path, fields: Entry
) -> None:
    """Groups of images with the lost category may be others, as nothing tells that it was one of them."""
    folder = DamagedFolder(third_party / "coco_mini", tmp_path / "coco")
    folder.set_box(30, **fields)

    records = generate(folder.write(), tmp_path / "data.json")

    others = [item for item in about_others(clean, [folder.names[30]]) if "+" not in item["id"]]
    remaining = about_others(records, [folder.names[30]])
    assert [item for item in remaining if "+" not in item["id"]] == others
    assert '"skipped"' in (tmp_path / "data.skipped.jsonl").read_text()
