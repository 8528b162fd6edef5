"""GQA: compositional questions made from scene graphs, with one correct answer each (arXiv 1902.09506).

The official file is `testdev_balanced_questions.json`, a JSON object from question ids to questions. Raw answers, such
as LLaVA's lines, are lowercased and lose trailing periods as in LLaVA's converter. The official list of `questionId`
and `prediction` is compared verbatim. Only balanced questions count, as in the official script. LLaVA's question file
may be given as --questions, next to the official file as --annotations.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, Field

from caldera.datasets.vqa import validate
from caldera.evaluation.answer_matching import match_answers
from caldera.evaluation.benchmark import BenchmarkSpec, Item, Score, Sources
from caldera.evaluation.benchmarks.llava_questions import ask_as_llava, official_file
from caldera.evaluation.benchmarks.short_answers import (
    ShortAnswers,
    normalizer_for,
    short_answer_turn,
)
from caldera.evaluation.files import read_object

_FILE = "testdev_balanced_questions.json"

_OPEN = "query"
"""Structural type of questions that are neither yes/no nor a choice."""


class _Types(BaseModel):
    structural: str
    semantic: str


class _QuestionSchema(BaseModel):
    image: str = Field(alias="imageId")
    question: str = Field(min_length=1)
    answer: str | None = None
    types: _Types | None = None
    balanced: bool = Field(alias="isBalanced", default=True)


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score raw answers, or those of a submitted file verbatim."""
    records = sources.read_answers(answers)
    benchmark = load_questions(sources, normalizer_for(records, normalize_as_llava))
    return benchmark.score(match_answers(records, benchmark.items, answers))


def normalize_as_llava(answer: str) -> str:
    """Return an answer as LLaVA's converter writes it."""
    return answer.rstrip(".").lower()


def _exact_accuracy(answer: str, references: Sequence[str]) -> float:
    return float(answer == references[0])


def load_questions(
    sources: Sources, normalize: Callable[[str], str] = normalize_as_llava
) -> ShortAnswers:
    """Load the questions with their answers."""
    path = official_file(sources, _FILE)
    content = read_object(path, f"of questions by id, as {_FILE} does")
    questions = {
        name: validate(_QuestionSchema, entry, f"{path}: {name}") for name, entry in content.items()
    }
    items = [_to_item(name, question) for name, question in questions.items() if question.balanced]
    return ShortAnswers(
        name="gqa",
        items=ask_as_llava(items, sources),
        accuracy=_exact_accuracy,
        normalize=normalize,
        groups={
            "": "answer: ",
            "accuracyPerStructuralType": "structural: ",
            "accuracyPerSemanticType": "semantic: ",
        },
    )


def _to_item(name: str, question: _QuestionSchema) -> Item:
    conversation = short_answer_turn(name, f"{question.image}.jpg", question.question)
    references = () if question.answer is None else (question.answer,)
    if question.types is None:
        return Item(name, "unknown", "gqa", conversation, references)
    structural, semantic = question.types.structural, question.types.semantic
    answer = "open" if structural == _OPEN else "binary"
    slices = (f"answer: {answer}", f"structural: {structural}", f"semantic: {semantic}")
    return Item(name, structural, "gqa", conversation, references, slices=slices)


GQA = BenchmarkSpec(
    name="gqa",
    title="GQA",
    measures="exact answers to questions that need several steps of visual reasoning",
    description="12,578 questions about 398 images of testdev_balanced (cs.stanford.edu/people/dorarad/gqa)",
    chance={},
    primary_metric="accuracy",
    required_files=f"--questions {_FILE}",
    default_files=Sources(questions=Path(_FILE), images=Path("images")),
    load=load_questions,
    score_official_files=score_answer_files,
)
