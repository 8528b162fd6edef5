"""The training loop with its optimizer steps, validation, metrics and checkpoints."""

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from caldera.batches.image_sources import DecodedImages, ImageSource
from caldera.batches.packing import BatchBuilder, Pack, group_by_images
from caldera.batches.sampler import BatchLimit, StepSampler
from caldera.batches.samples import Sample
from caldera.errors import InputError, OutputError, TrainingError, UsageError
from caldera.formats.tokenizer import added_token_ids
from caldera.interruption import StopRequest, deferred_signals
from caldera.model.batch_layout import supports_shared_prefixes
from caldera.training.checkpoint import (
    Checkpoint,
    collect_state,
    restore_state,
    save_checkpoint,
    set_aside_corrupt,
)
from caldera.training.metrics_log import MetricsLog
from caldera.training.parameters import build_optimizer, lr_factor, num_warmup_steps, set_lr
from caldera.training.prefetch import PrefetchConfig, prefetch
from caldera.training.step import UpdateError, evaluate_loss, training_step

if TYPE_CHECKING:
    from caldera.training.job import TrainingJob

log = logging.getLogger(__name__)

_MAX_NAMED = 4
"""Samples that a message names."""

_VERSION = 2
"""Version of what a step computes, stored in checkpoints. Those of caldera 0.2 and before have none: their warm-up was
one step ahead, and added tokens took part in the loss."""

