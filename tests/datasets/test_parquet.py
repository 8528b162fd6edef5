"""Parquet export: rows, images, files and errors."""

import json
from pathlib import Path

import pytest

from caldera.conversation import (
    Conversation,
    ImageRef,
    Turn,
    read_conversations,
    write_conversations,
)
from caldera.conversation.reader import ReadOptions
from caldera.datasets.parquet import write_parquet
from caldera.errors import InputError, UsageError
from caldera.files.skipped_items import SkippedItems

pyarrow = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def data(photos: Path) -> Path:
    """Eleven records: one with two images, one without, the others with one."""
    records = []
    for number in range(11):
        names = {3: ("0.png", "1.png"), 5: ()}.get(number, (f"{number % 7}.png",))
        parts = tuple(ImageRef(f"photos/{name}") for name in names)
        turns = (
            Turn("user", (*parts, f"\nWhat {number}?")),
            Turn("assistant", (f"Ä {number}",)),
        )
        records.append(Conversation(str(number), turns))
    write_conversations(photos.parent / "data.json", records)
    return photos.parent / "data.json"


def rows_of(folder: Path) -> list[dict[str, object]]:
    """Return all rows of all files, in order."""
    tables = (pyarrow.read_table(path) for path in sorted((folder / "data").glob("*.parquet")))
    return [row for table in tables for row in table.to_pylist()]


def test_rows_are_the_records_with_their_images(data: Path, tmp_path: Path) -> None:
    """Texts and image bytes are unchanged."""
    report = write_parquet(data, tmp_path / "hub", SkippedItems())

    rows = rows_of(tmp_path / "hub")
    raw = json.loads(data.read_text())
    assert [(row["id"], row["conversations"]) for row in rows] == [
        (record["id"], record["conversations"]) for record in raw
    ]
    for row, conversation in zip(rows, read_conversations(data), strict=True):
        assert row["images"] == [
            {"bytes": (data.parent / name).read_bytes(), "path": name}
            for name in conversation.images
        ]
    assert (report.rows, report.images, report.files) == (11, 11, 1)
    assert "11 conversations with 11 images" in (tmp_path / "hub" / "README.md").read_text()


def test_the_schema_marks_images(data: Path, tmp_path: Path) -> None:
    """It has the features of the `datasets` library, which the Hub's viewer reads."""
    write_parquet(data, tmp_path / "hub", SkippedItems())
    [path] = (tmp_path / "hub" / "data").iterdir()
    metadata = json.loads(pyarrow.read_schema(path).metadata[b"huggingface"])
    assert metadata["info"]["features"]["images"] == [{"_type": "Image"}]
    assert list(metadata["info"]["features"]) == pyarrow.read_schema(path).names


def test_large_data_is_split_into_files(data: Path, tmp_path: Path) -> None:
    """File names contain the number of files; no row is lost between them."""
    report = write_parquet(data, tmp_path / "hub", SkippedItems(), shard_bytes=900)
    names = sorted(path.name for path in (tmp_path / "hub" / "data").iterdir())
    assert report.files == len(names) > 2
    assert names[0] == f"train-00000-of-{report.files:05d}.parquet"
    assert [row["id"] for row in rows_of(tmp_path / "hub")] == [str(n) for n in range(11)]


def test_a_missing_image_is_an_error_or_skipped(data: Path, tmp_path: Path) -> None:
    """After an error the earlier export is unchanged."""
    (tmp_path / "photos" / "4.png").unlink()
    write_parquet(data, tmp_path / "hub", SkippedItems(0.2))
    with pytest.raises(InputError, match=r"4.png does not exist"):
        write_parquet(data, tmp_path / "hub", SkippedItems())
    assert len(rows_of(tmp_path / "hub")) == 10
    with pytest.raises(InputError, match="has no valid record to write"):
        write_parquet(
            records_with_images(data),
            tmp_path / "hub",
            SkippedItems(1.0),
            options=ReadOptions(images=tmp_path / "nowhere"),
        )
    assert len(rows_of(tmp_path / "hub")) == 10


def records_with_images(data: Path) -> Path:
    """Write the records that have images to a file."""
    records = [record for record in read_conversations(data) if record.images]
    write_conversations(data.with_name("images.json"), records)
    return data.with_name("images.json")


def test_a_folder_with_other_files_is_not_replaced(data: Path, tmp_path: Path) -> None:
    """An earlier export and an empty folder may be replaced."""
    for name in ("some/data/notes.txt", "other/README.rst"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
        with pytest.raises(UsageError, match="holds other files than a parquet data set; choos"):
            write_parquet(data, tmp_path / Path(name).parts[0], SkippedItems())
    with pytest.raises(UsageError, match="holds other files"):
        write_parquet(data, data, SkippedItems())
    (tmp_path / "empty").mkdir()
    write_parquet(data, tmp_path / "empty", SkippedItems())
    write_parquet(data, tmp_path / "empty", SkippedItems())
    assert len(rows_of(tmp_path / "empty")) == 11
