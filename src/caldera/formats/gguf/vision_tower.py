"""A model folder in, what llama.cpp needs of its tower and projector out: settings and tensors of an mmproj file.

llama.cpp computes such a file by its LLaVA graph (tools/mtmd/models/llava.cpp): tower up to the chosen layer, first
position dropped if there is a class token, two linear layers with GELU between them.

Since May 2025 that graph puts the class token behind the patches, but still gives the first position's embedding to the
first row and drops the first row (https://github.com/ggml-org/llama.cpp/issues/25814, open as of 0.3.36 of
llama-cpp-python). Written for class token "last", a file has the position embeddings in that order, so that every patch
gets its own features; that the first patch's are dropped and the class token's taken, no file can change.
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
from caldera.model.assistant import ModelMetadata

TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Vision towers that llama.cpp's LLaVA graph computes, and how many positions stand before their patches."""

ACTIVATIONS = {
    "quick_gelu": None,
    "gelu": "clip.use_gelu",
    "gelu_new": "clip.use_gelu",
    "gelu_fast": "clip.use_gelu",
    "gelu_pytorch_tanh": "clip.use_gelu",
    "silu": "clip.use_silu",
}
"""The key that asks llama.cpp for a tower's activation; for exact `gelu` it computes the tanh form all the same."""

ASPECTS = ("square", "pad")
"""Ways to show an image that an mmproj file of this kind can be used with: one view for each image."""

ClassToken = Literal["first", "last"]
"""Where llama.cpp puts the class token: "last" in releases since May 2025, "first" before, and once it is mended."""

CLASS_TOKEN_KEY = "caldera.class_token"
"""Says in a file which of the two it was written for."""

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
"""What stands behind the last layer; LLaVA takes a hidden state before it."""


def check_vision(config: PretrainedConfig, card: ModelMetadata) -> None:
    """Refuse what llama.cpp's LLaVA graph would compute otherwise.

    Raises:
        ModelFolderError: The message says what.
    """
    faults = []
    if config.model_type not in TOWERS:
        faults.append(f"a vision tower of type {config.model_type!r} (known: {', '.join(TOWERS)})")
    elif config.hidden_act not in ACTIVATIONS:
        faults.append(f"a vision tower with activation {config.hidden_act!r}")
    elif card.feature_select == "cls_patch" and TOWERS[config.model_type]:
        faults.append("a class token among the image tokens ('select': 'cls_patch')")
    if card.image_aspect not in ASPECTS:
        faults.append(
            f"images shown by {card.image_aspect!r}: llama.cpp orders their tiles otherwise and has no line ends between"
        )
    if faults:
        raise ModelFormatError(f"llama.cpp cannot express {'; nor '.join(faults)}; nothing written")


def depth(config: PretrainedConfig, card: ModelMetadata) -> int:
    """Return the number of layers whose output is projected."""
    layers = int(config.num_hidden_layers)
    number = (
        card.vision_feature_layer
        if card.vision_feature_layer >= 0
        else layers + 1 + card.vision_feature_layer
    )
    if not 0 < number <= layers:
        raise ModelFormatError(
            f"{METADATA_FILE} takes hidden state {card.vision_feature_layer} of a vision tower with {layers} layers; llama.cpp takes "
            "the output of a layer"
        )
    return number


def vision_settings(
    config: PretrainedConfig,
    card: ModelMetadata,
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
        "clip.vision.block_count": depth(config, card),
        "clip.vision.attention.head_count": int(config.num_attention_heads),
        "clip.vision.attention.layer_norm_epsilon": float(config.layer_norm_eps),
        "clip.vision.feature_layer": [depth(config, card)],
        "clip.vision.image_mean": [float(part) for part in processor.mean],
        "clip.vision.image_std": [float(part) for part in processor.std],
    }
    if TOWERS[config.model_type]:
        settings[CLASS_TOKEN_KEY] = class_token
    key = ACTIVATIONS[config.hidden_act]
    return settings | ({key: True} if key else {})


def vision_tensors(
    config: PretrainedConfig,
    card: ModelMetadata,
    weights: Mapping[str, LazyWeight],
    class_token: ClassToken,
) -> list[TensorSpec]:
    """List the tower's tensors; layers behind the chosen one are left out, and `weights` fit its config.

    Raises:
        ModelFolderError: A weight has no name in GGUF.
    """
    swapped = config.intermediate_size == config.hidden_size
    moved = TOWERS[config.model_type] and class_token == "last"
    pieces = []
    for name, weight in weights.items():
        called = _gguf_name(name, depth(config, card), swapped)
        if called is not None:
            read = _reader(weight)
            read = _move_first_row_last(read) if called == _POSITIONS and moved else read
            pieces.append(
                TensorSpec(called, weight.shape, read, exact=name.startswith("embeddings."))
            )
    return pieces


def projector_tensors(card: ModelMetadata, weights: Mapping[str, LazyWeight]) -> list[TensorSpec]:
    """List the projector's tensors."""
    return PROJECTOR_WRITERS[card.projector](weights)


def _reader(weight: LazyWeight) -> Callable[[], Tensor]:
    """Return a function that reads one weight."""
    return lambda: weight.read().float()


def _move_first_row_last(read: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a function that reads a weight and puts its first row, the class token's, behind the others."""
    return lambda: read().roll(-1, dims=0)


def _gguf_name(weight: str, layers: int, swapped: bool) -> str | None:
    """Return a vision weight's name in GGUF, None where it is not used.

    Old files have the two layers of the MLP by each other's names. llama.cpp knows them by their shape, and so takes a
    square one for old: `swapped` writes it as it will be read.

    Raises:
        ModelFolderError: It has none.
    """
    if weight in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[weight]
    if weight.startswith(_UNUSED):
        return None
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", weight)
    if not found or found[2] not in _LAYER_NAMES:
        raise ModelFormatError(f"the weight {weight} of the vision tower has no name in GGUF")
    if int(found[1]) >= layers:
        return None
    part = _LAYER_NAMES[found[2]]
    if swapped:
        part = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}.get(part, part)
    return f"v.blk.{found[1]}.{part}.{found[3]}"


def _two_layers(weights: Mapping[str, LazyWeight]) -> list[TensorSpec]:
    """List LLaVA-1.5's projector, which is what an mmproj file holds."""
    return [
        TensorSpec(f"mm.{number}.{end}", weight.shape, _reader(weight))
        for number, layer in ((0, "linear_1"), (2, "linear_2"))
        for end in ("weight", "bias")
        for weight in [weights[f"{layer}.{end}"]]
    ]


def _one_layer(weights: Mapping[str, LazyWeight]) -> list[TensorSpec]:
    """List v1's single linear layer as two, which give the same: gelu(x) - gelu(-x) is x, for both forms of GELU.

    The first layer gives x and -x side by side, the second takes their difference.
    """
    matrix, bias = _reader(weights["weight"]), _reader(weights["bias"])
    rows, columns = weights["weight"].shape

    def difference() -> Tensor:
        one = torch.eye(rows)
        return torch.cat([one, -one], dim=1)  # (width, 2 * width)

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
"""How each projector of PROJECTORS is written."""
