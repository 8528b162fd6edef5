"""Official and answer files.

Three layouts are in use: LLaVA's JSON lines (`question_id`, `prompt`, `text`), JSON lists of such records under other
names (`answer`, `prediction`, `response`), and one JSON object of texts by id. LLaVA also writes one file for each
graphics card, so a folder of such files is read as one.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldera.errors import InputError

_LONGEST_CELL = 1 << 30
"""A table may hold whole images in base64."""

_SHOWN = 10
"""Names that a message lists before it only counts."""


def join_names(names: Iterable[str]) -> str:
    """Write names out for a message, the first ten of them."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more


def read_text(path: Path) -> str:
    """Read a text file that has something in it.

    Raises:
        InputError: It is missing, not UTF-8, or empty.
    """
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


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return what a JSON file holds, or the list of what the lines of a JSON lines file hold.

    Raises:
        InputError: The file is missing, empty or broken, or an object in it has a key twice.
    """
    text = read_text(path)
    if path.suffix != ".jsonl":
        try:
            return _parsed(text, str(path))
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise InputError(
                    f"{path} is broken JSON at line {error.lineno} column {error.colno}: {error.msg}"
                ) from error
    lines = enumerate(text.split("\n"), start=1)  # at \n alone: texts may hold U+2028
    return [_line(line, f"{path}:{number}") for number, line in lines if line.strip()]


def _line(line: str, where: str) -> object:
    try:
        return _parsed(line, where)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is broken JSON at column {error.colno}: {error.msg}") from error


def _parsed(text: str, where: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Parse one value.

    Raises:
        InputError: It is nested too deeply, holds a number too long, or a key twice.
        JSONDecodeError: It is broken.
    """

    def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            met = Counter(name for name, _ in pairs)
            double = [name for name, times in met.items() if times > 1]
            raise InputError(
                f"{where} has these keys twice: {join_names(double)}; keep one of each"
            )
        return record

    try:
        return json.loads(text, object_pairs_hook=without_doubles)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        raise InputError(f"{where} cannot be read as JSON: {error}") from error


def read_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of a JSON list or JSON lines file, each with its place.

    Raises:
        InputError: The file is missing, empty, broken, or holds something else.
    """
    content = read_json(path)
    records = [content] if isinstance(content, dict) else content  # a file of one line
    if not isinstance(records, list) or not records:
        raise InputError(f"{path} should hold a list of JSON objects, or one on each line")
    placed = [(f"{path}[{index}]", record) for index, record in enumerate(records)]
    for where, record in placed:
        if not isinstance(record, dict):
            raise InputError(f"{where} should be a JSON object, got {str(record)[:40]!r}")
    return placed


def read_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a table with a heading (.csv, .tsv, or .xlsx where openpyxl is installed), with their places.

    Raises:
        InputError: The file is missing, empty, or not such a table.
    """
    if path.suffix == ".xlsx":
        return _sheet(path)
    text = read_text(path)
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ","
    )
    rows: list[tuple[str, dict[str, str]]] = []
    for row in reader:
        where = f"{path}:{reader.line_num}"
        if None in row or None in row.values():
            raise InputError(f"{where} has not as many cells as the heading; correct the row")
        rows.append((where, row))
    if not rows:
        raise InputError(f"{path} has a heading but no rows")
    return rows


