"""Labeled images are read from class folders and tables."""

import contextlib
import json
import os
import re
import socket
from collections import Counter
from pathlib import Path

import pytest

from caldera.annotations.labeled_images import (
    LabelOptions,
    read_labeled_images,
    usual_splits,
)
from caldera.errors import AnnotationError, ImageError, UnknownNameError
from caldera.files.skipped_items import SkippedItems
from tests.datasets.photo_folders import write_class_folders, write_image


def labels_of(path: Path, **options: object) -> dict[str, tuple[str, ...]]:
    """Return the labels by file name."""
    read = read_labeled_images(path, SkippedItems(), LabelOptions(**options))  # type: ignore[arg-type]
    return {
        str(image.path.relative_to(path if path.is_dir() else path.parent)): image.labels
        for image in read.images
    }


def test_the_folder_of_an_image_is_its_class(tmp_path: Path) -> None:
    """At any depth; the same name in two places is one class."""
    write_class_folders(tmp_path, {"women/t-shirt": 1, "men/t-shirt": 1, "hat": 1})
    assert labels_of(tmp_path) == {
        "hat/0.png": ("a hat",),
        "men/t-shirt/0.png": ("a t-shirt",),
        "women/t-shirt/0.png": ("a t-shirt",),
    }


def test_files_that_are_no_images_are_counted(tmp_path: Path) -> None:
    """Licences and images outside of the classes are not used; hidden files are nobody's data."""
    write_class_folders(tmp_path, {"hat": 2, "skirt": 1})
    write_image(tmp_path / "overview.png", 99)
    (tmp_path / "LICENSE").write_text("CC0")
    (tmp_path / "hat" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    skipped = SkippedItems()
    read = read_labeled_images(tmp_path, skipped, LabelOptions())
    assert read.num_images == {"a hat": 2, "a skirt": 1}
    assert {Path(note.location).name: note.reason for note in skipped.notes} == {
        "LICENSE": "not used, as it is not an image",
        "overview.png": "not used, as it is in no class folder",
    }


def test_an_image_without_a_suffix_is_read(tmp_path: Path) -> None:
    """The content decides."""
    write_class_folders(tmp_path, {"hat": 1, "skirt": 1})
    (tmp_path / "hat" / "0.png").rename(tmp_path / "hat" / "0")
    assert set(labels_of(tmp_path)) == {"hat/0", "skirt/0.png"}


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    """A pipe without a writer, a socket, a device and a link without a target are no images."""
    write_class_folders(tmp_path, {"hat": 1, "skirt": 1})
    os.mkfifo(tmp_path / "hat" / "pipe")
    (tmp_path / "hat" / "device").symlink_to("/dev/zero")
    (tmp_path / "hat" / "broken").symlink_to("missing")
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(tmp_path):
        server.bind("hat/socket")
        skipped = SkippedItems()
        read_labeled_images(tmp_path, skipped, LabelOptions())
    assert [note.reason for note in skipped.notes] == ["not used, as it is not an image"] * 4


def test_linked_folders_are_read(tmp_path: Path) -> None:
    """A class may be a link to a folder elsewhere; a link that leads back is not followed."""
    write_class_folders(tmp_path / "photos", {"hat": 1})
    write_class_folders(tmp_path / "elsewhere", {"skirt": 1}, first=9)
    (tmp_path / "photos" / "skirt").symlink_to(tmp_path / "elsewhere" / "skirt")
    (tmp_path / "photos" / "hat" / "back").symlink_to(tmp_path / "photos")
    assert set(labels_of(tmp_path / "photos")) == {"hat/0.png", "skirt/0.png"}


def test_broken_images_are_an_error_or_skipped(tmp_path: Path) -> None:
    """The first ends the import, unless some may be skipped."""
    write_class_folders(tmp_path, {"hat": 3, "skirt": 3})
    content = (tmp_path / "hat" / "0.png").read_bytes()
    (tmp_path / "hat" / "0.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "hat" / "1.png").write_text("<html>not found</html>")
    with pytest.raises(ImageError, match=r"hat/0\.png"):
        read_labeled_images(tmp_path, SkippedItems(), LabelOptions())
    skipped = SkippedItems(0.5)
    assert len(read_labeled_images(tmp_path, skipped, LabelOptions()).images) == 4
    assert [Path(item.location).name for item in skipped.items] == ["0.png", "1.png"]


def test_identical_files_are_one_image(tmp_path: Path) -> None:
    """With the classes of all of them."""
    write_class_folders(tmp_path, {"hat": 2, "skirt": 1})
    for name in ("hat/copy.png", "skirt/copy.png"):
        (tmp_path / name).write_bytes((tmp_path / "hat" / "0.png").read_bytes())
    skipped = SkippedItems()
    read = read_labeled_images(tmp_path, skipped, LabelOptions())
    assert sorted(image.labels for image in read.images) == [
        ("a hat",),
        ("a hat", "a skirt"),
        ("a skirt",),
    ]
    assert read.total == 5
    merged = f"merged with the identical file '{tmp_path / 'hat' / '0.png'}'"
    assert [(Path(note.location), note.reason) for note in skipped.notes] == [
        (tmp_path / "hat" / "copy.png", merged),
        (tmp_path / "skirt" / "copy.png", f"{merged}, with the classes of both: 'a hat, a skirt'"),
    ]


def test_a_split_is_chosen_where_there_are_several(tmp_path: Path) -> None:
    """Splits are never mixed; a single one needs no name, and a folder without any has none."""
    write_class_folders(tmp_path / "plain", {"hat": 1, "skirt": 1})
    with pytest.raises(
        AnnotationError, match=r"plain has no split 'test': no folder above the class"
    ):
        read_labeled_images(tmp_path / "plain", SkippedItems(), LabelOptions(split="test"))
    tmp_path = tmp_path / "splits"
    write_class_folders(tmp_path, {"train/hat": 1, "train/skirt": 1})
    assert set(labels_of(tmp_path)) == {"train/hat/0.png", "train/skirt/0.png"}
    write_class_folders(tmp_path, {"test/hat": 2, "test/skirt": 1}, first=50)
    with pytest.raises(AnnotationError, match=r"images of test, train; choose one with --split"):
        read_labeled_images(tmp_path, SkippedItems(), LabelOptions())
    assert set(labels_of(tmp_path, split="test")) == {
        "test/hat/0.png",
        "test/hat/1.png",
        "test/skirt/0.png",
    }
    with pytest.raises(UnknownNameError, match=r"'validation'"):
        read_labeled_images(tmp_path, SkippedItems(), LabelOptions(split="validation"))


@pytest.mark.parametrize("name", ["train", "Test", "val", "dev"])
def test_a_class_may_be_named_like_a_split(tmp_path: Path, name: str) -> None:
    """It is one by its noun phrase, or in a split; images that could be either are an error, none disappear."""
    write_class_folders(tmp_path, {"bus": 1, "car": 1, name: 1})
    with pytest.raises(
        AnnotationError, match=f"{name} holds images next to class folders.*'a {name}'"
    ):
        read_labeled_images(tmp_path, SkippedItems(), LabelOptions())
    assert usual_splits(tmp_path) is None
    labels = labels_of(tmp_path, phrases={name: "a locomotive"})
    assert labels[f"{name}/0.png"] == ("a locomotive",)
    (tmp_path / name).rename(tmp_path / f"a {name}")
    assert labels_of(tmp_path)[f"a {name}/0.png"] == (f"a {name.lower()}",)


def test_splits_hold_class_folders(tmp_path: Path) -> None:
    """A class of a split may be named like one; unlabeled images of another split are not used, and counted."""
    write_class_folders(tmp_path, {"train/bus": 1, "train/train": 1, "test": 2})
    skipped = SkippedItems()
    read = read_labeled_images(tmp_path, skipped, LabelOptions())
    assert read.num_images == {"a bus": 1, "a train": 1}
    assert [note.reason for note in skipped.notes] == ["not used, as it is in no class folder"] * 2
    assert usual_splits(tmp_path) is None
    write_class_folders(tmp_path, {"test/bus": 1}, first=9)
    assert usual_splits(tmp_path) == ("train", "test")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "image,label\n1.png,hat\n2.png,t-shirt\n"),
        ("a.csv", "filename;class\n1.png;hat\n2.png;t-shirt\n"),
        ("a.tsv", "photo\tcategory\n1.png\that\n2.png\tt-shirt\n"),
        ("a.jsonl", '{"image": "1.png", "label": "hat"}\n{"image": "2.png", "label": ["t-shirt"]}\n'),
        ("a.csv", '"sep=;"\nfilename;class\n1.png;hat\n2.png;t-shirt\n'),
        ("a.json", json.dumps([{"path": "1.png", "tags": "hat"}, {"path": "2.png", "tags": "t-shirt"}])),
    ],
)  # fmt: skip
def test_tables_and_records_are_read(tmp_path: Path, name: str, content: str) -> None:
    """The usual names of both columns, in any format."""
    for number in (1, 2):
        write_image(tmp_path / f"{number}.png", number)
    (tmp_path / name).write_text(content)
    assert labels_of(tmp_path / name) == {"1.png": ("a hat",), "2.png": ("a t-shirt",)}


