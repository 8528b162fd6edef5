"""Readers of the official files of benchmarks: JSON, JSON lines, and tables. Content decides, not the suffix.

Missing, broken and contradictory files raise InputError.
"""

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from caldera.errors import InputError, shorten_value
from caldera.extras import describe_missing

_MAX_CELL_BYTES = 1 << 30
"""A table may hold whole images in base64."""

_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ZIP, _OLD_EXCEL = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
"""First bytes of an .xlsx and of an .xls."""

_MAX_FIRST_LINE = 1 << 16
"""Bytes of a first line of JSON lines; a file of one value in one line is mostly longer."""

_START = 1 << 12
"""Bytes in which a file's first character is looked for, before all of it is read."""

_DELIMITERS = "\t,;|"

_MAX_NAMES = 10
"""Names that a message lists before it only counts."""


def join_names(names: Iterable[str]) -> str:
    """Return sorted names for a message, at most ten and the number of the rest."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _MAX_NAMES} more" if len(ordered) > _MAX_NAMES else ""
    return ", ".join(ordered[:_MAX_NAMES]) + more


def find_repeated(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _read_content(path: Path, size: int = -1) -> bytes:
    """Return the first `size` bytes of a file, by default all."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error


def read_text(path: Path) -> str:
    """Read a text file that is not empty, in UTF-8, or in UTF-16 with a byte order mark as Excel writes it."""
    content = _read_content(path)
    try:
        text = content.decode("utf-16" if content.startswith(_UTF_16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{path} is empty; nothing can be scored from it")
    return text


def read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value of a JSON file, or the list of values of a file of JSON lines."""
    text = read_text(path)
    try:
        value = _parse_json(text, str(path))
    except json.JSONDecodeError as error:
        if error.msg != "Extra data" and path.suffix != ".jsonl":
            raise InputError(
                f"{path} is broken JSON at line {error.lineno} column {error.colno}: {error.msg}"
            ) from error
    else:
        is_line = isinstance(value, dict) and "\n" not in text.strip()
        return [value] if is_line and path.suffix == ".jsonl" else value
    # Split at \n alone: texts may hold U+2028.
    lines = enumerate(text.split("\n"), start=1)
    return [_parse_line(line, f"{path}:{number}") for number, line in lines if line.strip()]


def _parse_line(line: str, location: str) -> object:
    try:
        return _parse_json(line, location)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{location} is broken JSON at column {error.colno}: {error.msg}"
        ) from error


def _parse_json(text: str, location: str) -> object:
    """Parse one value; reject repeated keys, deep nesting and overlong numbers."""

    def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            repeated = join_names(find_repeated(name for name, _ in pairs))
            raise InputError(f"{location} has these keys twice: {repeated}; keep one of each")
        return record

    try:
        return json.loads(text, object_pairs_hook=to_object)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        raise InputError(f"{location} cannot be read as JSON: {error}") from error


def read_object(path: Path, description: str) -> dict[str, Any]:
    """Return the object in a JSON file, which `description` describes in messages, as in "of texts by id"."""
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} should hold an object {description}")
    return content


def read_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of a JSON list or JSON lines file, each with its location."""
    return locate_records(path, read_json(path))


def locate_records(path: Path, content: object) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of a file's JSON value, each with its location."""
    # A JSON lines file of one line is parsed as an object.
    records = [content] if isinstance(content, dict) else content
    if not isinstance(records, list) or not records:
        raise InputError(f"{path} should hold a list of JSON objects, or one on each line")
    located = [(f"{path}[{index}]", record) for index, record in enumerate(records)]
    for location, record in located:
        if not isinstance(record, dict):
            raise InputError(f"{location} should be a JSON object, got {shorten_value(record)}")
    return located


def _is_spreadsheet(path: Path) -> bool:
    """Return whether a file begins as a spreadsheet of Excel does."""
    magics = (_ZIP, _OLD_EXCEL)
    return _read_content(path, max(map(len, magics))).startswith(magics)


def json_start(path: Path) -> str:
    """Return the bracket that a file of JSON or JSON lines begins with; empty for a table."""
    if _is_spreadsheet(path):
        return ""
    start = _read_content(path, _START)
    encoding = "utf-16" if start.startswith(_UTF_16_MARKS) else "utf-8-sig"
    text = start.decode(encoding, "ignore").lstrip() or read_text(path).lstrip()
    return text[0] if text[0] in "{[" else ""


def read_first_line(path: Path) -> object:
    """Return the JSON value in a file's first line; None if there is none in its first 64 KiB."""
    try:
        return json.loads(_read_content(path, _MAX_FIRST_LINE).split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return None


def read_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a table with a heading (.csv, .tsv, or .xlsx with openpyxl), each with its location."""
    if _is_spreadsheet(path):
        return _read_spreadsheet(path)
    text = read_text(path)
    # The limit is one of the process, and other readers keep the usual one.
    usual_limit = csv.field_size_limit(_MAX_CELL_BYTES)
    try:
        return _read_table(path, text)
    finally:
        csv.field_size_limit(usual_limit)


def _read_table(path: Path, text: str) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a table's text, each with its location."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_find_delimiter(text))
    _check_heading(reader.fieldnames or (), path)
    rows: list[tuple[str, dict[str, str]]] = []
    for row in reader:
        location = f"{path}:{reader.line_num}"
        if None in row or None in row.values():
            raise InputError(f"{location} has not as many cells as the heading; correct the row")
        rows.append((location, row))
    if not rows:
        raise InputError(f"{path} has a heading but no rows")
    return rows


def _check_heading(columns: Sequence[str], path: Path) -> None:
    if repeated := find_repeated(filter(None, columns)):
        raise InputError(f"{path} has columns twice: {join_names(repeated)}; rename one of each")


def _find_delimiter(text: str) -> str:
    """Return the delimiter that gives the heading the most cells, a tab if all give one."""
    heading = text.split("\n", 1)[0]
    return max(_DELIMITERS, key=lambda mark: len(next(csv.reader([heading], delimiter=mark))))


def _read_spreadsheet(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a spreadsheet's first sheet; empty rows at its end are not rows."""
    if missing := describe_missing("xlsx", f"{path} is a spreadsheet, which"):
        raise InputError(f"{missing}, or save it as .tsv")
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        with path.open("rb") as file:
            book = load_workbook(file, read_only=True, data_only=True)
            lines = [
                [_cell_text(cell) for cell in line]
                for line in book.worksheets[0].iter_rows(values_only=True)
            ]
    except (InvalidFileException, BadZipFile, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is no .xlsx spreadsheet that can be read; save it as .xlsx or .csv"
        ) from error
    while lines and not any(lines[-1]):
        lines.pop()
    if len(lines) < 2:
        raise InputError(f"{path} has no rows under a heading")
    _check_heading(lines[0], path)
    return [
        (f"{path}:{number}", dict(zip_longest(lines[0], line[: len(lines[0])], fillvalue="")))
        for number, line in enumerate(lines[1:], start=2)
    ]


def _cell_text(cell: object) -> str:
    """Return a cell as text; a whole number has no decimal point, which pandas adds next to empty cells."""
    if cell is None:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def require_fields(record: object, names: Sequence[str], location: str) -> dict[str, Any]:
    """Return a record that is an object with these fields."""
    if not isinstance(record, dict):
        raise InputError(
            f"{location} should be an object with {', '.join(names)}, got {shorten_value(record)}"
        )
    if missing := [name for name in names if name not in record]:
        raise InputError(
            f"{location} has no {', '.join(missing)}; it has {join_names(map(str, record))}"
        )
    return record


def require_texts(record: object, names: Sequence[str], location: str) -> None:
    """Check that a record has fields, and that each is a text."""
    fields = require_fields(record, names, location)
    for name in names:
        if not isinstance(fields[name], str):
            raise InputError(
                f"{location}: {name} should be a text, got {shorten_value(fields[name])}"
            )


def check_unique(names: Iterable[str], path: Path) -> None:
    """Check that no question of a file occurs twice."""
    if repeated := find_repeated(names):
        raise InputError(
            f"{path} has questions more than once: {join_names(repeated)}; keep one of each"
        )
