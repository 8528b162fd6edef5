"""ScienceQA's files in, what they say of each question out, however the truth is spread over them.

The letters are in problems.json (with pid_splits.json for the split), in test_answers.csv, or in the `gpt` turns of
LLaVA-1.5's question file; any of them may be given, several together have to agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from caldera.conversation import Conversation, ImageRef, Turn, from_record
from caldera.datasets.science_qa import LETTERS, Problem, parse_layout
from caldera.errors import InputError, UnknownNameError, UsageError, describe_validation_error
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.files import (
    check_unique,
    join_names,
    read_json,
    read_rows,
    require_fields,
)
from caldera.instructions.request_phrases import LETTER_PROMPT

_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
"""Subjects, by the names that tables of results have for them."""

_FORMS = {"": "letter", "CQM-A": "letter", "LEPA": "QCM-LEPA", "LEA": "QCM-LEA", "ALE": "QCM-ALE"}
"""Short names of forms; `letter` is what LLaVA-1.5's file llava_test_CQM-A.json asks."""

WANTED = "problems.json (with pid_splits.json), test_answers.csv or llava_test_CQM-A.json"


@dataclass(frozen=True, slots=True)
class QuestionInfo:
    """What files say of one question; None where they do not."""

    letter: str | None = None
    choices: tuple[str, ...] = ()
    subject: str | None = None
    """NAT, SOC or LAN."""

    grade: int | None = None
    has_image: bool | None = None
    has_context: bool | None = None
    conversation: Conversation | None = None


def letters_of(choices: Sequence[str]) -> str:
    """Return the letters of the choices; A to E, the most that ScienceQA has, where nobody says what they are."""
    return LETTERS[: len(choices) or 5]


class _Graded(Problem):
    """A problem with what results are told apart by."""

    subject: str = ""
    grade: str = ""


def load_question_info(sources: Sources) -> dict[str, QuestionInfo]:
    """Return what the files say of each question of the test split, by id.

    Raises:
        UsageError: No file was given.
        InputError: A file is broken, or two disagree.
    """
    paths = [path for path in (sources.questions, sources.annotations) if path is not None]
    if not paths:
        raise UsageError(f"this task needs --questions or --truth: {WANTED}")
    known: dict[str, QuestionInfo] = {}
    split: set[str] | None = None
    for path in _files(paths):
        content = read_rows(path) if path.suffix in (".csv", ".tsv") else read_json(path)
        if isinstance(content, dict) and isinstance(content.get("test"), list):
            split = {str(name) for name in content["test"]}
            continue
        told = _read_file(content, path, sources.prompt_layout)
        if known and known.keys() != told.keys() and split is None:
            apart = known.keys() ^ told.keys()
            raise InputError(
                f"{path} has other questions than the file before it: {join_names(apart)}"
            )
        for name, one in told.items():
            known[name] = _merge(known.get(name, QuestionInfo()), one, name)
    if split is not None:
        if lacking := split - known.keys():
            raise InputError(
                f"pid_splits.json lists {len(lacking)} questions that are not there: {join_names(lacking)}"
            )
        known = {name: one for name, one in known.items() if name in split}
    return known


def _files(paths: list[Path]) -> list[Path]:
    """Put pid_splits.json first, found beside problems.json or in a folder where nobody named it."""
    files: list[Path] = []
    for path in paths:
        files += [path / "problems.json"] if path.is_dir() else [path]
    beside = [path.with_name("pid_splits.json") for path in files if path.name == "problems.json"]
    found = [path for path in beside if path.exists() and path not in files]
    return sorted(
        [*found, *files], key=lambda path: (path.name != "pid_splits.json", path in files[1:])
    )


def _merge(first: QuestionInfo, second: QuestionInfo, name: str) -> QuestionInfo:
    """Join what two files say of a question.

    Raises:
        InputError: They have different right answers.
    """
    if first.letter and second.letter and first.letter != second.letter:
        raise InputError(
            f"question {name} has two right answers, {first.letter} and {second.letter}: the files differ"
        )
    told = {field: getattr(second, field) for field in QuestionInfo.__slots__}
    return replace(
        first, **{field: value for field, value in told.items() if value not in (None, ())}
    )


