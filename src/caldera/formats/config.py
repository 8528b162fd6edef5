"""A `config.json` in, data or one tower's config out; what would run code, or asks for absurd sizes, is refused."""

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

from caldera.errors import ModelFormatError

_RUNS_CODE = ("auto_map", "trust_remote_code", "_attn_implementation_internal")
"""Settings by which a folder would choose code that is run."""

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
"""Sizes, and the largest that are believed: some thirty times those of the largest models."""

_MOST_OR_NONE = {
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
"""The same sizes by the names that some families have for them, and numbers of experts; here 0 may say that there is
none."""

_MAX_BYTES = _MAX_VALUES | _MOST_OR_NONE


def read_config(folder: Path) -> dict[str, Any]:
    """Read a `config.json` as data.

    Raises:
        ModelFolderError: It is missing or broken, asks for code of its own to be run, or holds an impossible number.
    """
    read_json(folder / "tokenizer_config.json", needed=False)
    return read_json(folder / "config.json")


def read_json(file: Path, *, needed: bool = True) -> dict[str, Any]:
    """Read an object of settings.

    Raises:
        ModelFolderError: It is missing though `needed`, broken, asks for code of its own to be run, or holds an
            impossible number.
    """
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        if needed:
            raise ModelFormatError(f"{file.parent} has no {file.name}; check the path") from None
        return {}
    except (OSError, ValueError, RecursionError):
        raise ModelFormatError(f"{file} is not readable JSON") from None
    if not isinstance(config, dict):
        raise ModelFormatError(f"{file} should hold a JSON object")
    for name, value in _settings(config):
        if name in _RUNS_CODE and value not in (None, False):
            raise ModelFormatError(
                f"{file} has {name!r}, which would run code from the folder; refused"
            )
        if not _in_range(name, value):
            raise ModelFormatError(
                f"{file} has {name} {value!r}; sizes are whole numbers from 1 to {_MAX_BYTES[name]:,}"
                if name in _MAX_BYTES
                else f"{file} has {name} {value!r}, which is no finite number"
            )
    return config


def _settings(config: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield every setting at any depth."""
    yield name, config
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _settings(value, key)
    elif isinstance(config, list):
        for value in config:
            yield from _settings(value, name)


def _in_range(name: str, value: object) -> bool:
    """Tell whether a setting can be what it says."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if name in _MAX_BYTES and isinstance(value, bool | int | float | str):
        return type(value) is int and (name in _MAX_VALUES) <= value <= _MAX_BYTES[name]
    return True


def sub_config(config: dict[str, Any], key: str, file: Path) -> PretrainedConfig:
    """Build the config of one tower.

    Args:
        config: Of the whole model.
        key: `vision_config` or `text_config`.
        file: Where `config` stands.

    Raises:
        ModelFolderError: It is missing, or of a kind transformers does not know.
    """
    part = config.get(key)
    if not isinstance(part, dict) or "model_type" not in part:
        raise ModelFormatError(f"{file} has no usable {key!r}")
    settings = {name: value for name, value in part.items() if not name.startswith("_")}
    try:
        with accept_old_keys():
            return AutoConfig.for_model(**settings)
    except CONFIG_ERRORS as error:
        raise ModelFormatError(f"{file}: {key!r}: {error_line(error)}") from None


CONFIG_ERRORS = (ValueError, TypeError, AttributeError, LookupError, StrictDataclassError)
"""What transformers raises where a config's settings are of the wrong kind or contradict each other."""


@contextmanager
def accept_old_keys() -> Iterator[None]:
    """Let transformers read settings as earlier releases spelt them, such as `rope_theta`, without a word about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def error_line(error: Exception) -> str:
    """Return what a library says went wrong, in one line: its last, where the cause stands."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
