"""Tables of the datasets library are recognized by content and imported, images included."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from caldera.conversation import read_conversations, to_record
from caldera.conversation.arrow_files import read_arrow_rows
from caldera.datasets.importer import ImportOptions
from caldera.datasets.parquet import write_parquet
from caldera.datasets.registry import import_dataset
from caldera.errors import InputError
from caldera.files.skipped_items import SkippedItems

QUESTION = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
ANSWER = [{"type": "text", "text": "A bear."}]


def png(number: int) -> bytes:
    """Return the bytes of a small image."""
    file = io.BytesIO()
    Image.new("RGB", (5, 7), (number, 9, 9)).save(file, "PNG")
    return file.getvalue()


def table(*numbers: int) -> pyarrow.Table:
    """Return rows with an image in bytes, in the form of TRL's examples."""
    rows: list[dict[str, Any]] = [
        {
            "images": [{"bytes": png(number), "path": None}],
            "messages": [
                {"role": "user", "content": QUESTION},
                {"role": "assistant", "content": ANSWER},
            ],
        }
        for number in numbers
    ]
    return pyarrow.Table.from_pylist(rows)


def write_stream(path: Path, content: pyarrow.Table) -> None:
    """Write an Arrow stream, as `save_to_disk` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pyarrow.ipc.new_stream(path, content.schema) as writer:
        writer.write_table(content)


def write_file(path: Path, content: pyarrow.Table) -> None:
    """Write an Arrow file."""
    with pyarrow.ipc.new_file(path, content.schema) as writer:
        writer.write_table(content)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("data.parquet", lambda path, rows: pyarrow.parquet.write_table(rows, path)),
        ("data.arrow", write_stream),
        ("data.bin", write_file),
    ],
)
def test_images_in_a_table_are_written_to_files(tmp_path: Path, name: str, write: Any) -> None:  # noqa: ANN401
    """The imported records show them; equal images are one file. Training names the import."""
    write(tmp_path / name, table(1, 2, 1))
    out = tmp_path / "new" / "out.json"

    with pytest.raises(InputError, match=f"caldera data import llava .*{name} --out NEW.json"):
        read_conversations(tmp_path / name)
    report = import_dataset("llava", tmp_path / name, out, ImportOptions())

    assert (report.conversations, report.images) == (3, 2)
    read = read_conversations(out)
    assert [item.turns[0].parts[1] for item in read] == ["\nWhat is it?"] * 3
    assert [(out.parent / item.images[0]).read_bytes() for item in read] == [png(1), png(2), png(1)]
    listed = map(json.loads, (tmp_path / "new/out.skipped.jsonl").read_text().splitlines())
    assert {item["reason"] for item in listed} == {"image in the record written to a file"}


def test_an_exported_data_set_is_imported_again(tmp_path: Path) -> None:
    """What `data to-parquet` wrote gives the same records, apart from the names of images."""
    (tmp_path / "a.png").write_bytes(png(1))
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A bear."}]
    rows = [{"id": str(n), "image": "a.png", "conversations": turns} for n in range(3)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    write_parquet(tmp_path / "data.json", tmp_path / "hub", SkippedItems())

    import_dataset("llava", tmp_path / "hub", tmp_path / "out.json", ImportOptions())

    read = [to_record(item) for item in read_conversations(tmp_path / "out.json")]
    assert [{**record, "image": "a.png"} for record in read] == rows


def test_a_folder_of_several_splits_needs_one_named(tmp_path: Path) -> None:
    """By folder, as `save_to_disk` writes them, or by file name, as on the Hub."""
    write_stream(tmp_path / "disk/train/data-00000-of-00001.arrow", table(1, 2))
    write_stream(tmp_path / "disk/test/data-00000-of-00001.arrow", table(3))
    (tmp_path / "hub/data").mkdir(parents=True)
    for split, rows in (("train", table(1, 2)), ("test", table(3))):
        path = tmp_path / f"hub/data/{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(rows, path)
    for folder in ("disk", "hub"):
        with pytest.raises(InputError, match="holds the splits test, train; choose one with --spl"):
            list(read_arrow_rows(tmp_path / folder))
        assert len(list(read_arrow_rows(tmp_path / folder, "train"))) == 2
        assert len(list(read_arrow_rows(tmp_path / folder, "test"))) == 1


def test_a_folder_without_tables_or_a_broken_file_is_an_error(tmp_path: Path) -> None:
    """One line names the path."""
    with pytest.raises(InputError, match=r"holds no \.parquet or \.arrow file"):
        list(read_arrow_rows(tmp_path))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(InputError, match=r"cannot read .*cut\.parquet"):
        list(read_arrow_rows(tmp_path / "cut.parquet"))
