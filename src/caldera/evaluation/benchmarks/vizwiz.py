"""VizWiz: questions of blind people about images they took, with ten answers to each (arXiv 1802.08218).

The official file is `val.json`, a list of questions whose id is their image; `test.json` has no answers, EvalAI's
server scores it. The ids of LLaVA's answers are those of its question file, which names the image of each. As for
VQA v2, raw answers are normalized by EvalAI's processor, and a submitted list of `image` and `answer` is not.

VizWiz's second task, whether a question is answerable at all, needs a confidence, which a chat does not give.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from caldera.datasets.vqa import validate
from caldera.evaluation.answer_matching import match_answers
from caldera.evaluation.benchmark import BenchmarkSpec, Item, Score, Sources
from caldera.evaluation.benchmarks.short_answers import (
    ShortAnswers,
    normalizer_for,
    question_turn,
)
from caldera.evaluation.files import read_records, require_fields
from caldera.evaluation.vqa_accuracy import normalize_submission, vizwiz_soft_accuracy
from caldera.instructions.request_phrases import SHORT_ANSWER

_FILE = "val.json"

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
"""LLaVA-1.5's instruction before that to answer briefly (P2, table 8)."""


class _AnswerSchema(BaseModel):
    answer: str


class _QuestionSchema(BaseModel):
    image: str
    question: str
    answer_type: str = "unknown"
    answers: list[_AnswerSchema] = []


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score raw answers, or those of a submitted file verbatim."""
    images = _llava_images(sources.questions) if sources.annotations and sources.questions else {}
    records = [
        replace(record, fields=dict(record.fields) | {"question_id": images[record.id]})
        if record.id in images
        else record
        for record in sources.read_answers(answers)
    ]
    benchmark = load_questions(sources, normalizer_for(records, normalize_submission))
    return benchmark.score(match_answers(records, benchmark.items, answers))


def load_questions(
    sources: Sources, normalize: Callable[[str], str] = normalize_submission
) -> ShortAnswers:
    """Load the questions, with their answers if the split has them."""
    path = sources.annotations or sources.require_questions(f"VizWiz's {_FILE}")
    return ShortAnswers(
        name="vizwiz",
        items=[
            _to_item(validate(_QuestionSchema, record, location))
            for location, record in read_records(path)
        ],
        accuracy=vizwiz_soft_accuracy,
        normalize=normalize,
        overall="overall",
        groups={"perAnswerType": "answer type: "},
    )


def _to_item(question: _QuestionSchema) -> Item:
    image = question.image
    text = f"{question.question}\n{UNANSWERABLE}\n{SHORT_ANSWER}"
    return Item(
        image,
        question.answer_type,
        "vizwiz",
        question_turn(image, image, text),
        tuple(answer.answer for answer in question.answers),
        slices=(f"answer type: {question.answer_type}",),
    )


def _llava_images(path: Path) -> dict[str, str]:
    """Return the image of each question id of LLaVA's question file."""
    images: dict[str, str] = {}
    for location, record in read_records(path):
        require_fields(record, ("question_id", "image"), location)
        images[str(record["question_id"])] = str(record["image"])
    return images


VIZWIZ = BenchmarkSpec(
    name="vizwiz",
    title="VizWiz",
    measures="answers to questions of blind people, including the answer that there is none",
    description="4,319 questions of val, 8,000 of test, whose answers are not public (vizwiz.org)",
    chance={},
    primary_metric="overall",
    required_files=f"--annotations {_FILE}; --questions LLaVA's question file if answers have its ids",
    default_files=Sources(annotations=Path(_FILE), images=Path("val")),
    load=load_questions,
    score_official_files=score_answer_files,
)
