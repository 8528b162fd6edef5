"""LLaVA's question files: JSON lines of `question_id`, `image` and `text`, which is asked as it is.

They are in eval.zip of LLaVA's docs/Evaluation.md and have no correct answers, which are in the official files. Their
instructions are part of `text`, and their ids are those of LLaVA's answers.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from caldera.conversation import Conversation
from caldera.errors import InputError
from caldera.evaluation.answer_files import AnswerRecord, texts_by_id
from caldera.evaluation.answer_matching import match_records
from caldera.evaluation.benchmark import Item, Sources
from caldera.evaluation.benchmarks.short_answers import question_turn
from caldera.evaluation.files import (
    join_names,
    read_first_line,
    read_records,
    require_fields,
)

_FIELDS = ("question_id", "image", "text")


def llava_file(sources: Sources) -> Path | None:
    """Return the file of questions if it is LLaVA's, which its first line shows."""
    path = sources.questions
    if path is None or path.is_dir():
        return None
    record = read_first_line(path)
    return path if isinstance(record, dict) and {*_FIELDS} <= record.keys() else None


def read_llava_questions(path: Path) -> list[AnswerRecord]:
    """Return the questions of LLaVA's file in order, each with its text as prompt."""
    questions = []
    for location, record in read_records(path):
        require_fields(record, _FIELDS, location)
        name, image, text = (record[field] for field in _FIELDS)
        if not isinstance(image, str) or not isinstance(text, str) or not text.strip():
            raise InputError(f"{location}: image and text should be texts that are not empty")
        questions.append(AnswerRecord(location, str(name), "", text, fields=record))
    return questions


def llava_turn(name: str, question: AnswerRecord) -> Conversation:
    """Return a question of LLaVA's file as a conversation called `name`."""
    return question_turn(name, question.fields["image"], question.prompt)


def official_file(sources: Sources, description: str) -> Path:
    """Return the official file: --annotations, or else --questions, unless that is LLaVA's file.

    Raises:
        InputError: Next to --annotations, --questions is another file, which would not be asked.
    """
    if llava_file(sources) is None:
        if sources.annotations is None:
            return sources.require_questions(description)
        if sources.questions not in (None, sources.annotations):
            raise InputError(
                f"{sources.questions} is not LLaVA's question file: its first line has no question_id, image and "
                f"text; give that file, or {description} alone"
            )
    return sources.require_annotations(description)


def ask_as_llava(items: Sequence[Item], sources: Sources) -> Sequence[Item]:
    """Return the items with the images and texts of LLaVA's question file, if `sources.questions` is one.

    Raises:
        InputError: The file has other questions than the official one.
    """
    path = llava_file(sources)
    if path is None:
        return items
    matched = match_records(read_llava_questions(path), items, path)
    texts_by_id(matched, path)  # ids must differ
    questions = {question.id: question for question in matched}
    if different := questions.keys() ^ {item.id for item in items}:
        raise InputError(
            f"{path} and the official file differ in {len(different)} questions: {join_names(different)}; give the "
            "files of one split"
        )
    return [replace(item, conversation=llava_turn(item.id, questions[item.id])) for item in items]
