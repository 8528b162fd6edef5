"""A run folder written by version 0.1 is resumed, with its features, to the result that 0.1 reached.

`stored_run_0_1` was written by that version: `run` was interrupted after step 6 of 12, `finished` is the same run
without the interruption.
"""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from caldera.conversation import read_conversations
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import UsageError
from caldera.files.skipped_items import SkippedItems
from caldera.formats.model_folder import load_model_folder
from caldera.model.lora_config import LoraConfig
from caldera.progress import NoProgress
from caldera.training.hyperparameters import FINETUNE
from caldera.training.job import TrainingData, TrainingJob
from caldera.training.metrics_log import read_metrics

STORED = Path(__file__).parent / "stored_run_0_1"
STAGE = replace(
    FINETUNE,
    aspect="anyres",
    grid_pinpoints=("1x2", "2x1", "3x1"),
    learning_rate=1e-2,
    projector_learning_rate=3e-3,
    lora=LoraConfig(rank=2, alpha=4.0, dropout=0.1, targets=("q_proj", "up_proj")),
    batch_size=4,
    epochs=2,
    validation_size=2,
    eval_every=5,
    save_every=4,
    max_length=256,
    warmup_ratio=0.1,
)


def job(folder: Path, out: str) -> TrainingJob:
    """Return a job that resumes a copy of the stored run."""
    conversations = read_conversations(folder / "data.json")
    return TrainingJob(
        stage=STAGE,
        assistant=load_model_folder(folder / "start"),
        data=TrainingData(conversations=conversations, images=folder / "images"),
        out=folder / out,
        features=folder / "features",
        runtime=Runtime(DeviceConfig(torch.device("cpu"), torch.float32), NoProgress()),
        skipped=SkippedItems(),
        resume=True,
    )


def metrics(folder: Path) -> list[dict[str, float]]:
    """Return a run's metrics without those of time."""
    timed = ("seconds", "data_wait_fraction")
    return [
        {name: value for name, value in event.items() if name not in timed}
        for event in read_metrics(folder / "metrics.jsonl")
    ]


def test_an_interrupted_run_resumes_to_the_same_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its checkpoint is loaded, no image is encoded again, and losses and weights are those of version 0.1."""
    caplog.set_level(logging.INFO)
    folder = shutil.copytree(STORED, tmp_path / "stored")
    names = {path.name for path in (folder / "features").iterdir()}

    trained, result = job(folder, "run").run()

    assert result is not None
    assert "resuming from step 4" in caplog.text
    assert {path.name for path in (folder / "features").iterdir()} == names
    for name in names:
        stored = (STORED / "features" / name).read_bytes()
        assert (folder / "features" / name).read_bytes() == stored
    steps, expected = (metrics(path) for path in (folder / "run", STORED / "finished"))
    assert len(steps) == len(expected) == 13
    for step, former in zip(steps, expected, strict=True):
        assert step == pytest.approx(former, rel=1e-4)
    weights = load_model_folder(STORED / "finished" / "model").model.state_dict()
    for name, weight in trained.model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-5)


def test_a_finished_run_is_kept(tmp_path: Path) -> None:
    """Its fingerprint, computed from the former names of the settings, is recognized."""
    folder = shutil.copytree(STORED, tmp_path / "stored")

    trained, result = job(folder, "finished").run()

    assert result is None
    assert trained.card.stage == "finetune"


def test_a_setting_that_changes_no_step_may_differ_and_others_are_named(tmp_path: Path) -> None:
    """As for a run of this version: its settings are compared by name, its data and weights by their digest."""
    folder = shutil.copytree(STORED, tmp_path / "stored")
    shutil.copy(folder / "run" / "stage.json", folder / "finished")
    finished, interrupted = job(folder, "finished"), job(folder, "run")

    _, result = replace(finished, stage=replace(STAGE, micro_batch_size=2, save_every=9)).run()

    assert result is None
    changed = replace(STAGE, learning_rate=1e-3, epochs=3, micro_batch_size=2)
    with pytest.raises(
        UsageError, match=r"weights: learning_rate was 0\.01, is 0\.001; epochs was 2, is 3; resume"
    ):
        replace(interrupted, stage=changed).run()
    fewer = replace(interrupted.data, conversations=interrupted.data.conversations[:-1])
    with pytest.raises(UsageError, match="weights: data, initial weights or precision; resume it"):
        replace(interrupted, data=fewer).run()
