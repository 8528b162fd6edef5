"""Freezing, AdamW groups, schedule."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from caldera.errors import UsageError
from caldera.model.lora import lora_parameters
from caldera.training.stage import Part, Stage


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


def build_optimizer(model: nn.Module, stage: Stage) -> torch.optim.AdamW:
    """Build AdamW over the weights that train: a group for each rate, with decay on matrices only.

    Groups carry their peak rate as `peak`; `set_rate` scales it.
    """
    groups = [
        {"params": parameters, "peak": rate, "weight_decay": decay}
        for rate, decay, parameters in _parameter_groups(model, stage)
        if parameters
    ]
    return torch.optim.AdamW(groups, lr=stage.learning_rate, betas=stage.betas, fused=True)


def _parameter_groups(
    model: nn.Module, stage: Stage
) -> Iterator[tuple[float, float, list[nn.Parameter]]]:
    """Yield (peak rate, decay, parameters)."""
    for part, child in model.named_children():
        rate = stage.learning_rate_of(part)
        moving = [each for each in child.parameters() if each.requires_grad]
        yield rate, stage.weight_decay, [each for each in moving if each.ndim > 1]
        yield rate, 0.0, [each for each in moving if each.ndim <= 1]


def lr_factor(step: int, total: int, warmup_fraction: float) -> float:
    """Return the share of the peak rate at `step`, counted from 0 to `total` - 1.

    It rises in a line over the first ceil(total * warmup_fraction) steps, then falls along half a cosine to zero.
    """
    warmup = math.ceil(total * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, total - warmup))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to `factor` of its peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
