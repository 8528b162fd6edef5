"""Fixtures of training tests: the same untrained model again and again, and interrupted jobs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from caldera.devices import Runtime
from caldera.formats.assemble import assemble
from caldera.model.bundle import LlavaBundle
from caldera.progress import Progress
from caldera.training.job import TrainingJob
from tests.training.jobs import FP32


@pytest.fixture
def start(vision_folder: Path, language_folder: Path) -> Callable[[], LlavaBundle]:
    """A function that returns the same untrained model at every call."""
    return lambda: assemble(vision_folder, language_folder, seed=3)


@pytest.fixture
def interrupt(stops_at: Callable[[int], Progress]) -> Callable[..., None]:
    """A function that runs a job and interrupts it at a step, 8 by default."""

    def run(job: TrainingJob, step: int = 8) -> None:
        with pytest.raises(KeyboardInterrupt):
            replace(job, runtime=Runtime(FP32, stops_at(step))).run()

    return run
