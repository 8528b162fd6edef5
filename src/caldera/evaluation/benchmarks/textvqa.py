"""TextVQA: questions about text in an image, with ten people's answers to each (arXiv 1904.08920).

The official file is `TextVQA_0.5.1_val.json`. LLaVA's question file adds to each question a line of OCR words
("Reference OCR token: ..."), uses the image as its id, and has its own capitalization; its scores depend on that line.
Its answers are matched by image and question, as its own script does.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, Field

from caldera.datasets.vqa import read_list, validate
from caldera.errors import InputError
from caldera.evaluation.answer_matching import match_answers
from caldera.evaluation.benchmark import BenchmarkSpec, Item, Score, Sources
from caldera.evaluation.benchmarks.short_answers import (
    ShortAnswers,
    question_turn,
    short_answer_turn,
)
from caldera.evaluation.files import read_records, require_fields, require_texts
from caldera.evaluation.vqa_accuracy import m4c_soft_accuracy

_FILE = "TextVQA_0.5.1_val.json"
_INSTRUCT_BLIP_PROMPT = re.compile(r"OCR tokens: .*?Question: (.*?) Short answer:", re.DOTALL)
"""InstructBLIP's prompts, which LLaVA's script also parses."""

_QuestionKey = tuple[str, str]
"""Image, and question in lower case."""


class _QuestionSchema(BaseModel):
    question_id: int
    image_id: str
    question: str = Field(min_length=1)
    answers: list[str] | None = Field(default=None, min_length=10, max_length=10)

    @property
    def key(self) -> _QuestionKey:
        """Key of the question in LLaVA's files."""
        return self.image_id, self.question.strip().lower()


def load_questions(sources: Sources) -> ShortAnswers:
    """Load the questions with their answers; the prompts come from LLaVA's question file if it is given."""
    prompts = _llava_prompts(sources.questions) if sources.questions else None
    return _to_benchmark(_load(sources), prompts)


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score answers by question id, or LLaVA's by image and the question that their prompts repeat."""
    benchmark = _to_benchmark(_load(sources), None)
    records = sources.read_answers(answers)
    return benchmark.score(match_answers(records, benchmark.items, answers, extract_question))


def _load(sources: Sources) -> list[_QuestionSchema]:
    path = sources.require_annotations(_FILE)
    return [
        validate(_QuestionSchema, entry, f"{path}: data.{index}")
        for index, entry in enumerate(read_list(path, "data")[1])
    ]


def _to_benchmark(
    questions: Sequence[_QuestionSchema], prompts: Mapping[_QuestionKey, str] | None
) -> ShortAnswers:
    items = [_to_item(question, prompts) for question in questions]
    return ShortAnswers(name="textvqa", items=items, accuracy=m4c_soft_accuracy)


def _to_item(question: _QuestionSchema, prompts: Mapping[_QuestionKey, str] | None) -> Item:
    name, image = str(question.question_id), f"{question.image_id}.jpg"
    if prompts is None:
        conversation = short_answer_turn(name, image, question.question.capitalize())
    elif question.key in prompts:
        conversation = question_turn(name, image, prompts[question.key])
    else:
        raise InputError(
            f"LLaVA's question file lacks {question.question!r} of {image}; give the file of this split"
        )
    return Item(name, "text", "textvqa", conversation, tuple(question.answers or ()))


def _llava_prompts(path: Path) -> dict[_QuestionKey, str]:
    """Return the prompts of LLaVA's question file."""
    prompts: dict[_QuestionKey, str] = {}
    for location, record in read_records(path):
        require_fields(record, ("question_id",), location)
        require_texts(record, ("text",), location)
        prompts[str(record["question_id"]), extract_question(record["text"])] = record["text"]
    return prompts


def extract_question(prompt: str) -> str:
    """Return the question of a prompt, in lower case."""
    if match := _INSTRUCT_BLIP_PROMPT.match(prompt):
        return match[1].strip().lower()
    lines = prompt.split("\n")
    has_tokens_first = len(lines) > 1 and lines[0].startswith("Reference OCR token:")
    return lines[1 if has_tokens_first else 0].strip().lower()


TEXTVQA = BenchmarkSpec(
    name="textvqa",
    title="TextVQA",
    measures="reading and understanding of text in images",
    description="5,000 questions of the validation split 0.5.1 (textvqa.org/dataset)",
    chance={},
    primary_metric="accuracy",
    required_files=f"--annotations {_FILE}; --questions llava_textvqa_val_v051_ocr.jsonl for LLaVA's prompts",
    default_files=Sources(annotations=Path(_FILE), images=Path("train_images")),
    load=load_questions,
    score_official_files=score_answer_files,
)
