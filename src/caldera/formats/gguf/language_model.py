"""GGUF keys and tensors of a language model.

ARCHITECTURES lists the model types that llama.cpp computes as transformers does; all others are rejected by name.
Names and keys: llama.cpp, src/llama-arch.cpp and conversion/llama.py.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from caldera.errors import ModelFormatError
from caldera.formats.gguf.writer import TensorSpec, Value
from caldera.formats.safetensors_files import LazyWeight

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
"""`general.architecture` by transformers' model type."""

_INTERLEAVED = {"llama"}
"""Architectures whose rotary embedding rotates neighboring pairs, where transformers rotates halves."""

_GLOBAL_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def language_architecture(config: PretrainedConfig) -> str:
    """Return llama.cpp's name for a language model.

    Raises:
        ModelFormatError: llama.cpp does not compute it as transformers does, or it is unknown whether it does.
    """
    if config.model_type not in ARCHITECTURES:
        raise ModelFormatError(
            f"a language model of type {config.model_type!r} cannot be exported to GGUF; known: "
            f"{', '.join(ARCHITECTURES)}"
        )
    activation = getattr(config, "hidden_act", "silu")
    rope = _rope(config).get("rope_type", "default")
    if activation != "silu" or rope not in ("default", "linear"):
        raise ModelFormatError(
            f"a language model with activation {activation!r} and rotary embedding {rope!r} cannot be exported to "
            "GGUF; 'silu' with 'default' or 'linear' can"
        )
    return ARCHITECTURES[config.model_type]


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    """Return the settings of the rotary embedding."""
    return dict(config.rope_parameters or {})


def language_settings(config: PretrainedConfig) -> dict[str, Value]:
    """Return the keys of `general.architecture` for the sizes of the model."""
    name = language_architecture(config)
    heads, rope = config.num_attention_heads, _rope(config)
    width = _head_width(config)
    settings: dict[str, Value] = {
        f"{name}.block_count": config.num_hidden_layers,
        f"{name}.context_length": _context(config),
        f"{name}.embedding_length": config.hidden_size,
        f"{name}.feed_forward_length": config.intermediate_size,
        f"{name}.attention.head_count": heads,
        f"{name}.attention.head_count_kv": config.num_key_value_heads,
        f"{name}.attention.key_length": width,
        f"{name}.attention.value_length": width,
        f"{name}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{name}.rope.dimension_count": width,
        f"{name}.rope.freq_base": float(rope.get("rope_theta", 10000.0)),
        f"{name}.vocab_size": config.vocab_size,
    }
    if rope.get("rope_type") == "linear":
        settings[f"{name}.rope.scaling.type"] = "linear"
        settings[f"{name}.rope.scaling.factor"] = float(rope["factor"])
    return settings


def _head_width(config: PretrainedConfig) -> int:
    """Return the width of one attention head."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _context(config: PretrainedConfig) -> int:
    """Return the context length of the file: at most a sliding window, which llama.cpp does not apply here."""
    window = getattr(config, "sliding_window", None)
    length = int(config.max_position_embeddings)
    return min(length, int(window)) if window else length


def language_tensors(
    config: PretrainedConfig, weights: Mapping[str, LazyWeight]
) -> list[TensorSpec]:
    """List the language model's tensors.

    Args:
        config: Config of the language model.
        weights: Weights that fit it.

    Raises:
        ModelFormatError: A weight has no name in GGUF.
    """
    interleaved = language_architecture(config) in _INTERLEAVED
    num_heads = {"q_proj.": config.num_attention_heads, "k_proj.": config.num_key_value_heads}
    tensors = []
    for name, weight in weights.items():
        heads = next((num_heads[part] for part in num_heads if interleaved and part in name), None)
        tensors.append(TensorSpec(_gguf_name(name), weight.shape, _reader(weight, heads)))
    return tensors


def _reader(weight: LazyWeight, heads: int | None) -> Callable[[], Tensor]:
    """Return a function that reads one weight with its rows in llama.cpp's order."""
    return lambda: interleave_heads(weight.read().float(), heads)


def _gguf_name(weight: str) -> str:
    """Return a weight's name in GGUF, or raise ModelFormatError if it has none."""
    stem, _, ending = weight.rpartition(".")
    if stem in _GLOBAL_NAMES:
        return f"{_GLOBAL_NAMES[stem]}.{ending}"
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    if match and match[2] in _LAYER_NAMES:
        return f"blk.{match[1]}.{_LAYER_NAMES[match[2]]}.{ending}"
    raise ModelFormatError(f"the weight {weight} of the language model has no name in GGUF")


def interleave_heads(weight: Tensor, heads: int | None) -> Tensor:
    """Reorder the rows of each head so that the two halves of a rotary pair are neighbors.

    Args:
        weight: Weight of a query or key projection, (heads * head width, width), or its bias, (heads * head width,).
        heads: Number of heads; None returns the weight unchanged.
    """
    if heads is None:
        return weight
    rows, rest = weight.shape[0], weight.shape[1:]
    halves = weight.reshape(heads, 2, rows // heads // 2, *rest)
    return halves.transpose(1, 2).reshape(weight.shape)
