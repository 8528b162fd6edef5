"""A data file and its images in, a folder of parquet files out, as the Hugging Face Hub shows and loads them.

Columns: `id`; `images`, a list of the files' bytes with their names; `conversations`, LLaVA's own. Each file has some
hundred megabytes, as the Hub recommends; the schema carries the features of the `datasets` library, so that images
are shown as images.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldera.conversation import from_record, to_record
from caldera.errors import InputError, OutputError, UsageError
from caldera.files.atomic import atomic_folder, write_atomic
from caldera.files.records import read_records
from caldera.files.skipped import SkippedItems
from caldera.images.decoding import read_bytes

SHARD_BYTES = 500_000_000
"""A file is closed once it holds so many bytes of images and text."""

_GROUP_BYTES, _GROUP_ROWS = 50_000_000, 1_000
"""Of a row group: what a reader holds at once."""


@dataclass(slots=True)
class ParquetReport:
    """What was written."""

    rows: int = 0
    images: int = 0
    files: int = 0
    bytes: int = 0
    """Of images and text, before compression."""


def write_parquet(
    file: Path,
    folder: Path,
    skips: SkippedItems,
    *,
    images: Path | None = None,
    ignore: frozenset[str] = frozenset(),
    read: Callable[[int], None] = lambda count: None,
    shard_bytes: int = SHARD_BYTES,
) -> ParquetReport:
    """Write `data/train-*.parquet` and a card into a folder, whole or not at all.

    Args:
        file: `.json` or `.jsonl`.
        folder: Takes the place of what stands there.
        skips: Takes bad records, and those whose images cannot be read.
        images: Folder that image paths start from; the file's own if None.
        ignore: Surplus fields of records to pass over.
        read: Told how many bytes of the data file were read.
        shard_bytes: Bytes of a file.

    Raises:
        UsageError: pyarrow is not installed, or the folder holds something else.
        InputError: The file cannot be read, or too many records are bad.
        OutputError: The folder cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError("parquet needs pyarrow; run: pip install 'caldera[parquet]'") from error
    if folder.exists() and not _is_parquet_set(folder):
        raise UsageError(
            f"{folder} holds something else than a parquet data set; choose another folder"
        )
    with atomic_folder(folder) as fresh:
        shards = _ShardWriter(fresh / "data", shard_bytes)
        total = 0
        try:
            for where, record in read_records(file, read):
                total += 1
                try:
                    row = _row(record, where, images or file.parent, ignore)
                except InputError as fault:
                    skips.add_or_raise(where, fault)
                else:
                    shards.add(row)
            skips.raise_if_over_limit(total)
            if not shards.done.rows:
                raise InputError(f"there is nothing to write of {file}; see what was left out")
            shards.finish()
        except pyarrow.ArrowException as error:
            raise OutputError(f"cannot write {folder}: {error}") from error
        write_atomic(fresh / "README.md", _dataset_card(file.stem, shards.done))
    return shards.done


def _is_parquet_set(folder: Path) -> bool:
    """Tell whether nothing else would be lost if a folder were replaced."""
    if not folder.is_dir():
        return False
    there = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
    return all(str(path) == "README.md" or path.match("data/*.parquet") for path in there)


def _row(record: object, where: str, root: Path, ignore: frozenset[str]) -> dict[str, Any]:
    """Return a record with the bytes of its images.

    Raises:
        InputError: It is bad, or an image cannot be read.
    """
    conversation = from_record(record, where, ignore)
    images = [
        {"bytes": read_bytes(root / name), "path": name.replace("../", "")}
        for name in conversation.images
    ]
    return {
        "id": conversation.id,
        "images": images,
        "conversations": to_record(conversation)["conversations"],
    }


class _ShardWriter:
    """Takes rows and writes them, a file after the other."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        folder.mkdir()
        self._folder, self._shard_bytes = folder, shard_bytes
        self._schema = _schema()
        self._rows: list[dict[str, Any]] = []
        self._group = self._shard = 0
        self._writer: Any = None
        self.done = ParquetReport()

    def add(self, row: dict[str, Any]) -> None:
        """Take a row, and write what is enough for a group."""
        self._rows.append(row)
        self._group += sum(len(image["bytes"]) for image in row["images"])
        self._group += sum(len(turn["value"]) for turn in row["conversations"])
        self.done.rows += 1
        self.done.images += len(row["images"])
        if self._group >= _GROUP_BYTES or len(self._rows) >= _GROUP_ROWS or self._full():
            self._write()

    def _full(self) -> bool:
        return self._shard + self._group >= self._shard_bytes

    def _write(self) -> None:
        """Write a group of rows."""
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        if self._writer is None:
            place = self._folder / f"{self.done.files}.parquet"
            self._writer = ParquetWriter(place, self._schema, compression="zstd")
            self.done.files += 1
        self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
        self._shard += self._group
        self.done.bytes += self._group
        close = self._shard >= self._shard_bytes
        self._rows, self._group = [], 0
        if close:
            self._close()

    def _close(self) -> None:
        """End a file."""
        self._writer.close()
        self._writer, self._shard = None, 0

    def finish(self) -> None:
        """Write the rest, and name all files by their number."""
        if self._rows:
            self._write()
        if self._writer is not None:
            self._close()
        for number in range(self.done.files):
            name = f"train-{number:05d}-of-{self.done.files:05d}.parquet"
            (self._folder / f"{number}.parquet").rename(self._folder / name)


def _schema() -> Any:  # noqa: ANN401 - pyarrow has no types
    """Return the columns, with the features of the `datasets` library."""
    import pyarrow

    text = pyarrow.string()
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": text})
    turn = pyarrow.struct({"from": text, "value": text})
    value = {"dtype": "string", "_type": "Value"}
    features = {
        "id": value,
        "images": [{"_type": "Image"}],
        "conversations": [{"from": value, "value": value}],
    }
    columns = {"id": text, "images": pyarrow.list_(image), "conversations": pyarrow.list_(turn)}
    schema = pyarrow.schema(list(columns.items()))
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _dataset_card(name: str, done: ParquetReport) -> str:
    """Return the data set's card."""
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

# {name}

{done.rows:,} conversations about {done.images:,} shown images, in the form of
[LLaVA](https://github.com/haotian-liu/LLaVA): `images` are the images in the order of their `<image>` marks in
`conversations`, whose turns are `human`'s and `gpt`'s. Written by caldera.
"""
