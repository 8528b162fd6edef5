"""Say once which weights move, and report what that came to."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from caldera.errors import UsageError
from caldera.model.low_rank import lora_parameters
from caldera.training.stage import Part


@dataclass(frozen=True, slots=True)
class TrainableReport:
    """What of one part moves."""

    part: str
    parameters: int
    trainable: int


def set_trainable(model: nn.Module, parts: Sequence[Part]) -> list[TrainableReport]:
    """Freeze every child module of `model` that is not in `parts`, and report every child.

    Of a part that has low-rank factors only these move, whatever stands beside them.

    Raises:
        UsageError: A part is not a child of the model.
    """
    children = dict(model.named_children())
    if missing := set(parts) - children.keys():
        raise UsageError(f"no part is called {sorted(missing)}; the model has {sorted(children)}")
    for name, child in children.items():
        factors = lora_parameters(child)
        child.requires_grad_(name in parts and not factors)
        for factor in factors:
            factor.requires_grad_(name in parts)
    return [
        TrainableReport(
            name,
            sum(each.numel() for each in child.parameters()),
            sum(each.numel() for each in child.parameters() if each.requires_grad),
        )
        for name, child in children.items()
    ]
