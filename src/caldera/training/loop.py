"""The training loop with its optimizer steps, validation, metrics and checkpoints."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from caldera.batches.image_sources import DecodedImages, ImageSource
from caldera.batches.packing import Batch, BatchBuilder, Pack, group_by_images
from caldera.batches.sampler import BatchLimit, StepSampler
from caldera.batches.samples import Sample
from caldera.devices import DeviceConfig
from caldera.errors import TrainingError
from caldera.model.batch_layout import supports_shared_prefixes
from caldera.model.llava import Llava
from caldera.training.checkpoint import (
    Checkpoint,
    collect_state,
    remove_after,
    restore_state,
    save_checkpoint,
)
from caldera.training.metrics_log import MetricsLog
from caldera.training.parameters import build_optimizer, lr_factor, set_lr
from caldera.training.prefetch import PrefetchConfig, prefetch

if TYPE_CHECKING:
    from caldera.training.job import TrainingJob

log = logging.getLogger(__name__)

_MAX_NAMED = 4
"""Samples that a message names."""

_SMOOTHING = 20
"""Steps over which the displayed loss is averaged."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """Metrics of one optimizer step."""

    loss: float
    """Nats per supervised token."""

    num_supervised_tokens: int

    num_tokens: int
    """Tokens computed by the model, without padding; shared prefixes count once."""

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
    """Take one optimizer step on the mean loss over the supervised tokens of all micro-batches.

    Args:
        model: Its trainable weights have gradients.
        micro_batches: Their losses are summed before the step, so the split does not change the result.
        optimizer: Updates the trainable weights.
        max_grad_norm: Gradients are clipped to this norm.
        compute: Device and precision.
        record_ids: Ids of the records, for the error.

    Raises:
        TrainingError: Loss or gradient is not finite; no weight was changed.
    """
    num_supervised = sum(batch.num_supervised_tokens for batch in micro_batches)
    total = 0.0
    for batch in micro_batches:
        with compute.autocast():
            loss = model(batch.to(compute.device))
        (loss.total / num_supervised).backward()
        total += float(loss.total.detach())
    trainable = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(trainable, max_grad_norm))
    if not torch.isfinite(torch.tensor([total, norm])).all():
        optimizer.zero_grad(set_to_none=True)
        raise TrainingError(
            f"loss {total / num_supervised} and gradient norm {norm} are not finite at records {list(record_ids)[:8]}; "
            "no weight was changed by them; lower the learning rate or inspect these records"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    num_tokens = sum(len(batch.input_ids) for batch in micro_batches)
    return StepReport(total / num_supervised, num_supervised, num_tokens, norm)


@torch.no_grad()
def evaluate_loss(model: Llava, batches: Iterable[Batch], compute: DeviceConfig) -> float:
    """Return the mean loss over all supervised tokens of `batches`, in nats, in evaluation mode."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        with compute.autocast():
            loss = model(batch.to(compute.device))
        total += float(loss.total)
        count += loss.num_tokens
    model.train(training)
    return total / max(1, count)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Summary of a finished training stage."""

    steps: int
    seconds: float
    first_validation_loss: float | None
    last_validation_loss: float | None
    """Nats per supervised token of the validation split; None where it is empty."""

    samples_per_second: float


@dataclass(frozen=True, slots=True)
class EncodedData:
    """Samples of a job and the source of their images."""

    training: Sequence[Sample]
    validation: Sequence[Sample]
    images: ImageSource


def train(
    job: "TrainingJob", data: EncodedData, fingerprint: str, checkpoint: Checkpoint | None
) -> TrainingResult:
    """Train a job's model until the steps of its stage are done.

    Args:
        job: Its model is on its device, with the trainable parts set.
        data: Samples and images.
        fingerprint: Digest of everything that decides the result, stored in the checkpoints.
        checkpoint: Checkpoint of this run to resume from; None starts at the first step.

    Raises:
        ModelFormatError: The checkpoint does not fit the model.
        TrainingError: Loss or gradient was not finite.
        OutputError: A file could not be written.
    """
    start = time.monotonic()
    loop = _Loop(job, data, fingerprint, checkpoint)
    num_samples, last_loss = loop.run()
    seconds = time.monotonic() - start
    speed = num_samples / max(seconds, 1e-9)
    return TrainingResult(loop.num_steps, seconds, loop.first_loss, last_loss, speed)


class _Loop:
    """State of the training loop: optimizer, order of the samples, batch builder and metrics."""

    def __init__(
        self, job: "TrainingJob", data: EncodedData, fingerprint: str, checkpoint: Checkpoint | None
    ) -> None:
        """Restore the checkpoint, or measure the validation loss before the first step."""
        stage, model = job.stage, job.assistant.model
        self.job, self.data, self.fingerprint, self.model = job, data, fingerprint, model
        share = stage.share_prefixes and supports_shared_prefixes(model.batch_layout)
        self.builder = BatchBuilder(
            load_images=data.images,
            share_prefixes=share,
            max_tokens=stage.micro_batch_tokens,
            max_samples=stage.micro_batch_size,
        )
        self.sampler = StepSampler(
            lengths=[sample.length for sample in data.training],
            groups=group_by_images(data.training) if share else None,
            limit=BatchLimit(samples=stage.batch_size, tokens=stage.batch_tokens),
            epochs=stage.epochs,
            seed=stage.seed,
            max_steps=stage.max_steps,
        )
        self.num_steps = self.sampler.num_steps
        # Cached features need no decoding.
        decodes = isinstance(data.images, DecodedImages)
        self.prefetch_config = PrefetchConfig(workers=job.runtime.workers if decodes else 0)
        self.optimizer = build_optimizer(model, stage)
        self.first_step = 0
        if checkpoint:
            restore_state(checkpoint.tensors, model, self.optimizer)
            self.first_step = checkpoint.step
            log.info("resuming from step %d", checkpoint.step)
        remove_after(job.out / "checkpoints", self.first_step)
        self.metrics = MetricsLog(job.out, keep_until_step=checkpoint.step if checkpoint else -1)
        self.first_loss: float | None
        if checkpoint:
            self.first_loss = checkpoint.extra["first_validation_loss"]
        else:
            self.first_loss = self.validation_loss()
            self.metrics.log(0, _validation_metrics(self.first_loss))

    def validation_loss(self) -> float | None:
        """Return the mean loss on the validation samples; None where there are none."""
        if not self.data.validation:
            return None
        with prefetch(
            self.builder.plan(self.data.validation),
            self.builder.collate,
            config=self.prefetch_config,
            name=_name_packs,
        ) as batches:
            compute = self.job.runtime.compute
            return evaluate_loss(self.model, (batch for _, batch in batches), compute)

    def run(self) -> tuple[int, float | None]:
        """Take all remaining steps; return the number of samples and the last validation loss."""
        stage, runtime, num_steps = self.job.stage, self.job.runtime, self.num_steps
        self.model.train()
        start = time.monotonic()
        num_samples, validation_loss = 0, self.first_loss
        losses: list[float] = []
        order = self.sampler.steps(self.first_step)
        plan = ([self.data.training[index] for index in indices] for indices in order)
        with (
            runtime.progress.task(f"training: {stage.name}", num_steps, self.first_step) as advance,
            prefetch(
                plan, self.builder.build, config=self.prefetch_config, name=_name_samples
            ) as batches,
        ):
            for step, (samples, micro_batches) in enumerate(batches, start=self.first_step):
                factor = lr_factor(step, num_steps, stage.warmup_ratio)
                set_lr(self.optimizer, factor)
                # Seeded by the step, so that checkpoints need no random state.
                with runtime.compute.fork_rng(stage.seed, step):
                    report = training_step(
                        self.model,
                        micro_batches,
                        self.optimizer,
                        max_grad_norm=stage.max_grad_norm,
                        compute=runtime.compute,
                        record_ids=[sample.id for sample in samples],
                    )
                metrics = {
                    **asdict(report),
                    "learning_rate": stage.learning_rate * factor,
                    "data_wait_fraction": batches.wait_fraction(),
                }
                num_samples += len(samples)
                steps_done = step + 1
                if steps_done == num_steps or steps_done % stage.eval_every == 0:
                    validation_loss = self.validation_loss()
                    metrics |= _validation_metrics(validation_loss)
                self.metrics.log(steps_done, metrics)
                if steps_done % stage.save_every == 0 and steps_done < num_steps:
                    self.save(steps_done)
                losses = [*losses[1 - _SMOOTHING :], report.loss]
                advance(detail=f"loss {sum(losses) / len(losses):.3f}")
        waited = batches.waited / max(time.monotonic() - start, 1e-9)
        log.info("%.1f %% of the time was spent waiting for data", 100 * waited)
        self.model.eval()
        return num_samples, validation_loss

    def save(self, step: int) -> None:
        """Write a checkpoint."""
        tensors = collect_state(self.model, self.optimizer)
        extra = {"first_validation_loss": self.first_loss}
        checkpoint = Checkpoint(step, self.fingerprint, tensors, extra)
        save_checkpoint(self.job.out / "checkpoints", checkpoint)


def _validation_metrics(loss: float | None) -> dict[str, float]:
    """Return the validation loss as a metric, if there is one."""
    return {} if loss is None else {"validation_loss": loss}


def _name_samples(samples: Sequence[Sample]) -> str:
    """Return the ids of some samples, for a message."""
    ids = ", ".join(repr(sample.id) for sample in samples[:_MAX_NAMED])
    return f"records {ids}{' ...' if len(samples) > _MAX_NAMED else ''}"


def _name_packs(packs: Sequence[Pack]) -> str:
    """Return the ids of the samples of some packs, for a message."""
    return _name_samples([sample for pack in packs for sample in pack.samples])
