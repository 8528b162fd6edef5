"""ScienceQA's files: the information about each question, in whichever files it is.

The letters are in problems.json (with pid_splits.json for the split), in test_answers.csv, or in the `gpt` turns of
LLaVA's question files. Several files may be given if they agree; the first that has questions is asked.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from caldera.conversation import Conversation, ImageRef, Turn, from_record
from caldera.datasets.science_qa import LETTERS, Problem, parse_layout
from caldera.errors import InputError, UnknownNameError, UsageError, describe_validation_error
from caldera.evaluation.answer_parsing import science_qa_letter
from caldera.evaluation.benchmark import Sources
from caldera.evaluation.files import check_unique, join_names, read_json, read_rows, require_fields
from caldera.instructions.request_phrases import LETTER_PROMPT

_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
"""Abbreviations of subjects in tables of results."""

_LAYOUTS = {"": "letter", "CQM-A": "letter", "LEPA": "QCM-LEPA", "LEA": "QCM-LEA", "ALE": "QCM-ALE"}
"""Short names of prompt layouts; `letter` is that of LLaVA-1.5's llava_test_CQM-A.json."""

_SPLITS_FILE = "pid_splits.json"
EXPECTED_FILES = f"problems.json (with {_SPLITS_FILE}), test_answers.csv or llava_test_CQM-A.json"


@dataclass(frozen=True, slots=True)
class QuestionInfo:
    """Information about one question; None or empty if unknown."""

    letter: str | None = None
    choices: tuple[str, ...] = ()
    subject: str | None = None
    """NAT, SOC or LAN."""

    grade: int | None = None
    has_image: bool | None = None
    has_context: bool | None = None
    conversation: Conversation | None = None


def letters_of(choices: Sequence[str]) -> str:
    """Return the letters of the choices; A to E, ScienceQA's maximum, if they are unknown."""
    return LETTERS[: len(choices) or 5]


class _ProblemSchema(Problem):
    subject: str = ""
    grade: str = ""


def load_question_info(sources: Sources) -> dict[str, QuestionInfo]:
    """Return the information about each question of the test split, by id."""
    paths = [path for path in (sources.questions, sources.annotations) if path is not None]
    if not paths:
        raise UsageError(f"this benchmark needs --questions or --annotations: {EXPECTED_FILES}")
    infos: dict[str, QuestionInfo] = {}
    split: set[str] | None = None
    for path in _find_files(paths):
        content = read_rows(path) if path.suffix in (".csv", ".tsv") else read_json(path)
        if isinstance(content, dict) and isinstance(content.get("test"), list):
            split = {str(name) for name in content["test"]}
            continue
        file_infos = _parse_content(content, path, sources.prompt_layout)
        if infos and infos.keys() != file_infos.keys() and split is None:
            different = infos.keys() ^ file_infos.keys()
            raise InputError(
                f"{path} has other questions than the file before it: {join_names(different)}"
            )
        for name, info in file_infos.items():
            infos[name] = _merge(infos.get(name, QuestionInfo()), info, name)
    if split is None:
        return infos
    if missing := split - infos.keys():
        raise InputError(
            f"{_SPLITS_FILE} lists {len(missing)} questions that are missing: {join_names(missing)}"
        )
    return {name: info for name, info in infos.items() if name in split}


