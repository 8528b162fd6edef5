"""Streaming reader of JSON files of records: a list, one record a line, or one object.

The content decides, not the suffix. Files of gigabytes are never held in memory.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from caldera.errors import InputError

_CHUNK = 1 << 20
"""Bytes read at a time."""

_END_MARGIN = 16
"""Characters before the end of the buffer in which a syntax error may be due to the end; no valid token is longer."""

_AFTER_VALUE = tuple(" \t\n\r,]")
"""Characters that end a value; before any other, a number may continue."""

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()

_PEEK = 1 << 16
"""Bytes of the start of a file in which its first value begins."""

_LINE_SUFFIXES = (".jsonl", ".ndjson")
"""Suffixes that decide how a file is read whose first line is broken."""

_BLANK = b"\xef\xbb\xbf \t\r\n"
"""Bytes that may precede the first value: a byte order mark and white space."""

OnBytesRead = Callable[[int], None]
"""Callback with the number of bytes read."""

OnBrokenLine = Callable[[str, InputError], None]
"""Callback with the location and the error of a line that is no JSON; it may raise the error."""

_Reader = Callable[[Path, BinaryIO, OnBytesRead, OnBrokenLine], Iterator[tuple[str, object]]]


def _raise(_: str, error: InputError) -> None:
    raise error


def read_records(
    path: Path,
    on_bytes_read: OnBytesRead = lambda _: None,
    on_broken_line: OnBrokenLine = _raise,
) -> Iterator[tuple[str, object]]:
    """Yield every record of a file with its location: 'file[index]' in a list, 'file:line', or 'file' for one object.

    An error is raised when its record is reached; the records before it were yielded by then.
    """
    try:
        with path.open("rb") as file:
            read = _choose_reader(path, file)
            file.seek(0)
            yield from read(path, file, on_bytes_read, on_broken_line)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error


def _choose_reader(path: Path, file: BinaryIO) -> _Reader:
    """Return the reader for a file by its first characters, or by its first line."""
    if file.read(_PEEK).lstrip(_BLANK)[:1] == b"[":
        return _read_json_list
    file.seek(0)
    first = next((line for line in file if line.strip(_BLANK)), b"").strip(_BLANK)
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        is_line = path.suffix.lower() in _LINE_SUFFIXES and first != b"{"
    else:
        is_line = True
    return _read_jsonl if is_line or not first else _read_objects


def _read_jsonl(
    path: Path, file: BinaryIO, on_bytes_read: OnBytesRead, on_broken_line: OnBrokenLine
) -> Iterator[tuple[str, object]]:
    """Yield the record of each line that is not blank."""
    start, empty = 0, True
    # A binary file is split at \n alone: records may contain U+2028.
    for number, line in enumerate(file, start=1):
        location = f"{path}:{number}"
        if line.strip(_BLANK):
            empty = False
            try:
                record = _parse_line(line, path, location, start)
            except InputError as error:
                on_broken_line(location, error)
            else:
                yield location, record
        start += len(line)
        on_bytes_read(len(line))
    if empty:
        raise InputError(f"{path} is empty; it should hold records")


def _parse_line(line: bytes, path: Path, location: str, start: int) -> object:
    """Return the record of a line that begins at byte `start` of the file."""
    try:
        text = line.decode("utf-8-sig" if start == 0 else "utf-8")
        with _parser_errors(location):
            return json.loads(text)
    except UnicodeDecodeError as error:
        raise _encoding_error(path, start + error.start) from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{location} is broken JSON at column {error.colno}: {error.msg}"
        ) from error


def _encoding_error(path: Path, byte: int) -> InputError:
    return InputError(f"{path} is not UTF-8 text (byte {byte}); save it as UTF-8")


@contextmanager
def _parser_errors(location: str) -> Iterator[None]:
    """Turn the parser's errors other than syntax errors into InputErrors."""
    try:
        yield
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise InputError(f"{location} is nested too deeply to be conversation records") from error
    except ValueError as error:
        raise InputError(f"{location} holds a number too long to read; correct it") from error


