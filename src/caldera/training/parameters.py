"""Freezing of parts, AdamW's parameter groups, and the learning rate schedule."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from caldera.errors import UsageError
from caldera.model.lora import lora_parameters
from caldera.training.hyperparameters import Part, Stage


@dataclass(frozen=True, slots=True)
class TrainableReport:
    """Number of parameters of one part, of those that are trainable, and of its batch norms."""

    part: str
    parameters: int
    trainable: int
    batch_norms: int


def set_trainable(model: nn.Module, parts: Sequence[Part]) -> list[TrainableReport]:
    """Freeze every child module of `model` that is not in `parts`, and report every child.

    In a part with LoRA only the LoRA weights are trainable.

    Raises:
        UsageError: A part is not a child of the model.
    """
    children = dict(model.named_children())
    if missing := set(parts) - children.keys():
        raise UsageError(f"no part is called {sorted(missing)}; the model has {sorted(children)}")
    for name, child in children.items():
        lora_weights = lora_parameters(child)
        child.requires_grad_(name in parts and not lora_weights)
        for weight in lora_weights:
            weight.requires_grad_(name in parts)
    return [
        TrainableReport(
            name,
            sum(weight.numel() for weight in child.parameters()),
            sum(weight.numel() for weight in child.parameters() if weight.requires_grad),
            sum(isinstance(module, _BatchNorm) for module in child.modules()),
        )
        for name, child in children.items()
    ]


def build_optimizer(model: nn.Module, stage: Stage) -> torch.optim.AdamW:
    """Build AdamW over the trainable weights: a group for each learning rate, with weight decay on matrices only.

    Each group holds its peak learning rate as `base_lr`; `set_lr` scales it.
    """
    groups = [
        {"params": parameters, "base_lr": rate, "weight_decay": decay}
        for rate, decay, parameters in _parameter_groups(model, stage)
        if parameters
    ]
    return torch.optim.AdamW(groups, lr=stage.learning_rate, betas=stage.betas, fused=True)


def _parameter_groups(
    model: nn.Module, stage: Stage
) -> Iterator[tuple[float, float, list[nn.Parameter]]]:
    """Yield (peak learning rate, weight decay, parameters)."""
    for part, child in model.named_children():
        rate = stage.learning_rate_of(part)
        trainable = [weight for weight in child.parameters() if weight.requires_grad]
        yield rate, stage.weight_decay, [weight for weight in trainable if weight.ndim > 1]
        yield rate, 0.0, [weight for weight in trainable if weight.ndim <= 1]


def lr_factor(step: int, num_steps: int, warmup_ratio: float) -> float:
    """Return the fraction of the peak learning rate at `step`, counted from 0 to `num_steps` - 1.

    It rises linearly from 0 over the first ceil(num_steps * warmup_ratio) steps, then falls along half a cosine that
    would reach 0 at `num_steps`. These are the rates of transformers' trainer, so the first step of a warm-up has rate
    0: it changes AdamW's moments and no weight.
    """
    warmup = num_warmup_steps(num_steps, warmup_ratio)
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def num_warmup_steps(num_steps: int, warmup_ratio: float) -> int:
    """Return the number of steps in which the learning rate rises."""
    return math.ceil(num_steps * warmup_ratio)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to `factor` of its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
