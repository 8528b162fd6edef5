"""Optimizer, learning rate schedule and fp16 export of both backbones."""

import math
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from caldera.devices import fastest_attention, fastest_dtype

_Model = TypeVar("_Model", bound=PreTrainedModel)


def build_adamw(
    model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Build AdamW with weight decay on matrices only."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def optimizer_step(
    loss: torch.Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, learning_rate: float
) -> None:
    """Take one step with clipped gradients."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def autocast_matmul() -> torch.autocast:
    """Return a context that runs matrix products in bf16 if the CPU supports it in hardware, else in fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fastest_dtype() == torch.bfloat16)


def attention() -> str:
    """Return the fastest attention function for the precision of `autocast_matmul`."""
    return fastest_attention(fastest_dtype())


def cosine_schedule(step: int, total: int, warmup: int) -> float:
    """Return the fraction of the peak rate: linear warm-up over `warmup` steps, then cosine decay."""
    decay = 0.5 + 0.5 * math.cos(math.pi * step / total)
    return min(1.0, (step + 1) / warmup) * decay


def save_fp16(model: _Model, out: Path) -> None:
    """Save a copy of the model in fp16; the model itself does not change."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    nn.Module.half(copy)
    copy.save_pretrained(out)
