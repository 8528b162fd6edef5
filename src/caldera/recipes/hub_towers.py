"""What the papers' towers are called on the Hugging Face hub, and the shapes that their sizes are computed from.

Nothing here fetches them: a recipe's user does, and gives the folders.
"""

from collections.abc import Callable
from functools import cache

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
)

from caldera.model.config import read_config
from caldera.model.projector import build_projector
from caldera.scenes.backbones import BACKBONES


def _clip_large(side: int) -> CLIPVisionConfig:
    """CLIP's ViT-L/14 for images of `side` pixels (arXiv 2103.00020, table 20)."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=side,
        patch_size=14,
    )


def _llama_7b() -> LlamaConfig:
    """LLaMA 7B (arXiv 2302.13971, table 2), whose shape Vicuna keeps; it is what transformers assumes."""
    return LlamaConfig()


def _llama_13b() -> LlamaConfig:
    """LLaMA 13B (arXiv 2302.13971, table 2)."""
    return LlamaConfig(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
    )


HUB_TOWERS: dict[str, Callable[[], PretrainedConfig]] = {
    "openai/clip-vit-large-patch14": lambda: _clip_large(224),
    "openai/clip-vit-large-patch14-336": lambda: _clip_large(336),
    "lmsys/vicuna-7b-delta-v0": _llama_7b,
    "lmsys/vicuna-13b-delta-v0": _llama_13b,
    "lmsys/vicuna-7b-v1.5": _llama_7b,
    "lmsys/vicuna-13b-v1.5": _llama_13b,
    "mistralai/Mistral-7B-Instruct-v0.2": MistralConfig,
}
"""Shapes of the towers that the papers' recipes name."""


def tower_config(name: str) -> PretrainedConfig | None:
    """Return the shape of a tower by its name on the hub or among the shipped ones; None where it is not known here."""
    if name in HUB_TOWERS:
        return HUB_TOWERS[name]()
    if name in BACKBONES:
        return AutoConfig.for_model(**read_config(BACKBONES[name]))
    return None


@cache
def num_vision_parameters(name: str) -> int | None:
    """Return how many weights a vision tower has; None where its shape is not known here."""
    return _count(AutoModel, name)


@cache
def num_language_parameters(name: str) -> int | None:
    """Return how many weights a language model has; None where its shape is not known here."""
    return _count(AutoModelForCausalLM, name)


@cache
def num_projector_parameters(projector: str, vision: str, language: str) -> int | None:
    """Return how many weights a projector between two towers has; None where a shape is not known here."""
    seen, spoken = tower_config(vision), tower_config(language)
    if seen is None or spoken is None:
        return None
    with torch.device("meta"):
        built = build_projector(projector, seen.hidden_size, spoken.hidden_size)
    return sum(each.numel() for each in built.parameters())


def _count(factory: type[AutoModel] | type[AutoModelForCausalLM], name: str) -> int | None:
    """Build a tower without memory for its weights, and count them."""
    config = tower_config(name)
    if config is None:
        return None
    with torch.device("meta"):
        built = factory.from_config(config)  # type: ignore[no-untyped-call]
    return sum(each.numel() for each in built.parameters())
