"""A model trained by factors in, an adapter folder in peft's format out; it and its base in, the merged model out.

```
ADAPTER/
  adapter_config.json         peft's settings: rank, alpha, and the full path of every layer with factors
  adapter_model.safetensors   the factors, and whole parts that trained beside them, such as the projector
  caldera_adapter.json        digest of the base it stands on, and the card of the merged model
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

from caldera.errors import CalderaError, ModelFormatError
from caldera.files.atomic import atomic_folder, write_json
from caldera.formats.assemble import add_special_tokens, with_image_aspect
from caldera.formats.config import read_json
from caldera.formats.weight_merging import ADAPTER_CONFIG, check_plain_lora
from caldera.formats.weight_names import NEWLINE, digest_weights
from caldera.model.assistant import LlavaBundle, ModelMetadata
from caldera.model.llava import Llava
from caldera.model.lora import (
    LoraConfig,
    add_lora,
    linear_layers,
    lora_layers,
    merge_lora_layers,
)
from caldera.templates.template import find_template

WEIGHTS, ADAPTER_METADATA_FILE = "adapter_model.safetensors", "caldera_adapter.json"

_OUTER = "base_model.model."
"""What peft puts before the names of the model it wraps."""

_PARTS = {
    "vision": ("vision.tower.", "vision_tower"),
    "projector": ("projector.", "multi_modal_projector"),
}
"""Parts that an adapter may bring whole: how their weights' names begin here, and the module in transformers' model."""

_NEWLINE = "projector.newline"
"""Belongs to the projector here, and to no module in transformers' model."""

_FACTORS = {"down": "lora_A", "up": "lora_B"}
"""Names of factors here, and in peft."""


class AdapterMetadata(BaseModel):
    """What an adapter folder says beyond what peft's settings can say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    base: str
    """sha256 of the weights it stands on: all that it does not bring itself."""

    card: ModelMetadata
    """Of the merged model."""

    newline_seed: int = 0
    """Of the end of a row of tiles, where the training gave the base one that it did not have."""


def digest_base(model: Llava, whole_parts: Iterable[str]) -> str:
    """Return the sha256 of a model's weights but for the parts that an adapter brings whole."""
    brought = set(whole_parts)
    weights = model.state_dict()
    return digest_weights({name: weights[name] for name in weights if _part(name) not in brought})


def _part(name: str) -> str:
    return name.partition(".")[0]


def save_adapter(
    folder: Path, assistant: LlavaBundle, lora: LoraConfig, base: str, *, newline_seed: int = 0
) -> None:
    """Write what has been trained beside frozen weights, whole or not at all.

    Args:
        folder: Is made.
        assistant: Its language model has factors; its parts whose weights move are written whole.
        lora: What the factors were made by.
        base: The digest, by `base_digest`, of what the factors stand on.
        newline_seed: Of the end of a row of tiles, where the base had none.

    Raises:
        OutputError: It could not be written.
    """
    model = assistant.model
    weights = model.state_dict()
    moving = {_part(name) for name, each in model.named_parameters() if each.requires_grad}
    whole = moving - {"language"}
    layers = {name: _peft_layer(name, model) for name in lora_layers(model.language)}
    kept = {
        theirs: weights[ours].contiguous().cpu()
        for ours, theirs in _peft_names(model, layers, whole).items()
    }
    with atomic_folder(folder) as fresh:
        save_file(kept, fresh / WEIGHTS, metadata={"format": "pt"})
        write_json(fresh / ADAPTER_CONFIG, _peft_config(lora, list(layers.values()), whole))
        note = AdapterMetadata(base=base, card=assistant.card, newline_seed=newline_seed)
        write_json(fresh / ADAPTER_METADATA_FILE, note.model_dump())


def _peft_config(lora: LoraConfig, layers: list[str], whole: set[str]) -> dict[str, Any]:
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
        "modules_to_save": sorted(_PARTS[part][1] for part in whole) or None,
    }


def _peft_layer(name: str, model: Llava) -> str:
    """Return the path in transformers' model of a layer at `name` in the language model."""
    return "model.language_model." + name.removeprefix(f"{model.language.base_model_prefix}.")


def _peft_names(model: Llava, layers: Mapping[str, str], whole: Set[str]) -> dict[str, str]:
    """Return what an adapter holds, by the names here: peft's names.

    Args:
        model: With or without factors.
        layers: Paths of the layers with factors, here and in transformers' model.
        whole: Parts that it brings whole.
    """
    names = {
        f"language.{here}.{ours}.weight": f"{_OUTER}{there}.{theirs}.weight"
        for here, there in layers.items()
        for ours, theirs in _FACTORS.items()
    }
    for name in model.state_dict():
        if (part := _part(name)) not in whole:
            continue
        if name == _NEWLINE:
            names[name] = f"{_OUTER}model.{NEWLINE}"
        else:
            begin, module = _PARTS[part]
            names[name] = f"{_OUTER}model.{module}.{name.removeprefix(begin)}"
    return names


