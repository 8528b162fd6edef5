"""MMMU: college questions with images, by 30 subjects in six disciplines.

The truth is answer_dict_val.json, `question_type` and `ground_truth` by id; answers are one JSON object of texts by id.
Choice questions are read strictly and scored. Open questions (one in seventeen of val) are scored by their own words or
number, more simply than the authors do, so `accuracy` is of choice questions and `open` stands apart.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from caldera.conversation import Conversation
from caldera.errors import InputError
from caldera.evaluation.annotation_questions import normalized
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    Score,
    Sources,
    check_answers,
    mean,
    score_by_item_id,
    to_percent,
)
from caldera.evaluation.benchmarks.multiple_choice import choice_turn, parse_letters, score_letters
from caldera.evaluation.files import read_json, require_fields
from caldera.instructions.request_phrases import LETTER_PROMPT, SHORT_ANSWER

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine", "Pharmacy", "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip
_DISCIPLINE_OF = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects}
_ID = re.compile(r"(?:dev|validation|test)_(\w+)_\d+")
_IMAGE = re.compile(r"<image (\d)>")
_OPEN = "open"
"""Form of questions without choices."""


@dataclass(frozen=True, slots=True)
class Mmmu:
    """The questions; an item's kind is its subject, its slice the discipline, its form choice or open."""

    items: Sequence[Item]
    name: str = "mmmu"
    max_new_tokens: int = 128

    def score(self, answers: Mapping[str, str]) -> Score:
        """Score choice questions; open ones beside them.

        Raises:
            InputError: Answers are missing, or belong to no question.
        """
        check_answers(self.items, answers)
        choice = [item for item in self.items if item.question_type != _OPEN]
        free = {
            item.id: float(_says(answers[item.id], item.references))
            for item in self.items
            if item.question_type == _OPEN
        }
        figures = (
            {"open": to_percent(mean(free.values())), "open_questions": len(free)} if free else {}
        )
        if not choice:  # of a split of which only some questions are asked
            return Score(mean(free.values()), metrics=figures, item_scores=free)
        letters = parse_letters(choice, {item.id: answers[item.id] for item in choice})
        score = score_letters(choice, letters)
        if not free:
            return score
        both = score.item_scores | free
        figures["accuracy_with_open"] = to_percent(mean(both.values()))
        return replace(score, metrics=score.metrics | figures, item_scores=both)


def _says(text: str, references: Sequence[str]) -> bool:
    """Tell whether a text is one of the references, by words or by its last number, to two decimals."""
    said = normalized(text)
    numbers = re.findall(r"-?\d[\d,]*\.?\d*", text)
    last = round(float(numbers[-1].replace(",", "")), 2) if numbers else None
    return any(
        said == normalized(one) or (last is not None and _number(one) == last) for one in references
    )


def _number(text: str) -> float | None:
    bare = text.replace(",", "").strip()
    return round(float(bare), 2) if re.fullmatch(r"-?\d+\.?\d*", bare) else None


def load_questions(sources: Sources) -> Mmmu:
    """Read the truth, or questions with it (id, question, options, answer, question_type).

    Raises:
        UsageError: No file was given.
        InputError: It is missing, broken, or of another form.
    """
    path = sources.questions or sources.require_annotations("answer_dict_val.json")
    content = read_json(path)
    if isinstance(content, dict) and content:
        items = [_of_truth(name, one, f"{path}: {name}") for name, one in content.items()]
    elif isinstance(content, list) and content:
        items = [_of_question(one, f"{path}[{at}]") for at, one in enumerate(content)]
    else:
        raise InputError(f"{path} should be answer_dict_val.json, or a list of questions")
    if all(item.question_type == _OPEN for item in items):
        raise InputError(f"{path} holds no choice question")
    return Mmmu(items)


def _of_truth(name: str, record: Any, where: str) -> Item:  # noqa: ANN401 - as JSON has it
    """Make an item of an entry of the answer file, which has no question."""
    if not isinstance(record, dict):
        raise InputError(f"{where} should be an object with question_type and ground_truth")
    require_fields(record, ("question_type", "ground_truth"), where)
    truth = record["ground_truth"]
    return _to_item(name, record["question_type"], truth, (), Conversation(name, ()))


def _of_question(record: Any, where: str) -> Item:  # noqa: ANN401 - as JSON has it
    """Make an item of a question; its options may be written as Python writes a list."""
    if not isinstance(record, dict):
        raise InputError(f"{where} should be an object with id, question, options and answer")
    require_fields(record, ("id", "question", "options", "answer", "question_type"), where)
    options = record["options"]
    try:
        listed = ast.literal_eval(options) if isinstance(options, str) else options
        choices = [str(one) for one in listed]
    except (ValueError, SyntaxError, TypeError) as error:
        raise InputError(f"{where}: options should be a list, got {str(options)[:40]!r}") from error
    text = _IMAGE.sub(r"(picture \1)", record["question"])
    numbers = dict.fromkeys(_IMAGE.findall(record["question"] + " ".join(choices)))
    images = [str(record.get(f"image_{number}", f"{record['id']}_{number}.png")) for number in numbers]  # fmt: skip
    sentence = LETTER_PROMPT if choices else SHORT_ANSWER
    asked = choice_turn(record["id"], text, choices, images, sentence)
    return _to_item(record["id"], record["question_type"], record["answer"], choices, asked)


def _to_item(
    name: str,
    kind: str,
    truth: Any,  # noqa: ANN401 - as JSON has it
    choices: Sequence[str],
    asked: Conversation,
) -> Item:
    """Make an item.

    Raises:
        InputError: Its id names no subject of MMMU.
    """
    found = _ID.fullmatch(name)
    subject = found[1] if found else ""
    if subject not in _DISCIPLINE_OF:
        raise InputError(
            f"{name!r} should be an id such as validation_Accounting_1, with one of MMMU's 30 subjects"
        )
    references = tuple(map(str, truth)) if isinstance(truth, list) else (str(truth),)
    form = "choice" if kind == "multiple-choice" else _OPEN
    return Item(name, subject, form, asked, references, tuple(choices), (_DISCIPLINE_OF[subject],))


MMMU = BenchmarkSpec(
    name="mmmu",
    title="MMMU",
    measures="college knowledge and reasoning over diagrams, tables, music, photographs, in 30 subjects",
    description="900 questions of the validation split, 30 a subject (huggingface.co/datasets/MMMU/MMMU)",
    chance={"accuracy": 22.1},
    primary_metric="accuracy",
    required_files="--truth answer_dict_val.json",
    load=load_questions,
    score_answer_files=score_by_item_id(load_questions),
)
