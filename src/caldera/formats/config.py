"""Reader of `config.json` as data; settings that run code or ask for absurd sizes are rejected."""

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from caldera.errors import ModelFormatError, UsageError

_RUNS_CODE = ("auto_map", "trust_remote_code", "_attn_implementation_internal", "checkpoint_path")
"""Settings that make transformers run code from the folder, or timm unpickle a file."""

_MAX_VALUES = {
    "head_dim": 2**14,
    "hidden_size": 2**17,
    "image_size": 2**14,
    "intermediate_size": 2**20,
    "max_position_embeddings": 2**27,
    "num_attention_heads": 2**12,
    "num_channels": 2**6,
    "num_hidden_layers": 2**10,
    "num_key_value_heads": 2**12,
    "patch_size": 2**12,
    "projection_dim": 2**17,
    "vocab_size": 2**24,
}
"""Largest accepted value of each size: about thirty times that of the largest models."""

_MAX_OR_ZERO = {
    "d_model": 2**17,
    "decoder_layers": 2**10,
    "encoder_layers": 2**10,
    "ffn_dim": 2**20,
    "n_embd": 2**17,
    "n_head": 2**12,
    "n_inner": 2**20,
    "n_layer": 2**10,
    "n_layers": 2**10,
    "n_positions": 2**27,
    "n_routed_experts": 2**12,
    "num_experts": 2**12,
    "num_heads": 2**12,
    "num_layers": 2**10,
    "num_local_experts": 2**12,
}
"""The same sizes under the names of other model families, and numbers of experts; 0 may mean none."""

_LIMITS = _MAX_VALUES | _MAX_OR_ZERO


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's `config.json`, and check its `tokenizer_config.json`.

    Raises:
        ModelFormatError: A file is missing or broken, would run code, or holds an impossible number.
    """
    read_json(folder / "tokenizer_config.json", required=False)
    return read_json(folder / "config.json")


def read_json(file: Path, *, required: bool = True) -> dict[str, Any]:
    """Read a JSON object of settings; a missing file that is not `required` is empty.

    Raises:
        ModelFormatError: The file is missing or broken, would run code, or holds an impossible number.
    """
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        if required:
            raise ModelFormatError(f"{file.parent} has no {file.name}; check the path") from None
        return {}
    except (OSError, ValueError, RecursionError):
        raise ModelFormatError(f"{file} is not readable JSON; copy it again") from None
    if not isinstance(config, dict):
        raise ModelFormatError(f"{file} must hold a JSON object")
    for name, value in _settings(config):
        if name in _RUNS_CODE and value not in (None, False):
            raise ModelFormatError(
                f"{file} has {name!r}, which would run code from the folder; rejected"
            )
        if name == "architecture" and isinstance(value, str) and ":" in value:
            raise ModelFormatError(
                f"{file} has {name} {value!r}, a model in another place; only names of timm's own are accepted"
            )
        if not _in_range(name, value):
            raise ModelFormatError(
                f"{file} has {name} {value!r}; sizes are whole numbers from 1 to {_LIMITS[name]:,}"
                if name in _LIMITS
                else f"{file} has {name} {value!r}, which is not a finite number"
            )
    return config


def _settings(config: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield the name and value of every setting at any depth."""
    yield name, config
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _settings(value, key)
    elif isinstance(config, list):
        for value in config:
            yield from _settings(value, name)


def _in_range(name: str, value: object) -> bool:
    """Return whether a setting has a possible value."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if name in _LIMITS and isinstance(value, bool | int | float | str):
        return type(value) is int and (name in _MAX_VALUES) <= value <= _LIMITS[name]
    return True


def sub_config(config: dict[str, Any], key: str, file: Path) -> PretrainedConfig:
    """Build the config of one tower.

    Args:
        config: Config of the full model.
        key: `vision_config` or `text_config`.
        file: Source of `config`, for messages.

    Raises:
        ModelFormatError: It is missing, or transformers does not know its model type.
    """
    part = config.get(key)
    if not isinstance(part, dict) or "model_type" not in part:
        raise ModelFormatError(f"{file} has no {key!r} with a model_type")
    settings = {name: value for name, value in part.items() if not name.startswith("_")}
    try:
        with accept_old_keys():
            return AutoConfig.for_model(**settings)
    except CONFIG_ERRORS as error:
        raise ModelFormatError(f"{file}: {key!r}: {error_line(error)}") from None


def build_on_meta_device(
    factory: type[AutoModel] | type[AutoModelForCausalLM], config: PretrainedConfig
) -> PreTrainedModel:
    """Build one tower on the meta device: its weights have shapes but no numbers.

    Raises:
        ModelFormatError: The settings of the config contradict each other.
        UsageError: The model needs a package that is not installed.
    """
    try:
        with torch.device("meta"):
            return factory.from_config(config)  # type: ignore[no-untyped-call]
    except ImportError as error:
        raise missing_package(config.model_type, error) from None
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelFormatError(
            f"transformers cannot build the {config.model_type!r} of the config: {reason}"
        ) from None


def missing_package(model: object, error: ImportError) -> UsageError:
    """Return the error for a model whose package, such as timm, is not installed; transformers names it."""
    return UsageError(f"{model} cannot be built: {' '.join(str(error).split())}")


CONFIG_ERRORS = (ValueError, TypeError, AttributeError, LookupError, StrictDataclassError)
"""Exceptions of transformers for settings of a wrong type or that contradict each other."""


@contextmanager
def accept_old_keys() -> Iterator[None]:
    """Let transformers read the setting names of earlier releases, such as `rope_theta`, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def error_line(error: Exception) -> str:
    """Return the last line of a library's error message, which names the cause."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
