"""MMBench in English and Chinese: choice questions that count only if right under every rotation of the choices.

Its table (.tsv) has `index`, `question`, `hint`, `A` to `D`, `answer`, `category` and `l2-category`. The rows of a
question are those whose indices agree up to multiples of 1,000,000, each with the choices moved on by one. Answers are
LLaVA's JSON lines, or the table that is handed in, with `index` and `prediction`. The authors let ChatGPT match an
answer that names no letter; here it is counted as unread, and wrong. In `image` a table has its images in base64, or,
for an image that is there already, the index of the row that has it.
"""

import base64
import binascii
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from caldera.errors import InputError
from caldera.evaluation.answer_parsing import LETTERS
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    Score,
    Sources,
    mean,
    score_by_item_id,
    scores_by_group,
    to_percent,
)
from caldera.evaluation.benchmarks.multiple_choice import choice_turn, parse_letters, score_letters
from caldera.evaluation.files import check_unique, read_rows, require_fields
from caldera.files.atomic import write_atomic
from caldera.instructions.request_phrases import LETTER_PROMPT

_ROTATION = 1_000_000
"""What the index of a row exceeds that of the same question with its choices one place further."""

_MAX_INDEX = 9
"""Digits of an index; what is longer in the cell of an image is the image."""

_MISSING_VALUES = ("", "nan", "NaN")
"""What stands in a cell without a choice or a hint."""

_SENTENCES = {"mmbench": LETTER_PROMPT, "mmbench_cn": "请直接回答选项字母。"}


@dataclass(frozen=True, slots=True)
class MmBench:
    """Rows; an item's form is the question that it is a rotation of, its kind the category of that question."""

    name: str
    items: Sequence[Item]
    max_new_tokens: int = 16

    def score(self, answers: Mapping[str, str]) -> Score:
        """Score questions that are right in all their rows; `vanilla` is the first row alone.

        Raises:
            InputError: Answers are missing, or belong to no row.
        """
        letters = parse_letters(self.items, answers)
        rows = score_letters(self.items, letters)
        rotations: dict[str, list[float]] = defaultdict(list)
        for item in self.items:
            rotations[item.question_type].append(rows.item_scores[item.id])
        first = [item for item in self.items if item.id == item.question_type]
        marks = {item.id: min(rotations[item.id]) for item in first}
        groups = scores_by_group(first, marks)
        figures = {
            "accuracy": to_percent(mean(marks.values())),
            "vanilla": to_percent(mean(rows.item_scores[item.id] for item in first)),
        }
        figures |= {name: to_percent(mean(group.values())) for name, group in groups.items()}
        figures |= {
            "questions": len(first),
            "rows": len(self.items),
            "parse_failures": len(rows.unparsed),
        }
        return replace(
            rows,
            overall=mean(marks.values()),
            by_category={name: mean(group.values()) for name, group in groups.items()},
            counts={name: len(group) for name, group in groups.items()},
            metrics=figures,
            item_scores=marks,
        )


def _reader(name: str) -> Callable[[Sources], MmBench]:
    """Return what reads the table of one language."""

    def read(sources: Sources) -> MmBench:
        rows = _rows(sources)
        first = {row["index"]: row for _, row in rows if int(row["index"]) < _ROTATION}
        return MmBench(name, [_to_item(row, first, where, _SENTENCES[name]) for where, row in rows])

    return read


def _rows(sources: Sources) -> list[tuple[str, dict[str, str]]]:
    """Read the table with the place of each row.

    Raises:
        UsageError: It was not given.
        InputError: It is missing, or not such a table.
    """
    path = sources.questions or sources.require_annotations("MMBench's table (.tsv)")
    rows = read_rows(path)
    for where, row in rows:
        require_fields(row, ("index", "question", "A", "B", "answer"), where)
        if not row["index"].isdecimal():
            raise InputError(f"{where}: the index should be a number, got {row['index']!r}")
    check_unique((row["index"] for _, row in rows), path)
    return rows


def extract_images(sources: Sources, folder: Path) -> bool:
    """Write the images of a table into a folder; those that stand there stay. False where it has none.

    Raises:
        InputError: One is not in base64.
        OutputError: It cannot be written.
    """
    rows = [(where, row) for where, row in _rows(sources) if int(row["index"]) < _ROTATION]
    packed = [(where, row) for where, row in rows if not _is_reference_row(row)]
    for where, row in packed:
        try:
            content = base64.b64decode(row["image"], validate=True)
        except binascii.Error as error:
            raise InputError(f"{where}: the image is not in base64: {error}") from error
        file = folder / _image(row)
        if not file.exists() or file.read_bytes() != content:
            write_atomic(file, content)
    return bool(packed)


def _is_reference_row(row: Mapping[str, str]) -> bool:
    """Tell whether a row's image stands in no cell of its own: in a file, or in another row."""
    cell = row.get("image", "")
    return cell in _MISSING_VALUES or (cell.isdecimal() and len(cell) <= _MAX_INDEX)


def _image(row: Mapping[str, str]) -> str:
    """Name the file of the image of a question's first row."""
    cell = row.get("image", "")
    index = cell if _is_reference_row(row) and cell not in _MISSING_VALUES else row["index"]
    return f"{int(index) % _ROTATION}.jpg"


def _to_item(
    row: Mapping[str, str], first: Mapping[str, Mapping[str, str]], where: str, sentence: str
) -> Item:
    """Make an item of a row.

    Raises:
        InputError: Its question is not there, or its answer is none of the choices.
    """
    question = str(int(row["index"]) % _ROTATION)
    if question not in first:
        raise InputError(f"{where} is a rotation of question {question}, which is not there")
    choices = [row[letter] for letter in "ABCD" if row.get(letter, "") not in _MISSING_VALUES]
    if row["answer"] not in tuple(LETTERS[: len(choices)]):
        raise InputError(
            f"{where}: the answer should be one of {LETTERS[: len(choices)]}, got {row['answer']!r}; only splits "
            "with answers, such as dev, can be scored here"
        )
    hint = row.get("hint", "")
    text = row["question"] if hint in _MISSING_VALUES else f"{hint}\n{row['question']}"
    asked = choice_turn(row["index"], text, choices, [_image(first[question])], sentence)
    kinds = first[question]
    coarse = kinds.get("l2-category", kinds.get("L2-category", ""))
    category = kinds.get("category", "question")
    slices = (coarse,) if coarse not in (*_MISSING_VALUES, category) else ()
    return Item(
        row["index"], category, question, asked, (row["answer"],), tuple(choices), slices, question
    )


def _task(name: str, language: str) -> BenchmarkSpec:
    read = _reader(name)
    return BenchmarkSpec(
        name=name,
        title=f"MMBench ({language})",
        measures=f"twenty abilities by choice, asked in {language}, right under every rotation of the choices",
        description="1,164 questions of dev in some 4,400 rows, by version (github.com/open-compass/MMBench)",
        chance={"vanilla": 25.0, "accuracy": 0.4},
        primary_metric="accuracy",
        required_files="--questions mmbench_dev_*.tsv, which has the pictures in it; "
        "answers as JSON lines, .tsv, or .xlsx where openpyxl is installed",
        load=read,
        score_answer_files=score_by_item_id(read),
        extract_images=extract_images,
    )


MMBENCH = _task("mmbench", "English")
MMBENCH_CN = _task("mmbench_cn", "Chinese")
