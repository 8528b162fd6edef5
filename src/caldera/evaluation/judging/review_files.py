"""Review files of LLaVA's and Vicuna's layouts in, verdicts out; and verdicts written in that layout.

Each line holds what the judge wrote (`content`, or Vicuna's `text`) and what a script made of it (`tuple`, or `score`).
What the judge wrote is read anew: where that gives something else than what is stored, it is counted.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldera.errors import InputError
from caldera.evaluation.files import join_names, read_records, require_fields
from caldera.evaluation.judging.protocols import AnswerOrder
from caldera.evaluation.judging.reply_parsing import parse_pair_as_llava, parse_score_pair
from caldera.evaluation.judging.verdicts import Verdict
from caldera.llm_client.client import RejectedReply

PREFIX = "llava_bench_"
"""What LLaVA-Bench (In-the-Wild) puts before a category's name in reviews."""

_ORDERS: tuple[AnswerOrder, ...] = ("reference first", "candidate first")


@dataclass(frozen=True, slots=True)
class ReviewFile:
    """One run of a judge."""

    path: Path
    verdicts: tuple[Verdict, ...]
    num_different: dict[str, tuple[float, ...]]
    """Ids whose stored scores are not what the text says, with the stored ones."""

    official_unread: tuple[str, ...]
    """Ids whose text the official scripts would score (-1, -1)."""

    @property
    def figures(self) -> dict[str, int]:
        """How many verdicts stand here otherwise than in the official scripts."""
        return {
            "num_different": len(self.num_different),
            "official_unread": len(self.official_unread),
        }


def read_reviews(path: Path) -> list[ReviewFile]:
    """Read a review file, or every one of a folder as a run of its own.

    Raises:
        InputError: A file is missing or broken, judges an answer twice, or others judge other answers.
    """
    if not path.is_dir():
        return [_read(path)]
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise InputError(f"{path} holds no .jsonl file of reviews")
    runs = [_read(file) for file in files]
    first = {verdict.id for verdict in runs[0].verdicts}
    for run in runs[1:]:
        if other := first ^ {verdict.id for verdict in run.verdicts}:
            raise InputError(
                f"{run.path} and {runs[0].path} do not judge the same answers: only one has {join_names(other)}"
            )
    return runs


def _read(path: Path) -> ReviewFile:
    """Read one file.

    Raises:
        InputError: It is broken, or judges an answer twice, or in one order where others are judged in both.
    """
    verdicts: list[Verdict] = []
    stored: dict[str, tuple[float, ...]] = {}
    official: list[str] = []
    for where, record in read_records(path):
        verdict = _verdict(record, where)
        verdicts.append(verdict)
        told = _stored(record, where)
        if told is not None and told != verdict.scores_as_shown():
            stored[verdict.id] = told
        if parse_pair_as_llava(verdict.text) is None:
            official.append(verdict.id)
    met = Counter((verdict.id, verdict.order) for verdict in verdicts)
    if double := {name for (name, _), count in met.items() if count > 1}:
        raise InputError(
            f"{path} judges {len(double)} answers more than once: {join_names(double)}; keep one review of each"
        )
    shown = {order for _, order in met}
    if half := {verdict.id for verdict in verdicts} - {
        name for name, _ in met if all((name, order) in met for order in shown)
    }:
        raise InputError(
            f"{path} judges others in both orders, but {len(half)} answers in one alone: {join_names(half)}; "
            "a score in one order does not compare with those in both"
        )
    return ReviewFile(path, tuple(verdicts), stored, tuple(official))


def _verdict(record: dict[str, Any], where: str) -> Verdict:
    """Read what the judge wrote.

    Raises:
        InputError: The record is no review.
    """
    if "text" in record and "content" not in record and "score" not in record:
        raise InputError(
            f"{where} is an answer and no review; have it judged first, with `caldera evaluate judge`"
        )
    require_fields(record, ("question_id", "content" if "text" not in record else "text"), where)
    text = record.get("content", record.get("text"))
    order = record.get("order", _ORDERS[0])
    if not isinstance(text, str) or order not in _ORDERS:
        raise InputError(
            f"{where}: content should be what the judge wrote and order one of {', '.join(_ORDERS)}"
        )
    about: dict[str, Any] = {
        "id": str(record["question_id"]),
        "category": str(record.get("category", "")).removeprefix(PREFIX),
        "order": order,
        "text": text,
    }
    if not text and record.get("failure"):
        return Verdict(**about, failure=str(record["failure"]))
    try:
        first, second = parse_score_pair(text)
    except RejectedReply as refusal:
        return Verdict(**about, failure=refusal.rule)
    return Verdict(**about, scores=(second, first) if order == _ORDERS[1] else (first, second))


def _stored(record: dict[str, Any], where: str) -> tuple[float, ...] | None:
    """Return the scores that the file states, None where it states none.

    Raises:
        InputError: They are not numbers.
    """
    stored = record.get("tuple", record.get("score"))
    if stored is None:
        return None
    if not isinstance(stored, list) or not all(isinstance(one, int | float) for one in stored):
        raise InputError(f"{where}: tuple should be two numbers, got {str(stored)[:40]!r}")
    return tuple(map(float, stored))


def format_reviews(verdicts: Sequence[Verdict], judge: str, prefix: str) -> str:
    """Write verdicts in the official layout, `tuple` as Assistant 1 and 2 were shown; null where it could not be read.

    Args:
        verdicts: Of one run.
        judge: The judge's digest.
        prefix: What stands before a category's name.
    """
    lines = []
    for number, verdict in enumerate(verdicts, start=1):
        line: dict[str, Any] = {
            "id": number,
            "question_id": int(verdict.id) if verdict.id.isdecimal() else verdict.id,
            "category": f"{prefix}{verdict.category}",
            "content": verdict.text,
            "tuple": [*verdict.scores_as_shown()] or None,
            "order": verdict.order,
            "judge": judge,
        }
        if verdict.failure:
            line["failure"] = verdict.failure
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)
