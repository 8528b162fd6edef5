"""A model and a stage in, AdamW and its schedule out."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from caldera.training.stage import Stage


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
