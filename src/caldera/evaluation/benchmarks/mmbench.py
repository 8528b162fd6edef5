"""MMBench in English and Chinese: choice questions that only count if correct under every rotation of the choices.

Its table (.tsv) has `index`, `question`, `hint`, `A` to `D`, `answer`, `category` and `l2-category`. The indices of a
question's rows are equal modulo 1,000,000; each row rotates the choices by one. Answers are LLaVA's JSON lines, or the
table for submission, with `index` and `prediction`. The authors let ChatGPT match an answer that names no letter; here
it is counted as unparsed, and wrong. In `image` a table has its images in base64, or, for a repeated image, the index
of the row that has it.
"""

import base64
import binascii
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from caldera.errors import InputError
from caldera.evaluation.answer_files import AnswerRecord
from caldera.evaluation.answer_parsing import LETTERS
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    Score,
    ScoredItems,
    Sources,
    mean,
    score_items,
    to_percent,
)
from caldera.evaluation.benchmarks.multiple_choice import choice_turn, parse_letters, score_letters
from caldera.evaluation.files import check_unique, read_rows, require_fields
from caldera.files.atomic import write_atomic
from caldera.instructions.request_phrases import LETTER_PROMPT

_ROTATION = 1_000_000
"""Index difference between rotations of a question."""

_MAX_INDEX = 9
"""Maximum number of digits of an index; a longer image cell is the image itself."""

_MISSING_VALUES = ("", "nan", "NaN")
"""Cells of missing choices and hints; the first missing choice ends the choices, as in LLaVA's script."""


def _score(items: Sequence[Item], answers: Mapping[str, str]) -> Score:
    """Score questions that are correct in all their rows; `vanilla` is the first row alone."""
    rows = score_letters(items, parse_letters(items, answers))
    rotations: dict[str, list[float]] = defaultdict(list)
    for item in items:
        rotations[item.question_type].append(rows.item_scores[item.id])
    first = [item for item in items if item.id == item.question_type]
    scores = {item.id: min(rotations[item.id]) for item in first}
    score = score_items(first, scores, rows.unparsed)
    metrics = {
        "accuracy": to_percent(score.overall),
        "vanilla": to_percent(mean(rows.item_scores[item.id] for item in first)),
    }
    metrics |= {name: to_percent(value) for name, value in score.by_category.items()}
    metrics |= {
        "questions": len(first),
        "rows": len(items),
        "parse_failures": len(rows.unparsed),
    }
    return replace(score, metrics=metrics)


def _load(sources: Sources, name: str, instruction: str) -> ScoredItems:
    """Load the rows of a table; an item's type is the question that it is a rotation of."""
    return _to_benchmark(_read_table(sources), name, instruction)


def _to_benchmark(
    rows: Sequence[tuple[str, Mapping[str, str]]], name: str, instruction: str
) -> ScoredItems:
    first = {row["index"]: row for _, row in rows if int(row["index"]) < _ROTATION}
    items = [_to_item(row, first, location, instruction) for location, row in rows]
    # That of LLaVA's model_vqa_mmbench.py.
    return ScoredItems(name, items, _score, max_new_tokens=1024)


def _from_answers(records: Sequence[AnswerRecord], name: str, instruction: str) -> ScoredItems:
    """Return the rows that answers of VLMEvalKit or lmms-eval repeat."""
    rows = []
    for record in records:
        cells = {key: "" if cell is None else str(cell) for key, cell in record.fields.items()}
        rows.append((record.location, _check_row(cells, record.location)))
    return replace(_to_benchmark(rows, name, instruction), score_answers=_score_alone)


def _score_alone(items: Sequence[Item], answers: Mapping[str, str]) -> Score:
    """Score rows that may not be all; in the dev split 5 % of the questions have a row less than choices."""
    score = _score(items, answers)
    num_rows = Counter(item.question_type for item in items)
    fewer = sum(num_rows[item.id] < len(item.choices) for item in items if item.id in num_rows)
    note = f"unknown without --questions; {fewer} questions have fewer rows than choices"
    return replace(score, metrics=score.metrics | {"missing_rotations": note})


