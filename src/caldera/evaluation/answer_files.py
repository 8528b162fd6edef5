"""Answers that somebody's model gave in, their texts by question id out; what does not belong together is refused.

Three layouts are in use: LLaVA's JSON lines (`question_id`, `prompt`, `text`), JSON lists of such records under other
names (`answer`, `prediction`, `response`), and one JSON object of texts by id. LLaVA also writes one file for each
graphics card, so a folder of such files is read as one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldera.errors import InputError
from caldera.evaluation.official_files import join_names, read_json, read_records, read_rows

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
