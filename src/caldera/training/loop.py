"""All steps; one optimizer step."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from caldera.batches.image_sources import ImageSource
from caldera.batches.packing import (
    Batch,
    Pack,
    build_packs,
    collate,
    group_by_images,
    iter_new_images,
    pack_micro_batches,
)
from caldera.batches.sampler import BatchLimit, StepSampler
from caldera.batches.samples import Sample
from caldera.devices import DeviceConfig
from caldera.errors import TrainingError
from caldera.model.batch_layout import shares_prefixes
from caldera.model.llava import Llava
from caldera.progress import Progress
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
from caldera.training.stage import Stage


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


log = logging.getLogger(__name__)

_NAMED = 4
"""Samples that a message names."""

_SMOOTH = 20
"""Steps over which the loss beside the bar is averaged."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a stage came to."""

    steps: int
    seconds: float
    first_validation_loss: float | None
    last_validation_loss: float | None
    """Nats per learned token on held-out conversations; None where none were held out."""

    samples_per_second: float


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Everything that one pass of training needs."""

    stage: Stage
    model: Llava
    samples: Sequence[Sample]
    held_out: Sequence[Sample]
    images: ImageSource
    loading: PrefetchConfig
    """Who makes batches ahead of the steps."""

    compute: DeviceConfig
    folder: Path
    progress: Progress
    identity: str
    """Digest of what decides how the run goes, noted in its checkpoints."""

    @property
    def shares_prefixes(self) -> bool:
        """Whether conversations about the same images share their tokens."""
        return self.stage.share_prefixes and shares_prefixes(self.model.arrangement)

    def step_sampler(self) -> StepSampler:
        """Return the order of the steps."""
        stage = self.stage
        return StepSampler(
            lengths=[sample.length for sample in self.samples],
            groups=group_by_images(self.samples) if self.shares_prefixes else None,
            size=BatchLimit(samples=stage.batch_size, tokens=stage.batch_tokens),
            epochs=stage.epochs,
            seed=stage.seed,
            max_steps=stage.max_steps,
        )

    def micro_batches(self, samples: Sequence[Sample]) -> list[Batch]:
        """Lay the samples of one step."""
        return [
            build_batch(packs, self.images)
            for packs in plan_micro_batches(samples, self.stage, share=self.shares_prefixes)
        ]

    def validation_loss(self) -> float | None:
        """Return the mean loss on the held-out samples; None where there are none."""
        if not self.held_out:
            return None
        every = plan_micro_batches(self.held_out, self.stage, share=self.shares_prefixes)

        def laid(packs: Sequence[Pack]) -> Batch:
            return build_batch(packs, self.images)

        with prefetch(every, laid, loading=self.loading, name=_named_packs) as batches:
            return evaluate_loss(self.model, (batch for _, batch in batches), self.compute)


def plan_micro_batches(samples: Sequence[Sample], stage: Stage, *, share: bool) -> list[list[Pack]]:
    """Return the packs of each pass through the model, as few passes as the stage's limits allow.

    Args:
        samples: Of one step.
        stage: How much may go through the model at once.
        share: Whether conversations about the same images share their tokens.
    """
    packs = build_packs(samples, share=share)
    return pack_micro_batches(
        packs, tokens=stage.micro_batch_tokens, samples=stage.micro_batch_size
    )


def build_batch(packs: Sequence[Pack], images: ImageSource) -> Batch:
    """Lay packs into one batch, with what `images` gives for their images."""
    paths = [path for sample, some in iter_new_images(packs) for path in sample.images[some]]
    return collate(packs, images(paths))


def _ids_for_message(samples: Sequence[Sample]) -> str:
    """Name some samples in a message."""
    ids = ", ".join(repr(sample.id) for sample in samples[:_NAMED])
    return f"records {ids}{' ...' if len(samples) > _NAMED else ''}"


def _named_packs(packs: Sequence[Pack]) -> str:
    """Name the samples of some packs in a message."""
    return _ids_for_message([sample for one in packs for sample in one.samples])


def train(run: TrainingRun, checkpoint: Checkpoint | None) -> TrainingResult:
    """Train until the stage's steps are done.

    Args:
        run: What to train, on what, where.
        found: A checkpoint of this very run to go on from; None begins at the first step.

    Raises:
        ModelFolderError: The checkpoint does not fit the model.
        TrainingError: Loss or gradient was not finite.
        OutputError: Something could not be written.
    """
    optimizer = build_optimizer(run.model, run.stage)
    start, first_loss, known = 0, None, -1
    if checkpoint:
        restore_state(checkpoint.tensors, run.model, optimizer)
        start = known = checkpoint.step
        first_loss = checkpoint.extra["first_validation_loss"]
        log.info("going on from step %d", start)
    remove_after(run.folder / "checkpoints", start)
    begun = time.monotonic()
    record = MetricsLog(run.folder, after_step=known)
    if start == 0:
        first_loss = run.validation_loss()
        record.log(0, {"validation_loss": first_loss} if first_loss is not None else {})
    plan = run.step_sampler()
    done, last_loss = _train_steps(run, plan, optimizer, record, start, first_loss)
    seconds = time.monotonic() - begun
    return TrainingResult(plan.total, seconds, first_loss, last_loss, done / max(seconds, 1e-9))


def _train_steps(
    run: TrainingRun,
    plan: StepSampler,
    optimizer: torch.optim.Optimizer,
    record: MetricsLog,
    start: int,
    first_loss: float | None,
) -> tuple[int, float | None]:
    """Take all steps from `start` on; return how many samples were seen, and the last validation loss."""
    stage, total, seen = run.stage, plan.total, 0
    run.model.train()
    recent: list[float] = []
    loss = first_loss
    begun = time.monotonic()
    steps = ([run.samples[index] for index in indices] for indices in plan.steps(start))
    with (
        run.progress.task(f"training: {stage.name}", total, start) as tick,
        prefetch(steps, run.micro_batches, loading=run.loading, name=_ids_for_message) as batches,
    ):
        for step, (samples, micro_batches) in enumerate(batches, start=start):
            factor = lr_factor(step, total, stage.warmup_ratio)
            set_lr(optimizer, factor)
            with run.compute.fork_rng(stage.seed, step):  # so no state of it is kept for --resume
                report = training_step(
                    run.model,
                    micro_batches,
                    optimizer,
                    max_grad_norm=stage.max_grad_norm,
                    compute=run.compute,
                    record_ids=[sample.id for sample in samples],
                )
            values = {
                **asdict(report),
                "learning_rate": stage.learning_rate * factor,
                "data_wait_fraction": batches.wait_fraction(),
            }
            seen += len(samples)
            done = step + 1
            if done == total or done % stage.eval_every == 0:
                loss = run.validation_loss()
                values |= {"validation_loss": loss} if loss is not None else {}
            record.log(done, values)
            if done % stage.save_every == 0 and done < total:
                _save(run, optimizer, done, first_loss)
            recent = [*recent[1 - _SMOOTH :], report.loss]
            tick(detail=f"loss {sum(recent) / len(recent):.3f}")
    share = batches.waited / max(time.monotonic() - begun, 1e-9)
    log.info("%.1f %% of the time was spent waiting for data", 100 * share)
    run.model.eval()
    return seen, loss


def _save(
    run: TrainingRun, optimizer: torch.optim.Optimizer, step: int, first_loss: float | None
) -> None:
    """Write a checkpoint."""
    extra = {"first_validation_loss": first_loss}
    state = Checkpoint(step, run.identity, collect_state(run.model, optimizer), extra)
    save_checkpoint(run.folder / "checkpoints", state)
