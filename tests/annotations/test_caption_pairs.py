"""Tests of image-caption pairs in three file formats, and of errors with their line."""

import csv
import json
from pathlib import Path

import pytest

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.caption_pairs import read_pairs as read_unchecked
from caldera.errors import InputError, UnknownNameError, UsageError
from caldera.files.skipped_items import SkippedItems

PAIRS = [
    ("1.jpg", "A dog, in a park."),
    ("2.jpg", "Two\ncats"),
    ("1.jpg", "A puppy"),
    ("é.jpg", "x"),
]


def read_pairs(path: Path, skipped: SkippedItems, images: Path | None = None) -> AnnotationSet:
    """Read a file and check the limit of skipped rows, as every command does."""
    annotations = read_unchecked(path, skipped, images)
    skipped.finish(annotations.total)
    return annotations


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create a folder with three images, which are never decoded."""
    for name in ("1.jpg", "2.jpg", "é.jpg"):
        (tmp_path / name).write_bytes(b"image")
    return tmp_path


def write_csv(path: Path, pairs: list[tuple[str, str]]) -> None:
    """Write pairs as a spreadsheet program does, with a byte order mark, and quotes where needed."""
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file)
        rows.writerows([("image", "caption"), *pairs])


def write_jsonl(path: Path, pairs: list[tuple[str, str]]) -> None:
    """Write pairs as one object per line."""
    lines = (json.dumps({"image": image, "caption": caption}) for image, caption in pairs)
    path.write_text("\n".join(lines))


def write_llava(path: Path, pairs: list[tuple[str, str]]) -> None:
    """Write pairs in the format of LLaVA's stage-1 file."""
    records = [
        {
            "id": str(number),
            "image": image,
            "conversations": [
                {"from": "human", "value": "Describe it.\n<image>"},
                {"from": "gpt", "value": caption},
            ],
        }
        for number, (image, caption) in enumerate(pairs)
    ]
    path.write_text(json.dumps(records))


WRITERS = {
    "pairs.csv": write_csv,
    "PAIRS.CSV": write_csv,
    "a.jsonl": write_jsonl,
    "a.json": write_llava,
}


@pytest.mark.parametrize("name", WRITERS)
def test_all_file_formats_give_the_same_pairs(folder: Path, name: str) -> None:
    """Captions of the same image are merged, each on one line; there are no boxes."""
    WRITERS[name](folder / name, PAIRS)

    annotations = read_pairs(folder / name, SkippedItems())

    assert annotations.categories == ()
    assert [(image.path, image.captions) for image in annotations.images] == [
        (folder / "1.jpg", ("A dog, in a park.", "A puppy")),
        (folder / "2.jpg", ("Two cats",)),
        (folder / "é.jpg", ("x",)),
    ]
    assert [image.id for image in annotations.images] == ["1", "2", "é"]
    assert all(image.instances == () and image.width == 0 for image in annotations.images)


