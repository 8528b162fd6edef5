"""Review files in the layouts of LLaVA and Vicuna: parsed into verdicts, and written from verdicts.

Each line holds the judge's reply (`content`, or Vicuna's `text`) and the scores that a script parsed from it (`tuple`,
or `score`). Replies are parsed again; differences from the stored scores are counted.
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
"""Prefix of category names in reviews of LLaVA-Bench (In-the-Wild)."""

_ORDERS: tuple[AnswerOrder, ...] = ("reference first", "candidate first")


@dataclass(frozen=True, slots=True)
class ReviewFile:
    """Reviews of one judging run."""

    path: Path
    verdicts: tuple[Verdict, ...]
    metrics: dict[str, int]
    """Numbers of verdicts that differ from the stored scores, and that the official scripts would score (-1, -1)."""


def read_reviews(path: Path) -> list[ReviewFile]:
    """Read a review file, or each file of a folder as one run."""
    if not path.is_dir():
        return [_read_file(path)]
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise InputError(f"{path} holds no .jsonl file of reviews")
    runs = [_read_file(file) for file in files]
    first = {verdict.id for verdict in runs[0].verdicts}
    for run in runs[1:]:
        if different := first ^ {verdict.id for verdict in run.verdicts}:
            raise InputError(
                f"{run.path} and {runs[0].path} do not judge the same answers: only one has {join_names(different)}"
            )
    return runs


def _read_file(path: Path) -> ReviewFile:
    verdicts: list[Verdict] = []
    different: set[str] = set()
    official_unparsed = 0
    for location, record in read_records(path):
        verdict = _to_verdict(record, location)
        verdicts.append(verdict)
        stored = _stored_scores(record, location)
        if stored is not None and stored != verdict.scores_as_shown():
            different.add(verdict.id)
        official_unparsed += parse_pair_as_llava(verdict.text) is None
    _check_orders(verdicts, path)
    metrics = {"num_different": len(different), "official_unread": official_unparsed}
    return ReviewFile(path, tuple(verdicts), metrics)


def _check_orders(verdicts: Sequence[Verdict], path: Path) -> None:
    """Check that each answer is judged once in each order that occurs."""
    counts = Counter((verdict.id, verdict.order) for verdict in verdicts)
    if repeated := {name for (name, _), count in counts.items() if count > 1}:
        raise InputError(
            f"{path} judges {len(repeated)} answers more than once: {join_names(repeated)}; keep one review of each"
        )
    orders = {order for _, order in counts}
    if incomplete := {
        name for name, _ in counts if any((name, order) not in counts for order in orders)
    }:
        raise InputError(
            f"{path} judges others in both orders, but {len(incomplete)} answers in one alone: "
            f"{join_names(incomplete)}; a score in one order does not compare with those in both"
        )


def _to_verdict(record: dict[str, Any], location: str) -> Verdict:
    """Parse the judge's reply in a review."""
    if "text" in record and "content" not in record and "score" not in record:
        raise InputError(
            f"{location} is an answer and no review; have it judged first, with `caldera evaluate judge`"
        )
    require_fields(record, ("question_id", "content" if "text" not in record else "text"), location)
    text = record.get("content", record.get("text"))
    order = record.get("order", _ORDERS[0])
    if not isinstance(text, str) or order not in _ORDERS:
        raise InputError(
            f"{location}: content should be the judge's reply and order one of {', '.join(_ORDERS)}"
        )
    fields: dict[str, Any] = {
        "id": str(record["question_id"]),
        "category": str(record.get("category", "")).removeprefix(PREFIX),
        "order": order,
        "text": text,
    }
    if not text and record.get("failure"):
        return Verdict(**fields, failure=str(record["failure"]))
    try:
        first, second = parse_score_pair(text)
    except RejectedReply as rejection:
        return Verdict(**fields, failure=rejection.rule)
    return Verdict(**fields, scores=(second, first) if order == _ORDERS[1] else (first, second))


def _stored_scores(record: dict[str, Any], location: str) -> tuple[float, ...] | None:
    """Return the scores in the record, None if it has none."""
    stored = record.get("tuple", record.get("score"))
    if stored is None:
        return None
    if not isinstance(stored, list) or not all(isinstance(score, int | float) for score in stored):
        raise InputError(f"{location}: tuple should be two numbers, got {str(stored)[:40]!r}")
    return tuple(map(float, stored))


def format_reviews(verdicts: Sequence[Verdict], judge: str, prefix: str) -> str:
    """Format a run's verdicts in the official layout; `tuple` has the scores of Assistant 1 and 2, null if unparsed."""
    lines = []
    for number, verdict in enumerate(verdicts, start=1):
        record: dict[str, Any] = {
            "id": number,
            "question_id": int(verdict.id) if verdict.id.isdecimal() else verdict.id,
            "category": f"{prefix}{verdict.category}",
            "content": verdict.text,
            "tuple": [*verdict.scores_as_shown()] or None,
            "order": verdict.order,
            "judge": judge,
        }
        if verdict.failure:
            record["failure"] = verdict.failure
        lines.append(json.dumps(record) + "\n")
    return "".join(lines)
