"""A stage, a model and samples in, the trained model out: the same loop for every stage."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from caldera.batches.collate import Batch, collate
from caldera.batches.picture_sources import PictureSource
from caldera.batches.sampler import batches_of_epoch
from caldera.batches.samples import Sample
from caldera.model.llava import Llava
from caldera.progress import Progress
from caldera.training.checkpoint import (
    Checkpoint,
    gather,
    remove_later,
    save_checkpoint,
    scatter,
)
from caldera.training.devices import Compute
from caldera.training.loading import Loading, ahead
from caldera.training.optimiser import build_optimiser, rate_factor, set_rate
from caldera.training.record import Record
from caldera.training.stage import Stage
from caldera.training.step import mean_loss, training_step

log = logging.getLogger(__name__)

_ROUND_TO = 16
"""Rows are padded to a multiple of this, as the first steps at each new shape are slow."""

_SMOOTH = 20
"""Steps over which the loss beside the bar is averaged."""


_NAMED = 8
"""Records of a batch that a message names."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage came to."""

    steps: int
    seconds: float
    first_validation_loss: float | None
    last_validation_loss: float | None
    """Nats per learned token on held-out conversations; None where none were held out."""

    samples_per_second: float


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that one pass of training needs."""

    stage: Stage
    model: Llava
    samples: Sequence[Sample]
    held_out: Sequence[Sample]
    pictures: PictureSource
    loading: Loading
    """Who makes batches ahead of the steps."""

    padding_id: int
    compute: Compute
    folder: Path
    progress: Progress
    identity: str
    """Digest of what decides how the run goes, noted in its checkpoints."""

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Lay samples into one batch, with their pictures."""
        paths = [path for sample in samples for path in sample.pictures]
        return collate(
            samples,
            self.pictures(paths),
            padding_id=self.padding_id,
            round_to=_ROUND_TO,
            context_length=self.model.context_length,
        )

    def micro_batches(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        """Return the samples of each batch that goes through the model at once."""
        size = self.stage.micro_batch_size
        size = self.stage.batch_size if size is None else size
        return [list(samples[at : at + size]) for at in range(0, len(samples), size)]

    def batches_of_step(self, samples: Sequence[Sample]) -> list[Batch]:
        """Lay the samples of one step."""
        return [self.batch(some) for some in self.micro_batches(samples)]

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole stage."""
        steps = -(-len(self.samples) // self.stage.batch_size) * self.stage.epochs
        return steps if self.stage.max_steps is None else min(steps, self.stage.max_steps)

    def plan(self, from_step: int) -> Iterator[list[Sample]]:
        """Yield each step's samples, from a step on; the same whether or not the run was broken off."""
        lengths = [sample.length for sample in self.samples]
        step = 0
        for epoch in range(self.stage.epochs):
            for indices in batches_of_epoch(
                lengths, self.stage.batch_size, seed=self.stage.seed, epoch=epoch
            ):
                if from_step <= step < self.total_steps:
                    yield [self.samples[index] for index in indices]
                step += 1

    def validation_loss(self) -> float | None:
        """Return the mean loss on the held-out samples; None where there are none."""
        if not self.held_out:
            return None
        ordered = sorted(self.held_out, key=lambda sample: sample.length)
        plan = self.micro_batches(ordered)
        with ahead(plan, self.batch, loading=self.loading, name=_named) as batches:
            return mean_loss(self.model, (batch for _, batch in batches), self.compute)


def _named(samples: Sequence[Sample]) -> str:
    """Name some samples in a message."""
    ids = ", ".join(repr(sample.id) for sample in samples[:_NAMED])
    return f"records {ids}{' ...' if len(samples) > _NAMED else ''}"


def train(run: Run, found: Checkpoint | None) -> Outcome:
    """Train until the stage's steps are done.

    Args:
        run: What to train, on what, where.
        found: A checkpoint of this very run to go on from; None begins at the first step.

    Raises:
        ModelFolderError: The checkpoint does not fit the model.
        TrainingError: Loss or gradient was not finite.
        OutputError: Something could not be written.
    """
    optimiser = build_optimiser(run.model, run.stage)
    start, first_loss, known = 0, None, -1
    if found:
        scatter(found.tensors, run.model, optimiser)
        start = known = found.step
        first_loss = found.extra["first_validation_loss"]
        log.info("going on from step %d", start)
    remove_later(run.folder / "checkpoints", start)
    begun = time.monotonic()
    record = Record(run.folder, after_step=known)
    if start == 0:
        first_loss = run.validation_loss()
        record.add(0, {"validation_loss": first_loss} if first_loss is not None else {})
    last_loss = _steps(run, optimiser, record, start, first_loss)
    seconds = time.monotonic() - begun
    done = (run.total_steps - start) * run.stage.batch_size
    return Outcome(run.total_steps, seconds, first_loss, last_loss, done / max(seconds, 1e-9))


def _steps(
    run: Run, optimiser: torch.optim.Optimizer, record: Record, start: int, first_loss: float | None
) -> float | None:
    """Take all steps from `start` on; return the last validation loss."""
    stage, total = run.stage, run.total_steps
    run.model.train()
    recent: list[float] = []
    loss = first_loss
    begun = time.monotonic()
    with (
        run.progress.job(f"training: {stage.name}", total, start) as tick,
        ahead(run.plan(start), run.batches_of_step, loading=run.loading, name=_named) as made,
    ):
        for step, (samples, batches) in enumerate(made, start=start):
            factor = rate_factor(step, total, stage.warmup_fraction)
            set_rate(optimiser, factor)
            with run.compute.seeded(stage.seed, step):  # so no state of it is kept for --resume
                report = training_step(
                    run.model,
                    batches,
                    optimiser,
                    max_grad_norm=stage.max_grad_norm,
                    compute=run.compute,
                    names=[sample.id for sample in samples],
                )
            values = {
                **asdict(report),
                "learning_rate": stage.learning_rate * factor,
                "wait_share": made.wait_share(),
            }
            done = step + 1
            if done == total or done % stage.validate_every == 0:
                loss = run.validation_loss()
                values |= {"validation_loss": loss} if loss is not None else {}
            record.add(done, values)
            if done % stage.checkpoint_every == 0 and done < total:
                _save(run, optimiser, done, first_loss)
            recent = [*recent[1 - _SMOOTH :], report.loss]
            tick(shown=f"loss {sum(recent) / len(recent):.3f}")
    share = made.waited / max(time.monotonic() - begun, 1e-9)
    log.info("%.1f %% of the time was spent waiting for data", 100 * share)
    run.model.eval()
    return loss


def _save(run: Run, optimiser: torch.optim.Optimizer, step: int, first_loss: float | None) -> None:
    """Write a checkpoint."""
    extra = {"first_validation_loss": first_loss}
    state = Checkpoint(step, run.identity, gather(run.model, optimiser), extra)
    save_checkpoint(run.folder / "checkpoints", state)