def test_images_may_be_in_another_folder(folder: Path, tmp_path: Path) -> None:
    """In the folder of the file, in `images/` there, or in a given folder; subfolders are part of the id."""
    (folder / "images" / "a").mkdir(parents=True)
    (folder / "1.jpg").rename(folder / "images" / "a" / "1.jpg")
    (folder / "2.jpg").rename(folder / "images" / "1.jpg")
    write_csv(folder / "pairs.csv", [("a/1.jpg", "A dog"), ("1.jpg", "A cat")])
    write_csv(folder / "other.csv", [("1.jpg", "A dog")])

    assert [image.id for image in read_pairs(folder / "pairs.csv", SkippedItems()).images] == [
        "a/1",
        "1",
    ]
    [image] = read_pairs(folder / "other.csv", SkippedItems(), folder / "images" / "a").images
    assert image.path == folder / "images" / "a" / "1.jpg"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "3.jpg", "caption": "x"}, "3.jpg does not exist; check --images"),
        ({"image": "x" * 300, "caption": "x"}, "does not exist; check --images"),
        ({"image": "", "caption": "x"}, "has an empty image or caption; fill it or remove the"),
        ({"image": "1.jpg", "caption": " \n"}, "has an empty image or caption"),
        ({"image": "1.jpg"}, "has the columns image, none of them known as the caption; name both"),
        ({"image": "1.jpg", "caption": None}, "has an empty image or caption"),
        ({"image": "1.jpg", "caption": float("nan")}, "has an empty image or caption"),
        ({"image": "1.jpg", "caption": "NaN"}, "has an empty image or caption"),
        ({"image": 1, "caption": "x"}, "should have text fields 'image' and 'caption'"),
        ({"image": ["1.jpg"], "caption": "x"}, "should have text fields 'image' and 'caption'"),
        ("1.jpg", "should have text fields 'image' and 'caption'"),
        (None, "should have text fields"),
        (
            {
                "id": "7",
                "conversations": [
                    {"from": "human", "value": "Hello?"},
                    {"from": "gpt", "value": "x"},
                ],
            },
            "has no image; a caption needs one",
        ),
        (
            {
                "id": "7",
                "image": "1.jpg",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat?"},
                    {"from": "gpt", "value": "x"},
                    {"from": "human", "value": "And?"},
                    {"from": "gpt", "value": "y"},
                ],
            },
            "has 4 turns; a pair is a human turn with an image and a gpt turn with its caption",
        ),
        (
            {"id": "7", "image": "1.jpg", "conversations": []},
            "needs at least a human and a gpt tur",
        ),
    ],
)
def test_an_invalid_row_is_raised_or_skipped(folder: Path, row: object, message: str) -> None:
    """The message has file and line number; the other rows are read."""
    valid = json.dumps({"image": "1.jpg", "caption": "A dog"})
    path = folder / "pairs.jsonl"
    path.write_text(f"{valid}\n\n{json.dumps(row)}\n{valid}\n")

    with pytest.raises(InputError) as caught:
        read_pairs(path, SkippedItems())
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}:3")
    assert "\n" not in str(caught.value)

    skipped = SkippedItems(0.34)
    assert [image.captions for image in read_pairs(path, skipped).images] == [("A dog", "A dog")]
    assert [(item.location, message in item.reason) for item in skipped.items] == [
        (f"{path}:3", True)
    ]
    with pytest.raises(InputError, match="1 of 3 items are invalid"):
        read_pairs(path, SkippedItems(0.3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"pairs\.csv is empty; it should hold an image and a caption a line"),
        ("name,caption\n1.jpg,x\n", r"table with commas, has the columns name, caption, none of"),
        ("name,caption\n1.jpg,x\n", r"known as the image; name both with --columns IMAGE,CAPTION"),
        ("image,caption\n", "holds no pairs"),
        ("image,caption\n1.jpg\n", r"pairs\.csv:2 has 1 fields in place of 2"),
        ("image,caption\n1.jpg,a dog, a cat\n", r"csv:2 has 3 fields in place of 2; p"),
        ("image,caption\n1.jpg," + "x" * 200_000, "is no table that can be read: field larger"),
        ("just a text\n", r"has the columns just a text, none of them known as the image"),
    ],
)
def test_a_broken_csv_file_is_an_input_error(folder: Path, content: str, message: str) -> None:
    """Missing columns, no rows, and rows of the wrong length."""
    path = folder / "pairs.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_pairs(path, SkippedItems())


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl", "pairs.json"])
def test_a_missing_file_or_one_that_is_not_utf8_is_an_input_error(
    tmp_path: Path, name: str
) -> None:
    """UTF-16, as some programs save it, a folder, and a wrong path."""
    path = tmp_path / name
    with pytest.raises(InputError, match=r"cannot read .*: No such file or directory; check the"):
        read_pairs(path, SkippedItems())
    path.write_bytes("image,caption\n1.jpg,x\n".encode("utf-16"))
    with pytest.raises(InputError, match="is not UTF-8"):
        read_pairs(path, SkippedItems())
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="is a folder; give the file of captions in it"):
        read_pairs(path, SkippedItems())


TEXTS = ["A dog, in a park.", 'A "big" cat; two', "x"]
"""Captions with the characters that delimiters and quotes are."""

