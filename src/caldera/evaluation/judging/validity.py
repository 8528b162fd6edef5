"""Counts of verdicts in, whether figures may be used out: over one percent without a verdict and they may not."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from caldera.errors import EvaluationError

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
