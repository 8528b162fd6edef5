"""One optimizer step, and the loss of a validation split."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import nn

from caldera.batches.packing import Batch
from caldera.devices import FLOAT16_MAX, DeviceConfig, is_out_of_memory
from caldera.errors import TrainingError
from caldera.model.llava import Llava

_MAX_NAMED = 8
"""Records that a message names."""

_MIN_LOSS_SCALE = 1.0
"""Scale of the loss in fp16 down to which gradients that are not finite are taken for an overflow of that scale."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """Metrics of one optimizer step."""

    loss: float
    """Nats per supervised token, averaged over loss batches where the stage has `loss_batch_size`."""

    num_supervised_tokens: int

    num_tokens: int
    """Tokens computed by the model, without padding; shared prefixes count once."""

    grad_norm: float | None
    """Norm of the gradient before clipping; None if the step was skipped."""

    loss_scale: float | None = None
    """Factor of the loss in this step, so that small gradients do not vanish in fp16; None in other precisions."""

    @property
    def skipped(self) -> bool:
        """If no weight was changed, as the scaled gradients overflowed; the next step has half the scale."""
        return self.grad_norm is None


class UpdateError(TrainingError):
    """A step failed while it changed weights, so they are not those of any step."""


def training_step(
    model: Llava,
    micro_batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float | None,
    compute: DeviceConfig,
    scaler: torch.amp.GradScaler | None = None,
) -> StepReport:
    """Take one optimizer step on the mean loss over the supervised tokens of all micro-batches, by their weights.

    Args:
        model: Its trainable weights have gradients.
        micro_batches: Their losses are summed before the step, so the split does not change the result.
        optimizer: Updates the trainable weights.
        max_grad_norm: Gradients are clipped to this norm; None does not clip.
        compute: Device and precision.
        scaler: Scales the loss; it is changed. None is a new scaler of the precision.

    Raises:
        TrainingError: Loss or gradient is not finite, or memory ran out; no weight was changed.
        UpdateError: Memory ran out in the update.
    """
    num_supervised = sum(batch.num_supervised_tokens for batch in micro_batches)
    # Without a supervised token the loss is 0.
    divisor = max(1, num_supervised)
    trainable = [weight for group in optimizer.param_groups for weight in group["params"]]
    scaler = scaler or compute.grad_scaler()
    scale = scaler.get_scale() if scaler.is_enabled() else None
    total = 0.0
    try:
        for batch in micro_batches:
            with _out_of_memory_errors(batch):
                with compute.autocast():
                    loss = model(batch.to(compute.device)).total * batch.loss_weight
                scaler.scale(loss / divisor).backward()
                total += float(loss.detach())
            _check_finite("loss", total / divisor, [batch], compute)
        scaler.unscale_(optimizer)
        limit = inf if max_grad_norm is None else max_grad_norm
        norm = float(nn.utils.clip_grad_norm_(trainable, limit))
        skipped = scale is not None and scale > _MIN_LOSS_SCALE and not isfinite(norm)
        if not skipped:
            _check_finite("gradient norm", norm, micro_batches, compute)
    except TrainingError:
        optimizer.zero_grad(set_to_none=True)
        raise
    if not skipped:
        _update(optimizer, trainable)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    num_tokens = sum(len(batch.input_ids) for batch in micro_batches)
    return StepReport(total / divisor, num_supervised, num_tokens, None if skipped else norm, scale)


@torch.no_grad()
def evaluate_loss(model: Llava, batches: Iterable[Batch], compute: DeviceConfig) -> float:
    """Return the mean loss over all supervised tokens of `batches`, in nats, in evaluation mode.

    Raises:
        TrainingError: Memory ran out.
    """
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        with _out_of_memory_errors(batch), compute.autocast():
            loss = model(batch.to(compute.device))
            total += float(loss.total)
        count += loss.num_tokens
    model.train(training)
    return total / max(1, count)


def _check_finite(
    name: str, value: float, micro_batches: Sequence[Batch], compute: DeviceConfig
) -> None:
    """Raise TrainingError if a value is not finite, naming the records of the micro-batches that it comes from."""
    if isfinite(value):
        return
    ids = [name for batch in micro_batches for name in batch.record_ids]
    rest = f" and {len(ids) - _MAX_NAMED} more" if len(ids) > _MAX_NAMED else ""
    advice = "lower the learning rate or inspect these records"
    if compute.dtype == torch.float16:
        advice += f", or train with --dtype float32: float16 ends at {FLOAT16_MAX}"
    raise TrainingError(
        f"{name} {value} is not finite at records {ids[:_MAX_NAMED]}{rest}; no weight was changed by them; {advice}"
    )


@contextmanager
def _out_of_memory_errors(batch: Batch) -> Iterator[None]:
    """Turn errors about memory into a TrainingError with the micro-batch's size and what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        tokens, conversations = len(batch.input_ids), len(batch.record_ids)
        views = sum(layout.views for layout in batch.layouts)
        advice = "set gradient_checkpointing=true"
        if conversations > 1:
            advice += (
                f", micro_batch_tokens={tokens // 2} or micro_batch_size={conversations // 2}, none of which changes "
                "the result, then resume"
            )
        else:
            advice += ", or lower max_length: this micro-batch is a single conversation"
        raise TrainingError(
            f"out of memory at a micro-batch of {conversations} conversations with {tokens} tokens and "
            f"{len(batch.image_paths)} images ({views} views), the first {batch.record_ids[0]!r}: "
            f"{_first_sentences(error)}; {advice}"
        ) from error


def _update(optimizer: torch.optim.Optimizer, trainable: Sequence[nn.Parameter]) -> None:
    """Change the weights."""
    try:
        optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        count = sum(weight.numel() for weight in trainable)
        raise UpdateError(
            f"out of memory in the update of {count:,} weights, of which the optimizer stores two more copies: "
            f"{_first_sentences(error)}; train fewer parts, or use LoRA"
        ) from error


def _first_sentences(error: Exception) -> str:
    """Return the beginning of an error's text, which has the size of the allocation."""
    line = str(error).strip().split("\n")[0]
    return ". ".join(line.split(". ")[:2]).rstrip(".") or type(error).__name__
