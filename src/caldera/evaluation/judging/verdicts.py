"""Verdicts of a judge, and the fraction of unparsed replies that invalidates a run."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from caldera.errors import EvaluationError
from caldera.evaluation.judging.protocols import AnswerOrder
from caldera.llm_client.client import RejectedReply

MAX_UNPARSED = 0.01
"""Fraction of items without a usable verdict above which a run is not valid."""


def validity_metrics(total: int, failures: Mapping[str, str]) -> dict[str, Any]:
    """Count items with and without a verdict, the latter by reason.

    Returns:
        `num_valid`, `num_invalid`, `errors` by reason and `valid`, for the metrics of a score.
    """
    return {
        "num_valid": total - len(failures),
        "num_invalid": len(failures),
        "errors": dict(Counter(failures.values()).most_common()),
        "valid": total > 0 and len(failures) <= MAX_UNPARSED * total,
    }


def check_valid(metrics: Mapping[str, Any]) -> None:
    """Raise if too many items have no verdict."""
    if metrics.get("valid", True):
        return
    num_invalid = metrics["num_invalid"]
    total = metrics["num_valid"] + num_invalid
    reasons = ", ".join(f"{count} {reason}" for reason, count in metrics["errors"].items())
    raise EvaluationError(
        f"{num_invalid} of {total} items have no usable verdict ({reasons or 'nothing was judged'}), over the "
        f"{MAX_UNPARSED:.0%} allowed: the figures are not valid; fix the judge and run the same command again"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One verdict on one answer."""

    id: str
    category: str
    order: AnswerOrder = "reference first"
    scores: tuple[float, ...] = ()
    """Reference and answer, independent of `order`; or the answer's grade alone; empty if unparsed."""

    failure: str = ""
    """The rule that the reply breaks, or the reason why there is none; empty if there are scores."""

    detail: str = ""
    text: str = ""
    """The judge's reply."""

    model: str = ""
    """The judge's name as reported by its endpoint."""

    without_judge: bool = False
    """Whether the answer was compared without a judge."""

    def scores_as_shown(self) -> tuple[float, ...]:
        """Return the scores in the order of the judge's prompt."""
        return self.scores[::-1] if self.order == "candidate first" else self.scores


def group_by_answer(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Return the verdicts on each answer, by its id."""
    by_answer: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_answer[verdict.id].append(verdict)
    return dict(by_answer)


def parse_verdict(
    name: str, category: str, reply: str, parse: Callable[[str], tuple[float, ...]]
) -> Verdict:
    """Parse a judge's reply about the answer `name`, with the reference first."""
    try:
        scores = parse(reply)
    except RejectedReply as rejection:
        return Verdict(id=name, category=category, failure=rejection.rule, text=reply)
    return Verdict(id=name, category=category, scores=scores, text=reply)
