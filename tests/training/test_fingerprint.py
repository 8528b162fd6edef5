"""A run's fingerprint changes with everything that decides its result, and with nothing else."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from caldera.batches.samples import Sample
from caldera.images.anyres import SINGLE_VIEW
from caldera.model.bundle import LlavaBundle
from caldera.training.hyperparameters import FINETUNE
from caldera.training.job import run_fingerprint
from tests.training.jobs import FP32


def fingerprint(assistant: LlavaBundle, photos: Path, file: str = "1.png", **changes: str) -> str:
    """Return the fingerprint of a run on one sample about an image."""
    sample = Sample("r", (1, 2, 3), (-100, 2, 3), (photos / file,), (SINGLE_VIEW,), (1,))
    compute = replace(FP32, dtype=getattr(torch, changes.get("dtype", "float32")))
    stage = replace(FINETUNE, seed=len(changes.get("stage", "")))
    return run_fingerprint(stage, assistant, [sample], photos, compute)


def test_a_moved_run_has_the_same_fingerprint(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """The location of the folder of images does not count."""
    moved = shutil.copytree(photos, tmp_path / "moved")
    assert fingerprint(assistant, moved) == fingerprint(assistant, photos)


@pytest.mark.parametrize(
    "change", ["aspect", "layer", "select", "weights", "after", "dtype", "stage", "path", "image"]
)
def test_everything_that_decides_a_result_counts(
    assistant: LlavaBundle, photos: Path, change: str
) -> None:
    """Other preparation, features, weights, precision, settings or images give another fingerprint."""
    before = fingerprint(assistant, photos)
    file, model = "1.png", assistant.model
    match change:
        case "aspect":
            processor = replace(assistant.processor, aspect="pad")
            assistant = replace(assistant, processor=processor)
        case "layer":
            model.vision.select_layer = -1
        case "select":
            model.vision.select = "cls_patch"
        case "weights":
            with torch.no_grad():
                model.embedding_weight[0, 0] += 1e-3
        case "after":
            card = assistant.card.model_copy(update={"stage": "pretrain"})
            assistant = replace(assistant, card=card)
        case "path":
            file = "same bytes.png"
            shutil.copy(photos / "1.png", photos / file)
        case "image":
            Image.new("RGB", (30, 30)).save(photos / "1.png")
    changes = {change: "bfloat16" if change == "dtype" else "other"}
    assert fingerprint(assistant, photos, file, **changes) != before
