"""SEED-Bench: choice questions about images and videos in twelve dimensions (spec 7).

Its file holds `questions`, each with `choice_a` to `choice_d`, the letter, a `question_type_id` and a `data_type`, and
`question_type`, the dimensions by number. LLaVA shows the middle frame of a video.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from caldera.errors import InputError
from caldera.evaluation.benchmark import (
    BenchmarkSpec,
    Item,
    Score,
    Sources,
    mean,
    score_by_item_id,
    to_percent,
)
from caldera.evaluation.benchmarks.multiple_choice import choice_turn, parse_letters, score_letters
from caldera.evaluation.files import check_unique, read_json, require_fields

_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


@dataclass(frozen=True, slots=True)
class SeedBench:
    """The questions; an item's kind is its dimension, its slice "image" or "video"."""

    items: Sequence[Item]
    name: str = "seed-bench"
    max_new_tokens: int = 16

    def score(self, answers: Mapping[str, str]) -> Score:
        """Score letters; LLaVA's own rule, that a text is the letter and nothing else, stands beside.

        Raises:
            InputError: Answers are missing, or belong to no question.
        """
        score = score_letters(self.items, parse_letters(self.items, answers))
        equal = mean(float(answers[item.id] == item.references[0]) for item in self.items)
        return replace(score, metrics=score.metrics | {"official_rule": {"accuracy": to_percent(equal)}})  # fmt: skip


def load_questions(sources: Sources) -> SeedBench:
    """Read SEED-Bench.json.

    Raises:
        UsageError: It was not given.
        InputError: It is missing, broken, or of another form.
    """
    path = sources.questions or sources.require_annotations("SEED-Bench.json")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("questions"), list):
        raise InputError(f"{path} should be SEED-Bench.json, an object with a list of questions")
    types = content.get("question_type", {})
    kinds = {number: name for name, number in types.items()}
    questions = content["questions"]
    if not questions:
        raise InputError(f"{path} holds no questions")
    items = [_to_item(one, kinds, f"{path}: question {at}") for at, one in enumerate(questions)]
    check_unique((item.id for item in items), path)
    return SeedBench(items)


def _to_item(record: dict[str, Any], kinds: Mapping[int, str], where: str) -> Item:
    require_fields(
        record, ("question_id", "question", *_CHOICES, "answer", "question_type_id"), where
    )
    name, choices = str(record["question_id"]), tuple(str(record[field]) for field in _CHOICES)
    if record["answer"] not in tuple("ABCD"):
        raise InputError(f"{where}: the answer should be A, B, C or D, got {record['answer']!r}")
    number = record["question_type_id"]
    shown = record.get("data_type", "image")
    if shown not in ("image", "video"):
        raise InputError(f"{where}: data_type should be image or video, got {shown!r}")
    path = str(record.get("data_id", name))
    image = f"SEED-Bench-image/{path}" if shown == "image" else f"SEED-Bench-video-image/{name}.jpg"
    asked = choice_turn(name, record["question"], choices, [image])
    kind = kinds.get(number, f"type {number}")
    return Item(name, kind, "choice", asked, (record["answer"],), choices, (shown,))


SEED_BENCH = BenchmarkSpec(
    name="seed-bench",
    title="SEED-Bench",
    measures="understanding of pictures and videos in twelve dimensions, by choice of four",
    description="19,242 questions, 14,233 about pictures and 5,009 about videos "
    "(huggingface.co/datasets/AILab-CVC/SEED-Bench)",
    chance={"accuracy": 25.0, "image": 25.0, "video": 25.0},
    primary_metric="accuracy",
    required_files="--questions SEED-Bench.json",
    default_files=Sources(questions=Path("SEED-Bench.json"), images=Path()),
    load=load_questions,
    score_answer_files=score_by_item_id(load_questions),
)