class _StreamBuffer:
    """The part of a long text that is being parsed."""

    def __init__(self, path: Path, file: BinaryIO, on_bytes_read: OnBytesRead) -> None:
        self._path, self._file, self._on_bytes_read = path, file, on_bytes_read
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes, self._line, self._column = 0, 1, 0
        self.text, self.position, self.ended = "", 0, False

    def fill(self) -> None:
        """Drop the text before `position` and read at least as much as remains."""
        chunk = self._file.read(max(_CHUNK, len(self.text) - self.position))
        self.ended = not chunk
        num_pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            raise _encoding_error(self._path, self._bytes - num_pending + error.start) from error
        self._bytes += len(chunk)
        self._on_bytes_read(len(chunk))
        self._line, self._column = self.line_and_column(self.position)
        self.text, self.position = self.text[self.position :] + text, 0

    def line_and_column(self, position: int) -> tuple[int, int]:
        """Return line (from 1) and column (from 0) of a position in `text`."""
        lines = self.text.count("\n", 0, position)
        column = (
            position - self.text.rfind("\n", 0, position) - 1 if lines else self._column + position
        )
        return self._line + lines, column

    def next_character(self) -> str:
        """Skip white space and return the next character, empty at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.position)
            # The pattern matches the empty text too.
            assert space is not None
            self.position = space.end()
            if self.position < len(self.text):
                return self.text[self.position]
            if self.ended:
                return ""
            self.fill()

    def syntax_error(self, reason: str, position: int) -> InputError:
        """Return an error with the line and column of a position."""
        line, column = self.line_and_column(position)
        return InputError(
            f"{self._path} is broken JSON at line {line} column {column + 1}: {reason}"
        )

    def parse_value(self) -> object:
        """Parse the value at `position` and move behind it."""
        while True:
            try:
                with _parser_errors(str(self._path)):
                    value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                near_end = error.pos + _END_MARGIN > len(self.text)
                if self.ended or not (error.msg.startswith("Unterminated") or near_end):
                    raise self.syntax_error(error.msg, error.pos) from error
            else:
                far_from_end = end + _END_MARGIN < len(self.text)
                if self.ended or far_from_end or self.text[end : end + 1] in _AFTER_VALUE:
                    self.position = end
                    return value
            self.fill()


def _read_objects(
    path: Path, file: BinaryIO, on_bytes_read: OnBytesRead, _: OnBrokenLine
) -> Iterator[tuple[str, object]]:
    """Yield one object, or several after each other, that may extend over lines."""
    buffer = _StreamBuffer(path, file, on_bytes_read)
    buffer.next_character()
    line = buffer.line_and_column(buffer.position)[0]
    value = buffer.parse_value()
    if not buffer.next_character():
        yield str(path), value
        return
    yield f"{path}:{line}", value
    while buffer.next_character():
        line = buffer.line_and_column(buffer.position)[0]
        yield f"{path}:{line}", buffer.parse_value()


def _read_json_list(
    path: Path, file: BinaryIO, on_bytes_read: OnBytesRead, _: OnBrokenLine
) -> Iterator[tuple[str, object]]:
    """Yield the records of one JSON list."""
    buffer = _StreamBuffer(path, file, on_bytes_read)
    buffer.next_character()
    buffer.position += 1
    if buffer.next_character() == "]":
        raise InputError(f"{path} holds an empty list; it should hold records")
    index, separator = 0, ","
    while separator == ",":
        buffer.next_character()
        yield f"{path}[{index}]", buffer.parse_value()
        index += 1
        separator = buffer.next_character()
        if separator not in ("]", ","):
            raise buffer.syntax_error("Expecting ',' delimiter", buffer.position)
        buffer.position += 1
    if buffer.next_character():
        raise buffer.syntax_error("Extra data", buffer.position)
