"""Batches in, one optimizer step done: the mean loss over all learned tokens, whatever way they were split."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from caldera.batches.collate import Batch
from caldera.errors import TrainingError
from caldera.model.llava import Llava
from caldera.training.devices import DeviceConfig


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step came to."""

    loss: float
    """Nats per learned token."""

    num_learned: int
    """Learned tokens."""

    num_tokens: int
    """Tokens that went through the model: without padding, and those that conversations share once."""

    grad_norm: float
    """Norm of the gradient before clipping."""


def training_step(
    model: Llava,
    micro_batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float,
    compute: DeviceConfig,
    record_ids: Sequence[str],
) -> StepReport:
    """Take one step of the optimizer on the mean loss over all micro-batches' learned tokens.

    Args:
        model: What learns.
        micro_batches: They are summed before the step, so how a batch is split does not change it.
        optimizer: Holds the weights that move.
        max_grad_norm: Gradients are scaled down to it.
        compute: Device and precision.
        names: Ids of the records, for the error.

    Raises:
        TrainingError: Loss or gradient is not finite; no weight has moved.
    """
    num_learned = sum(batch.num_learned for batch in micro_batches)
    total = 0.0
    for batch in micro_batches:
        with compute.autocast():
            loss = model.loss(batch.to(compute.device))
        (loss.total / num_learned).backward()
        total += float(loss.total.detach())
    moving = [each for group in optimizer.param_groups for each in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(moving, max_grad_norm))
    if not torch.isfinite(torch.tensor([total, norm])).all():
        optimizer.zero_grad(set_to_none=True)
        raise TrainingError(
            f"loss {total / num_learned} and gradient norm {norm} are not finite at records {list(record_ids)[:8]}; no "
            "weight was changed by them; lower the learning rate or inspect these records"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    tokens = sum(len(batch.input_ids) for batch in micro_batches)
    return StepReport(total / num_learned, num_learned, tokens, norm)


@torch.no_grad()
def evaluate_loss(model: Llava, batches: Iterable[Batch], compute: DeviceConfig) -> float:
    """Return the mean loss over all learned tokens of `batches`, in nats, without learning from them."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        with compute.autocast():
            loss = model.loss(batch.to(compute.device))
        total += float(loss.total)
        count += loss.num_tokens
    model.train(training)
    return total / max(1, count)
