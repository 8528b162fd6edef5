"""Reader of parquet files, and of files and folders that the `datasets` library saved."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeVar

from caldera.errors import InputError
from caldera.extras import require_extra

if TYPE_CHECKING:
    from pyarrow import RecordBatch

_MAGIC = (b"PAR1", b"ARROW1")
_STREAM_MAGIC = b"\xff\xff\xff\xff"
"""Start of an Arrow stream, the format of the files that `save_to_disk` writes."""

_SHARD = re.compile(r"(\w+?)(?:[.-]\d+(?:-of-\d+)?)?")
_NO_SPLITS = ("data", "part")
"""Starts of file names that name no split; there the folder does."""

_BATCH_ROWS = 100

_File = TypeVar("_File", bound=PurePath)


def is_arrow_data(path: Path) -> bool:
    """Return whether a path is a parquet file, an Arrow file, or a folder of such files."""
    if path.is_dir():
        return any(path.rglob("*.parquet")) or any(path.rglob("*.arrow"))
    try:
        with path.open("rb") as file:
            return file.read(6).startswith((*_MAGIC, _STREAM_MAGIC))
    except OSError:
        # Reported by the reader.
        return False


def read_arrow_rows(
    path: Path, split: str | None = None
) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the rows of a parquet or Arrow file, or of the files in a folder, with their locations.

    Raises:
        InputError: The files cannot be read, or belong to several splits and `split` is not given.
        UsageError: pyarrow is not installed.
    """
    require_extra("parquet", str(path))
    import pyarrow

    for file in _data_files(path, split) if path.is_dir() else [path]:
        row = 0
        try:
            for batch in _batches(file):
                for record in batch.to_pylist():
                    yield f"{file}[{row}]", record
                    row += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"cannot read {file}: {error}") from error


def _batches(file: Path) -> "Iterator[RecordBatch]":
    """Yield the rows of a parquet file, an Arrow file or an Arrow stream in groups."""
    from pyarrow import ipc, parquet

    with file.open("rb") as source:
        magic = source.read(6)
        source.seek(0)
        if magic.startswith(b"PAR1"):
            yield from parquet.ParquetFile(source).iter_batches(_BATCH_ROWS)
        elif magic == b"ARROW1":
            reader = ipc.open_file(source)
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            yield from ipc.open_stream(source)


def _data_files(folder: Path, split: str | None) -> Sequence[Path]:
    """Return the files of one split in a folder of parquet files, or one that `save_to_disk` wrote."""
    files = sorted(path for ending in ("parquet", "arrow") for path in folder.rglob(f"*.{ending}"))
    if not files:
        raise InputError(
            f"{folder} holds no .parquet or .arrow file; give a data file, or a folder of the datasets library"
        )
    return files_of_split(files, split, f"{folder} holds")


def files_of_split(files: Sequence[_File], split: str | None, subject: str) -> Sequence[_File]:
    """Return the parquet or Arrow files of one split; all if there is only one and `split` is None.

    Raises:
        InputError: There is no such split, or several to choose from; the message begins with `subject`.
    """
    by_split: dict[str, list[_File]] = {}
    for file in files:
        by_split.setdefault(_split_name(file), []).append(file)
    if split is None and len(by_split) == 1:
        return files
    if split not in by_split:
        raise InputError(
            f"{subject} the splits {', '.join(by_split)}; choose one with --split NAME"
        )
    return by_split[split]


def _split_name(file: PurePath) -> str:
    """Return the split of a parquet or Arrow file, by its name or that of its folder."""
    shard = _SHARD.fullmatch(file.stem)
    return shard[1] if shard and shard[1] not in _NO_SPLITS else file.parent.name
