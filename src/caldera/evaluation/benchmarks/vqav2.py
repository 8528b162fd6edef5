"""VQA v2: open questions about COCO images, with ten people's answers to each (arXiv 1612.00837).

The official files are `v2_OpenEnded_mscoco_SPLIT_questions.json` and `v2_mscoco_SPLIT_annotations.json`. LLaVA's split,
test-dev2015, has no public annotations; EvalAI's server scores it. LLaVA's question file may take the place of the
official one.

Raw answers, such as LLaVA's lines, are normalized by EvalAI's processor, as LLaVA's converter does before submission. A
submitted list of `question_id` and `answer` is compared verbatim.
"""

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, Field

from caldera.conversation import Conversation
from caldera.datasets.vqa import image_names, read_list, validate
from caldera.errors import InputError
from caldera.evaluation.answer_matching import match_answers
from caldera.evaluation.benchmark import BenchmarkSpec, Item, Score, Sources
from caldera.evaluation.benchmarks.llava_questions import (
    llava_file,
    llava_turn,
    read_llava_questions,
)
from caldera.evaluation.benchmarks.short_answers import (
    ShortAnswers,
    normalizer_for,
    short_answer_turn,
)
from caldera.evaluation.files import check_unique
from caldera.evaluation.vqa_accuracy import normalize_submission, vqa_soft_accuracy

_QUESTIONS = "v2_OpenEnded_mscoco_SPLIT_questions.json"


class _QuestionSchema(BaseModel):
    question_id: int
    image_id: int
    question: str = Field(min_length=1)


class _AnswerSchema(BaseModel):
    answer: str


class _AnnotationSchema(BaseModel):
    question_id: int
    question_type: str
    answer_type: str
    answers: list[_AnswerSchema] = Field(min_length=1)


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score raw answers, or those of a submitted file verbatim."""
    sources.require_annotations("v2_mscoco_SPLIT_annotations.json")
    records = sources.read_answers(answers)
    benchmark = load_questions(sources, normalizer_for(records, normalize_submission))
    return benchmark.score(match_answers(records, benchmark.items, answers))


def load_questions(
    sources: Sources, normalize: Callable[[str], str] = normalize_submission
) -> ShortAnswers:
    """Load questions, and annotations if given."""
    annotations = _load_annotations(sources.annotations)
    items = [
        _to_item(conversation, annotations.get(conversation.id))
        for conversation in _load_conversations(sources)
    ]
    if annotations and (num_unknown := len(annotations.keys() - {item.id for item in items})):
        raise InputError(
            f"{sources.annotations} has {num_unknown} annotations of questions that are not in {sources.questions}; "
            "give the files of one split"
        )
    return ShortAnswers(
        name="vqav2",
        items=items,
        accuracy=vqa_soft_accuracy,
        normalize=normalize,
        overall="overall",
        groups={"perAnswerType": "answer type: ", "perQuestionType": "question type: "},
    )


def _load_conversations(sources: Sources) -> list[Conversation]:
    """Return the questions of the official file, or of LLaVA's."""
    if path := llava_file(sources):
        questions = read_llava_questions(path)
        check_unique((question.id for question in questions), path)
        return [llava_turn(question.id, question) for question in questions]
    path = sources.require_questions(_QUESTIONS)
    header, entries = read_list(path, "questions")
    split = str(header.get("data_subtype", "val2014"))
    conversations = []
    for index, entry in enumerate(entries):
        question = validate(_QuestionSchema, entry, f"{path}: questions.{index}")
        image, _ = image_names(question.image_id, split)
        conversations.append(short_answer_turn(str(question.question_id), image, question.question))
    return conversations


def _load_annotations(path: Path | None) -> dict[str, _AnnotationSchema]:
    """Return annotations by question id."""
    if path is None:
        return {}
    annotations = [
        validate(_AnnotationSchema, entry, f"{path}: annotations.{index}")
        for index, entry in enumerate(read_list(path, "annotations")[1])
    ]
    return {str(annotation.question_id): annotation for annotation in annotations}


def _to_item(conversation: Conversation, annotation: _AnnotationSchema | None) -> Item:
    """Return an item; without an annotation it has no references."""
    if annotation is None:
        return Item(conversation.id, "unknown", "vqa", conversation, ())
    return Item(
        conversation.id,
        annotation.answer_type,
        "vqa",
        conversation,
        tuple(answer.answer for answer in annotation.answers),
        slices=(
            f"answer type: {annotation.answer_type}",
            f"question type: {annotation.question_type}",
        ),
    )


VQAV2 = BenchmarkSpec(
    name="vqav2",
    title="VQA v2",
    measures="agreement with people's answers to open questions about everyday images",
    description="214,354 questions of val2014, 107,394 of test-dev2015, whose answers are not public "
    "(visualqa.org/download)",
    chance={},
    primary_metric="overall",
    required_files=f"--questions {_QUESTIONS} --annotations v2_mscoco_SPLIT_annotations.json",
    default_files=Sources(
        questions=Path("v2_OpenEnded_mscoco_val2014_questions.json"),
        annotations=Path("v2_mscoco_val2014_annotations.json"),
        images=Path("val2014"),
    ),
    load=load_questions,
    score_official_files=score_answer_files,
)
