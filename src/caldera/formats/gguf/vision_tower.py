"""GGUF keys and tensors of an mmproj file: vision tower and projector.

llama.cpp computes such a file by its LLaVA graph (tools/mtmd/models/llava.cpp): the tower up to the chosen layer, the
first position dropped if there is a class token, two linear layers with GELU between them.

Since May 2025 that graph puts the class token after the patches, but still gives the first position's embedding to the
first row and drops the first row (https://github.com/ggml-org/llama.cpp/issues/25814, open as of 0.3.36 of
llama-cpp-python). A file for class token "last" has the position embeddings in that order, so that every patch gets its
own features. No file can prevent that the first patch's features are dropped and the class token's are used.
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig

from caldera.errors import ModelFormatError
from caldera.formats.gguf.writer import TensorSpec, Value
from caldera.formats.metadata import METADATA_FILE
from caldera.formats.safetensors_files import LazyWeight
from caldera.images.processor import ImageProcessor
from caldera.model.bundle import ModelMetadata

TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Vision towers that llama.cpp's LLaVA graph computes, and the number of positions before their patches."""

ACTIVATIONS = {
    "quick_gelu": None,
    "gelu": "clip.use_gelu",
    "gelu_new": "clip.use_gelu",
    "gelu_fast": "clip.use_gelu",
    "gelu_pytorch_tanh": "clip.use_gelu",
    "silu": "clip.use_silu",
}
"""Key for each activation of a tower; llama.cpp computes the tanh form for the exact `gelu`, too."""

ASPECTS = ("square", "pad")
"""Image aspects that an mmproj file of this kind supports: one view per image."""

ClassToken = Literal["first", "last"]
"""Position of the class token in llama.cpp: "last" in releases since May 2025, "first" before, and once it is fixed."""

CLASS_TOKEN_KEY = "caldera.class_token"
"""Key for the position that a file was written for."""

_POSITIONS = "v.position_embd.weight"

_GLOBAL_NAMES = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.patch_embedding.bias": "v.patch_embd.bias",
    "embeddings.position_embedding.weight": _POSITIONS,
    "pre_layrnorm.weight": "v.pre_ln.weight",
    "pre_layrnorm.bias": "v.pre_ln.bias",
}
_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_UNUSED = ("post_layernorm.", "head.")
"""Weights after the last layer; LLaVA takes a hidden state before them."""


def check_vision(config: PretrainedConfig, metadata: ModelMetadata) -> None:
    """Reject a model that llama.cpp's LLaVA graph would compute otherwise.

    Raises:
        ModelFormatError: The message lists the reasons.
    """
    faults = []
    if config.model_type not in TOWERS:
        faults.append(f"a vision tower of type {config.model_type!r} (known: {', '.join(TOWERS)})")
    elif config.hidden_act not in ACTIVATIONS:
        faults.append(f"a vision tower with activation {config.hidden_act!r}")
    elif metadata.feature_select == "cls_patch" and TOWERS[config.model_type]:
        faults.append("a class token among the image tokens ('feature_select': 'cls_patch')")
    if metadata.image_aspect not in ASPECTS:
        faults.append(
            f"the image aspect {metadata.image_aspect!r}: llama.cpp orders tiles otherwise, without newline embeddings"
        )
    if faults:
        raise ModelFormatError(f"llama.cpp cannot express {'; nor '.join(faults)}; nothing written")


def depth(config: PretrainedConfig, metadata: ModelMetadata) -> int:
    """Return the number of the layer whose output is projected."""
    layers, hidden_state = int(config.num_hidden_layers), metadata.vision_feature_layer
    number = hidden_state if hidden_state >= 0 else layers + 1 + hidden_state
    if not 0 < number <= layers:
        raise ModelFormatError(
            f"{METADATA_FILE} takes hidden state {hidden_state} of a tower with {layers} layers; llama.cpp takes the "
            "output of a layer"
        )
    return number


def vision_settings(
    config: PretrainedConfig,
    metadata: ModelMetadata,
    processor: ImageProcessor,
    language_width: int,
    class_token: ClassToken,
) -> dict[str, Value]:
    """Return the keys of an mmproj file."""
    settings: dict[str, Value] = {
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.vision.image_size": processor.side,
        "clip.vision.patch_size": int(config.patch_size),
        "clip.vision.embedding_length": int(config.hidden_size),
        "clip.vision.feed_forward_length": int(config.intermediate_size),
        "clip.vision.projection_dim": language_width,
        "clip.vision.block_count": depth(config, metadata),
        "clip.vision.attention.head_count": int(config.num_attention_heads),
        "clip.vision.attention.layer_norm_epsilon": float(config.layer_norm_eps),
        "clip.vision.feature_layer": [depth(config, metadata)],
        "clip.vision.image_mean": [float(part) for part in processor.mean],
        "clip.vision.image_std": [float(part) for part in processor.std],
    }
    if TOWERS[config.model_type]:
        settings[CLASS_TOKEN_KEY] = class_token
    key = ACTIVATIONS[config.hidden_act]
    return settings | ({key: True} if key else {})


