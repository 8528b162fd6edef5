"""A run that was interrupted or killed resumes bit for bit from its latest valid checkpoint."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from caldera.conversation import write_conversations
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.training.checkpoint import latest_checkpoint
from caldera.training.job import TrainingJob
from caldera.training.metrics_log import read_metrics
from tests.training.jobs import dialogues
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


def test_a_corrupt_checkpoint_is_skipped(
    assistant: LlavaBundle, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped bit in the latest checkpoint is detected; the one before is used."""
    job(assistant, photos, tmp_path / "run").run()
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    file = checkpoints[1] / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoints")

    assert checkpoint is not None
    assert checkpoints[0].name == f"step-{checkpoint.step:08d}"
    assert "skipping the corrupt checkpoint" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "delays"),
    [((), (6.0, 7.5, 9.0, 10.5)), (("--lora", "--set", "lora.rank=3"), (8.0, 9.0))],
)
def test_a_killed_process_resumes_bit_for_bit(
    assistant: LlavaBundle,
    photos: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    delays: tuple[float, ...],
) -> None:
    """SIGKILL at random times, started again each time: the same model as that of an uninterrupted process."""
    save_model_folder(tmp_path / "start", assistant)
    write_conversations(tmp_path / "data.json", dialogues(40))
    command = [
        *(sys.executable, "-m", "caldera", "train", "finetune", "--dtype", "float32", "--resume"),
        *options,
        *("--model", str(tmp_path / "start"), "--data", str(tmp_path / "data.json")),
        *("--images", str(photos), "--set", "batch_size=4", "--set", "epochs=8"),
        *("--set", "save_every=3", "--set", "max_length=256", "--set", "learning_rate=1e-3"),
    ]
    uninterrupted = [*command, "--out", str(tmp_path / "uninterrupted")]
    subprocess.run(uninterrupted, check=True, capture_output=True)
    for delay in delays:
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "killed")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--out", str(tmp_path / "killed")], check=True, capture_output=True)

    expected, killed = (
        load_model_folder(tmp_path / name / "model") for name in ("uninterrupted", "killed")
    )
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(killed.model.state_dict()[name], weight), name
