"""What benchmarks of training train on: random models of two sizes, and conversations of the usual shapes."""

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
from caldera.files.skipped import SkippedItems
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import save_model_folder
from caldera.model.assistant import LlavaBundle
from caldera.scenes.backbones import find_backbone
from caldera.templates.template import find_template
from caldera.training.stage import FINETUNE, PRETRAIN, Stage


@dataclass(frozen=True)
class Size:
    """Two towers."""

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
    """What is trained on: images, conversations about each, questions of one, and words of an answer."""

    stage: Stage
    images: int
    conversations: int
    questions: int
    words: Callable[[random.Random], int]

    batch: int
    """Samples of a step."""


WORKLOADS = {
    "captions": Workload(PRETRAIN, 48, 1, 1, lambda rng: rng.randint(8, 20), 8),
    "captions5": Workload(PRETRAIN, 12, 5, 1, lambda rng: rng.randint(8, 20), 10),
    "instruct": Workload(
        FINETUNE, 24, 2, 3, lambda rng: min(200, max(4, round(rng.lognormvariate(3.4, 0.7)))), 8
    ),
    "vqa": Workload(FINETUNE, 24, 10, 1, lambda rng: rng.randint(1, 2), 20),
}


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, forward and backward, by torch's own formulas."""

    def __init__(self) -> None:
        """Begin at none."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Let an operation run, and count it."""
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def write_model(folder: Path, size: Size) -> None:
    """Join two random towers of a size into a model folder."""
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
    words = AutoTokenizer.from_pretrained(find_backbone("scenes-llama"))
    words.model_max_length = 4096
    words.save_pretrained(folder / "language")
    save_model_folder(folder / "model", assemble(folder / "vision", folder / "language"))


def conversations(load: Workload, folder: Path, side: int) -> list[Conversation]:
    """Write images of noise and conversations of common words about them."""
    rng = random.Random(1)
    words = [
        "the",
        "dog",
        "is",
        "on",
        "a",
        "red",
        "car",
        "and",
        "two",
        "cats",
        "sit",
        "near",
        "it",
        "tree",
    ]
    made = []
    for number in range(load.images):
        path = folder / f"{number}.png"
        Image.frombytes("RGB", (side, side), rng.randbytes(3 * side * side)).save(path)
        for talk in range(load.conversations):
            turns = []
            for turn in range(load.questions):
                asked = " ".join(rng.choices(words, k=9)) + "?"
                turns.append(
                    Turn("user", (ImageRef(path.name), f"\n{asked}") if turn == 0 else (asked,))
                )
                told = " ".join(rng.choices(words, k=load.words(rng)))
                turns.append(Turn("assistant", (told,)))
            made.append(Conversation(f"{number}-{talk}", tuple(turns)))
    return made


def samples_of(load: Workload, assistant: LlavaBundle, folder: Path, side: int) -> list[Sample]:
    """Encode a workload; every side gets these."""
    maker = SampleBuilder(
        tokenizer=assistant.tokenizer, template=find_template(load.stage.template),
        image_token_id=assistant.model.image_token_id, layout=assistant.processor.layout,
        count_tokens=assistant.model.count_tokens, max_length=2048,
    )  # fmt: skip
    return maker.build_all(conversations(load, folder, side), folder, SkippedItems())


def matmul_peak() -> float:
    """Measure bf16 products of square matrices, in operations a second."""
    one, other = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    one @ other
    begun = time.perf_counter()
    for _ in range(10):
        one @ other
    return 10 * 2 * 2048**3 / (time.perf_counter() - begun)
