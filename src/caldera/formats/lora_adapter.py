"""LoRA adapter folders in peft's format, written by training and merged into their base model.

```
ADAPTER/
  adapter_config.json         peft's settings: rank, alpha, and the full path of every layer with LoRA factors
  adapter_model.safetensors   the factors, and parts that were trained in full, such as the projector
  caldera_adapter.json        digest of the base model, and metadata of the merged model
```

`PeftModel.from_pretrained(base, ADAPTER)` loads all of it onto transformers' own LlavaForConditionalGeneration.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from caldera.errors import CalderaError, ModelFormatError, describe_validation_error
from caldera.files.atomic import atomic_folder, write_json
from caldera.formats.assemble import add_special_tokens, with_image_aspect
from caldera.formats.config import read_json
from caldera.formats.metadata import StoredMetadata
from caldera.formats.weight_merging import ADAPTER_CONFIG, PEFT_PREFIX, check_plain_lora
from caldera.formats.weight_names import NEWLINE, digest_weights
from caldera.model.bundle import LlavaBundle
from caldera.model.llava import Llava
from caldera.model.lora import (
    add_lora,
    linear_layers,
    lora_layers,
    merge_lora_layers,
)
from caldera.model.lora_config import LoraConfig
from caldera.templates.registry import find_template

WEIGHTS, ADAPTER_METADATA_FILE = "adapter_model.safetensors", "caldera_adapter.json"

_PARTS = {
    "vision": ("vision.tower.", "vision_tower"),
    "projector": ("projector.", "multi_modal_projector"),
}
"""Parts that an adapter may hold in full: prefix of their weights in memory, and module in transformers' model."""

_NEWLINE = f"projector.{NEWLINE}"
"""A weight of the projector in memory, of no module in transformers' model."""

_FACTORS = {"down": "lora_A", "up": "lora_B"}
"""Names of the LoRA factors in memory, and in peft."""


class AdapterMetadata(BaseModel):
    """Content of `caldera_adapter.json`: what peft's settings cannot express."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    base: str
    """sha256 of the base model's weights, without the parts that the adapter holds in full."""

    card: StoredMetadata
    """Metadata of the merged model."""

    newline_seed: int = 0
    """Seed of the newline embedding of tiles, where training added one to the base."""


def digest_base(model: Llava, full_parts: Iterable[str]) -> str:
    """Return the sha256 of a model's weights without the parts that an adapter holds in full."""
    excluded = set(full_parts)
    weights = model.state_dict()
    return digest_weights({name: weights[name] for name in weights if _part(name) not in excluded})


def _part(name: str) -> str:
    return name.partition(".")[0]


def save_adapter(
    folder: Path, assistant: LlavaBundle, lora: LoraConfig, base: str, *, newline_seed: int = 0
) -> None:
    """Write the trained LoRA factors and the parts trained in full, completely or not at all.

    Args:
        folder: The folder to create.
        assistant: Its language model has LoRA factors; its other trainable parts are written in full.
        lora: Configuration of the factors.
        base: Digest of the base model, from `digest_base`.
        newline_seed: Seed of the newline embedding of tiles, if the base had none.

    Raises:
        OutputError: The folder could not be written.
    """
    model = assistant.model
    weights = model.state_dict()
    trainable = {_part(name) for name, weight in model.named_parameters() if weight.requires_grad}
    full_parts = trainable - {"language"}
    layers = {name: _peft_layer(name, model) for name in lora_layers(model.language)}
    tensors = {
        peft_name: weights[name].contiguous().cpu()
        for name, peft_name in _peft_names(model, layers, full_parts).items()
    }
    with atomic_folder(folder) as fresh:
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        write_json(fresh / ADAPTER_CONFIG, _peft_config(lora, list(layers.values()), full_parts))
        metadata = AdapterMetadata(base=base, card=assistant.card, newline_seed=newline_seed)
        write_json(fresh / ADAPTER_METADATA_FILE, metadata.model_dump())


def _peft_config(lora: LoraConfig, layers: list[str], full_parts: set[str]) -> dict[str, Any]:
    """Return the settings that peft reads."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": layers,
        "modules_to_save": sorted(_PARTS[part][1] for part in full_parts) or None,
    }


def _peft_layer(name: str, model: Llava) -> str:
    """Return the path in transformers' model of a layer at `name` in the language model."""
    return "model.language_model." + name.removeprefix(f"{model.language.base_model_prefix}.")


def _peft_names(model: Llava, layers: Mapping[str, str], full_parts: Set[str]) -> dict[str, str]:
    """Return peft's name of each weight of an adapter, by its name in memory."""
    names = {
        f"language.{layer}.{factor}.weight": f"{PEFT_PREFIX}{peft_layer}.{peft_factor}.weight"
        for layer, peft_layer in layers.items()
        for factor, peft_factor in _FACTORS.items()
    }
    for name in model.state_dict():
        if (part := _part(name)) not in full_parts:
            continue
        if name == _NEWLINE:
            names[name] = f"{PEFT_PREFIX}model.{NEWLINE}"
        else:
            prefix, module = _PARTS[part]
            names[name] = f"{PEFT_PREFIX}model.{module}.{name.removeprefix(prefix)}"
    return names