@dataclass(frozen=True, slots=True)
class _Adapter:
    """An adapter as it lies on disk."""

    folder: Path
    lora: LoraConfig
    layers: tuple[str, ...]
    """Paths in transformers' model."""

    weights: dict[str, Tensor]
    """By peft's names."""

    note: AdapterMetadata

    @property
    def full_parts(self) -> set[str]:
        """The parts that it brings whole."""
        return {
            part
            for part, (_, module) in _PARTS.items()
            if any(name.startswith(f"{_OUTER}model.{module}.") for name in self.weights)
        }


def merge_adapter(folder: Path, base: LlavaBundle) -> LlavaBundle:
    """Fold an adapter into the model it was trained on; the base's model is changed.

    Args:
        folder: Written by `save_adapter`.
        base: The assistant that the training began with, in fp32.

    Raises:
        ModelFolderError: A file is missing or broken, the adapter is for another base, or the merged model does not
            say what the two said together.
    """
    adapter = _read(folder)
    card = adapter.note.card
    add_special_tokens(base.tokenizer, base.model.language, find_template(card.template))
    base = with_image_aspect(
        base, card.image_aspect, card.pinpoints, seed=adapter.note.newline_seed
    )
    model = base.model
    found = digest_base(model, adapter.full_parts)
    if found != adapter.note.base:
        raise ModelFormatError(
            f"{folder} stands on weights with sha256 {adapter.note.base}, these have {found}; give the model folder "
            "that its training began with"
        )
    _load_into(model, adapter)
    merge_lora_layers(model.language)
    return replace(base, card=card)


@torch.no_grad()
def _load_into(model: Llava, adapter: _Adapter) -> None:
    """Put an adapter's weights beside those of its base.

    Raises:
        ModelFolderError: Names or shapes are not those that its settings ask for.
    """
    there = {_peft_layer(name, model): name for name in linear_layers(model.language)}
    if strange := sorted(set(adapter.layers) - there.keys()):
        raise ModelFormatError(
            f"{adapter.folder / ADAPTER_CONFIG} names layers that the base does not have: {strange[:3]}"
        )
    layers = {there[layer]: layer for layer in adapter.layers}
    names = _peft_names(model, layers, adapter.full_parts)
    _check_fit(model, names, adapter)
    add_lora(model.language, layers, adapter.lora, seed=0)
    state = model.state_dict()
    for ours, theirs in names.items():
        state[ours].copy_(adapter.weights[theirs])


def _check_fit(model: Llava, names: Mapping[str, str], adapter: _Adapter) -> None:
    """Compare an adapter's names and shapes with what its base and its settings ask for, before room is made for them.

    Raises:
        ModelFolderError: A weight is missing, not expected, or has another shape.
    """
    missing = sorted(set(names.values()) - adapter.weights.keys())
    surplus = sorted(adapter.weights.keys() - set(names.values()))
    if missing or surplus:
        raise ModelFormatError(
            f"the weights in {adapter.folder} do not fit its settings: missing {missing[:3]}, unexpected {surplus[:3]}"
        )
    for ours, theirs in names.items():
        given, wanted = tuple(adapter.weights[theirs].shape), _shape(model, ours, adapter.lora.rank)
        if given != wanted:
            raise ModelFormatError(
                f"the weight {theirs} in {adapter.folder} has shape {given}; it needs {wanted}"
            )


def _shape(model: Llava, name: str, rank: int) -> tuple[int, ...]:
    """Return the shape of a weight, whether or not the model has its factors yet."""
    layer, _, factor = name.removesuffix(".weight").rpartition(".")
    if not name.startswith("language."):
        return tuple(model.state_dict()[name].shape)
    out_features, in_features = model.get_submodule(layer).weight.shape  # type: ignore[misc]
    return (rank, in_features) if factor == "down" else (out_features, rank)


def _read(folder: Path) -> _Adapter:
    """Read an adapter folder.

    Raises:
        ModelFolderError: A file is missing or broken.
    """
    try:
        note = AdapterMetadata.model_validate_json((folder / ADAPTER_METADATA_FILE).read_bytes())
        config = read_json(folder / ADAPTER_CONFIG)
        check_plain_lora(config, folder / ADAPTER_CONFIG, besides=["modules_to_save"])
        if type(config["r"]) is not int or config.get("use_rslora"):
            raise ValueError(f"r is {config['r']!r} and use_rslora {config.get('use_rslora')!r}")
        lora = LoraConfig(
            rank=config["r"], alpha=config["lora_alpha"], dropout=config["lora_dropout"]
        )
        layers = tuple(map(str, config["target_modules"]))
        return _Adapter(folder, lora, layers, load_file(folder / WEIGHTS), note)
    except FileNotFoundError as error:
        raise ModelFormatError(
            f"{folder} has no {Path(error.filename or WEIGHTS).name}, so it is no adapter that caldera wrote; check "
            "the path"
        ) from None
    except (OSError, SafetensorError) as error:
        raise ModelFormatError(f"{folder} is broken or cut ({error}); copy it again") from None
    except (ValidationError, ValueError, KeyError, TypeError, CalderaError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFormatError(f"{folder} does not say what an adapter must: {reason}") from None
