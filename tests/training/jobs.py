"""Small training jobs on dialogues about the seven photos, for tests of training."""

from pathlib import Path

import torch

from caldera.batches.samples import Sample, SampleBuilder
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.devices import DeviceConfig, Runtime
from caldera.files.skipped_items import SkippedItems
from caldera.model.bundle import LlavaBundle
from caldera.progress import NoProgress
from caldera.templates.template import find_template
from caldera.training.hyperparameters import Stage
from caldera.training.job import TrainingData, TrainingJob

FP32 = DeviceConfig(torch.device("cpu"), torch.float32)


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
        layout=assistant.processor.layout,
        count_tokens=assistant.model.count_tokens,
        max_length=256,
    )
    return [builder.build(conversation, photos) for conversation in conversations]
