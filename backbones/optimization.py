"""How both backbones are stepped: AdamW that decays matrices, a rate that rises and falls, a copy in fp16."""

import math
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from caldera.devices import fastest_attention, fastest_dtype

_Model = TypeVar("_Model", bound=PreTrainedModel)


def build_adamw(
    model: nn.Module, rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Build AdamW with decay on matrices only."""
    matrices = [each for each in model.parameters() if each.ndim > 1]
    others = [each for each in model.parameters() if each.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)


def optimizer_step(
    loss: torch.Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, rate: float
) -> None:
    """Take one clipped step at `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def autocast_matmul() -> torch.autocast:
    """Run matrix products of a block in bf16 where the processor does that in hardware, else in fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fastest_dtype() == torch.bfloat16)


def attention() -> str:
    """Return the attention function that goes with it."""
    return fastest_attention(fastest_dtype())


def cosine_schedule(step: int, total: int, warmup: int) -> float:
    """Return the share of the peak rate: it rises over `warmup` steps and falls along half a cosine."""
    falling = 0.5 + 0.5 * math.cos(math.pi * step / total)
    return min(1.0, (step + 1) / warmup) * falling


def save_fp16(model: _Model, out: Path) -> None:
    """Write a copy of the model in fp16; the model goes on as it is."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    nn.Module.half(copy)
    copy.save_pretrained(out)