def _read_file(content: Any, path: Path, form: str) -> dict[str, QuestionInfo]:  # noqa: ANN401 - as JSON has it
    """Read one file by what is in it.

    Raises:
        InputError: It is none of those known.
    """
    if path.suffix in (".csv", ".tsv"):
        return _unique([_row(row, where) for where, row in content], path)
    if isinstance(content, list):
        return _unique([_asked(record, f"{path}[{at}]") for at, record in enumerate(content)], path)
    if isinstance(content, dict):
        problems = {name: _problem(record, f"{path}: {name}") for name, record in content.items()}
        chosen = {
            name: one for name, one in problems.items() if not one.split or one.split == "test"
        }
        return {name: _of_problem(name, one, form) for name, one in chosen.items()}
    raise InputError(f"{path} is not a file of ScienceQA; expected {WANTED}")


def _unique(told: list[tuple[str, QuestionInfo]], path: Path) -> dict[str, QuestionInfo]:
    """Return what is told by question.

    Raises:
        InputError: A question is there twice.
    """
    check_unique((name for name, _ in told), path)
    return dict(told)


def _row(row: dict[str, str], where: str) -> tuple[str, QuestionInfo]:
    """Read a row of test_answers.csv."""
    require_fields(row, ("pid", "answer", "subject", "grade", "has_image", "has_context"), where)
    known = QuestionInfo(
        letter=row["answer"],
        subject=_subject(row["subject"], where),
        grade=_grade(row["grade"], where),
        has_image=row["has_image"] == "1",
        has_context=row["has_context"] == "1",
    )
    return row["pid"], known


def _subject(name: str, where: str) -> str:
    if name not in _SUBJECTS:
        raise InputError(f"{where}: {UnknownNameError('subject', name, _SUBJECTS)}")
    return _SUBJECTS[name]


def _grade(text: str, where: str) -> int:
    number = text.removeprefix("grade")
    if not number.isdecimal():
        raise InputError(f"{where}: the grade should be a number, got {text!r}")
    return int(number)


def _asked(record: object, where: str) -> tuple[str, QuestionInfo]:
    """Read a record of LLaVA-1.5's question file, whose gpt turn is the right letter."""
    conversation = from_record(record, where)
    asked, answered = conversation.turns[0], conversation.turns[-1].text.strip()
    lines = asked.text.strip().split("\n")
    choices: list[str] = []
    for letter in LETTERS:  # the choices are the last lines, from "A. " on
        starts = [at for at, line in enumerate(lines) if line.startswith(f"{letter}. ")]
        if not starts:
            break
        choices.append(lines[starts[-1]].removeprefix(f"{letter}. "))
    if answered not in tuple(LETTERS[: len(choices)]):
        raise InputError(
            f"{where}: the right answer should be one of the {len(choices)} letters, got {answered!r}"
        )
    parts = (*asked.parts[:-1], f"{asked.parts[-1]}\n{LETTER_PROMPT}")
    known = QuestionInfo(
        letter=answered,
        choices=tuple(choices),
        has_image=bool(conversation.images),
        has_context=asked.text.strip().startswith("Context: "),
        conversation=Conversation(conversation.id, (Turn("user", parts),)),
    )
    return conversation.id, known


def _problem(record: object, where: str) -> _Graded:
    try:
        return _Graded.model_validate(record)
    except ValidationError as error:
        raise InputError(f"{where}: {describe_validation_error(error, 'problem')}") from None


def _of_problem(name: str, problem: _Graded, form: str) -> QuestionInfo:
    """Say what is known of a problem of problems.json, laid out in a form."""
    layout = parse_layout(_FORMS.get(form, form))
    text = layout.ask(problem).replace("  ", " ").strip()
    image = ImageRef(f"test/{name}/{problem.image}") if problem.image else None
    parts: tuple[str | ImageRef, ...] = (text,)
    if image:
        parts = (image, f"\n{text}") if layout.image_first else (f"{text}\n", image)
    where = f"problem {name}"
    return QuestionInfo(
        letter=problem.letter,
        choices=tuple(problem.choices),
        subject=_subject(problem.subject, where) if problem.subject else None,
        grade=_grade(problem.grade, where) if problem.grade else None,
        has_image=problem.image is not None,
        has_context=bool(problem.hint.strip()),
        conversation=Conversation(name, (Turn("user", parts),)),
    )
