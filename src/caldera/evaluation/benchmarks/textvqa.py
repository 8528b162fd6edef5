"""TextVQA: questions whose answer stands written in the image, ten people's answers to each (arXiv 1904.08920).

The official file is `TextVQA_0.5.1_val.json`. LLaVA's question file adds to each question a line of words that a text
recognizer read ("Reference OCR token: ..."), names it by its image, and asks it in capitals of its own; its scores
hang on that line. Its answers are found by image and question, as its own script does.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from caldera.datasets.vqa import read_list, validate
from caldera.errors import InputError
from caldera.evaluation.benchmark import BenchmarkSpec, Item, Score, Sources
from caldera.evaluation.benchmarks.short_answers import (
    ShortAnswers,
    question_turn,
    short_answer_turn,
)
from caldera.evaluation.files import (
    AnswerRecord,
    join_names,
    read_answer_list,
    read_records,
    require_fields,
    texts_by_id,
)
from caldera.evaluation.vqa_accuracy import m4c_soft_accuracy

_FILE = "TextVQA_0.5.1_val.json"
_ASKED_OTHERWISE = re.compile(r"OCR tokens: .*?Question: (.*?) Short answer:", re.DOTALL)
"""How InstructBLIP's prompts, which LLaVA's script also reads, hold the question."""

_Key = tuple[str, str]
"""Image, and question in lower case."""


class _Question(BaseModel):
    model_config = ConfigDict(extra="ignore")

    question_id: int
    image_id: str
    question: str = Field(min_length=1)
    answers: list[str] | None = Field(default=None, min_length=10, max_length=10)

    @property
    def key(self) -> _Key:
        """What LLaVA's files find it by."""
        return self.image_id, self.question.lower()


def load_questions(sources: Sources) -> ShortAnswers:
    """Read the questions with their answers; the words to ask them in from LLaVA's question file where it is given.

    Raises:
        UsageError: The official file was not given.
        InputError: A file is missing or broken, or LLaVA's has no such question.
    """
    questions = _questions(sources)
    asked = _llava_texts(sources.questions) if sources.questions else None
    items = [_to_item(one, asked) for one in questions]
    return ShortAnswers(name="textvqa", items=items, accuracy=m4c_soft_accuracy)


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score answers by question id, or LLaVA's by image and the question that their prompts repeat.

    Raises:
        UsageError: The official file was not given.
        InputError: A file is missing or broken, or answers and questions do not belong together.
    """
    questions = _questions(sources)
    texts = texts_by_id(_with_question_ids(read_answer_list(answers), questions), answers)
    items = [_to_item(one, None) for one in questions]
    return ShortAnswers(name="textvqa", items=items, accuracy=m4c_soft_accuracy).score(texts)


def _questions(sources: Sources) -> list[_Question]:
    path = sources.require_annotations(_FILE)
    return [
        validate(_Question, entry, f"{path}: data.{index}")
        for index, entry in enumerate(read_list(path, "data")[1])
    ]


def _to_item(question: _Question, asked: Mapping[_Key, str] | None) -> Item:
    name, image = str(question.question_id), f"{question.image_id}.jpg"
    if asked is None:
        conversation = short_answer_turn(name, image, question.question.capitalize())
    elif question.key in asked:
        conversation = question_turn(name, image, asked[question.key])
    else:
        raise InputError(
            f"LLaVA's question file does not ask {question.question!r} of {image}; give the file of this split"
        )
    return Item(name, "text", "textvqa", conversation, tuple(question.answers or ()))


def _llava_texts(path: Path) -> dict[_Key, str]:
    """Return the words that LLaVA's question file asks each question in."""
    texts: dict[_Key, str] = {}
    for where, record in read_records(path):
        require_fields(record, ("question_id", "text"), where)
        texts[str(record["question_id"]), question_in(record["text"])] = record["text"]
    return texts


def question_in(prompt: str) -> str:
    """Return the question of a prompt alone, in lower case."""
    if found := _ASKED_OTHERWISE.match(prompt):
        return found[1].lower()
    lines = prompt.split("\n")
    return lines[1 if len(lines) > 1 and lines[0].startswith("Reference OCR token:") else 0].lower()


def _with_question_ids(
    answers: Sequence[AnswerRecord], questions: Sequence[_Question]
) -> list[AnswerRecord]:
    """Put question ids in the place of image ids. A question that is asked twice of an image takes answers in order.

    Raises:
        InputError: Answers are to questions that the file does not have.
    """
    ids = {str(one.question_id) for one in questions}
    waiting: dict[_Key, list[str]] = defaultdict(list)
    for one in reversed(questions):
        waiting[one.key].append(str(one.question_id))
    named: list[AnswerRecord] = []
    lost: list[str] = []
    for answer in answers:
        left = waiting.get((answer.id, question_in(answer.prompt)), [])
        if answer.id in ids:
            named.append(answer)
        elif left:
            name = left.pop() if len(left) > 1 else left[0]  # a surplus answer is a double one
            named.append(AnswerRecord(answer.where, name, answer.text, answer.prompt))
        else:
            lost.append(f"{answer.id} {question_in(answer.prompt)!r}")
    if lost:
        raise InputError(
            f"{len(lost)} answers are to no question of {_FILE}: {join_names(lost)}; is this the right split?"
        )
    return named


TEXTVQA = BenchmarkSpec(
    name="textvqa",
    title="TextVQA",
    measures="whether writing in pictures is read and understood",
    description="5,000 questions of the validation split 0.5.1 (textvqa.org/dataset)",
    chance={},
    primary_metric="accuracy",
    required_files=f"--truth {_FILE}; --questions llava_textvqa_val_v051_ocr.jsonl to ask as LLaVA does",
    default_files=Sources(annotations=Path("TextVQA_0.5.1_val.json"), images=Path("train_images")),
    load=load_questions,
    score_answer_files=score_answer_files,
)
