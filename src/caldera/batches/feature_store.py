"""Features by the content of their picture: an append-only file of bf16 numbers and a journal of what its rows hold.

`NAME.bin` holds rows of raw bf16, one for each view of a picture, `NAME.jsonl` first the shape of a row and then a
line for each picture: its sha256 and how many rows it has. Rows count once their line stands in the journal, so a
process that is killed in between loses only those of its last write.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from caldera.storage import writing

_BYTES = 2
"""Of a number in bf16."""


class FeatureStore:
    """One file of features and its journal."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open the store called `name`; it may not exist yet."""
        self._data = folder / f"{name}.bin"
        self._journal = folder / f"{name}.jsonl"
        self._rows: dict[str, range] | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store against another process that would write to it; wait for one that does.

        Raises:
            OutputError: The folder cannot be written.
        """
        with writing(self._data):
            self._data.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._data.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._rows = None  # another process may have added some
            with writing(self._journal):
                self._drop_torn_line()
            yield
        finally:
            os.close(lock)

    def _drop_torn_line(self) -> None:
        """Cut the journal behind its last whole line, so that the next one does not go on with a torn one."""
        if self._journal.is_file():
            content = self._journal.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(self._journal, content.rfind(b"\n") + 1)

    def rows(self) -> dict[str, range]:
        """Return the rows of every digest that is there, leaving out a torn last line."""
        if self._rows is None:
            text = self._journal.read_text() if self._journal.is_file() else ""
            self._rows = {}
            for line in text.split("\n")[1:-1]:
                digest, count = line.split(" ")
                self._add(digest, int(count))
        return self._rows

    def _add(self, digest: str, count: int) -> None:
        """Note that the next `count` rows are a picture's."""
        assert self._rows is not None
        start = self._height()
        self._rows[digest] = range(start, start + count)

    def _height(self) -> int:
        """Return how many rows count."""
        last = next(reversed(self.rows().values()), None)
        return last.stop if last else 0

    def append(self, digests: Sequence[str], counts: Sequence[int], features: Tensor) -> None:
        """Add pictures; call it only while the lock is held.

        Args:
            digests: One for each picture.
            counts: How many views it has.
            features: Of all their views in order, (views, patches, vision width).

        Raises:
            OutputError: They could not be written.
        """
        shape = list(features.shape[1:])
        bits = features.to(torch.bfloat16).view(torch.int16).numpy()
        with writing(self._data), self._data.open("r+b" if self._data.exists() else "w+b") as data:
            data.seek(self._height() * math.prod(shape) * _BYTES)
            data.write(bits.tobytes())
            data.truncate()
            data.flush()
            os.fsync(data.fileno())
        lines = zip(digests, counts, strict=True)
        with writing(self._journal), self._journal.open("a") as journal:
            head = "" if journal.tell() else json.dumps({"shape": shape}) + "\n"
            journal.write(head + "".join(f"{digest} {count}\n" for digest, count in lines))
        for digest, count in zip(digests, counts, strict=True):
            self._add(digest, count)

    def read(self) -> np.ndarray:
        """Return all rows, memory-mapped, (views, patches, vision width), as the bits of bf16; (0, 0, 0) if none."""
        if not self.rows():
            return np.empty((0, 0, 0), np.int16)  # a file without content cannot be mapped
        with self._journal.open() as journal:
            shape = json.loads(journal.readline())["shape"]
        return np.memmap(self._data, np.int16, "r", shape=(self._height(), *shape))
