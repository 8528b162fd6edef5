"""Conversion of a data file and its images to parquet files, as the Hugging Face Hub shows and loads them.

Columns: `id`; `images`, a list of the files' bytes and names; `conversations` in LLaVA's format. Each file has some
hundred megabytes, as the Hub recommends; the schema carries the features of the `datasets` library, so that images
are displayed as images.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caldera.conversation import Conversation, to_record
from caldera.conversation.reader import ReadOptions, iter_conversations
from caldera.datasets.importer import finish_with_records
from caldera.errors import InputError, OutputError, UsageError
from caldera.extras import require_extra
from caldera.files.atomic import atomic_folder, write_atomic
from caldera.files.skipped_items import SkippedItems
from caldera.images.decoding import read_bytes

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

SHARD_BYTES = 500_000_000
"""Size of images and text, in bytes, at which a file is complete."""

_GROUP_BYTES, _GROUP_ROWS = 50_000_000, 1_000
"""Size of a row group, which a reader loads as a whole."""


@dataclass(slots=True)
class ParquetReport:
    """Counts of the written files."""

    rows: int = 0
    images: int = 0
    files: int = 0
    bytes: int = 0
    """Size of images and text before compression."""


def write_parquet(
    file: Path,
    folder: Path,
    skipped: SkippedItems,
    *,
    options: ReadOptions | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> ParquetReport:
    """Write `data/train-*.parquet` and a data set card into a folder, whole or not at all.

    An earlier export in `folder` is replaced.
    """
    require_extra("parquet", "parquet")
    import pyarrow
    import pyarrow.parquet

    if folder.exists() and not _is_parquet_set(folder):
        raise UsageError(
            f"{folder} holds other files than a parquet data set; choose another folder"
        )
    with atomic_folder(folder) as new_folder:
        writer = _ShardWriter(new_folder / "data", shard_bytes)
        options = options or ReadOptions()
        try:
            for conversation in iter_conversations(file, skipped, options):
                try:
                    row = _row(conversation, options.images or file.parent)
                except InputError as error:
                    skipped.add_or_raise(conversation.location, error)
                else:
                    writer.add(row)
            rows = writer.report.rows
            finish_with_records(skipped, rows, rows + len(skipped.items), file, folder)
            writer.finish()
        except pyarrow.ArrowException as error:
            raise OutputError(f"cannot write {folder}: {error}") from error
        write_atomic(new_folder / "README.md", _dataset_card(file.stem, writer.report))
    return writer.report


def _is_parquet_set(folder: Path) -> bool:
    """Return whether a folder holds nothing but the files of an export."""
    if not folder.is_dir():
        return False
    paths = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
    return all(str(path) == "README.md" or path.match("data/*.parquet") for path in paths)


def _row(conversation: Conversation, root: Path) -> dict[str, Any]:
    """Return a record with the bytes of its images."""
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
    """Writer of rows to one parquet file after another."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        folder.mkdir()
        self.report = ParquetReport()
        self._folder, self._shard_bytes = folder, shard_bytes
        self._schema = _schema()
        self._rows: list[dict[str, Any]] = []
        self._pending_bytes = self._written_bytes = 0
        self._writer: ParquetWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; write the pending rows if they fill a row group."""
        self._rows.append(row)
        self._pending_bytes += sum(len(image["bytes"]) for image in row["images"])
        self._pending_bytes += sum(len(turn["value"]) for turn in row["conversations"])
        self.report.rows += 1
        self.report.images += len(row["images"])
        is_full = self._written_bytes + self._pending_bytes >= self._shard_bytes
        if is_full or self._pending_bytes >= _GROUP_BYTES or len(self._rows) >= _GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        if self._writer is None:
            path = self._folder / f"{self.report.files}.parquet"
            self._writer = ParquetWriter(path, self._schema, compression="zstd")
            self.report.files += 1
        self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
        self._written_bytes += self._pending_bytes
        self.report.bytes += self._pending_bytes
        self._rows, self._pending_bytes = [], 0
        if self._written_bytes >= self._shard_bytes:
            self._close_file()

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._written_bytes = None, 0

    def finish(self) -> None:
        """Write the remaining rows, and rename the files to their final numbers."""
        if self._rows:
            self._write_group()
        self._close_file()
        for number in range(self.report.files):
            name = f"train-{number:05d}-of-{self.report.files:05d}.parquet"
            (self._folder / f"{number}.parquet").rename(self._folder / name)


def _schema() -> "pyarrow.Schema":
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


def _dataset_card(name: str, report: ParquetReport) -> str:
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

# {name}

{report.rows:,} conversations with {report.images:,} images, in the format of
[LLaVA](https://github.com/haotian-liu/LLaVA): `images` are the images in the order of their `<image>` placeholders in
`conversations`, whose turns are from `human` and `gpt`. Written by caldera.
"""