def test_a_row_may_have_several_labels(tmp_path: Path) -> None:
    """Separated in a field, or in several rows; a class with a phrase may contain a comma."""
    for number in (1, 2, 3):
        write_image(tmp_path / f"{number}.png", number)
    (tmp_path / "a.csv").write_text(
        'image,label\n1.png,hat|skirt\n2.png,hat\n2.png,shoes\n3.png,"red, big"\n'
    )
    phrases = {"red, big": "something red"}
    assert labels_of(tmp_path / "a.csv", phrases=phrases) == {
        "1.png": ("a hat", "a skirt"),
        "2.png": ("a hat", "a pair of shoes"),
        "3.png": ("something red",),
    }


def test_classes_may_be_numbers(tmp_path: Path) -> None:
    """In records as in tables; a value that is no name is an error that calls it a label."""
    rows: list[dict[str, object]] = [
        {"image": f"{number}.png", "label": number} for number in (0, 1)
    ]
    for number in (0, 1):
        write_image(tmp_path / f"{number}.png", number)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert labels_of(tmp_path / "a.json") == {"0.png": ("a 0",), "1.png": ("a 1",)}
    rows[1]["label"] = {"id": 1}
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(AnnotationError, match="should have text fields 'image' and 'label'"):
        labels_of(tmp_path / "a.json")


