"""Readers of official benchmark files and of answer files.

Answer files have three layouts: LLaVA's JSON lines (`question_id`, `prompt`, `text`), JSON lists of such records under
other keys (`answer`, `prediction`, `response`), and one JSON object of texts by id. LLaVA also writes one file per GPU,
so a folder of such files is read as one. Missing, broken and contradictory files raise InputError.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldera.errors import InputError, shorten_value

_MAX_CELL_BYTES = 1 << 30
"""A table may hold whole images in base64."""

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


def read_text(path: Path) -> str:
    """Read a text file that is not empty."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{path} is empty; nothing can be scored from it")
    return text


def read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value of a JSON file, or the list of values of a JSON lines file."""
    text = read_text(path)
    if path.suffix != ".jsonl":
        try:
            return _parse_json(text, str(path))
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise InputError(
                    f"{path} is broken JSON at line {error.lineno} column {error.colno}: {error.msg}"
                ) from error
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
    content = read_json(path)
    # A JSON lines file of one line is parsed as an object.
    records = [content] if isinstance(content, dict) else content
    if not isinstance(records, list) or not records:
        raise InputError(f"{path} should hold a list of JSON objects, or one on each line")
    located = [(f"{path}[{index}]", record) for index, record in enumerate(records)]
    for location, record in located:
        if not isinstance(record, dict):
            raise InputError(f"{location} should be a JSON object, got {shorten_value(record)}")
    return located


def read_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a table with a header (.csv, .tsv, or .xlsx with openpyxl), each with its location."""
    if path.suffix == ".xlsx":
        return _read_spreadsheet(path)
    text = read_text(path)
    csv.field_size_limit(_MAX_CELL_BYTES)
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ","
    )
    rows: list[tuple[str, dict[str, str]]] = []
    for row in reader:
        location = f"{path}:{reader.line_num}"
        if None in row or None in row.values():
            raise InputError(f"{location} has not as many cells as the heading; correct the row")
        rows.append((location, row))
    if not rows:
        raise InputError(f"{path} has a heading but no rows")
    return rows


def _read_spreadsheet(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a spreadsheet's first sheet."""
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise InputError(
            f"{path} is a spreadsheet, which needs openpyxl: pip install openpyxl, or save it as .tsv"
        ) from error
    try:
        book = load_workbook(path, read_only=True, data_only=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
    lines = [
        ["" if cell is None else str(cell) for cell in line]
        for line in book.worksheets[0].iter_rows(values_only=True)
    ]
    if len(lines) < 2:
        raise InputError(f"{path} has no rows under a heading")
    return [
        (f"{path}:{number}", dict(zip(lines[0], line, strict=True)))
        for number, line in enumerate(lines[1:], start=2)
    ]


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


def check_unique(names: Iterable[str], path: Path) -> None:
    """Check that no question of a file occurs twice."""
    if repeated := find_repeated(names):
        raise InputError(
            f"{path} has questions more than once: {join_names(repeated)}; keep one of each"
        )


ID_KEYS = ("question_id", "questionId", "id", "index", "pid", "image_id", "image")
"""Keys of the id; the first that is present counts."""

TEXT_KEYS = ("text", "answer", "prediction", "response", "output", "caption")
"""Keys of the answer; LLaVA's `text` precedes all others."""

PROMPT_KEYS = ("prompt", "question")
"""Keys of the question, if a record repeats it."""

_TABLES = (".csv", ".tsv", ".xlsx")


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One answer in a file."""

    location: str
    """File and index, for messages."""

    id: str
    """Empty if the layout has none."""

    text: str
    prompt: str = ""
    """The question as repeated in the file; empty if it is not."""


def read_answers(path: Path) -> dict[str, str]:
    """Return the texts of an answer file, or of a folder of them, by question id.

    Raises:
        InputError: A file is missing, empty or broken, or ids are missing or repeated; the message lists them.
    """
    return texts_by_id(read_answer_list(path), path)


def texts_by_id(answers: Sequence[AnswerRecord], path: Path) -> dict[str, str]:
    """Return the texts of the answers in a file by question id."""
    if unnamed := [answer.location for answer in answers if not answer.id]:
        raise InputError(
            f"{len(unnamed)} answers have no id, the first {unnamed[0]}; expected one of {', '.join(ID_KEYS)}"
        )
    if repeated := find_repeated(answer.id for answer in answers):
        raise InputError(
            f"{path} has {len(repeated)} ids more than once: {join_names(repeated)}; keep one answer of each"
        )
    return {answer.id: answer.text for answer in answers}


def read_answer_list(path: Path) -> list[AnswerRecord]:
    """Return the answers of a file, or of a folder of them, in order; ids may be missing or repeated."""
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in (".json", ".jsonl")]
        if not files:
            raise InputError(f"{path} holds no .json or .jsonl file of answers")
        return [answer for file in files for answer in read_answer_list(file)]
    if path.suffix in _TABLES:
        return [_from_record(record, location) for location, record in read_rows(path)]
    content = read_json(path) if path.suffix == ".json" else None
    if isinstance(content, dict) and not _is_record(content):
        return _from_object(content, path)
    return [_from_record(record, location) for location, record in read_records(path)]


def _is_record(content: dict[str, Any]) -> bool:
    """Return whether an object is one answer rather than texts by id."""
    return any(key in content for key in ID_KEYS) and any(key in content for key in TEXT_KEYS)


def _from_object(content: dict[str, Any], path: Path) -> list[AnswerRecord]:
    """Return the answers of an object of texts by id."""
    if not content:
        raise InputError(f"{path} holds no answers")
    for name, text in content.items():
        if not isinstance(text, str):
            raise InputError(
                f"{path}: the answer to {name!r} should be a text, got {shorten_value(text)}; expected texts by id, or "
                "a list of records with question_id and text"
            )
    return [AnswerRecord(f"{path}: {name!r}", name, text) for name, text in content.items()]


def _from_record(record: dict[str, Any], location: str) -> AnswerRecord:
    """Return the answer in a record with one unambiguous text."""
    keys = [key for key in TEXT_KEYS if key in record]
    if not keys or ("text" not in keys and len(keys) > 1):
        raise InputError(
            f"{location} should have its answer under one of {', '.join(TEXT_KEYS)}; it has "
            f"{join_names(map(str, record))}"
        )
    text = record[keys[0]]
    if not isinstance(text, str):
        raise InputError(f"{location}: {keys[0]} should be a text, got {shorten_value(text)}")
    name = next((record[key] for key in ID_KEYS if key in record), "")
    if isinstance(name, bool) or not isinstance(name, int | str):
        raise InputError(
            f"{location}: the id should be a number or a text, got {shorten_value(name)}"
        )
    prompt = next((record[key] for key in PROMPT_KEYS if key in record), "")
    return AnswerRecord(location, str(name), text, prompt if isinstance(prompt, str) else "")
