"""A run killed at random times, started again each time, ends with the bits of an uninterrupted run (F1)."""

import logging
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from caldera.model.bundle import LlavaBundle
from caldera.training.checkpoint import latest_checkpoint
from caldera.training.job import TrainingData, TrainingJob
from caldera.training.metrics_log import read_metrics
from tests.training.jobs import STAGES, dialogues, make_job, result_of

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="autograd cannot be forked where it has used a GPU"
)

log = logging.getLogger(__name__)

FORK = multiprocessing.get_context("fork")


@dataclass(slots=True)
class KillReport:
    """What the kills of a run met."""

    kills: int = 0
    within_a_save: int = 0
    before_the_first_save: int = 0
    runs: int = 0
    most_steps_lost: int = 0
    most_seconds_lost: float = 0.0
    """Between the last checkpoint, or the start of the process, and the kill."""

    def add(self, run: Path, started: float) -> None:
        """Count a kill that has just happened in a run whose process was started at a time."""
        self.kills += 1
        self.within_a_save += any((run / "checkpoints").glob(".step-*"))
        checkpoint = latest_checkpoint(run / "checkpoints")
        saved_at = started
        for path in (run / "checkpoints").glob("step-*"):
            saved_at = max(saved_at, path.stat().st_ctime)
        self.most_seconds_lost = max(self.most_seconds_lost, time.time() - saved_at)
        if checkpoint is None:
            self.before_the_first_save += 1
        steps = [int(event["step"]) for event in read_metrics(run / "metrics.jsonl")]
        lost = max(steps, default=0) - (checkpoint.step if checkpoint else 0)
        self.most_steps_lost = max(self.most_steps_lost, lost)


def run_in_process(job: TrainingJob) -> None:
    """Run a job in a process of its own."""
    # The threads of the parent were not forked.
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    job.run()


def wait_for_a_save(process: BaseProcess, run: Path) -> None:
    """Wait until a process writes a checkpoint, or has ended."""
    while process.is_alive() and not any((run / "checkpoints").glob(".step-*")):
        time.sleep(0.0005)


def kill_at_random(
    make: Callable[[Path], TrainingJob], folder: Path, kills: int, seed: int
) -> tuple[list[Path], KillReport]:
    """Run jobs one after another, killing them at random times, every second one while it writes a checkpoint.

    Returns:
        The folders of the runs, all of them finished; the first was never killed.
    """
    rng, report = random.Random(seed), KillReport()
    uninterrupted = folder / "uninterrupted" / "run"
    started = time.time()
    process = FORK.Process(target=run_in_process, args=(make(uninterrupted),))
    process.start()
    process.join()
    assert process.exitcode == 0
    duration = time.time() - started
    runs = [uninterrupted]
    finished = True
    while report.kills < kills or not finished:
        if finished:
            report.runs += 1
            runs.append(folder / str(report.runs) / "run")
        started = time.time()
        process = FORK.Process(target=run_in_process, args=(make(runs[-1]),))
        process.start()
        process.join(rng.uniform(0, duration) if report.kills < kills else None)
        if report.kills % 2:
            wait_for_a_save(process, runs[-1])
            time.sleep(rng.uniform(0, 0.01))
        finished = process.exitcode is not None
        if finished:
            assert process.exitcode == 0
            # The machine may have been busy during the first run.
            duration = min(duration, time.time() - started)
        else:
            process.kill()
            process.join()
            report.add(runs[-1], started)
    return runs, report


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        ("finetune", 3),
        *(pytest.param(kind, 50, marks=pytest.mark.slow) for kind in STAGES),
    ],
)
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    start: Callable[[], LlavaBundle], photos: Path, tmp_path: Path, kind: str, kills: int
) -> None:
    """SIGKILL while data is encoded, features are built, a step is taken, a checkpoint or the model is written.

    Weights and metrics are equal, and at most the steps since the last checkpoint are taken again.
    """
    assistant, stage = start(), replace(STAGES[kind], epochs=2)
    data = TrainingData(conversations=dialogues(20), images=photos)

    def make(out: Path) -> TrainingJob:
        # Each process changes a copy of the model.
        return make_job(assistant, photos, out, stage, data=data, resume=True)

    runs, report = kill_at_random(make, tmp_path, kills, seed=len(kind))

    log.info("%s: %s", kind, report)
    assert report.kills == kills
    assert report.most_steps_lost <= STAGES[kind].save_every
    expected = result_of(runs[0])
    for run in runs[1:]:
        assert result_of(run) == expected
        assert not [path for path in run.rglob(".*") if path.name != ".lock"]
