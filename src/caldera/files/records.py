"""A `.json` or `.jsonl` file in, raw records out one by one: a file of gigabytes is never held as a whole."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from caldera.errors import InputError

_CHUNK = 1 << 20
"""Bytes read at a time."""

_CLOSE = 16
"""A fault so close to the end of what was read may be no more than the cut; a longer token would be no JSON."""

_BEHIND = tuple(" \t\n\r,]")
"""What may stand behind a value; a number may go on where anything else does."""

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()

OnBytesRead = Callable[[int], None]
"""Told how many bytes were read."""


def _ignore_bytes(count: int) -> None:
    """Tell nobody."""


def read_records(path: Path, read: OnBytesRead = _ignore_bytes) -> Iterator[tuple[str, object]]:
    """Yield every raw record of a `.json` (one list) or `.jsonl` file with its place, 'file:line' or 'file[index]'.

    What is broken is raised when it is met: good records before it have been given out by then.

    Args:
        path: The file.
        read: Told how many bytes were read, as that goes on.

    Raises:
        InputError: The file is missing, empty, not UTF-8, not JSON, or not a list of records.
    """
    try:
        with path.open("rb") as file:
            yield from (_read_jsonl if path.suffix == ".jsonl" else _read_json_list)(
                path, file, read
            )
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error


def _read_jsonl(path: Path, file: BinaryIO, read: OnBytesRead) -> Iterator[tuple[str, object]]:
    """Yield the record of each line that has one."""
    start, empty = 0, True
    for number, line in enumerate(file, start=1):  # at \n alone: records may hold U+2028
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _encoding_error(path, start + error.start) from error
        start += len(line)
        read(len(line))
        if text.strip():
            empty = False
            yield f"{path}:{number}", _parse_line(text, f"{path}:{number}")
    if empty:
        raise InputError(f"{path} is empty; it should hold conversation records")


def _encoding_error(path: Path, byte: int) -> InputError:
    return InputError(f"{path} is not UTF-8 text (byte {byte}); save it as UTF-8")


def _parse_line(line: str, where: str) -> object:
    """Parse one line.

    Raises:
        InputError: It is broken.
    """
    with _ParserErrors(where):
        try:
            return json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where} is broken JSON at column {error.colno}: {error.msg}") from error  # fmt: skip


class _ParserErrors:
    """Turns what the parser refuses beside broken JSON into errors that say so."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise in other words."""
        if isinstance(error, RecursionError):
            raise InputError(f"{self._where} is nested too deeply to be conversation records") from error  # fmt: skip
        if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
            raise InputError(f"{self._where} holds a number too long to read; correct it") from error  # fmt: skip


class _StreamBuffer:
    """The part of a long text that is being read."""

    def __init__(self, path: Path, file: BinaryIO, read: OnBytesRead) -> None:
        self._path, self._file, self._read = path, file, read
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes, self._line, self._column = 0, 1, 0
        self.text, self.at, self.ended = "", 0, False

    def fill(self) -> None:
        """Forget what stands before `at` and read on, by as much as is still held at least.

        Raises:
            InputError: What is read is not text.
        """
        chunk = self._file.read(max(_CHUNK, len(self.text) - self.at))
        self.ended = not chunk
        held = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            raise _encoding_error(self._path, self._bytes - held + error.start) from error
        self._bytes += len(chunk)
        self._read(len(chunk))
        self._line, self._column = self.line_and_column(self.at)
        self.text, self.at = self.text[self.at :] + text, 0

    def line_and_column(self, at: int) -> tuple[int, int]:
        """Return line (from 1) and column (from 0) of a position in `text`."""
        lines = self.text.count("\n", 0, at)
        column = at - self.text.rfind("\n", 0, at) - 1 if lines else self._column + at
        return self._line + lines, column

    def next_character(self) -> str:
        """Pass over white space and return what stands behind it, nothing at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            assert space is not None  # it matches nothing, too
            self.at = space.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.fill()

    def syntax_error(self, reason: str, at: int) -> InputError:
        """Return the error that says what is wrong at a position."""
        line, column = self.line_and_column(at)
        return InputError(
            f"{self._path} is broken JSON at line {line} column {column + 1}: {reason}"
        )

    def parse_value(self) -> object:
        """Parse the value at `at` and pass over it.

        Raises:
            InputError: It is broken.
        """
        while True:
            try:
                with _ParserErrors(str(self._path)):
                    value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos + _CLOSE > len(self.text)
                if self.ended or not cut:
                    raise self.syntax_error(error.msg, error.pos) from error
            else:
                whole = end + _CLOSE < len(self.text) or self.text[end : end + 1] in _BEHIND
                if self.ended or whole:
                    self.at = end
                    return value
            self.fill()


def _read_json_list(path: Path, file: BinaryIO, read: OnBytesRead) -> Iterator[tuple[str, object]]:
    """Yield the records of one JSON list."""
    window = _StreamBuffer(path, file, read)
    first = window.next_character()
    if not first:
        raise InputError(f"{path} is empty; it should hold conversation records")
    if first != "[":
        window.parse_value()  # raises if it is no JSON at all
        if not window.next_character():
            raise InputError(
                f"{path} holds one JSON value that is not a list; it should be a list of records "
                "(one record a line goes into a .jsonl file)"
            )
        raise window.syntax_error("Extra data", window.at)
    window.at += 1
    if window.next_character() == "]":
        raise InputError(f"{path} holds an empty list; it should hold conversation records")
    index, after = 0, ","
    while after == ",":
        window.next_character()
        yield f"{path}[{index}]", window.parse_value()
        index += 1
        after = window.next_character()
        if after not in ("]", ","):
            raise window.syntax_error("Expecting ',' delimiter", window.at)
        window.at += 1
    if window.next_character():
        raise window.syntax_error("Extra data", window.at)
