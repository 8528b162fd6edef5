"""Features by the content of their image: an append-only file of numbers and a journal of what its rows hold.

`NAME.bin` holds rows of raw numbers in one precision, one for each view of an image. `NAME.jsonl` holds first the
shape of a row and then a line for each image: its sha256, where its rows are, and a checksum of them. Rows count once
their line stands in the journal, so a process that is killed in between loses only those of its last write. A later
line about the same image replaces an earlier one.

Several processes may fill a store at once. Each claims an image before it looks at it; claims are locks of the
operating system on single bytes of `NAME.claims`, so they end with their process, however it ends.
"""

import fcntl
import json
import logging
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from caldera.errors import InputError
from caldera.files.atomic import translate_os_errors

log = logging.getLogger(__name__)

_INTEGERS = {4: torch.int32, 2: torch.int16}
"""What holds the bits of a number, by its bytes: numpy has no bf16."""


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """Where an image's features are, and how one knows that they are still what was written."""

    start: int
    count: int
    checksum: int
    """CRC-32 of their bytes."""

    @property
    def stop(self) -> int:
        """The first row behind them."""
        return self.start + self.count


class FeatureStore:
    """One file of features and its journal."""

    def __init__(self, folder: Path, name: str, dtype: torch.dtype = torch.bfloat16) -> None:
        """Open the store called `name`; it may not exist yet.

        Args:
            folder: Where its files are.
            name: What they begin with; it should say everything but the image that features depend on.
            dtype: Of the numbers: fp32, bf16 or fp16.
        """
        self.dtype = dtype
        self.data = folder / f"{name}.bin"
        self._journal = folder / f"{name}.jsonl"
        self._claims = folder / f"{name}.claims"
        self._rows: dict[str, FeatureRows] = {}
        self._shape: tuple[int, ...] | None = None
        self._height = 0  # rows that lines of the journal speak of
        self._read_to = 0  # bytes of the journal that were read

    def rows(self) -> dict[str, FeatureRows]:
        """Return the rows of every image that is there by now, by its sha256.

        Raises:
            InputError: The journal's first line is broken.
        """
        if self._journal.is_file():
            with self._journal.open("rb") as journal:
                journal.seek(self._read_to)
                news = journal.read()
            whole = news[: news.rfind(b"\n") + 1]  # another process may be writing the last line
            for line in whole.splitlines():
                self._index_line(line)
            self._read_to += len(whole)
        self._drop_partial_rows()
        return self._rows

    def _drop_partial_rows(self) -> None:
        """Forget images whose rows the file no longer holds."""
        written = self.data.stat().st_size if self.data.is_file() else 0
        if not self._shape or self._height * self._row_bytes() <= written:
            return
        cut = [
            digest for digest, rows in self._rows.items() if rows.stop * self._row_bytes() > written
        ]
        for digest in cut:
            del self._rows[digest]
        if cut:
            log.warning("%s is cut short: %d images will be looked at again", self.data, len(cut))

    def _index_line(self, line: bytes) -> None:
        """Note what a line of the journal says; a broken one is passed over, as its image can be looked at again.

        Raises:
            InputError: It is the first, without which no row can be read.
        """
        try:
            said = json.loads(line)
            if self._shape is None:
                patches, width = said["shape"]
                self._shape = int(patches), int(width)
                return
            rows = FeatureRows(int(said["start"]), int(said["count"]), int(said["crc32"]))
            digest = str(said["sha256"])
        except (ValueError, KeyError, TypeError):
            if self._shape is None:
                raise InputError(
                    f"{self._journal} does not begin with the shape of its rows, it is broken; remove it and "
                    f"{self.data.name}, the features will be computed again"
                ) from None
            log.warning("%s has a broken line; its image will be looked at again", self._journal)
            return
        self._rows[digest] = rows
        self._height = max(self._height, rows.stop)

    def _row_bytes(self) -> int:
        """Return the bytes of one row."""
        assert self._shape is not None
        return math.prod(self._shape) * self.dtype.itemsize

    def append(self, digests: Sequence[str], counts: Sequence[int], features: Tensor) -> None:
        """Add images.

        Args:
            digests: One for each image.
            counts: How many views it has.
            features: Of all their views in order, (views, patches, vision width).

        Raises:
            OutputError: They could not be written.
        """
        integers = _INTEGERS[self.dtype.itemsize]
        bits = features.to(self.dtype).contiguous().view(integers).numpy()
        with translate_os_errors(self.data):
            self.data.parent.mkdir(parents=True, exist_ok=True)
        with self._file_lock():
            self.rows()
            if self._journal.is_file():
                os.truncate(self._journal, self._read_to)  # a torn line, which nobody is writing
            start, lines = self._height, []
            if self._shape is None:
                lines.append(json.dumps({"shape": list(features.shape[1:])}))
            row_bytes = math.prod(features.shape[1:]) * self.dtype.itemsize
            at = 0
            for digest, count in zip(digests, counts, strict=True):
                checksum = zlib.crc32(bits[at : at + count].data)
                place = {"sha256": digest, "start": start + at, "count": count, "crc32": checksum}
                lines.append(json.dumps(place))
                at += count
            assert at == len(bits), "every view belongs to an image"
            handle = os.open(self.data, os.O_RDWR | os.O_CREAT, 0o644)
            with translate_os_errors(self.data), os.fdopen(handle, "r+b") as data:
                data.seek(start * row_bytes)
                data.write(bits.data)
                data.flush()
                os.fsync(data.fileno())
            with translate_os_errors(self._journal), self._journal.open("a") as journal:
                journal.write("".join(f"{line}\n" for line in lines))
            self.rows()

    @contextmanager
    def _file_lock(self) -> Iterator[None]:
        """Hold the file's end against another process that would write there, too."""
        with translate_os_errors(self.data):
            lock = os.open(self.data.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def feature_locks(self) -> Iterator["FeatureLocks"]:
        """Give the means to claim images; what is claimed is let go when the block ends.

        Raises:
            OutputError: The folder cannot be written.
        """
        with translate_os_errors(self._claims):
            self._claims.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._claims, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield FeatureLocks(file)
        finally:
            os.close(file)

    def read(self) -> np.ndarray:
        """Return the bits of all rows, memory-mapped, (views, patches, vision width); (0, 0, 0) if there are none."""
        integers = f"int{8 * self.dtype.itemsize}"
        if not self.rows():
            return np.empty((0, 0, 0), integers)  # a file without content cannot be mapped
        assert self._shape is not None
        height = self.data.stat().st_size // self._row_bytes()
        return np.memmap(self.data, integers, "r", shape=(height, *self._shape))


class FeatureLocks:
    """Images that this process looks at, so that no other does."""

    def __init__(self, file: int) -> None:
        """Lock bytes of an open file, which may stay empty."""
        self._file = file

    def try_acquire(self, digest: str) -> bool:
        """Claim an image; tell whether no other process has."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(digest))
        except (BlockingIOError, PermissionError):  # systems differ in which of the two says so
            return False
        return True

    def release(self, digest: str) -> None:
        """Let an image go."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _byte(digest))

    def wait_for(self, digest: str) -> None:
        """Wait until no other process has claimed an image."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, _byte(digest))
        self.release(digest)


def _byte(digest: str) -> int:
    """Return the byte that stands for an image: of 60 bits, so that two of them hardly ever share one."""
    return int(digest[:15], 16)
