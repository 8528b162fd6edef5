"""GQA: compositional questions made from scene graphs, one right answer each (arXiv 1902.09506).

The official file is `testdev_balanced_questions.json`, an object of questions by id. Answers in a `.jsonl` are LLaVA's
raw ones; its converter strips periods at their ends and puts them in lower case. A `.json` is the official list of
`questionId` and `prediction`, and is compared as it is. Only balanced questions count, as in the official script.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from caldera.datasets.vqa import validate
from caldera.errors import InputError
from caldera.evaluation.benchmark import BenchmarkSpec, Item, Score, Sources
from caldera.evaluation.benchmarks.short_answers import ShortAnswers, short_answer_turn
from caldera.evaluation.files import read_answers, read_json

_FILE = "testdev_balanced_questions.json"

_OPEN = "query"
"""Structural type of the questions that yes, no or a choice cannot answer."""


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Types(_Wire):
    structural: str
    semantic: str


class _Question(_Wire):
    image: str = Field(alias="imageId")
    question: str = Field(min_length=1)
    answer: str | None = None
    types: _Types | None = None
    balanced: bool = Field(alias="isBalanced", default=True)


def load_questions(sources: Sources) -> ShortAnswers:
    """Read the questions with their answers.

    Raises:
        UsageError: No questions were given.
        InputError: The file is missing or broken.
    """
    return _load(sources, as_submitted)


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score LLaVA's answers (`.jsonl`, or a folder), or a file as handed in (`.json`).

    Raises:
        UsageError: No questions were given.
        InputError: A file is missing or broken, or answers and questions do not belong together.
    """
    benchmark = _load(sources, str if answers.suffix == ".json" else as_submitted)
    return benchmark.score(read_answers(answers))


def as_submitted(answer: str) -> str:
    """Return an answer as LLaVA's converter writes it."""
    return answer.rstrip(".").lower()


def _exactly(answer: str, right: Sequence[str]) -> float:
    return float(answer == right[0])


def _load(sources: Sources, prepare: Callable[[str], str]) -> ShortAnswers:
    path = sources.annotations or sources.require_questions(_FILE)
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} should hold an object of questions by id, as {_FILE} does")
    questions = {
        name: validate(_Question, entry, f"{path}: {name}") for name, entry in content.items()
    }
    return ShortAnswers(
        name="gqa",
        items=[_to_item(name, one) for name, one in questions.items() if one.balanced],
        accuracy=_exactly,
        normalize=prepare,
        groups={
            "": "answer: ",
            "accuracyPerStructuralType": "structural: ",
            "accuracyPerSemanticType": "semantic: ",
        },
    )


def _to_item(name: str, question: _Question) -> Item:
    conversation = short_answer_turn(name, f"{question.image}.jpg", question.question)
    right = () if question.answer is None else (question.answer,)
    if question.types is None:
        return Item(name, "unknown", "gqa", conversation, right)
    structural, semantic = question.types.structural, question.types.semantic
    answer = "open" if structural == _OPEN else "binary"
    return Item(
        name,
        structural,
        "gqa",
        conversation,
        right,
        slices=(f"answer: {answer}", f"structural: {structural}", f"semantic: {semantic}"),
    )


GQA = BenchmarkSpec(
    name="gqa",
    title="GQA",
    measures="whether questions that need several steps of looking are answered exactly",
    description="12,578 questions about 398 pictures of testdev_balanced (cs.stanford.edu/people/dorarad/gqa)",
    chance={},
    primary_metric="accuracy",
    required_files=f"--questions {_FILE}",
    default_files=Sources(questions=Path("testdev_balanced_questions.json"), images=Path("images")),
    load=load_questions,
    score_answer_files=score_answer_files,
)
