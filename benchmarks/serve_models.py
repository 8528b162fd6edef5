"""Random towers of several sizes; those of `benchmarks/serve.py` as a model folder and as GGUF files."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from caldera.formats.assemble import assemble
from caldera.formats.gguf.export import write_gguf_files
from caldera.formats.model_folder import save_model_folder
from caldera.progress import NoProgress
from caldera.scenes.backbones import find_backbone


@dataclass(frozen=True)
class Size:
    """Sizes of the two towers."""

    side: int
    patch: int
    vision: tuple[int, int, int]
    """Width, layers and heads."""

    language: tuple[int, int, int, int]
    """Width, layers, heads and key heads."""

    inner: int
    """Hidden size of the language model's MLP."""

    vocabulary: int

    deviation: float = 0.02
    """Standard deviation of the language model's weights; larger ones make attention, and so a wrong mask, count."""

    def vision_config(self) -> CLIPVisionConfig:
        """Return the config of the vision tower."""
        width, layers, heads = self.vision
        return CLIPVisionConfig(
            image_size=self.side, patch_size=self.patch, hidden_size=width, num_hidden_layers=layers,
            num_attention_heads=heads, intermediate_size=4 * width, projection_dim=width,
        )  # fmt: skip

    def language_config(self) -> LlamaConfig:
        """Return the config of the language model."""
        width, layers, heads, key_heads = self.language
        return LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=key_heads, intermediate_size=self.inner, max_position_embeddings=4096,
            initializer_range=self.deviation,
        )  # fmt: skip

    def image_processor(self) -> CLIPImageProcessorPil:
        """Return transformers' image processor."""
        square = {"height": self.side, "width": self.side}
        return CLIPImageProcessorPil(size={"shortest_edge": self.side}, crop_size=square)


SIZES = {
    "1.1b": Size(336, 14, (1024, 24, 16), (2048, 22, 32, 4), 5632, 32_064),
    "26m": Size(112, 16, (384, 6, 6), (384, 8, 6, 2), 1024, 8_192),
}


def write_model(folder: Path, size: Size) -> None:
    """Assemble two random towers into a model folder in bf16, and export its GGUF files."""
    torch.manual_seed(0)
    CLIPVisionModel(size.vision_config()).save_pretrained(folder / "vision")
    size.image_processor().save_pretrained(folder / "vision")
    LlamaForCausalLM(size.language_config()).save_pretrained(folder / "language")
    tokenizer = AutoTokenizer.from_pretrained(find_backbone("scenes-llama"))
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(folder / "language")
    assistant = assemble(folder / "vision", folder / "language")
    assistant.model.bfloat16()
    save_model_folder(folder / "model", assistant)
    write_gguf_files(folder / "model", folder / "f16", "f16", NoProgress())
    write_gguf_files(folder / "model", folder / "q8_0", "q8_0", NoProgress())
