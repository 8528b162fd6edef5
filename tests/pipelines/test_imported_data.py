"""Imported data sets can be trained on: ScienceQA by its recipe, dialogues with none and several images by stage 2."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from caldera.datasets.importer import ImportOptions
from caldera.datasets.registry import import_dataset
from caldera.devices import DeviceConfig, Runtime
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import load_model_folder
from caldera.overrides import apply_overrides
from caldera.pipelines.paper_run import UserInputs, run_paper_recipe
from caldera.progress import NoProgress
from caldera.recipes.registry import find_paper_recipe
from caldera.training.metrics_log import read_metrics

RUNTIME = Runtime(DeviceConfig(torch.device("cpu"), torch.float32), NoProgress())
SMALL = (
    "pretrain.batch_size=3", "pretrain.micro_batch_size=3", "pretrain.max_steps=1",
    "finetune.batch_size=3", "finetune.micro_batch_size=3", "finetune.max_steps=2", "finetune.learning_rate=1e-2",
    "pretrain.warmup_ratio=0", "finetune.warmup_ratio=0",
)  # fmt: skip


@pytest.fixture
def science(tmp_path: Path) -> Path:
    """Five problems in ScienceQA's layout, two of them with an image."""
    folder = tmp_path / "scienceqa"
    problems = {
        str(number): {
            "question": f"Which has {number} legs?", "choices": ["the dog", "the bird"], "answer": number % 2,
            "hint": "Look at the image." if number < 2 else "", "image": "image.png" if number < 2 else None,
            "lecture": "Birds have two legs.", "solution": "It has two.", "split": "train",
        }
        for number in range(5)
    }  # fmt: skip
    folder.mkdir()
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"train": [*problems]}))
    for number in range(2):
        image_folder = folder / "images" / "train" / str(number)
        image_folder.mkdir(parents=True)
        Image.new("RGB", (7, 5), (90 * number, 20, 50)).save(image_folder / "image.png")
    return folder


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Three captions, imported."""
    for number in range(3):
        Image.new("RGB", (5, 7), (20, 80 * number, 50)).save(tmp_path / f"{number}.png")
    (tmp_path / "captions.csv").write_text(
        "image,caption\n0.png,a dog\n1.png,a cat on the left\n2.png,a bird\n"
    )
    out = tmp_path / "captions.json"
    import_dataset("captions", tmp_path / "captions.csv", out, ImportOptions())
    return out


@pytest.mark.parametrize("layout", ["QCM-LEA", "QCM-LEPA", "CQM-A", "letter"])
def test_science_qa_is_trained_by_its_recipe(
    layout: str, science: Path, captions: Path, vision_folder: Path, language_folder: Path, tmp_path: Path
) -> None:  # fmt: skip
    """Problems with and without an image, in every layout, go through both stages, and none is skipped."""
    data = tmp_path / "scienceqa.json"
    report = import_dataset("scienceqa", science, data, ImportOptions(layout=layout))
    assert (report.conversations, report.images) == (5, 2)
    inputs = UserInputs(
        vision=str(vision_folder), language=str(language_folder), pretrain_data=captions,
        pretrain_images=tmp_path, data=data, images=tmp_path,
    )  # fmt: skip
    one_batch = ("finetune.batch_size=5", "finetune.micro_batch_size=5")
    recipe = apply_overrides(find_paper_recipe("science_qa"), [*SMALL, *one_batch])

    run_paper_recipe(
        recipe, inputs, tmp_path / "run", runtime=RUNTIME, max_bad_fraction=0.0, resume=False
    )

    events = read_metrics(tmp_path / "run" / "finetune" / "metrics.jsonl")
    losses = [event["loss"] for event in events if "loss" in event]
    assert len(losses) == 2
    assert losses[1] < losses[0]


def test_dialogues_with_and_without_images_are_trained_together(
    vision_folder: Path, language_folder: Path, captions: Path, tmp_path: Path
) -> None:
    """ShareGPT's dialogues and those about one and two images are one data set; the projector changes."""
    turn = {"from": "human", "value": "how many dogs?"}, {"from": "gpt", "value": "two"}
    question = {"from": "human", "value": "<image>\nwhat is there?"}
    both = {"from": "human", "value": "<image> and <image>"}
    rows = [
        {"id": "talk", "conversations": [*turn, *turn]},
        {"id": "one", "image": "0.png", "conversations": [question, turn[1]]},
        {"id": "both", "image": ["1.png", "2.png"], "conversations": [both, turn[1], *turn]},
    ]
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    data = tmp_path / "dialogues.json"
    report = import_dataset("llava", tmp_path / "chats.json", data, ImportOptions())
    assert (report.conversations, report.images, report.skipped) == (3, 3, 0)
    recipe = apply_overrides(find_paper_recipe("llava_15_7b"), SMALL)
    start = assemble(vision_folder, language_folder, projector=recipe.projector, seed=0)
    inputs = UserInputs(
        vision=str(vision_folder), language=str(language_folder), pretrain_data=captions,
        pretrain_images=tmp_path, data=data, images=tmp_path,
    )  # fmt: skip

    run_paper_recipe(
        recipe, inputs, tmp_path / "run", runtime=RUNTIME, max_bad_fraction=0.0, resume=False
    )

    trained = load_model_folder(tmp_path / "run" / "finetune" / "model").model.projector
    fresh = start.model.projector.state_dict()
    assert all(
        not torch.equal(weight, fresh[name]) for name, weight in trained.state_dict().items()
    )
