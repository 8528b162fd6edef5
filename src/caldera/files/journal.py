"""Lines of JSON in, a file of them that is only ever added to out: what one process wrote, the next one reads.

The operating system holds a line from the moment it is added, even if the process is killed; a flush brings it to disk.
A last line that was cut off by the end of a process is moved to `torn.jsonl` beside the file.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caldera.errors import InputError
from caldera.files.atomic import translate_os_errors


class JournalFile:
    """An open journal, one writer at a time."""

    def __init__(self, path: Path) -> None:
        """Open a journal, or begin one; a torn last line is moved aside.

        Raises:
            OutputError: It cannot be written.
        """
        self.path = path
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._end = _truncate_partial_line(path, self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def append(self, line: dict[str, Any]) -> int:
        """Add a line, and return the byte it begins at.

        Raises:
            OutputError: It cannot be written.
        """
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        offset = self._end
        with translate_os_errors(self.path):
            rest = data
            while rest:
                rest = rest[os.write(self._file, rest) :]
        self._end += len(data)
        return offset

    def flush(self) -> None:
        """Bring every line that was added to disk.

        Raises:
            OutputError: The disk refuses.
        """
        with translate_os_errors(self.path):
            os.fsync(self._file)

    def line_at(self, offset: int) -> dict[str, Any]:
        """Read the line that begins at a byte."""
        with self.path.open("rb") as file:
            file.seek(offset)
            line: dict[str, Any] = json.loads(file.readline())
        return line


def _truncate_partial_line(path: Path, file: int) -> int:
    """Move a last line without an end aside, and return where the next line begins."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.with_name("torn.jsonl").open("ab") as torn:
            torn.write(data[end:] + b"\n")
            torn.flush()
            os.fsync(torn.fileno())
        os.ftruncate(file, end)
        os.fsync(file)
    return end


def journal_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield every line of a journal with the byte it begins at.

    Raises:
        InputError: A line is broken, or the file cannot be read.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    read = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path}:{number} is broken: {error}") from None
                if not isinstance(read, dict):
                    raise InputError(f"{path}:{number} is not a journal's line")
                yield offset, read
                offset += len(line)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
