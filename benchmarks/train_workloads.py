"""Models and workloads of the training benchmarks: random weights, and conversations of the usual shapes."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from caldera.batches.samples import Sample, SampleBuilder
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.files.skipped_items import SkippedItems
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import save_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.scenes.backbones import find_backbone
from caldera.templates.registry import find_template
from caldera.training.hyperparameters import FINETUNE, PRETRAIN, Stage


@dataclass(frozen=True)
class Size:
    """Sizes of the two towers."""

    side: int
    patch: int
    vision: tuple[int, int]
    """Width and layers."""

    language: tuple[int, int]
    vocabulary: int


SIZES = {
    "211m": Size(224, 16, (768, 12), (576, 30), 32_064),
    "26m": Size(112, 16, (384, 6), (384, 8), 8_192),
}


@dataclass(frozen=True)
class Workload:
    """Training data: images, conversations per image, questions per conversation, and words per answer."""

    stage: Stage
    images: int
    conversations: int
    questions: int
    words: Callable[[random.Random], int]

    batch: int
    """Samples per step."""


WORKLOADS = {
    "captions": Workload(PRETRAIN, 48, 1, 1, lambda rng: rng.randint(8, 20), 8),
    "captions5": Workload(PRETRAIN, 12, 5, 1, lambda rng: rng.randint(8, 20), 10),
    "instruct": Workload(
        FINETUNE, 24, 2, 3, lambda rng: min(200, max(4, round(rng.lognormvariate(3.4, 0.7)))), 8
    ),
    "vqa": Workload(FINETUNE, 24, 10, 1, lambda rng: rng.randint(1, 2), 20),
}


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, forward and backward, with torch's formulas."""

    def __init__(self) -> None:
        """Start counting at zero."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run an operation and count it."""
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def write_model(folder: Path, size: Size) -> None:
    """Assemble two random towers into a model folder."""
    torch.manual_seed(0)
    width, layers = size.vision
    tower = CLIPVisionConfig(
        image_size=size.side, patch_size=size.patch, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=width // 64, intermediate_size=4 * width,
    )  # fmt: skip
    CLIPVisionModel(tower).save_pretrained(folder / "vision")
    CLIPImageProcessorPil(
        size={"shortest_edge": size.side}, crop_size={"height": size.side, "width": size.side}
    ).save_pretrained(folder / "vision")
    width, layers = size.language
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=width // 192, intermediate_size=round(width * 8 / 3), max_position_embeddings=4096,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "language")
    tokenizer = AutoTokenizer.from_pretrained(find_backbone("scenes-llama"))
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(folder / "language")
    save_model_folder(folder / "model", assemble(folder / "vision", folder / "language"))


def conversations(workload: Workload, folder: Path, side: int) -> list[Conversation]:
    """Write images of noise, and return conversations of common words about them."""
    rng = random.Random(1)
    words = "the dog is on a red car and two cats sit near it tree".split()  # noqa: SIM905 - shorter than a list
    result = []
    for number in range(workload.images):
        path = folder / f"{number}.png"
        Image.frombytes("RGB", (side, side), rng.randbytes(3 * side * side)).save(path)
        for index in range(workload.conversations):
            turns = []
            for turn in range(workload.questions):
                question = " ".join(rng.choices(words, k=9)) + "?"
                parts = (ImageRef(path.name), f"\n{question}") if turn == 0 else (question,)
                turns.append(Turn("user", parts))
                answer = " ".join(rng.choices(words, k=workload.words(rng)))
                turns.append(Turn("assistant", (answer,)))
            result.append(Conversation(f"{number}-{index}", tuple(turns)))
    return result


def samples_of(workload: Workload, assistant: LlavaBundle, folder: Path, side: int) -> list[Sample]:
    """Return the encoded samples of a workload, the same for every side."""
    builder = SampleBuilder(
        tokenizer=assistant.tokenizer, template=find_template(workload.stage.template),
        image_token_id=assistant.model.image_token_id, layouts=assistant.processor.layouts,
        count_tokens=assistant.model.count_tokens, max_length=2048,
    )  # fmt: skip
    return builder.build_all(conversations(workload, folder, side), folder, SkippedItems())


def matmul_peak() -> float:
    """Return the speed of bf16 products of square matrices, in operations per second."""
    a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    a @ b
    start_time = time.perf_counter()
    for _ in range(10):
        a @ b
    return 10 * 2 * 2048**3 / (time.perf_counter() - start_time)