def vision_tensors(
    config: PretrainedConfig,
    metadata: ModelMetadata,
    weights: Mapping[str, LazyWeight],
    class_token: ClassToken,
) -> list[TensorSpec]:
    """List the tower's tensors, without the layers after the chosen one.

    Args:
        config: Config of the tower.
        metadata: Metadata of the model.
        weights: Weights that fit the config.
        class_token: Position of the class token in llama.cpp.

    Raises:
        ModelFormatError: A weight has no name in GGUF.
    """
    swapped = config.intermediate_size == config.hidden_size
    class_token_last = TOWERS[config.model_type] and class_token == "last"
    tensors = []
    for name, weight in weights.items():
        gguf_name = _gguf_name(name, depth(config, metadata), swapped)
        if gguf_name is None:
            continue
        read = _reader(weight)
        if gguf_name == _POSITIONS and class_token_last:
            read = _move_first_row_last(read)
        exact = name.startswith("embeddings.")
        tensors.append(TensorSpec(gguf_name, weight.shape, read, exact=exact))
    return tensors


def projector_tensors(
    metadata: ModelMetadata, weights: Mapping[str, LazyWeight]
) -> list[TensorSpec]:
    """List the projector's tensors."""
    return PROJECTOR_WRITERS[metadata.projector](weights)


def _reader(weight: LazyWeight) -> Callable[[], Tensor]:
    """Return a function that reads one weight."""
    return lambda: weight.read().float()


def _move_first_row_last(read: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a function that reads a weight and moves its first row, the class token's, to the end."""
    return lambda: read().roll(-1, dims=0)


def _gguf_name(weight: str, layers: int, swapped: bool) -> str | None:
    """Return a weight's name in GGUF, or None if it is not used; raise ModelFormatError if it has no name.

    Old files swap the names of the two layers of the MLP. llama.cpp recognizes them by shape, so it takes square layers
    for old ones: `swapped` writes them under the names that it will read.
    """
    if weight in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[weight]
    if weight.startswith(_UNUSED):
        return None
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", weight)
    if not match or match[2] not in _LAYER_NAMES:
        raise ModelFormatError(f"the weight {weight} of the vision tower has no name in GGUF")
    if int(match[1]) >= layers:
        return None
    part = _LAYER_NAMES[match[2]]
    if swapped:
        part = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}.get(part, part)
    return f"v.blk.{match[1]}.{part}.{match[3]}"


def _two_layers(weights: Mapping[str, LazyWeight]) -> list[TensorSpec]:
    """List LLaVA-1.5's projector, the form that mmproj files have."""
    return [
        TensorSpec(f"mm.{number}.{end}", weight.shape, _reader(weight))
        for number, layer in ((0, "linear_1"), (2, "linear_2"))
        for end in ("weight", "bias")
        for weight in [weights[f"{layer}.{end}"]]
    ]


def _one_layer(weights: Mapping[str, LazyWeight]) -> list[TensorSpec]:
    """List v1's single linear layer as two that compute the same: gelu(x) - gelu(-x) = x, for both forms of GELU.

    The first layer computes x and -x, the second the difference.
    """
    matrix, bias = _reader(weights["weight"]), _reader(weights["bias"])
    rows, columns = weights["weight"].shape

    def difference() -> Tensor:
        identity = torch.eye(rows)
        return torch.cat([identity, -identity], dim=1)  # (width, 2 * width)

    return [
        TensorSpec("mm.0.weight", (2 * rows, columns), lambda: torch.cat([matrix(), -matrix()])),
        TensorSpec("mm.0.bias", (2 * rows,), lambda: torch.cat([bias(), -bias()])),
        TensorSpec("mm.2.weight", (rows, 2 * rows), difference, exact=True),
        TensorSpec("mm.2.bias", (rows,), lambda: torch.zeros(rows)),
    ]


PROJECTOR_WRITERS: dict[str, Callable[[Mapping[str, LazyWeight]], list[TensorSpec]]] = {
    "mlp2x_gelu": _two_layers,
    "linear": _one_layer,
}
"""Function that lists the tensors of each projector in PROJECTORS."""