TABLES = {
    "Hugging Face": 'file_name,text\n1.jpg,"A dog, in a park."\n2.jpg,"A ""big"" cat; two"\né.jpg,x\n',
    "semicolons": 'image;caption\n1.jpg;A dog, in a park.\n2.jpg;"A ""big"" cat; two"\né.jpg;x\n',
    "tabs": 'image\tcaption\n1.jpg\tA dog, in a park.\n2.jpg\tA "big" cat; two\né.jpg\tx\n',
    "quoted tabs": 'image\tcaption\n"1.jpg"\t"A dog, in a park."\n2.jpg\t"A ""big"" cat; two"\né.jpg\tx\n',
    "Flickr8k": '1.jpg#0\tA dog, in a park.\n2.jpg#0\tA "big" cat; two\né.jpg#0\tx\n',
    "Flickr30k": 'image_name| comment_number| comment\n1.jpg| 0| A dog, in a park.\n'
    '2.jpg| 0| A "big" cat; two\né.jpg| 0| x\n',
    "no header": '1.jpg,"A dog, in a park."\n2.jpg,"A ""big"" cat; two"\né.jpg,x\n',
    "more columns": 'id,split,IMAGE,Caption\n1,a,1.jpg,"A dog, in a park."\n'
    '2,a,2.jpg,"A ""big"" cat; two"\n3,b,é.jpg,x\n',
    "blank lines": '\nimage\tcaption\n\n1.jpg\tA dog, in a park.\n2.jpg\tA "big" cat; two\n\né.jpg\tx\n\n',
    "lines of objects": "\n".join(
        json.dumps({"file_name": name, "text": text})
        for name, text in zip(("1.jpg", "2.jpg", "é.jpg"), TEXTS, strict=True)
    ),
    "list of objects": json.dumps(
        [
            {"filename": name, "captions": [text]}
            for name, text in zip(("1.jpg", "2.jpg", "é.jpg"), TEXTS, strict=True)
        ],
        indent=1,
    ),
    "Karpathy": json.dumps(
        {
            "dataset": "small",
            "images": [
                {"filename": name, "filepath": "", "split": "train", "sentences": [{"raw": text, "tokens": []}]}
                for name, text in zip(("1.jpg", "2.jpg", "é.jpg"), TEXTS, strict=True)
            ],
        }
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".JSON"])
@pytest.mark.parametrize("name", TABLES)
def test_tables_are_recognized_by_content(folder: Path, name: str, suffix: str) -> None:
    """Delimiter, header, quotes and names of columns; the suffix decides nothing."""
    path = folder / f"captions{suffix}"
    path.write_text(TABLES[name], encoding="utf-8")
    images = read_pairs(path, SkippedItems()).images
    assert [image.id for image in images] == ["1", "2", "é"]
    assert [image.captions[0] for image in images] == TEXTS


def test_columns_may_be_named(folder: Path) -> None:
    """In a table and in objects; a wrong name, or a single one, is told."""
    (folder / "a.txt").write_text("text;what;where\nno;A dog;1.jpg\n")
    (folder / "b.txt").write_text('{"what": "A dog", "where": "1.jpg", "text": "no"}\n')
    for name in ("a.txt", "b.txt"):
        [image] = read_unchecked(folder / name, SkippedItems(), columns="where,what").images
        assert (image.id, image.captions) == ("1", ("A dog",))
        with pytest.raises(InputError, match=r"none of them whereto; correct --columns"):
            read_unchecked(folder / name, SkippedItems(), columns="whereto,what")
    with pytest.raises(UsageError, match=r"--columns where is not two names; write the columns"):
        read_unchecked(folder / "a.txt", SkippedItems(), columns="where")


def test_a_split_of_karpathys_json_is_read_by_name(folder: Path) -> None:
    """Images are in the folder that `filepath` names."""
    (folder / "val").mkdir()
    (folder / "1.jpg").rename(folder / "val" / "1.jpg")
    images = [
        {"filepath": "val", "filename": "1.jpg", "split": "test", "sentences": [{"raw": "A dog"}]},
        {"filename": "2.jpg", "split": "train", "sentences": [{"raw": "A cat"}, {"raw": "Two"}]},
    ]
    path = folder / "dataset.json"
    path.write_text(json.dumps({"images": images}))
    assert [image.id for image in read_pairs(path, SkippedItems()).images] == ["val/1", "2"]
    [image] = read_unchecked(path, SkippedItems(), split="train").images
    assert image.captions == ("A cat", "Two")
    with pytest.raises(UnknownNameError, match="called 'trian'; did you mean 'train'"):
        read_unchecked(path, SkippedItems(), split="trian")


def test_a_coco_file_names_the_source_that_reads_it(folder: Path) -> None:
    """A COCO file has pairs, but in two lists."""
    path = folder / "captions.json"
    path.write_text('{"images": [], "annotations": []}')
    with pytest.raises(InputError, match="is a COCO file, not pairs; use the source coco with"):
        read_pairs(path, SkippedItems())


def test_the_broken_row_of_flickr30k_is_skipped_alone(folder: Path) -> None:
    """One row of the real file has two fields in place of three."""
    path = folder / "results.csv"
    row = "2.jpg| 4   A dog runs\n"
    path.write_text(f"image_name| comment_number| comment\n1.jpg| 0| A dog\n{row}é.jpg| 0| x\n")
    skipped = SkippedItems(0.5)
    assert [image.id for image in read_pairs(path, skipped).images] == ["1", "é"]
    assert [item.location for item in skipped.items] == [f"{path}:3"]


