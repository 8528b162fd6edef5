"""Verdict; validity threshold."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from caldera.errors import EvaluationError
from caldera.evaluation.judging.protocols import AnswerOrder
from caldera.llm_client.client import RejectedReply

MAX_UNPARSED = 0.01
"""Share of items without a usable verdict over which a run is not valid."""


def validity_metrics(total: int, unread: Mapping[str, str]) -> dict[str, Any]:
    """Count items with and without a verdict, the latter by reason.

    Returns:
        `n_ok`, `n_err`, `errors` by reason and `valid`, for the figures of a score.
    """
    errors = Counter(unread.values())
    return {
        "n_ok": total - len(unread),
        "n_err": len(unread),
        "errors": dict(errors.most_common()),
        "valid": total > 0 and len(unread) <= MAX_UNPARSED * total,
    }


def check_valid(figures: Mapping[str, Any]) -> None:
    """Refuse figures that too few verdicts stand behind.

    Raises:
        EvaluationError: They are not valid.
    """
    if figures.get("valid", True):
        return
    total = figures["n_ok"] + figures["n_err"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in figures["errors"].items())
    raise EvaluationError(
        f"{figures['n_err']} of {total} items have no usable verdict ({reasons or 'nothing was judged'}), over the "
        f"{MAX_UNPARSED:.0%} allowed: the figures are not valid; mend the judge and run the same command again"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One verdict on one answer."""

    id: str
    """Of the answer."""

    category: str
    order: AnswerOrder = "reference first"
    scores: tuple[float, ...] = ()
    """Reference and answer, whatever order the judge saw them in; or the answer's grade alone; empty where unread."""

    failure: str = ""
    """The rule that the reply breaks, or why there is none; empty where there are scores."""

    detail: str = ""
    text: str = ""
    """What the judge wrote."""

    model: str = ""
    """The judge by the name that its endpoint gives it."""

    without_judge: bool = False
    """Whether the answer was compared without a judge."""

    def scores_as_shown(self) -> tuple[float, ...]:
        """Return the scores in the order that the judge saw the answers in."""
        return self.scores[::-1] if self.order == "candidate first" else self.scores


def group_by_answer(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Gather the verdicts on each answer."""
    gathered: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        gathered[verdict.id].append(verdict)
    return dict(gathered)


def parse_verdict(
    name: str, category: str, reply: str, read: Callable[[str], tuple[float, ...]]
) -> Verdict:
    """Read what a judge replied about the answer `name`, the reference shown first."""
    try:
        scores = read(reply)
    except RejectedReply as refusal:
        return Verdict(id=name, category=category, failure=refusal.rule, text=reply)
    return Verdict(id=name, category=category, scores=scores, text=reply)
