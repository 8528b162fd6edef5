"""Tiny random folders of LLaVA-OneVision and LLaVA-NeXT-Interleave, written by transformers, and their outputs there.

The side of the tower's input does not divide into patches, as the 384 pixels of SigLIP so400m/14 do not.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.formats.importing.import_model import import_model
from caldera.formats.importing.request import ImportRequest
from caldera.formats.onevision_processor import VIDEO_TOKEN, LlavaOnevisionProcessor
from caldera.images.anyres import ONEVISION_GRIDS, grid_pinpoints
from caldera.images.decoding import open_image
from caldera.progress import NoProgress
from caldera.templates.registry import VICUNA_SYSTEM
from tests.tiny_languages import WIDTHS

SIDE, PATCHES_PER_SIDE = 17, 3
PINPOINTS = grid_pinpoints(ONEVISION_GRIDS, SIDE)
SIZES = ((9, 9), (60, 59), (5, 300), (300, 5), (1, 1), (90, 61), (300, 260), (17, 17), (33, 34))
"""Widths and heights: tiny, square, very long, and large enough that tokens are scaled down."""

_VISION = SiglipVisionConfig(
    hidden_size=10,
    intermediate_size=14,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=SIDE,
    patch_size=5,
    vision_use_head=False,
)
_PIXELS: dict[str, Any] = {
    "size": {"height": SIDE, "width": SIDE},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.6, 0.7],
}


def _write_model(folder: Path, config: Any, tokenizer: PreTrainedTokenizerFast) -> None:  # noqa: ANN401
    """Write a random model of a config with transformers; its language model is a Qwen2 with tied embeddings."""
    torch.manual_seed(8)
    shape = Qwen2Config(**{**WIDTHS, "vocab_size": len(tokenizer), "tie_word_embeddings": True})
    model = AutoModelForImageTextToText.from_config(
        config(
            vision_config=_VISION,
            text_config=shape,
            image_token_index=tokenizer.get_vocab()["<image>"],
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
        )
    )
    model.save_pretrained(folder)


def write_onevision(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a LLaVA-OneVision folder; without torchvision, transformers itself cannot write its processor."""
    tokenizer = _with_tokens(tokenizer, "<image>", VIDEO_TOKEN)
    grid = [[height, width] for width, height in PINPOINTS]

    def config(**shared: Any) -> LlavaOnevisionConfig:  # noqa: ANN401
        video = tokenizer.get_vocab()[VIDEO_TOKEN]
        return LlavaOnevisionConfig(**shared, image_grid_pinpoints=grid, video_token_index=video)

    _write_model(folder, config, tokenizer)
    pixels = LlavaOnevisionImageProcessorPil(**_PIXELS, image_grid_pinpoints=grid)
    LlavaOnevisionProcessor(
        pixels,
        tokenizer,
        num_image_tokens=PATCHES_PER_SIDE**2,
        vision_feature_select_strategy="full",
    ).save_pretrained(folder)
    return folder


def import_onevision(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a LLaVA-OneVision folder, and return it imported."""
    source = write_onevision(folder / "source", tokenizer)
    request = ImportRequest(source=source, template="vicuna_v1")
    import_model(request, folder / "imported", NoProgress())
    return folder / "imported"


def write_interleave(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a LLaVA-NeXT-Interleave folder: transformers' LLaVA with SigLIP and Qwen2."""
    tokenizer = _with_tokens(tokenizer, "<image>")
    _write_model(folder, LlavaConfig, tokenizer)
    LlavaProcessor(
        SiglipImageProcessorPil(**_PIXELS),
        tokenizer,
        patch_size=_VISION.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
    ).save_pretrained(folder)
    return folder


def _with_tokens(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> PreTrainedTokenizerFast:
    """Return a copy of a tokenizer with a padding token and further special tokens."""
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens(
        {"extra_special_tokens": [*tokens], "pad_token": "<pad>"},
        replace_extra_special_tokens=False,
    )
    return changed


def draw(folder: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> list[Path]:
    """Write an image of noise of each size."""
    rng = np.random.default_rng(7)
    paths = []
    for number, (width, height) in enumerate(sizes):
        paths.append(folder / f"image-{number}.png")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def question(images: Sequence[Path]) -> Conversation:
    """Return a question about images, which stand before its text."""
    text = "\nwhat is there?" if images else "what are you?"
    return Conversation("q", (Turn("user", (*(ImageRef(str(path)) for path in images), text)),))


def load_in_transformers(folder: Path) -> Any:  # noqa: ANN401 - transformers' own
    """Return a folder's model in transformers' own class, which finds every weight and no other."""
    loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


class Reference:
    """A folder in transformers' own classes, but for the video processor."""

    def __init__(self, folder: Path) -> None:
        self.model = load_in_transformers(folder)
        onevision = self.model.config.model_type == "llava_onevision"
        processor_class = LlavaOnevisionProcessor if onevision else LlavaProcessor
        self.processor: Any = processor_class.from_pretrained(folder)

    def inputs(self, conversation: Conversation) -> Any:  # noqa: ANN401
        """Return the processor's output for a question with Vicuna's template; its images belong together."""
        text = "<image>" * len(conversation.images) + conversation.turns[0].text
        images = [open_image(Path(path)) for path in conversation.images]
        prompt = f"{VICUNA_SYSTEM} USER: {text} ASSISTANT:"
        return self.processor(
            images=[images] if images else None, text=[prompt], return_tensors="pt"
        )

    @torch.no_grad()
    def logits(self, inputs: Any) -> torch.Tensor:  # noqa: ANN401
        """Return the logits after each token, (tokens, vocabulary)."""
        logits: torch.Tensor = self.model(**inputs).logits[0]
        return logits