def test_line_numbers_are_those_of_the_file(folder: Path) -> None:
    """A caption may span several lines."""
    path = folder / "pairs.csv"
    write_csv(path, [("2.jpg", "Two\ncats"), ("3.jpg", "gone")])
    with pytest.raises(InputError, match=r"pairs\.csv:4: .*3\.jpg does not exist"):
        read_pairs(path, SkippedItems())


@pytest.mark.parametrize(
    ("name", "content", "num_valid", "message"),
    [
        ("a.csv", "1.jpg,A dog, running\n2.jpg,A cat\n", 1, "a.csv:1 has 3 fields in place of 2"),
        ("b.csv", "1.jpg;0;A dog\n2.jpg;A dog;running\n", 1, "b.csv:2 has 3 fields"),
        ("c.csv", 'image,caption\n1.jpg,"A dog\n2.jpg,cat\n', 0, "has quotes that enclose further rows"),
        ("d.jsonl", '{"image": "1.jpg", "caption": "a"}\nbroken\n', 1, "d.jsonl:2 is broken JSON"),
        ("e.json", '[{"image": "1.jpg", "captions": ["a", {"raw": "b"}]}]', 0, "which is no text"),
        ("f.csv", "image,caption\na/1.jpg,dog\nb/1.jpg,cat\n2.jpg,x\n", 1, "would be the file of two images"),
    ],
)  # fmt: skip
def test_no_caption_is_shortened_swallowed_or_moved_to_another_image(
    folder: Path, name: str, content: str, num_valid: int, message: str
) -> None:
    """What cannot be read as one image and its caption is listed, and the other rows are used."""
    (folder / name).write_text(content)
    skipped = SkippedItems(1.0)
    annotations = read_unchecked(folder / name, skipped)
    assert len(annotations.images) == num_valid
    assert message in f"{skipped.items[0].location} {skipped.items[0].reason}"
    assert annotations.total >= num_valid + len(skipped.items)


def test_a_column_that_is_there_twice_is_an_error(folder: Path) -> None:
    """Neither of two columns of one name is dropped."""
    (folder / "pairs.csv").write_text("image,caption,caption\n1.jpg,a dog,a puppy\n")
    with pytest.raises(InputError, match="column caption more than once"):
        read_pairs(folder / "pairs.csv", SkippedItems())


def test_a_missing_caption_of_several_is_listed(folder: Path) -> None:
    """The others of the image are used."""
    record = {"image": "1.jpg", "captions": ["a dog", None, "None"]}
    (folder / "pairs.jsonl").write_text(json.dumps(record))
    skipped = SkippedItems()
    assert read_pairs(folder / "pairs.jsonl", skipped).images[0].captions == ("a dog",)
    assert len(skipped.notes) == 2


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl"])
def test_a_split_is_read_by_the_field_of_its_name(folder: Path, name: str) -> None:
    """Rows of other splits are left out; without the field, or for another name, there is an error."""
    rows = [
        {"image": "1.jpg", "caption": "a", "split": "train"},
        {"image": "2.jpg", "caption": "b", "split": "test"},
    ]
    lines = [",".join(row.values()) for row in ({key: key for key in rows[0]}, *rows)]
    (folder / name).write_text("\n".join(lines if name.endswith("csv") else map(json.dumps, rows)))
    images = read_unchecked(folder / name, SkippedItems(), split="test").images
    assert [image.path.name for image in images] == ["2.jpg"]
    with pytest.raises(UnknownNameError):
        read_unchecked(folder / name, SkippedItems(), split="val")
    (folder / name).write_text((folder / name).read_text().replace("split", "part"))
    with pytest.raises(InputError, match="no field 'split'"):
        read_unchecked(folder / name, SkippedItems(), split="test")


def test_pairs_of_flickr8k_and_lcs558k_are_read(third_party: Path) -> None:
    """Flickr8k: 800 photos with five captions each. LCS-558K: 500 records with an image and a caption each."""
    flickr = read_pairs(third_party / "flickr8k" / "captions.csv", SkippedItems())
    assert len(flickr.images) == 800
    assert all(len(image.captions) == 5 for image in flickr.images)
    lcs_file = third_party / "lcs558k" / "blip_laion_cc_sbu_500.json"
    lcs = read_pairs(lcs_file, SkippedItems())
    assert len(lcs.images) == 500
    captions = {
        record["image"]: record["conversations"][1]["value"]
        for record in json.loads(lcs_file.read_text())
    }
    assert all(
        image.captions
        == (" ".join(captions[str(image.path.relative_to(lcs_file.parent / "images"))].split()),)
        for image in lcs.images
    )
