"""VizWiz: questions that blind people asked about images they took, ten answers to each (arXiv 1802.08218).

The official file is `val.json`, a list of questions named by their images; `test.json` has no answers, EvalAI's
server scores it. LLaVA's answers go by ids of its question file, which says the image of each. As for VQA v2, a
`.jsonl` goes through EvalAI's processor first, a `.json` is compared as it was handed in.

Whether a question can be answered at all is VizWiz's second task. It needs a confidence, which a chat does not give.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from caldera.datasets.vqa import validate
from caldera.evaluation.benchmark import BenchmarkSpec, Item, Score, Sources
from caldera.evaluation.benchmarks.short_answers import ShortAnswers, question_turn
from caldera.evaluation.benchmarks.vqav2 import preparation
from caldera.evaluation.files import read_answer_list, read_records, require_fields, texts_by_id
from caldera.evaluation.vqa_accuracy import normalize_submission, vizwiz_soft_accuracy
from caldera.instructions.request_phrases import SHORT_ANSWER

_FILE = "val.json"

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
"""What LLaVA-1.5 says before the sentence on short answers (P2, table 8)."""


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Answer(_Wire):
    answer: str


class _Question(_Wire):
    image: str
    question: str
    answer_type: str = "unknown"
    answers: list[_Answer] = []


def load_questions(sources: Sources) -> ShortAnswers:
    """Read the questions, with their answers where the split has them.

    Raises:
        UsageError: The official file was not given.
        InputError: It is missing or broken.
    """
    return _load(sources, normalize_submission)


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score LLaVA's answers (`.jsonl`, or a folder), or a file as handed in (`.json`).

    Raises:
        UsageError: The official file was not given.
        InputError: A file is missing or broken, or answers and questions do not belong together.
    """
    images = _llava_images(sources.questions) if sources.annotations and sources.questions else {}
    given = read_answer_list(answers)
    named = [replace(answer, id=images.get(answer.id, answer.id)) for answer in given]
    return _load(sources, preparation(answers)).score(texts_by_id(named, answers))


def _load(sources: Sources, prepare: Callable[[str], str]) -> ShortAnswers:
    path = sources.annotations or sources.require_questions(f"VizWiz's {_FILE}")
    questions = [validate(_Question, record, where) for where, record in read_records(path)]
    return ShortAnswers(
        name="vizwiz",
        items=_items(questions),
        accuracy=vizwiz_soft_accuracy,
        normalize=prepare,
        overall="overall",
        groups={"perAnswerType": "answer type: "},
    )


def _items(questions: Sequence[_Question]) -> list[Item]:
    return [
        Item(
            one.image,
            one.answer_type,
            "vizwiz",
            question_turn(one.image, one.image, f"{one.question}\n{UNANSWERABLE}\n{SHORT_ANSWER}"),
            tuple(answer.answer for answer in one.answers),
            slices=(f"answer type: {one.answer_type}",),
        )
        for one in questions
    ]


def _llava_images(path: Path) -> dict[str, str]:
    """Return the image of each question id of LLaVA's question file."""
    images: dict[str, str] = {}
    for where, record in read_records(path):
        require_fields(record, ("question_id", "image"), where)
        images[str(record["question_id"])] = str(record["image"])
    return images


VIZWIZ = BenchmarkSpec(
    name="vizwiz",
    title="VizWiz",
    measures="whether questions of blind people are answered, or said to have no answer",
    description="4,319 questions of val, 8,000 of test whose answers are not public (vizwiz.org)",
    chance={},
    primary_metric="overall",
    required_files=f"--truth {_FILE}; --questions LLaVA's question file where answers go by its ids",
    default_files=Sources(annotations=Path("val.json"), images=Path("val")),
    load=load_questions,
    score_answer_files=score_answer_files,
)
