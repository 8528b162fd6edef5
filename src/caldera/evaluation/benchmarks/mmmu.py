"""MMMU: college-level questions with images, in 30 subjects of six disciplines.

The correct answers are in answer_dict_val.json, `question_type` and `ground_truth` by id; answers are one JSON object
of texts by id. Choice questions are parsed strictly. Open questions (one in seventeen of val) are scored by their words
or number, more simply than the authors do, so `accuracy` covers choice questions only and `open` is a separate metric.
LLaVA has no script for MMMU; prompts are those of lmms-eval, with the marks of images as they are and an empty line
before the instruction.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from caldera.conversation import Conversation
from caldera.errors import InputError
from caldera.evaluation.annotation_questions import normalized
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    Score,
    ScoredItems,
    Sources,
    mean,
    to_percent,
)
from caldera.evaluation.benchmarks.multiple_choice import (
    choice_turn,
    items_from_answers,
    parse_letters,
    score_letters,
)
from caldera.evaluation.files import read_json, require_fields
from caldera.instructions.request_phrases import LETTER_PROMPT, SHORT_ANSWER

_SUBJECTS = """
Art and Design: Art, Art_Theory, Design, Music
Business: Accounting, Economics, Finance, Manage, Marketing
Science: Biology, Chemistry, Geography, Math, Physics
Health and Medicine: Basic_Medical_Science, Clinical_Medicine, Diagnostics_and_Laboratory_Medicine, Pharmacy, \
Public_Health
Humanities and Social Science: History, Literature, Psychology, Sociology
Tech and Engineering: Agriculture, Architecture_and_Engineering, Computer_Science, Electronics, Energy_and_Power, \
Materials, Mechanical_Engineering
"""
DISCIPLINES = {
    name: tuple(subjects.split(", "))
    for name, _, subjects in (line.partition(": ") for line in _SUBJECTS.strip().splitlines())
}
"""Subjects by discipline."""

_DISCIPLINE_OF = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects}
_ID = re.compile(r"(?:dev|validation|test)_(\w+)_\d+")
_IMAGE = re.compile(r"<image (\d)>")
_OPEN = "open"
"""Question type of questions without choices."""


def _score(items: Sequence[Item], answers: Mapping[str, str]) -> Score:
    """Score choice questions, and open ones as a separate metric."""
    choice_items = [item for item in items if item.question_type != _OPEN]
    open_scores = {
        item.id: float(_matches_open_answer(answers[item.id], item.references))
        for item in items
        if item.question_type == _OPEN
    }
    metrics: dict[str, float] = {}
    if open_scores:
        metrics["open"] = to_percent(mean(open_scores.values()))
        metrics["open_questions"] = len(open_scores)
    # A limited run may have open questions only.
    if not choice_items:
        return Score(mean(open_scores.values()), metrics=metrics, item_scores=open_scores)
    letters = parse_letters(choice_items, {item.id: answers[item.id] for item in choice_items})
    score = score_letters(choice_items, letters)
    if not open_scores:
        return score
    all_scores = score.item_scores | open_scores
    metrics["accuracy_with_open"] = to_percent(mean(all_scores.values()))
    return replace(score, metrics=score.metrics | metrics, item_scores=all_scores)


def _matches_open_answer(text: str, references: Sequence[str]) -> bool:
    """Return whether a text equals a reference by its words or by its last number, to two decimals."""
    words = normalized(text)
    numbers = re.findall(r"-?\d[\d,]*\.?\d*", text)
    last = round(float(numbers[-1].replace(",", "")), 2) if numbers else None
    return any(
        words == normalized(reference) or (last is not None and _parse_number(reference) == last)
        for reference in references
    )


def _parse_number(text: str) -> float | None:
    digits = text.replace(",", "").strip()
    return round(float(digits), 2) if re.fullmatch(r"-?\d+\.?\d*", digits) else None


def load_questions(sources: Sources) -> ScoredItems:
    """Load the correct answers, or questions with them (id, question, options, answer, question_type).

    An item's category is the subject, its slice the discipline, and its type choice or open.
    """
    path = sources.questions or sources.require_annotations("answer_dict_val.json")
    content = read_json(path)
    if isinstance(content, dict) and content:
        for name, entry in content.items():
            require_fields(entry, ("question_type", "ground_truth"), f"{path}: {name}")
        # The answer file has no question texts.
        items = [
            _to_item(
                name, entry["question_type"], entry["ground_truth"], (), Conversation(name, ())
            )
            for name, entry in content.items()
        ]
    elif isinstance(content, list) and content:
        items = [_from_question(entry, f"{path}[{index}]") for index, entry in enumerate(content)]
    else:
        raise InputError(f"{path} should be answer_dict_val.json, or a list of questions")
    if all(item.question_type == _OPEN for item in items):
        raise InputError(f"{path} holds no choice question")
    return ScoredItems("mmmu", items, _score)


def _from_question(record: object, location: str) -> Item:
    """Return the item of a question; its options may be a Python list literal."""
    record = require_fields(
        record, ("id", "question", "options", "answer", "question_type"), location
    )
    options = record["options"]
    try:
        values = ast.literal_eval(options) if isinstance(options, str) else options
        choices = [str(value) for value in values]
    except (ValueError, SyntaxError, TypeError) as error:
        raise InputError(
            f"{location}: options should be a list, got {str(options)[:40]!r}"
        ) from error
    name = record["id"]
    numbers = dict.fromkeys(_IMAGE.findall(record["question"] + " ".join(choices)))
    images = [str(record.get(f"image_{number}", f"{name}_{number}.png")) for number in numbers]
    instruction = LETTER_PROMPT if choices else SHORT_ANSWER
    conversation = choice_turn(name, record["question"], choices, images, f"\n{instruction}")
    return _to_item(name, record["question_type"], record["answer"], choices, conversation)


def _to_item(
    name: str, kind: str, answer: object, choices: Sequence[str], conversation: Conversation
) -> Item:
    match = _ID.fullmatch(name)
    subject = match[1] if match else ""
    if subject not in _DISCIPLINE_OF:
        raise InputError(
            f"{name!r} should be an id such as validation_Accounting_1, with one of MMMU's 30 subjects"
        )
    references = tuple(map(str, answer)) if isinstance(answer, list) else (str(answer),)
    question_type = "choice" if kind == "multiple-choice" else _OPEN
    slices = (_DISCIPLINE_OF[subject],)
    return Item(name, subject, question_type, conversation, references, tuple(choices), slices)


MMMU = BenchmarkSpec(
    name="mmmu",
    title="MMMU",
    measures="college knowledge and reasoning over diagrams, tables, music, photographs, in 30 subjects",
    description="900 questions of the validation split, 30 per subject (huggingface.co/datasets/MMMU/MMMU)",
    chance={"accuracy": 22.1},
    primary_metric="accuracy",
    required_files="--annotations answer_dict_val.json",
    load=load_questions,
    from_answers=lambda records: ScoredItems("mmmu", items_from_answers(records), _score),
)