@dataclass(frozen=True, slots=True)
class _Adapter:
    """Content of an adapter folder."""

    folder: Path
    lora: LoraConfig
    layers: tuple[str, ...]
    """Paths in transformers' model."""

    weights: dict[str, Tensor]
    """Tensors by peft's names."""

    metadata: AdapterMetadata

    @property
    def full_parts(self) -> set[str]:
        """Parts that the adapter holds in full."""
        return {
            part
            for part, (_, module) in _PARTS.items()
            if any(name.startswith(f"{PEFT_PREFIX}model.{module}.") for name in self.weights)
        }


def merge_adapter(folder: Path, base: LlavaBundle) -> LlavaBundle:
    """Merge an adapter into its base model, which is changed in place.

    Args:
        folder: A folder from `save_adapter`, or the folder of its run.
        base: The assistant that training started from, in fp32.

    Raises:
        ModelFormatError: A file is missing or broken, the adapter belongs to another base, or the merged logits differ.
    """
    adapter = _read(folder)
    metadata = adapter.metadata.card
    add_special_tokens(base.tokenizer, base.model.language, find_template(metadata.template))
    base = with_image_aspect(
        base,
        metadata.image_aspect,
        metadata.pinpoints,
        metadata.anyres_max,
        seed=adapter.metadata.newline_seed,
    )
    model = base.model
    digest = digest_base(model, adapter.full_parts)
    if digest != adapter.metadata.base:
        raise ModelFormatError(
            f"{folder} belongs to a base model with sha256 {adapter.metadata.base}, this one has {digest}; give the "
            "model folder that its training started from"
        )
    _load_into(model, adapter)
    merge_lora_layers(model.language)
    return replace(base, card=metadata)


@torch.no_grad()
def _load_into(model: Llava, adapter: _Adapter) -> None:
    """Add LoRA layers to a base model and copy an adapter's weights into it."""
    layer_names = {_peft_layer(name, model): name for name in linear_layers(model.language)}
    if unknown := sorted(set(adapter.layers) - layer_names.keys()):
        raise ModelFormatError(
            f"{adapter.folder / ADAPTER_CONFIG} names layers that the base does not have: {unknown[:3]}"
        )
    layers = {layer_names[layer]: layer for layer in adapter.layers}
    names = _peft_names(model, layers, adapter.full_parts)
    _check_weights(model, names, adapter)
    add_lora(model.language, layers, adapter.lora, seed=0)
    state = model.state_dict()
    for name, peft_name in names.items():
        state[name].copy_(adapter.weights[peft_name])


def _check_weights(model: Llava, names: Mapping[str, str], adapter: _Adapter) -> None:
    """Check an adapter's names and shapes before memory is allocated for them."""
    missing = sorted(set(names.values()) - adapter.weights.keys())
    unexpected = sorted(adapter.weights.keys() - set(names.values()))
    if missing or unexpected:
        raise ModelFormatError(
            f"the weights in {adapter.folder} do not fit its settings: missing {missing[:3]}, unexpected "
            f"{unexpected[:3]}"
        )
    for name, peft_name in names.items():
        shape = tuple(adapter.weights[peft_name].shape)
        expected = _shape(model, name, adapter.lora.rank)
        if shape != expected:
            raise ModelFormatError(
                f"the weight {peft_name} in {adapter.folder} has shape {shape}; it needs {expected}"
            )


def _shape(model: Llava, name: str, rank: int) -> tuple[int, ...]:
    """Return the shape of a weight, also of a LoRA factor that the model does not have yet."""
    layer, _, factor = name.removesuffix(".weight").rpartition(".")
    if not name.startswith("language."):
        return tuple(model.state_dict()[name].shape)
    out_features, in_features = model.get_submodule(layer).weight.shape  # type: ignore[misc]
    return (rank, in_features) if factor == "down" else (out_features, rank)


def _read(folder: Path) -> _Adapter:
    """Read an adapter folder, or that in the folder of a run."""
    if (folder / "adapter" / ADAPTER_METADATA_FILE).is_file():
        folder = folder / "adapter"
    try:
        metadata = AdapterMetadata.model_validate_json(
            (folder / ADAPTER_METADATA_FILE).read_bytes()
        )
        config = read_json(folder / ADAPTER_CONFIG)
        check_plain_lora(config, folder / ADAPTER_CONFIG, allowed=["modules_to_save"])
        if type(config["r"]) is not int or config.get("use_rslora"):
            raise ValueError(f"r is {config['r']!r} and use_rslora {config.get('use_rslora')!r}")
        lora = LoraConfig(
            rank=config["r"], alpha=config["lora_alpha"], dropout=config["lora_dropout"]
        )
        layers = tuple(map(str, config["target_modules"]))
        return _Adapter(folder, lora, layers, load_file(folder / WEIGHTS), metadata)
    except FileNotFoundError as error:
        raise ModelFormatError(
            f"{folder} has no {Path(error.filename or WEIGHTS).name}, so it is not an adapter of caldera; check the "
            "path"
        ) from None
    except (OSError, SafetensorError) as error:
        raise ModelFormatError(
            f"{folder} is broken or truncated ({error}); copy it again"
        ) from None
    except ValidationError as error:
        file = folder / ADAPTER_METADATA_FILE
        raise ModelFormatError(f"{file}: {describe_validation_error(error)}") from None
    except (ValueError, KeyError, TypeError, CalderaError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFormatError(f"{folder} has invalid adapter settings: {reason}") from None
