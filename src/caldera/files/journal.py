"""Append-only JSON Lines files: one process writes, later processes read.

The operating system holds a line from the moment it is appended, even if the process is killed; `flush` brings it to
disk. A last line that was cut off when the process ended is moved to `truncated.jsonl` in the same folder.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caldera.errors import InputError
from caldera.files.atomic import translate_os_errors


class JournalFile:
    """A journal opened for appending, by one writer at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create a journal; a truncated last line is moved away."""
        self.path = path
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._end = _truncate_partial_line(path, self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def append(self, line: dict[str, Any]) -> int:
        """Append a line and return its byte offset."""
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        offset = self._end
        with translate_os_errors(self.path):
            rest = data
            while rest:
                rest = rest[os.write(self._file, rest) :]
        self._end += len(data)
        return offset

    def flush(self) -> None:
        """Bring all appended lines to disk."""
        with translate_os_errors(self.path):
            os.fsync(self._file)

    def line_at(self, offset: int) -> dict[str, Any]:
        """Return the line at a byte offset."""
        with self.path.open("rb") as file:
            file.seek(offset)
            line: dict[str, Any] = json.loads(file.readline())
        return line


def _truncate_partial_line(path: Path, file: int) -> int:
    """Move a last line without a line end to another file, and return the offset of the next line."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.with_name("truncated.jsonl").open("ab") as truncated:
            truncated.write(data[end:] + b"\n")
            truncated.flush()
            os.fsync(truncated.fileno())
        os.ftruncate(file, end)
        os.fsync(file)
    return end


def journal_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield every line of a journal with its byte offset."""
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    content = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path}:{number} is broken: {error}") from None
                if not isinstance(content, dict):
                    raise InputError(f"{path}:{number} is not a line of a journal")
                yield offset, content
                offset += len(line)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
