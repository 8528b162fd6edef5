"""VizWiz: questions of blind people about images they took, with ten answers to each (arXiv 1802.08218).

The official file is `val.json`, a list of questions whose id is their image; `test.json` has no answers, EvalAI's
server scores it. LLaVA's question file capitalizes each question and keeps the spaces around it; the ids of LLaVA's
answers are those of that file, which names the image of each. As for VQA v2, raw answers are normalized by EvalAI's
processor, and a submitted list of `image` and `answer` is not.

VizWiz's second task, whether a question is answerable at all, needs a confidence, which a chat does not give.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from caldera.datasets.vqa import validate
from caldera.evaluation.answer_matching import match_answers
from caldera.evaluation.benchmark import BenchmarkSpec, Item, Score, Sources
from caldera.evaluation.benchmarks.llava_questions import (
    ask_as_llava,
    llava_file,
    llava_turn,
    official_file,
    read_llava_questions,
)
from caldera.evaluation.benchmarks.short_answers import (
    ShortAnswers,
    normalizer_for,
    question_turn,
)
from caldera.evaluation.files import check_unique, read_records
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
    path = llava_file(sources)
    questions = read_llava_questions(path) if path else []
    images = {question.id: question.fields["image"] for question in questions}
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
    """Load the questions, with their answers if the split has them; of test, LLaVA's file alone is enough."""
    return ShortAnswers(
        name="vizwiz",
        items=_load_items(sources),
        accuracy=vizwiz_soft_accuracy,
        normalize=normalize,
        overall="overall",
        groups={"perAnswerType": "answer type: "},
    )


def _load_items(sources: Sources) -> Sequence[Item]:
    path = llava_file(sources)
    if path and sources.annotations is None:
        conversations = [
            llava_turn(question.fields["image"], question)
            for question in read_llava_questions(path)
        ]
        check_unique((conversation.id for conversation in conversations), path)
        return [Item(turn.id, "unknown", "vizwiz", turn, ()) for turn in conversations]
    items = [
        _to_item(validate(_QuestionSchema, record, location))
        for location, record in read_records(official_file(sources, f"VizWiz's {_FILE}"))
    ]
    return ask_as_llava(items, sources)


def _to_item(question: _QuestionSchema) -> Item:
    image = question.image
    text = f"{question.question.capitalize()}\n{UNANSWERABLE}\n{SHORT_ANSWER}"
    return Item(
        image,
        question.answer_type,
        "vizwiz",
        question_turn(image, image, text),
        tuple(answer.answer for answer in question.answers),
        slices=(f"answer type: {question.answer_type}",),
    )


VIZWIZ = BenchmarkSpec(
    name="vizwiz",
    title="VizWiz",
    measures="answers to questions of blind people, including the answer that there is none",
    description="4,319 questions of val, 8,000 of test, whose answers are not public (vizwiz.org)",
    chance={},
    primary_metric="overall",
    required_files=f"--annotations {_FILE}; --questions LLaVA's question file for its texts and ids",
    default_files=Sources(annotations=Path(_FILE), images=Path("val")),
    load=load_questions,
    score_official_files=score_answer_files,
)
