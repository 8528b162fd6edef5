"""Small training jobs on dialogues about the seven photos, and their results, for tests of training."""

from dataclasses import replace
from pathlib import Path

import torch

from caldera.batches.samples import Sample, SampleBuilder
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.devices import DeviceConfig, Runtime
from caldera.files.skipped_items import SkippedItems
from caldera.model.bundle import LlavaBundle
from caldera.model.lora_config import LoraConfig
from caldera.progress import NoProgress
from caldera.templates.registry import find_template
from caldera.training.hyperparameters import FINETUNE, FINETUNE_LORA, PRETRAIN, Stage
from caldera.training.job import TrainingData, TrainingJob
from caldera.training.metrics_log import read_metrics

FP32 = DeviceConfig(torch.device("cpu"), torch.float32)


def small(stage: Stage) -> Stage:
    """Return a stage of nine steps on forty dialogues."""
    return replace(
        stage, batch_size=4, validation_size=4, eval_every=3, save_every=2, max_length=256
    )


STAGES = {
    "pretrain": small(
        replace(PRETRAIN, template="vicuna_v1", learning_rate=3e-3, calibrate_projector=True)
    ),
    "finetune": small(replace(FINETUNE, learning_rate=3e-3)),
    "lora": small(replace(FINETUNE_LORA, lora=LoraConfig(rank=3, dropout=0.2))),
    "anyres": small(
        replace(FINETUNE, learning_rate=3e-3, aspect="anyres", grid_pinpoints=("1x2", "2x1", "3x1"))
    ),
}
"""A small stage of each kind."""


def dialogues(count: int) -> list[Conversation]:
    """Return dialogues about no, one or two images."""
    conversations = []
    for number in range(count):
        images = tuple(ImageRef(f"{(number + index) % 7}.png") for index in range(number % 3))
        answer = ("yes", "no", "the dog is on the left")[number % 3]
        turns = (Turn("user", (*images, "what do you see?")), Turn("assistant", (answer,)))
        conversations.append(Conversation(f"r{number}", turns))
    return conversations


def make_job(
    assistant: LlavaBundle, photos: Path, out: Path, stage: Stage, **changes: object
) -> TrainingJob:
    """Return a job on forty dialogues, with some of its fields changed."""
    fields = {
        "data": TrainingData(conversations=dialogues(40), images=photos),
        "features": out.parent / "features",
        "runtime": Runtime(FP32, NoProgress()),
        "skipped": SkippedItems(),
        **changes,
    }
    return TrainingJob(stage=stage, assistant=assistant, out=out, **fields)  # type: ignore[arg-type]


def build_samples(
    assistant: LlavaBundle, conversations: list[Conversation], photos: Path
) -> list[Sample]:
    """Encode conversations for Vicuna's template."""
    builder = SampleBuilder(
        tokenizer=assistant.tokenizer,
        template=find_template("vicuna_v1"),
        image_token_id=assistant.model.image_token_id,
        layouts=assistant.processor.layouts,
        count_tokens=assistant.model.count_tokens,
        max_length=256,
    )
    return [builder.build(conversation, photos) for conversation in conversations]


def result_of(run: Path) -> tuple[bytes, list[dict[str, float]]]:
    """Return the weights of a finished run as they are on disk, and its metrics without those of time."""
    metrics = [
        {
            name: value
            for name, value in event.items()
            if name not in ("seconds", "data_wait_fraction")
        }
        for event in read_metrics(run / "metrics.jsonl")
    ]
    return (run / "model" / "model.safetensors").read_bytes(), metrics
