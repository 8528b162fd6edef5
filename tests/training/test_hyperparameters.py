"""Settings of a stage are checked when it is built, and all invalid ones are named."""

from dataclasses import replace
from typing import Any

import pytest

from caldera.errors import UsageError
from caldera.training.hyperparameters import PRETRAIN


def test_a_stage_names_every_invalid_setting() -> None:
    """All errors of a stage are in one message."""
    with pytest.raises(
        UsageError, match=r"learning_rate is -1; .*batch_size is 0; .*warmup_ratio is 2"
    ):
        replace(PRETRAIN, learning_rate=-1, batch_size=0, warmup_ratio=2)
    with pytest.raises(UsageError, match="name one or more of"):
        replace(PRETRAIN, trainable=("projektor",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0; it must be at least 1"),
        ({"max_steps": -3}, "max_steps is -3"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"micro_batch_size": -2}, "micro_batch_size is -2"),
        ({"projector_learning_rate": 0.0}, "projector_learning_rate is 0.0; it must be over 0"),
        ({"projector_learning_rate": -1.0}, "projector_learning_rate is -1.0"),
        ({"betas": (2.0, 3.0)}, r"betas are \(2.0, 3.0\); both must lie in \[0, 1\)"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"weight_decay": float("nan")}, "weight_decay is nan; it must be at least 0 and finite"),
        ({"validation_size": -1}, "validation_size is -1; it must be at least 0"),
    ],
)
def test_a_number_out_of_range_is_rejected(changes: dict[str, Any], message: str) -> None:
    """It is not treated as unset, and torch does not fail on it later."""
    with pytest.raises(UsageError, match=message):
        replace(PRETRAIN, **changes)
