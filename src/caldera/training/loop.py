"""A stage, a model and samples in, the trained model out: the same loop for every stage."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from caldera.batches.collate import Batch, collate, shown
from caldera.batches.packing import about_the_same, best_fit, pack
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
from caldera.training.optimiser import build_optimiser, rate_factor, set_rate
from caldera.training.record import Record
from caldera.training.stage import Stage
from caldera.training.step import mean_loss, training_step

log = logging.getLogger(__name__)

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
    compute: Compute
    folder: Path
    progress: Progress
    identity: str
    """Digest of what decides how the run goes, noted in its checkpoints."""

    @property
    def shares(self) -> bool:
        """Whether conversations about the same pictures share their tokens."""
        return self.stage.share_pictures and shares_prefixes(self.model.arrangement)

    def micro_batches(self, samples: Sequence[Sample]) -> list[Batch]:
        """Lay samples into batches that go through the model one after another."""
        return lay(samples, self.pictures, self.stage, share=self.shares)

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

    def validation_loss(self) -> float | None:
        """Return the mean loss on the held-out samples; None where there are none."""
        if not self.held_out:
            return None
        return mean_loss(self.model, self.micro_batches(self.held_out), self.compute)


def lay(
    samples: Sequence[Sample], pictures: PictureSource, stage: Stage, *, share: bool
) -> list[Batch]:
    """Lay the samples of a step into as few batches as the stage's limits allow.

    Args:
        samples: Of one step.
        pictures: Where their pictures come from.
        stage: How much may go through the model at once.
        share: Whether conversations about the same pictures share their tokens.
    """
    limits = {"tokens": stage.micro_batch_tokens, "samples": stage.micro_batch_size}
    batches = []
    for packs in best_fit(pack(samples, share=share), **limits):
        paths = [path for sample, some in shown(packs) for path in sample.pictures[some]]
        batches.append(collate(packs, pictures(paths)))
    return batches


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


def _steps(  # noqa: PLR0913 - what a run is made of
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
    with run.progress.job(f"training: {stage.name}", total, start) as tick:
        for step, indices in enumerate(plan.steps(start), start=start):
            factor = rate_factor(step, total, stage.warmup_fraction)
            set_rate(optimiser, factor)
            samples = [run.samples[index] for index in indices]
            with run.compute.seeded(stage.seed, step):  # so no state of it is kept for --resume
                report = training_step(
                    run.model,
                    run.micro_batches(samples),
                    optimiser,
                    max_grad_norm=stage.max_grad_norm,
                    compute=run.compute,
                    names=[sample.id for sample in samples],
                )
            values = {**asdict(report), "learning_rate": stage.learning_rate * factor}
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
    run.model.eval()
    return seen, loss


def _save(run: Run, optimiser: torch.optim.Optimizer, step: int, first_loss: float | None) -> None:
    """Write a checkpoint."""
    extra = {"first_validation_loss": first_loss}
    state = Checkpoint(step, run.identity, gather(run.model, optimiser), extra)
    save_checkpoint(run.folder / "checkpoints", state)
