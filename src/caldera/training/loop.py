"""A stage, a model and samples in, the trained model out: the same loop for every stage."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from caldera.batches.collate import Batch, collate, shown
from caldera.batches.packing import Pack, about_the_same, best_fit, pack
from caldera.batches.picture_sources import PictureSource
from caldera.batches.sampler import Plan, StepSize
from caldera.batches.samples import Sample
from caldera.model.arrangement import shares_prefixes
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

_NAMED = 4
"""Samples that a message names."""

_SMOOTH = 20
"""Steps over which the loss beside the bar is averaged."""


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

    compute: Compute
    folder: Path
    progress: Progress
    identity: str
    """Digest of what decides how the run goes, noted in its checkpoints."""

    @property
    def shares(self) -> bool:
        """Whether conversations about the same pictures share their tokens."""
        return self.stage.share_pictures and shares_prefixes(self.model.arrangement)

    def plan(self) -> Plan:
        """Return the order of the steps."""
        stage = self.stage
        return Plan(
            lengths=[sample.length for sample in self.samples],
            groups=about_the_same(self.samples) if self.shares else None,
            size=StepSize(samples=stage.batch_size, tokens=stage.batch_tokens),
            epochs=stage.epochs,
            seed=stage.seed,
            max_steps=stage.max_steps,
        )

    def batches_of(self, samples: Sequence[Sample]) -> list[Batch]:
        """Lay the samples of one step."""
        return [
            lay(packs, self.pictures) for packs in passes(samples, self.stage, share=self.shares)
        ]

    def validation_loss(self) -> float | None:
        """Return the mean loss on the held-out samples; None where there are none."""
        if not self.held_out:
            return None
        every = passes(self.held_out, self.stage, share=self.shares)

        def laid(packs: Sequence[Pack]) -> Batch:
            return lay(packs, self.pictures)

        with ahead(every, laid, loading=self.loading, name=_named_packs) as batches:
            return mean_loss(self.model, (batch for _, batch in batches), self.compute)


def passes(samples: Sequence[Sample], stage: Stage, *, share: bool) -> list[list[Pack]]:
    """Return the packs of each pass through the model, as few passes as the stage's limits allow.

    Args:
        samples: Of one step.
        stage: How much may go through the model at once.
        share: Whether conversations about the same pictures share their tokens.
    """
    packs = pack(samples, share=share)
    return best_fit(packs, tokens=stage.micro_batch_tokens, samples=stage.micro_batch_size)


def lay(packs: Sequence[Pack], pictures: PictureSource) -> Batch:
    """Lay packs into one batch, with what `pictures` gives for their pictures."""
    paths = [path for sample, some in shown(packs) for path in sample.pictures[some]]
    return collate(packs, pictures(paths))


def _named(samples: Sequence[Sample]) -> str:
    """Name some samples in a message."""
    ids = ", ".join(repr(sample.id) for sample in samples[:_NAMED])
    return f"records {ids}{' ...' if len(samples) > _NAMED else ''}"


def _named_packs(packs: Sequence[Pack]) -> str:
    """Name the samples of some packs in a message."""
    return _named([sample for one in packs for sample in one.samples])


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
    plan = run.plan()
    done, last_loss = _steps(run, plan, optimiser, record, start, first_loss)
    seconds = time.monotonic() - begun
    return Outcome(plan.total, seconds, first_loss, last_loss, done / max(seconds, 1e-9))


def _steps(
    run: Run,
    plan: Plan,
    optimiser: torch.optim.Optimizer,
    record: Record,
    start: int,
    first_loss: float | None,
) -> tuple[int, float | None]:
    """Take all steps from `start` on; return how many samples were seen, and the last validation loss."""
    stage, total, seen = run.stage, plan.total, 0
    run.model.train()
    recent: list[float] = []
    loss = first_loss
    begun = time.monotonic()
    dealt = ([run.samples[index] for index in indices] for indices in plan.steps(start))
    with (
        run.progress.job(f"training: {stage.name}", total, start) as tick,
        ahead(dealt, run.batches_of, loading=run.loading, name=_named) as made,
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
            seen += len(samples)
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
    return seen, loss


def _save(run: Run, optimiser: torch.optim.Optimizer, step: int, first_loss: float | None) -> None:
    """Write a checkpoint."""
    extra = {"first_validation_loss": first_loss}
    state = Checkpoint(step, run.identity, gather(run.model, optimiser), extra)
    save_checkpoint(run.folder / "checkpoints", state)