def _read_table(sources: Sources) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of the table with their locations."""
    path = sources.questions or sources.require_annotations("MMBench's table (.tsv)")
    rows = read_rows(path)
    for location, row in rows:
        _check_row(row, location)
    check_unique((row["index"] for _, row in rows), path)
    return rows


def _check_row(row: dict[str, str], location: str) -> dict[str, str]:
    require_fields(row, ("index", "question", "A", "B", "answer"), location)
    if not row["index"].isdecimal():
        raise InputError(f"{location}: the index should be a number, got {row['index']!r}")
    return row


def extract_images(sources: Sources, folder: Path) -> bool:
    """Write the images of a table to a folder, without rewriting unchanged files, and return whether it has any."""
    rows = [
        (location, row) for location, row in _read_table(sources) if int(row["index"]) < _ROTATION
    ]
    image_rows = [(location, row) for location, row in rows if not _is_reference_row(row)]
    for location, row in image_rows:
        try:
            content = base64.b64decode(row["image"], validate=True)
        except binascii.Error as error:
            raise InputError(f"{location}: the image is not in base64: {error}") from error
        file = folder / _image_name(row)
        if not file.exists() or file.read_bytes() != content:
            write_atomic(file, content)
    return bool(image_rows)


def _is_reference_row(row: Mapping[str, str]) -> bool:
    """Return whether a row does not hold its image, which is in a file or in another row."""
    cell = row.get("image", "")
    return cell in _MISSING_VALUES or (cell.isdecimal() and len(cell) <= _MAX_INDEX)


def _image_name(row: Mapping[str, str]) -> str:
    """Return the file name of the image of a question's first row."""
    cell = row.get("image", "")
    index = cell if _is_reference_row(row) and cell not in _MISSING_VALUES else row["index"]
    return f"{int(index) % _ROTATION}.jpg"


def _to_item(
    row: Mapping[str, str], first: Mapping[str, Mapping[str, str]], location: str, instruction: str
) -> Item:
    question = str(int(row["index"]) % _ROTATION)
    if question not in first:
        raise InputError(f"{location} is a rotation of question {question}, which is missing")
    cells = (row.get(letter, "") for letter in "ABCD")
    choices = list(takewhile(lambda cell: cell not in _MISSING_VALUES, cells))
    if row["answer"] not in tuple(LETTERS[: len(choices)]):
        raise InputError(
            f"{location}: the answer should be one of {LETTERS[: len(choices)]}, got {row['answer']!r}; only splits "
            "with answers, such as dev, can be scored here"
        )
    hint = row.get("hint", "")
    text = row["question"] if hint in _MISSING_VALUES else f"{hint}\n{row['question']}"
    image = _image_name(first[question])
    category = first[question].get("category", "question")
    coarse = first[question].get("l2-category", first[question].get("L2-category", ""))
    return Item(
        row["index"],
        category,
        question,
        choice_turn(row["index"], text, choices, [image], instruction),
        (row["answer"],),
        tuple(choices),
        (coarse,) if coarse not in (*_MISSING_VALUES, category) else (),
        question,
    )


def _spec(name: str, language: str, instruction: str) -> BenchmarkSpec:
    return BenchmarkSpec(
        name=name,
        title=f"MMBench ({language})",
        measures=f"twenty abilities by choice, asked in {language}, correct under every rotation of the choices",
        description="1,164 questions of dev in some 4,400 rows, by version (github.com/open-compass/MMBench)",
        chance={"vanilla": 25.0, "accuracy": 0.4},
        primary_metric="accuracy",
        required_files="--questions mmbench_dev_*.tsv, which contains the images; answers as JSON lines, .tsv, or "
        ".xlsx if openpyxl is installed",
        load=lambda sources: _load(sources, name, instruction),
        from_answers=lambda records: _from_answers(records, name, instruction),
        extract_images=extract_images,
    )


MMBENCH = _spec("mmbench", "English", LETTER_PROMPT)
MMBENCH_CN = _spec("mmbench_cn", "Chinese", "请直接回答选项字母。")