def _find_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files in order, with pid_splits.json, found next to problems.json, first."""
    files = [path / "problems.json" if path.is_dir() else path for path in paths]
    siblings = [path.with_name(_SPLITS_FILE) for path in files if path.name == "problems.json"]
    splits = [path for path in siblings if path.exists() and path not in files]
    return sorted(
        [*splits, *files], key=lambda path: (path.name != _SPLITS_FILE, path in files[1:])
    )


def _merge(first: QuestionInfo, second: QuestionInfo, name: str) -> QuestionInfo:
    """Combine the information of two files about a question."""
    if first.letter and second.letter and first.letter != second.letter:
        raise InputError(
            f"question {name} has two right answers, {first.letter} and {second.letter}: the files differ"
        )
    values = {field: getattr(second, field) for field in QuestionInfo.__slots__}
    values["conversation"] = first.conversation or second.conversation
    return replace(
        first, **{field: value for field, value in values.items() if value not in (None, ())}
    )


def _parse_content(content: object, path: Path, layout: str) -> dict[str, QuestionInfo]:
    """Parse the content of one file, by its type."""
    if isinstance(content, list):
        if path.suffix in (".csv", ".tsv"):
            pairs = [_from_row(row, location) for location, row in content]
        elif layout:
            raise UsageError(
                f"{path} has its own prompts, so --prompt-layout {layout} has no effect; leave it out, or give "
                "problems.json"
            )
        else:
            pairs = [
                _from_llava_record(record, f"{path}[{index}]")
                for index, record in enumerate(content)
            ]
        check_unique((name for name, _ in pairs), path)
        return dict(pairs)
    if isinstance(content, dict):
        problems = {
            name: _parse_problem(record, f"{path}: {name}") for name, record in content.items()
        }
        return {
            name: _from_problem(name, problem, layout)
            for name, problem in problems.items()
            if not problem.split or problem.split == "test"
        }
    raise InputError(f"{path} is not a file of ScienceQA; expected {EXPECTED_FILES}")


def _from_row(row: dict[str, str], location: str) -> tuple[str, QuestionInfo]:
    """Parse a row of test_answers.csv."""
    require_fields(row, ("pid", "answer", "subject", "grade", "has_image", "has_context"), location)
    info = QuestionInfo(
        letter=row["answer"],
        subject=_parse_subject(row["subject"], location),
        grade=_parse_grade(row["grade"], location),
        has_image=row["has_image"] == "1",
        has_context=row["has_context"] == "1",
    )
    return row["pid"], info


def _parse_subject(name: str, location: str) -> str:
    if name not in _SUBJECTS:
        raise InputError(f"{location}: {UnknownNameError('subject', name, _SUBJECTS)}")
    return _SUBJECTS[name]


def _parse_grade(text: str, location: str) -> int:
    number = text.removeprefix("grade")
    if not number.isdecimal():
        raise InputError(f"{location}: the grade should be a number, got {text!r}")
    return int(number)


def _from_llava_record(record: object, location: str) -> tuple[str, QuestionInfo]:
    """Parse a record of LLaVA's question files, whose gpt turn has the correct letter, in any layout.

    It is asked as by LLaVA's model_vqa_science.py: the image first, then the text without spaces around it, and, if the
    gpt turn is only a letter, the request for one.
    """
    conversation = from_record(record, location)
    question, answer = conversation.turns[0], conversation.turns[-1].text.strip()
    text = question.text.strip()
    is_labeled = "Options: (A) " in text
    choices = tuple(_parse_options(text) if is_labeled else _parse_choices(text.split("\n")))
    letter = science_qa_letter(answer)
    if letter is None or letter not in LETTERS[: len(choices)]:
        raise InputError(
            f"{location}: the right answer should be one of the {len(choices)} letters, got {answer!r}"
        )
    prompt = f"{text}\n{LETTER_PROMPT}" if answer == letter else text
    images = question.images
    info = QuestionInfo(
        letter=letter,
        choices=choices,
        has_image=bool(images),
        has_context="Context: N/A" not in text if is_labeled else text.startswith("Context: "),
        conversation=Conversation(
            conversation.id,
            (Turn("user", (*images, f"\n{prompt}") if images else (prompt,)),),
        ),
    )
    return conversation.id, info


def _parse_options(text: str) -> list[str]:
    """Return the choices of a question in a labeled layout: "Options: (A) red (B) blue"."""
    options = text[text.rindex("Options: (A) ") :].partition("\nBECAUSE:")[0]
    return re.split(r"\s*\([A-J]\) ", options)[1:]


def _parse_choices(lines: Sequence[str]) -> Iterable[str]:
    """Yield the choices of a question, which are the last lines that begin with "A. ", "B. " and so on."""
    for letter in LETTERS:
        prefix = f"{letter}. "
        matches = [line for line in lines if line.startswith(prefix)]
        if not matches:
            return
        yield matches[-1].removeprefix(prefix)


def _parse_problem(record: object, location: str) -> _ProblemSchema:
    try:
        return _ProblemSchema.model_validate(record)
    except ValidationError as error:
        raise InputError(f"{location}: {describe_validation_error(error, 'problem')}") from None


def _from_problem(name: str, problem: _ProblemSchema, layout_name: str) -> QuestionInfo:
    """Return the information in a problem of problems.json, with its prompt in a layout."""
    layout = parse_layout(_LAYOUTS.get(layout_name, layout_name))
    text = layout.question(problem)
    image = ImageRef(f"test/{name}/{problem.image}") if problem.image else None
    parts: tuple[str | ImageRef, ...] = (text,)
    if image:
        parts = (image, f"\n{text}") if layout.image_first else (f"{text}\n", image)
    location = f"problem {name}"
    return QuestionInfo(
        letter=problem.letter,
        choices=tuple(problem.choices),
        subject=_parse_subject(problem.subject, location) if problem.subject else None,
        grade=_parse_grade(problem.grade, location) if problem.grade else None,
        has_image=problem.image is not None,
        has_context=bool(problem.hint.strip()),
        conversation=Conversation(name, (Turn("user", parts),)),
    )
