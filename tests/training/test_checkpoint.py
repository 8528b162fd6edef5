"""A run that was interrupted resumes bit for bit from its latest valid checkpoint; failed saves leave it valid."""

import errno
import itertools
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from caldera.errors import OutputError
from caldera.formats.assemble import assemble
from caldera.model.bundle import LlavaBundle
from caldera.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    save_checkpoint,
    set_aside_corrupt,
)
from caldera.training.job import TrainingJob
from caldera.training.metrics_log import read_metrics
from tests.files.faulty_files import FaultyFiles
from tests.training.jobs import STAGES, make_job, result_of
from tests.training.test_job import job
from tests.training.test_metrics_log import read_tensorboard


def test_an_interrupted_job_resumes_bit_for_bit(
    start: Callable[[], LlavaBundle],
    photos: Path,
    tmp_path: Path,
    interrupt: Callable[[TrainingJob], None],
) -> None:
    """Interrupted after a checkpoint and resumed, it reaches the weights and losses of an uninterrupted run."""
    uninterrupted, _ = job(start(), photos, tmp_path / "a").run()
    interrupt(job(start(), photos, tmp_path / "b"))
    checkpoint = latest_checkpoint(tmp_path / "b" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 6

    resumed, _ = job(start(), photos, tmp_path / "b", resume=True).run()

    for name, weight in uninterrupted.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name
    losses = [
        [event.get("loss") for event in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("a", "b")
    ]
    assert losses[0] == losses[1]
    assert len(read_tensorboard(tmp_path / "b" / "tensorboard")) == len(losses[1])


def test_dropout_depends_on_the_seed_of_the_stage_alone(
    vision_folder: Path,
    gpt2_folder: Path,
    photos: Path,
    tmp_path: Path,
    interrupt: Callable[[TrainingJob], None],
) -> None:
    """With a language model that has dropout, equal runs are equal bit for bit, interrupted or not."""

    def start_gpt2() -> LlavaBundle:
        return assemble(vision_folder, gpt2_folder, seed=3)

    def weights(out: str, *, resume: bool = False) -> dict[str, torch.Tensor]:
        # Whatever was sampled before.
        torch.manual_seed(len(out))
        trained, _ = job(start_gpt2(), photos, tmp_path / out, resume=resume).run()
        return trained.model.state_dict()

    interrupt(job(start_gpt2(), photos, tmp_path / "interrupted"))
    first, second = weights("first"), weights("second run")
    resumed = weights("interrupted", resume=True)
    for name, weight in first.items():
        assert torch.equal(second[name], weight), name
        assert torch.equal(resumed[name], weight), name


def flip_a_bit(folder: Path) -> None:
    """Flip the last bit of the weights."""
    content = bytearray((folder / "tensors.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "tensors.safetensors").write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": flip_a_bit,
    "truncated": lambda folder: os.truncate(folder / "tensors.safetensors", 100),
    "empty": lambda folder: os.truncate(folder / "tensors.safetensors", 0),
    "no weights": lambda folder: (folder / "tensors.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "other manifest": lambda folder: (folder / "manifest.json").write_text("[]"),
    "broken manifest": lambda folder: (folder / "manifest.json").write_bytes(b"{\xff"),
    "changed state": lambda folder: (folder / "state.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_corrupt_checkpoint_is_kept_and_the_one_before_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told and renamed, so that later checkpoints replace only valid ones; nothing is deleted (F2)."""
    write_steps(tmp_path, 3, 6)
    DAMAGES[damage](tmp_path / "step-00000006")
    files = {path.name for path in (tmp_path / "step-00000006").iterdir()}

    checkpoint = latest_checkpoint(tmp_path)

    assert checkpoint is not None
    assert checkpoint.step == 3
    assert f"skipping the corrupt checkpoint {tmp_path / 'step-00000006'}: " in caplog.text
    set_aside_corrupt(tmp_path, 3)
    assert "kept the corrupt checkpoint" in caplog.text
    write_steps(tmp_path, 6)
    DAMAGES[damage](tmp_path / "step-00000006")
    set_aside_corrupt(tmp_path, 3)
    write_steps(tmp_path, 6)
    assert {path.name for path in tmp_path.iterdir()} == {
        "step-00000003",
        "step-00000006",
        "corrupt-1-step-00000006",
        "corrupt-2-step-00000006",
    }
    assert {path.name for path in (tmp_path / "corrupt-1-step-00000006").iterdir()} == files


def test_a_run_falls_back_to_the_checkpoint_before_a_corrupt_one(
    start: Callable[[], LlavaBundle],
    photos: Path,
    tmp_path: Path,
    interrupt: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It repeats the steps between the two, to the same bits (F2)."""
    caplog.set_level(logging.INFO)
    stage = replace(STAGES["finetune"], save_every=3)
    make_job(start(), photos, tmp_path / "a", stage).run()
    interrupt(make_job(start(), photos, tmp_path / "b", stage), 7)
    flip_a_bit(tmp_path / "b" / "checkpoints" / "step-00000006")

    make_job(start(), photos, tmp_path / "b", stage, resume=True).run()

    assert "resuming from step 3 of 9" in caplog.text
    assert result_of(tmp_path / "b") == result_of(tmp_path / "a")
    assert (tmp_path / "b" / "checkpoints" / "corrupt-1-step-00000006").is_dir()


def write_steps(folder: Path, *steps: int) -> None:
    """Save small checkpoints."""
    for step in steps:
        tensors = {"weights.a": torch.full((3, 5), float(step))}
        save_checkpoint(folder, Checkpoint(step, "run", tensors, {"first_validation_loss": None}))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_save_that_fails_at_any_call_keeps_the_checkpoints(tmp_path: Path, number: int) -> None:
    """At each write, fsync, rename or removal: an error, no partial folder, and a valid checkpoint (F3)."""
    failed = []
    for fail_at in itertools.count(1):
        folder = tmp_path / str(fail_at)
        write_steps(folder, 3, 6)
        before = content_of(folder / "step-00000006")
        files = FaultyFiles(fail_at, number)
        with files.installed(), suppress(OutputError):
            write_steps(folder, 9)
        if not files.failed:
            break
        failed.append(files.failed)
        checkpoint = latest_checkpoint(folder)
        assert checkpoint is not None
        assert torch.equal(
            checkpoint.tensors["weights.a"], torch.full((3, 5), checkpoint.step * 1.0)
        )
        is_written = checkpoint.step == 9
        assert is_written or content_of(folder / "step-00000003")
        assert content_of(folder / "step-00000006") == before
        assert not [*folder.glob(".*")]
        # The next save works, and rotates as usual.
        write_steps(folder, 9)
        assert {path.name for path in folder.iterdir()} == {"step-00000006", "step-00000009"}
    assert {*failed} == {"mkdir", "open", "write", "fsync", "chmod", "replace", "unlink", "rmdir"}
    assert len(failed) > 25


def content_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