_SMOOTHING = 20
"""Steps over which the displayed loss is averaged."""


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
        fingerprint: Digest of the run's fingerprint, stored in the checkpoints.
        checkpoint: Checkpoint of this run to resume from; None starts at the first step.

    Raises:
        Interrupted: A signal arrived; the state after the last step is saved.
        ModelFormatError: The checkpoint does not fit the model.
        UsageError: Other records can be trained on than before the checkpoint.
        TrainingError: A step failed; the state before it is saved.
        OutputError: A file could not be written.
    """
    start = time.monotonic()
    with deferred_signals() as request:
        loop = _Loop(job, data, fingerprint, checkpoint, request)
        try:
            num_samples = loop.run()
        except KeyboardInterrupt:
            log.warning("stopped at once; %s", loop.describe_saved())
            raise
    seconds = time.monotonic() - start
    speed = num_samples / max(seconds, 1e-9)
    return TrainingResult(loop.num_steps, seconds, loop.first_loss, loop.last_loss, speed)


class _Loop:
    """State of the training loop: optimizer, order of the samples, batch builder, metrics and checkpoints."""

    def __init__(
        self,
        job: "TrainingJob",
        data: EncodedData,
        fingerprint: str,
        checkpoint: Checkpoint | None,
        request: StopRequest,
    ) -> None:
        """Restore the checkpoint, or measure the validation loss before the first step."""
        stage, model = job.stage, job.assistant.model
        self.job, self.data, self.fingerprint, self.model = job, data, fingerprint, model
        self.request = request
        share = stage.share_prefixes and supports_shared_prefixes(model.batch_layout)
        self.builder = BatchBuilder(
            load_images=data.images,
            share_prefixes=share,
            max_tokens=stage.micro_batch_tokens,
            max_samples=stage.micro_batch_size,
            loss_batch_size=stage.loss_batch_size,
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
        if stage.max_steps is not None and stage.max_steps > self.num_steps:
            log.warning(
                "max_steps is %d, but %d records end after %d steps with epochs=%d; raise epochs to train longer",
                *(stage.max_steps, len(data.training), self.num_steps, stage.epochs),
            )
        if self.num_steps == 1 and stage.warmup_ratio > 0:
            log.warning(
                "the only step is the first of the warm-up, whose learning rate is 0: no weight changes; raise epochs "
                "or max_steps, lower batch_size, or set warmup_ratio=0"
            )
        # Cached features need no decoding.
        decodes = isinstance(data.images, DecodedImages)
        self.prefetch_config = PrefetchConfig(workers=job.runtime.workers if decodes else 0)
        self.optimizer = build_optimizer(model, stage)
        self.scaler = job.runtime.compute.grad_scaler()
        self.num_skipped = 0
        """Steps whose gradients overflowed fp16."""
        self.first_step = 0
        self.version: int | None = _VERSION
        self.saved_step, self.saved_at = 0, time.monotonic()
        """Step of the last checkpoint, and the time at which it was written or loaded."""
        self.unlogged: dict[str, float] | None = None
        """Metrics of the last step, as long as its validation loss is missing."""
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        self._start(checkpoint)

    def _start(self, checkpoint: Checkpoint | None) -> None:
        """Restore the checkpoint, or measure the validation loss before the first step."""
        out = self.job.out
        self.follow_version(checkpoint)
        if checkpoint is None:
            set_aside_corrupt(self.checkpoints, 0)
            self.metrics = MetricsLog(out)
            self.first_loss = self.last_loss = self.validation_loss()
            self.raise_if_stopped(0)
            self.metrics.log(0, _validation_metrics(self.first_loss))
            return
        num_records = checkpoint.extra.get("num_records", len(self.data.training))
        if num_records != len(self.data.training):
            raise UsageError(
                f"{out} was trained on {num_records} records, but the images of {len(self.data.training)} are usable "
                "now; restore the former images, or choose another --out"
            )
        restore_state(checkpoint.tensors, self.model, self.optimizer)
        self.scaler.load_state_dict(checkpoint.extra.get("grad_scaler", {}))
        self.num_skipped = checkpoint.extra.get("num_skipped", 0)
        self.first_step = self.saved_step = checkpoint.step
        log.info("resuming from step %d of %d", checkpoint.step, self.num_steps)
        set_aside_corrupt(self.checkpoints, checkpoint.step)
        self.first_loss = self.last_loss = checkpoint.extra["first_validation_loss"]
        self.unlogged = checkpoint.extra.get("unlogged")
        self.metrics = MetricsLog(out, keep_until_step=checkpoint.step - bool(self.unlogged))
        if self.unlogged:
            self.finish_step(checkpoint.step, self.unlogged)
        self.raise_if_stopped(checkpoint.step)

    def follow_version(self, checkpoint: Checkpoint | None) -> None:
        """Leave added tokens out of the loss; a run that an earlier version began keeps the loss that it had."""
        if checkpoint is not None:
            self.version = checkpoint.extra.get("loop_version")
        if checkpoint is None or self.version == _VERSION:
            num_rows = len(self.model.embedding_weight)
            tokenizer = self.job.assistant.tokenizer
            self.model.exclude_from_loss(added_token_ids(tokenizer, num_rows))
            return
        warmup = num_warmup_steps(self.num_steps, self.job.stage.warmup_ratio)
        if checkpoint.step < warmup:
            log.warning(
                "step %d of a warm-up of %d steps was saved by an earlier version, which began at 1/%d of the "
                "learning rate instead of 0; the remaining steps have the rates of this version, one step behind",
                *(checkpoint.step, warmup, warmup),
            )

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.job.out / "checkpoints"

    def validation_loss(self) -> float | None:
        """Return the mean loss on the validation samples; None where there are none.

        A signal ends it early; then the value means nothing.
        """
        if not self.data.validation:
            return None
        with prefetch(
            self.builder.plan(self.data.validation),
            self.builder.collate,
            config=self.prefetch_config,
            name=_name_packs,
        ) as results:
            batches = (batch for _, batch in results)
            until_signal = itertools.takewhile(lambda _: self.request.signal is None, batches)
            return evaluate_loss(self.model, until_signal, self.job.runtime.compute)

    def run(self) -> int:
        """Take all remaining steps; return the number of samples."""
        stage, runtime = self.job.stage, self.job.runtime
        self.model.train()
        start = time.monotonic()
        num_samples = 0
        losses: list[float] = []
        order = self.sampler.steps(self.first_step)
        plan = ([self.data.training[index] for index in indices] for indices in order)
        with (
            runtime.progress.task(
                f"training: {stage.name}", self.num_steps, self.first_step
            ) as advance,
            prefetch(
                plan, self.builder.build, config=self.prefetch_config, name=_name_samples
            ) as batches,
        ):
            for step in range(self.first_step, self.num_steps):
                factor = lr_factor(step, self.num_steps, stage.warmup_ratio)
                set_lr(self.optimizer, factor)
                # Seeded by the step, so that checkpoints need no random state.
                with self.save_on_error(step):
                    samples, micro_batches = next(batches)
                    with runtime.compute.fork_rng(stage.seed, step):
                        report = training_step(
                            self.model,
                            micro_batches,
                            self.optimizer,
                            max_grad_norm=stage.max_grad_norm,
                            compute=runtime.compute,
                            scaler=self.scaler,
                        )
                self.num_skipped += report.skipped
                metrics = {
                    **{name: value for name, value in asdict(report).items() if value is not None},
                    "learning_rate": stage.learning_rate * factor,
                    "data_wait_fraction": batches.wait_fraction(),
                }
                num_samples += len(samples)
                self.finish_step(step + 1, metrics)
                losses = [*losses[1 - _SMOOTHING :], report.loss]
                advance(detail=f"loss {sum(losses) / len(losses):.3f}")
                self.raise_if_stopped(step + 1)
        waited = batches.waited / max(time.monotonic() - start, 1e-9)
        log.info("%.1f %% of the time was spent waiting for data", 100 * waited)
        if self.num_skipped:
            log.info(
                "%d of %d steps changed no weight, as their scaled gradients overflowed float16; the first few always "
                "may, more are a reason to train with --dtype bfloat16 or float32",
                *(self.num_skipped, self.num_steps),
            )
        self.model.eval()
        return num_samples

    def finish_step(self, step: int, metrics: dict[str, float]) -> None:
        """Validate, log and save after a step, as far as each is due; a signal ends the validation early."""
        stage = self.job.stage
        self.unlogged = metrics
        if step == self.num_steps or step % stage.eval_every == 0:
            with self.save_on_error(step):
                self.last_loss = self.validation_loss()
            if self.request.signal is not None:
                return
            metrics = metrics | _validation_metrics(self.last_loss)
        self.metrics.log(step, metrics)
        self.unlogged = None
        minutes = (time.monotonic() - self.saved_at) / 60
        by_time = stage.save_every_minutes is not None and minutes >= stage.save_every_minutes
        if step < self.num_steps and (step % stage.save_every == 0 or by_time):
            self.save(step)

    def save(self, step: int) -> None:
        """Write a checkpoint, unless there is one of this step."""
        if step == self.saved_step:
            return
        extra = {
            "first_validation_loss": self.first_loss,
            "num_records": len(self.data.training),
            "unlogged": self.unlogged,
            "loop_version": self.version,
            "grad_scaler": self.scaler.state_dict(),
            "num_skipped": self.num_skipped,
        }
        tensors = collect_state(self.model, self.optimizer)
        save_checkpoint(self.checkpoints, Checkpoint(step, self.fingerprint, tensors, extra))
        self.saved_step, self.saved_at = step, time.monotonic()

    def describe_saved(self) -> str:
        """Describe the last checkpoint for a message."""
        if not self.saved_step:
            return "no step of it is saved"
        return f"step {self.saved_step} of {self.num_steps} is saved in {self.checkpoints}"

    def raise_if_stopped(self, step: int) -> None:
        """Save the state after a step and raise Interrupted if a signal arrived, unless no work is left."""
        if self.request.signal is not None and (step < self.num_steps or self.unlogged):
            self.save(step)
            self.request.raise_if_requested(
                f"stopped stage {self.job.stage.name!r}; {self.describe_saved()}; {self.job.resume_advice}"
            )

    @contextmanager
    def save_on_error(self, step: int) -> Iterator[None]:
        """Save the state after `step` steps if the block fails before it changes a weight; the error names the step."""
        try:
            yield
        except UpdateError as error:
            raise UpdateError(f"{error}; {self.describe_saved()}") from error
        except (InputError, TrainingError) as error:
            try:
                self.save(step)
            except OutputError as output_error:
                log.warning("%s", output_error)
            raise type(error)(f"{error}; {self.describe_saved()}") from error


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
