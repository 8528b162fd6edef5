"""Append-only store of image features, looked up by the SHA-256 of the image.

`NAME.bin` holds rows of raw numbers in one dtype, one row for each view of an image. The first line of the index,
`NAME.jsonl`, is the shape of a row; each further line is an image: its SHA-256, where its rows are, and their checksum.
Rows are valid only after their index line is written, so a killed process loses only its last write. A later line about
an image replaces an earlier one.

Several processes may fill a store at the same time. Each locks an image before it encodes it. A lock is a byte-range
lock of the operating system on `NAME.claims`, released when the process exits or is killed.
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

from caldera.errors import InputError, TrainingError
from caldera.files.atomic import translate_os_errors

log = logging.getLogger(__name__)

_INTEGERS = {4: torch.int32, 2: torch.int16}
"""Integer type of the same number of bytes: numpy has no bf16."""


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """Location and checksum of an image's features."""

    start: int
    count: int
    checksum: int
    """CRC-32 of their bytes."""

    @property
    def stop(self) -> int:
        """Index of the row after the last."""
        return self.start + self.count


class FeatureStore:
    """A file of features and its index."""

    def __init__(self, folder: Path, name: str, dtype: torch.dtype = torch.bfloat16) -> None:
        """Open the store called `name`; it may not exist yet.

        Args:
            folder: Folder of its files.
            name: Their stem; it should identify everything that features depend on except the image.
            dtype: fp32, bf16 or fp16.
        """
        self.dtype = dtype
        self.data = folder / f"{name}.bin"
        self._index = folder / f"{name}.jsonl"
        self._locks = folder / f"{name}.claims"
        self._rows: dict[str, FeatureRows] = {}
        self._shape: tuple[int, ...] | None = None
        self._num_rows = 0
        self._bytes_read = 0
        """Bytes of the index that were read."""

    def rows(self) -> dict[str, FeatureRows]:
        """Return the rows of every image that is stored by now, by SHA-256.

        Raises:
            InputError: The index's first line is invalid.
        """
        if self._index.is_file():
            with self._index.open("rb") as index:
                index.seek(self._bytes_read)
                content = index.read()
            # Another process may be writing the last line.
            complete = content[: content.rfind(b"\n") + 1]
            for line in complete.splitlines():
                self._index_line(line)
            self._bytes_read += len(complete)
        self._drop_partial_rows()
        return self._rows

    def _drop_partial_rows(self) -> None:
        """Remove images whose rows the file no longer holds."""
        size = self.data.stat().st_size if self.data.is_file() else 0
        if not self._shape or self._num_rows * self._row_bytes() <= size:
            return
        truncated = [
            digest for digest, rows in self._rows.items() if rows.stop * self._row_bytes() > size
        ]
        for digest in truncated:
            del self._rows[digest]
        if truncated:
            log.warning(
                "%s is truncated: %d images will be encoded again", self.data, len(truncated)
            )

    def _index_line(self, line: bytes) -> None:
        """Add a line of the index; skip an invalid one, as its image can be encoded again."""
        try:
            entry = json.loads(line)
            if self._shape is None:
                patches, width = entry["shape"]
                self._shape = int(patches), int(width)
                return
            rows = FeatureRows(int(entry["start"]), int(entry["count"]), int(entry["crc32"]))
            digest = str(entry["sha256"])
        except (ValueError, KeyError, TypeError):
            if self._shape is None:
                raise InputError(
                    f"{self._index} does not begin with the shape of its rows; remove it and {self.data.name}, the "
                    "features will be computed again"
                ) from None
            log.warning("%s has an invalid line; its image will be encoded again", self._index)
            return
        self._rows[digest] = rows
        self._num_rows = max(self._num_rows, rows.stop)

    def _row_bytes(self) -> int:
        """Return the bytes of one row."""
        assert self._shape is not None
        return math.prod(self._shape) * self.dtype.itemsize

    def append(self, digests: Sequence[str], counts: Sequence[int], features: Tensor) -> None:
        """Add images.

        Args:
            digests: SHA-256 of each image.
            counts: Number of views of each image.
            features: Of all views in order, (views, patches, vision width).

        Raises:
            TrainingError: Features are not finite in the store's dtype.
            OutputError: They could not be written.
        """
        integers = _INTEGERS[self.dtype.itemsize]
        stored = features.to(self.dtype).contiguous()
        if not stored.isfinite().all():
            precision = str(self.dtype).removeprefix("torch.")
            raise TrainingError(
                f"the vision tower's features are not finite in {precision}; use --dtype float32"
            )
        bits = stored.view(integers).numpy()
        with translate_os_errors(self.data):
            self.data.parent.mkdir(parents=True, exist_ok=True)
        with self._append_lock():
            self.rows()
            if self._index.is_file():
                # Remove the partial line of a killed process: nobody writes while the lock is held.
                os.truncate(self._index, self._bytes_read)
            first_row = self._num_rows
            lines: list[dict[str, object]] = []
            if self._shape is None:
                lines.append({"shape": list(features.shape[1:])})
            row_bytes = math.prod(features.shape[1:]) * self.dtype.itemsize
            row = 0
            for digest, count in zip(digests, counts, strict=True):
                checksum = zlib.crc32(bits[row : row + count].data)
                start = first_row + row
                lines.append({"sha256": digest, "start": start, "count": count, "crc32": checksum})
                row += count
            assert row == len(bits), "every view belongs to an image"
            handle = os.open(self.data, os.O_RDWR | os.O_CREAT, 0o644)
            with translate_os_errors(self.data), os.fdopen(handle, "r+b") as data:
                data.seek(first_row * row_bytes)
                data.write(bits.data)
                data.flush()
                os.fsync(data.fileno())
            with translate_os_errors(self._index), self._index.open("a") as index:
                index.write("".join(f"{json.dumps(line)}\n" for line in lines))
            self.rows()

    @contextmanager
    def _append_lock(self) -> Iterator[None]:
        """Keep other processes from appending."""
        with translate_os_errors(self.data):
            lock = os.open(self.data.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def feature_locks(self) -> Iterator["FeatureLocks"]:
        """Open the locks of images; those that are held are released when the block ends.

        Raises:
            OutputError: The folder cannot be written.
        """
        with translate_os_errors(self._locks):
            self._locks.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._locks, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield FeatureLocks(file)
        finally:
            os.close(file)

    def read(self) -> np.ndarray:
        """Return the bits of all rows, memory-mapped, (views, patches, vision width); (0, 0, 0) if there are none."""
        integers = f"int{8 * self.dtype.itemsize}"
        if not self.rows():
            # An empty file cannot be mapped.
            return np.empty((0, 0, 0), integers)
        assert self._shape is not None
        num_rows = self.data.stat().st_size // self._row_bytes()
        return np.memmap(self.data, integers, "r", shape=(num_rows, *self._shape))


class FeatureLocks:
    """Locks of the images that this process encodes, so that no other does."""

    def __init__(self, file: int) -> None:
        """Lock bytes of an open file, which may stay empty."""
        self._file = file

    def try_acquire(self, digest: str) -> bool:
        """Lock an image unless another process has; return whether it is locked."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(digest))
        except (BlockingIOError, PermissionError):
            # Which of the two is raised depends on the system.
            return False
        return True

    def release(self, digest: str) -> None:
        """Unlock an image."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _byte(digest))


def _byte(digest: str) -> int:
    """Return the offset of an image's lock: 60 bits, so that two images hardly ever share one."""
    return int(digest[:15], 16)