def _sheet(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a spreadsheet's first sheet."""
    try:
        from openpyxl import load_workbook  # not needed by anything else, so not installed with it
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


def require_fields(record: dict[str, Any], names: Iterable[str], where: str) -> None:
    """Check that a record has fields.

    Raises:
        InputError: Some are missing; the message names them and what there is.
    """
    if missing := [name for name in names if name not in record]:
        raise InputError(
            f"{where} has no {', '.join(missing)}; it has {join_names(map(str, record))}"
        )


def check_unique(names: Iterable[str], path: Path) -> None:
    """Check that no question of a file is there twice.

    Raises:
        InputError: Some are; the message lists them.
    """
    if double := [name for name, times in Counter(names).items() if times > 1]:
        raise InputError(
            f"{path} has questions more than once: {join_names(double)}; keep one of each"
        )


ID_NAMES = ("question_id", "questionId", "id", "index", "pid", "image_id", "image")
"""What the id is called, the first that is there."""

TEXT_NAMES = ("text", "answer", "prediction", "response", "output", "caption")
"""What the answer is called; LLaVA's `text` goes before all others."""

PROMPT_NAMES = ("prompt", "question")
"""What the question is called, where a record repeats it."""

_TABLES = (".csv", ".tsv", ".xlsx")


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One answer as a file has it."""

    where: str
    """File and index, for messages."""

    id: str
    """Empty where the layout has none."""

    text: str
    prompt: str = ""
    """The question as the file repeats it; empty where it does not."""


def read_answers(path: Path) -> dict[str, str]:
    """Return the texts of an answer file, or of a folder of them, by question id.

    Raises:
        InputError: A file is missing, empty or broken, or answers have no id or the same; the message lists the ids.
    """
    return texts_by_id(read_answer_list(path), path)


def texts_by_id(answers: Sequence[AnswerRecord], path: Path) -> dict[str, str]:
    """Return the texts of the answers in a file by question id.

    Raises:
        InputError: Answers have no id or the same; the message lists the ids.
    """
    if nameless := [answer.where for answer in answers if not answer.id]:
        raise InputError(
            f"{len(nameless)} answers have no id, the first {nameless[0]}; expected one of "
            f"{', '.join(ID_NAMES)}"
        )
    texts = {answer.id: answer.text for answer in answers}
    if len(texts) < len(answers):
        met = Counter(answer.id for answer in answers)
        double = [name for name, times in met.items() if times > 1]
        raise InputError(
            f"{path} has {len(double)} ids more than once: {join_names(double)}; keep one answer of each"
        )
    return texts


def read_answer_list(path: Path) -> list[AnswerRecord]:
    """Return the answers of a file, or of a folder of them, in order; ids may be missing or double.

    Raises:
        InputError: A file is missing, empty or broken, or holds something else than answers.
    """
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in (".json", ".jsonl")]
        if not files:
            raise InputError(f"{path} holds no .json or .jsonl file of answers")
        return [answer for file in files for answer in read_answer_list(file)]
    if path.suffix in _TABLES:
        return [_answer(record, where) for where, record in read_rows(path)]
    content = read_json(path) if path.suffix == ".json" else None
    if isinstance(content, dict) and not _is_record(content):
        return _from_object(content, path)
    return [_answer(record, where) for where, record in read_records(path)]


def _is_record(content: dict[str, Any]) -> bool:
    """Tell one answer, alone in its file, from an object of texts by id."""
    return any(name in content for name in ID_NAMES) and any(name in content for name in TEXT_NAMES)


def _from_object(content: dict[str, Any], path: Path) -> list[AnswerRecord]:
    """Read an object of texts by id."""
    if not content:
        raise InputError(f"{path} holds no answers")
    for name, text in content.items():
        if not isinstance(text, str):
            raise InputError(
                f"{path}: the answer to {name!r} should be a text, got {str(text)[:40]!r}; expected texts by "
                "id, or a list of records with question_id and text"
            )
    return [AnswerRecord(f"{path}: {name!r}", name, text) for name, text in content.items()]


def _answer(record: dict[str, Any], where: str) -> AnswerRecord:
    """Read one record.

    Raises:
        InputError: It has no text, or several that may be meant.
    """
    names = [name for name in TEXT_NAMES if name in record]
    if not names or ("text" not in names and len(names) > 1):
        raise InputError(
            f"{where} should have its answer under one of {', '.join(TEXT_NAMES)}; it has {join_names(map(str, record))}"
        )
    text = record[names[0]]
    if not isinstance(text, str):
        raise InputError(f"{where}: {names[0]} should be a text, got {str(text)[:40]!r}")
    identity = next((record[name] for name in ID_NAMES if name in record), "")
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise InputError(
            f"{where}: the id should be a number or a text, got {str(identity)[:40]!r}"
        )
    prompt = next((record[name] for name in PROMPT_NAMES if name in record), "")
    return AnswerRecord(where, str(identity), text, prompt if isinstance(prompt, str) else "")
