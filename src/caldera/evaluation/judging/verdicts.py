"""What a judge made of one answer: a score, or why there is none."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from caldera.evaluation.judging.protocols import AnswerOrder
from caldera.instructions.asking.parsing import RejectedReply


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
