"""Parquet for the Hub: rows, images, files, and what is refused."""

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
from caldera.datasets.parquet import write_parquet
from caldera.errors import InputError, UsageError
from caldera.files.skipped import SkippedItems

pyarrow = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def data(photos: Path) -> Path:
    """Eleven records: each about one image, but for one about two and one about none."""
    records = []
    for at in range(11):
        shown = {3: ("0.png", "1.png"), 5: ()}.get(at, (f"{at % 7}.png",))
        parts = tuple(ImageRef(f"photos/{name}") for name in shown)
        turns = (Turn("user", (*parts, f"\nWhat {at}?")), Turn("assistant", (f"Ä {at}",)))
        records.append(Conversation(str(at), turns))
    write_conversations(photos.parent / "data.json", records)
    return photos.parent / "data.json"


def rows_of(folder: Path) -> list[dict[str, object]]:
    """All rows of all files, in order."""
    tables = (pyarrow.read_table(path) for path in sorted((folder / "data").glob("*.parquet")))
    return [row for table in tables for row in table.to_pylist()]


def test_rows_are_the_records_with_their_images(data: Path, tmp_path: Path) -> None:
    """Every text, and the very bytes of every file."""
    done = write_parquet(data, tmp_path / "hub", SkippedItems())

    rows = rows_of(tmp_path / "hub")
    raw = json.loads(data.read_text())
    assert [(row["id"], row["conversations"]) for row in rows] == [
        (each["id"], each["conversations"]) for each in raw
    ]
    for row, conversation in zip(rows, read_conversations(data), strict=True):
        assert row["images"] == [
            {"bytes": (data.parent / name).read_bytes(), "path": name}
            for name in conversation.images
        ]
    assert (done.rows, done.images, done.files) == (11, 11, 1)
    assert "11 conversations about 11 shown images" in (tmp_path / "hub" / "README.md").read_text()


def test_the_schema_says_what_is_a_image(data: Path, tmp_path: Path) -> None:
    """In the words of the `datasets` library, which the Hub's viewer reads."""
    write_parquet(data, tmp_path / "hub", SkippedItems())
    [path] = (tmp_path / "hub" / "data").iterdir()
    told = json.loads(pyarrow.read_schema(path).metadata[b"huggingface"])
    assert told["info"]["features"]["images"] == [{"_type": "Image"}]
    assert list(told["info"]["features"]) == pyarrow.read_schema(path).names


def test_files_are_closed_when_they_are_large(data: Path, tmp_path: Path) -> None:
    """Names tell how many there are; nothing is lost between them."""
    done = write_parquet(data, tmp_path / "hub", SkippedItems(), shard_bytes=900)
    names = sorted(path.name for path in (tmp_path / "hub" / "data").iterdir())
    assert done.files == len(names) > 2
    assert names[0] == f"train-00000-of-{done.files:05d}.parquet"
    assert [row["id"] for row in rows_of(tmp_path / "hub")] == [str(at) for at in range(11)]


def test_a_missing_image_stops_it_or_is_left_out(data: Path, tmp_path: Path) -> None:
    """And what stood there stands."""
    (tmp_path / "photos" / "4.png").unlink()
    write_parquet(data, tmp_path / "hub", SkippedItems(0.2))
    with pytest.raises(InputError, match=r"4.png does not exist"):
        write_parquet(data, tmp_path / "hub", SkippedItems())
    assert len(rows_of(tmp_path / "hub")) == 10
    with pytest.raises(InputError, match="there is nothing to write of"):
        write_parquet(shown(data), tmp_path / "hub", SkippedItems(1.0), images=tmp_path / "nowhere")
    assert len(rows_of(tmp_path / "hub")) == 10


def shown(data: Path) -> Path:
    """A file of the records that show something."""
    kept = [one for one in read_conversations(data) if one.images]
    write_conversations(data.with_name("shown.json"), kept)
    return data.with_name("shown.json")


def test_another_folder_is_not_replaced(data: Path, tmp_path: Path) -> None:
    """Only what an export wrote; an empty one may be."""
    for place in ("some/data/notes.txt", "other/README.rst"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).touch()
        with pytest.raises(UsageError, match="holds something else than a parquet data set; choos"):
            write_parquet(data, tmp_path / Path(place).parts[0], SkippedItems())
    with pytest.raises(UsageError, match="holds something else"):
        write_parquet(data, data, SkippedItems())
    (tmp_path / "empty").mkdir()
    write_parquet(data, tmp_path / "empty", SkippedItems())
    write_parquet(data, tmp_path / "empty", SkippedItems())
    assert len(rows_of(tmp_path / "empty")) == 11
