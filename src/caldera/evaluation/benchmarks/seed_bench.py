"""SEED-Bench: multiple-choice questions about images and videos in twelve dimensions.

Its file has `questions`, each with `choice_a` to `choice_d`, the letter, a `question_type_id` and a `data_type`, and
`question_type`, the dimensions by number. LLaVA uses the middle frame of a video, which its script writes to
`SEED-Bench-video-image/TYPE_ID.png`. Its question file may be given as --questions, next to SEED-Bench.json as
--annotations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from caldera.errors import InputError
from caldera.evaluation.answer_matching import match_answers
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    Score,
    ScoredItems,
    Sources,
    mean,
    to_percent,
)
from caldera.evaluation.benchmarks.llava_questions import ask_as_llava, official_file
from caldera.evaluation.benchmarks.multiple_choice import (
    choice_turn,
    items_from_answers,
    parse_letters,
    score_letters,
)
from caldera.evaluation.files import check_unique, read_json, require_fields

_TOTALS = ("accuracy", "accuracy_when_read", "official_rule")
"""Metrics over images and videos."""

_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


def _score(items: Sequence[Item], answers: Mapping[str, str]) -> Score:
    """Score letters; `official_rule` is LLaVA's own, which accepts the bare letter only."""
    score = score_letters(items, parse_letters(items, answers))
    exact = mean(float(answers[item.id] == item.references[0]) for item in items)
    official = {"official_rule": {"accuracy": to_percent(exact)}}
    return replace(score, metrics=score.metrics | official)


def score_answer_files(sources: Sources, answers: Path) -> Score:
    """Score answers to all questions, or to those about images, which VLMEvalKit asks alone."""
    benchmark = load_questions(sources)
    texts = match_answers(sources.read_answers(answers), benchmark.items, answers)
    image_items = [item for item in benchmark.items if "image" in item.slices]
    if len(image_items) == len(benchmark.items) or texts.keys() != {
        item.id for item in image_items
    }:
        return benchmark.score(texts)
    score = replace(benchmark, items=image_items).score(texts)
    metrics = {key: value for key, value in score.metrics.items() if key not in _TOTALS}
    return replace(score, metrics=metrics)


def load_questions(sources: Sources) -> ScoredItems:
    """Load SEED-Bench.json; an item's category is the dimension, its slice "image" or "video"."""
    path = official_file(sources, "SEED-Bench.json")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("questions"), list):
        raise InputError(f"{path} should be SEED-Bench.json, an object with a list of questions")
    dimensions = {number: name for name, number in content.get("question_type", {}).items()}
    records = content["questions"]
    if not records:
        raise InputError(f"{path} holds no questions")
    items = [
        _to_item(record, dimensions, f"{path}: question {index}")
        for index, record in enumerate(records)
    ]
    check_unique((item.id for item in items), path)
    return ScoredItems("seed-bench", ask_as_llava(items, sources), _score)


def _to_item(record: dict[str, Any], dimensions: Mapping[int, str], location: str) -> Item:
    require_fields(
        record, ("question_id", "question", *_CHOICES, "answer", "question_type_id"), location
    )
    name, choices = str(record["question_id"]), tuple(str(record[field]) for field in _CHOICES)
    if record["answer"] not in tuple("ABCD"):
        raise InputError(f"{location}: the answer should be A, B, C or D, got {record['answer']!r}")
    number = record["question_type_id"]
    data_type = record.get("data_type", "image")
    if data_type not in ("image", "video"):
        raise InputError(f"{location}: data_type should be image or video, got {data_type!r}")
    if data_type == "image":
        image = f"SEED-Bench-image/{record.get('data_id', name)}"
    else:
        image = f"SEED-Bench-video-image/{number}_{name}.png"
    conversation = choice_turn(name, record["question"], choices, [image])
    category = dimensions.get(number, f"type {number}")
    return Item(name, category, "choice", conversation, (record["answer"],), choices, (data_type,))


SEED_BENCH = BenchmarkSpec(
    name="seed-bench",
    title="SEED-Bench",
    measures="understanding of images and videos in twelve dimensions, as a choice of four",
    description="19,242 questions, 14,233 about images and 5,009 about videos "
    "(huggingface.co/datasets/AILab-CVC/SEED-Bench)",
    chance={"accuracy": 25.0, "image": 25.0, "video": 25.0},
    primary_metric="accuracy",
    required_files="--questions SEED-Bench.json",
    default_files=Sources(questions=Path("SEED-Bench.json"), images=Path()),
    load=load_questions,
    from_answers=lambda records: ScoredItems("seed-bench", items_from_answers(records), _score),
    score_official_files=score_answer_files,
)