@pytest.mark.parametrize("label", [";", " | ", "---", "\u200b", "\ud800"])
def test_a_label_without_a_name_is_skipped_or_an_error(tmp_path: Path, label: str) -> None:
    """The other rows are read; a file of nothing else names its first row."""
    for number in range(3):
        write_image(tmp_path / f"{number}.png", number)
    labels = ["hat", "skirt", label]
    rows = [{"image": f"{index}.png", "label": name} for index, name in enumerate(labels)]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(rows))
    with pytest.raises(AnnotationError, match=r"label without a name|cannot be read"):
        labels_of(file)
    skipped = SkippedItems(0.5)
    read = read_labeled_images(file, skipped, LabelOptions())
    assert (len(read.images), read.total) == (2, 3)
    assert [Path(item.location).name for item in skipped.items] == ["2.png"]
    file.write_text(json.dumps(rows[2:]))
    with pytest.raises(AnnotationError, match=r"no valid image with a class; the first .*2\.png"):
        read_labeled_images(file, SkippedItems(1.0), LabelOptions())


@pytest.mark.parametrize("name", ["   ", "---", os.fsdecode(b"\xff")])
def test_a_folder_whose_name_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    """Its images are skipped up to the limit."""
    write_class_folders(tmp_path, {"hat": 2, "skirt": 2, name: 1})
    with pytest.raises(AnnotationError, match=f"class name {re.escape(repr(name))} cannot be read"):
        read_labeled_images(tmp_path, SkippedItems(), LabelOptions())
    skipped = SkippedItems(0.5)
    assert len(read_labeled_images(tmp_path, skipped, LabelOptions()).images) == 4
    assert [Path(item.location).parent.name for item in skipped.items] == [name]


def test_other_columns_are_named(tmp_path: Path) -> None:
    """A caption is no label; --columns reads any two columns."""
    for number in (1, 2):
        write_image(tmp_path / f"{number}.png", number)
    (tmp_path / "a.csv").write_text("image,caption\n1.png,hat\n2.png,skirt\n")
    with pytest.raises(
        AnnotationError, match=r"known as the label; name both with --columns IMAGE,LABEL"
    ):
        read_labeled_images(tmp_path / "a.csv", SkippedItems(), LabelOptions())
    assert len(labels_of(tmp_path / "a.csv", columns="image,caption")) == 2


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    """Nothing could be denied; a folder without class folders and an unknown class are errors, too."""
    write_image(tmp_path / "1.png", 1)
    with pytest.raises(
        AnnotationError, match="no images in class folders; give a folder with a folder of images"
    ):
        read_labeled_images(tmp_path, SkippedItems(), LabelOptions())
    write_class_folders(tmp_path, {"hat": 2})
    with pytest.raises(
        AnnotationError, match="has images of a hat; at least two classes are needed"
    ):
        read_labeled_images(tmp_path, SkippedItems(), LabelOptions())
    with pytest.raises(AnnotationError, match="no class 'hut'; did you mean 'hat'"):
        read_labeled_images(tmp_path, SkippedItems(), LabelOptions(phrases={"hut": "a hut"}))


def test_real_photos_are_read(third_party: Path) -> None:
    """300 product photos in ten classes."""
    read = read_labeled_images(third_party / "clothing", SkippedItems(), LabelOptions())
    assert sum(read.num_images.values()) == len(read.images) == 300
    assert len(read.num_images) == 10
    assert isinstance(read.num_images, Counter)
