"""Config of an original LLaVA folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, PretrainedConfig, SiglipVisionConfig

from caldera.errors import ModelFormatError, shorten_value
from caldera.formats.config import sub_config
from caldera.images.anyres import grid_pinpoints, parse_anyres_max
from caldera.images.processor import MAX_TILES, ImageProcessor
from caldera.model.projector import PROJECTORS
from caldera.templates.registry import find_template

TOWER_FOLDER = "vision_tower"
"""Folder, in an export, of a vision tower that has no name on the hub."""

LANGUAGE_TYPES = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}
"""Model types of original configs, and the language model of each; `llava` is LLaVA v1's."""

_QWEN_CLASS = "LlavaQwenForCausalLM"
"""Class of LLaVA-OneVision, whose releases may have the model type `llava`."""

LLAVA_CLASSES = {
    "llama": ("llava_llama", "LlavaLlamaForCausalLM"),
    "mistral": ("llava_mistral", "LlavaMistralForCausalLM"),
}
"""Model type and class in LLaVA's own code, by language model."""

_CONVERSATION_MODES = {
    "plain": "plain",
    "v0": "llava_v0",
    "vicuna_v1": "vicuna_v1",
    "llava_v1": "llava_v1",
    "llama_2_original": "llama_2",
    "llava_llama_2": "llava_llama_2",
    "mpt": "mpt",
    "mistral_instruct": "mistral_instruct",
    "chatml_direct": "chatml_direct",
}
"""Conversation modes of LLaVA's own code, by caldera's template with the same prompts; variants share a prompt."""

_UNSUPPORTED = {"llava_mpt": "LLaVA's own code cannot run its MPT models either"}

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_CLIP_L14: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
_SIGLIP_SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
}
_SIDES = {"openai/clip-vit-large-patch14": 224, "openai/clip-vit-large-patch14-336": 336}
"""Vision towers of LLaVA's releases by their exact hub names, and the sides of their images."""

_SIGLIP = "google/siglip-so400m-patch14-384"
"""LLaVA-OneVision's vision tower."""

_LLAVA_KEYS = {
    "add_faster_video",
    "add_time_instruction",
    "architectures",
    "faster_token_stride",
    "force_sample",
    "freeze_mm_mlp_adapter",
    "freeze_mm_vision_resampler",
    "image_aspect_ratio",
    "image_crop_resolution",
    "image_grid_pinpoints",
    "image_split_resolution",
    "image_token_index",
    "model_type",
    "pos_skipping_range",
    "s2",
    "s2_scales",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "tune_mm_mlp_adapter",
    "tune_mm_vision_resampler",
    "unfreeze_mm_vision_tower",
    "use_mm_proj",
    "use_pos_skipping",
    "vision_tower_pretrained",
}
"""Settings that are not the language model's, in addition to all that begin with `mm_`."""


@dataclass(frozen=True, slots=True)
class OriginalSettings:
    """Settings of an original config under caldera's names."""

    language: PretrainedConfig
    projector: str
    vision_feature_layer: int
    feature_select: str
    aspect: str
    """`anyres_max_N` with its limit."""

    grids: object
    """`image_grid_pinpoints`, which `parse_grids` reads."""

    tower: str
    """Name of the vision tower on the hub."""

    tower_trained: bool
    """Whether to use the folder's own weights of the tower."""


def conversation_mode(template: str) -> str | None:
    """Return the conversation mode of LLaVA's own code with the prompts of a template; None if it has none."""
    strict = template.removesuffix(f"_{find_template(template).segmentation}")
    return _CONVERSATION_MODES.get(template) or _CONVERSATION_MODES.get(strict)


def is_original(config: Mapping[str, Any]) -> bool:
    """Return whether a config is one of LLaVA's own code."""
    return "mm_vision_tower" in config or "mm_hidden_size" in config


def read_original(config: Mapping[str, Any], file: Path) -> OriginalSettings:
    """Read an original config.

    Raises:
        ModelFormatError: A setting is missing or not supported; the message names it.
    """
    model_type = str(config.get("model_type"))
    if model_type not in LANGUAGE_TYPES:
        reason = _UNSUPPORTED.get(model_type, f"known: {', '.join(LANGUAGE_TYPES)}")
        raise ModelFormatError(
            f"{file} has model_type {model_type!r}, which is not supported: {reason}"
        )
    _check_supported(config, file)
    language = {
        name: value
        for name, value in config.items()
        if name not in _LLAVA_KEYS and not name.startswith("mm_")
    }
    is_qwen = config.get("architectures") == [_QWEN_CLASS]
    language["model_type"] = "qwen2" if is_qwen else LANGUAGE_TYPES[model_type]
    layer = config.get("mm_vision_select_layer")
    if type(layer) is not int:
        raise ModelFormatError(
            f"{file} has mm_vision_select_layer {layer!r}; it must be a whole number"
        )
    return OriginalSettings(
        language=sub_config({"text_config": language}, "text_config", file),
        projector=str(config.get("mm_projector_type", "linear")),
        vision_feature_layer=layer,
        feature_select=str(config.get("mm_vision_select_feature", "patch")),
        aspect=_image_aspect(config, file),
        grids=config.get("image_grid_pinpoints"),
        tower=str(config.get("mm_vision_tower")),
        tower_trained=config.get("unfreeze_mm_vision_tower") is True
        or "mm_vision_tower" in str(config.get("mm_tunable_parts")).split(","),
    )


def _check_supported(config: Mapping[str, Any], file: Path) -> None:
    """Raise ModelFormatError if a setting has a value that caldera does not support."""
    supported: dict[str, tuple[object, ...]] = {
        "mm_projector_type": (None, *PROJECTORS),
        "mm_resampler_type": (None,),
        "mm_vision_select_feature": (None, "patch", "cls_patch"),
        "mm_patch_merge_type": (None, "flat", "spatial_unpad"),
        "s2": (None, False),
        "use_mm_proj": (None, True),
        "quantization_config": (None,),
        "pretraining_tp": (None, 1),
    }
    for name, values in supported.items():
        if config.get(name) not in values:
            valid = ", ".join(str(value) for value in values if value is not None) or "none"
            raise ModelFormatError(
                f"{file} has {name} {shorten_value(config[name])}, which is not supported; known: {valid}"
            )
    if config.get("mm_use_im_start_end"):
        raise ModelFormatError(
            f"{file} has mm_use_im_start_end true: such models need <im_start> and <im_end> around each image, which "
            "no template of caldera has; not supported"
        )


def _image_aspect(config: Mapping[str, Any], file: Path) -> str:
    """Return the image aspect."""
    aspect = str(config.get("image_aspect_ratio") or "square")
    if aspect in ("square", "pad"):
        return aspect
    if aspect != "anyres" and parse_anyres_max(aspect) is None:
        raise ModelFormatError(
            f"{file} has image_aspect_ratio {shorten_value(aspect)}, which is not supported; known: square, pad, "
            "anyres, anyres_max_N"
        )
    if config.get("mm_patch_merge_type") != "spatial_unpad":
        raise ModelFormatError(
            f"{file} has image_aspect_ratio {aspect} with mm_patch_merge_type "
            f"{config.get('mm_patch_merge_type', 'flat')!r}; only spatial_unpad is supported"
        )
    return aspect


def parse_grids(value: object, side: int, file: Path) -> tuple[tuple[int, int], ...]:
    """Parse `image_grid_pinpoints` of an original config: sizes, or a range of grids such as `(1x1),...,(6x6)`.

    Args:
        value: The setting.
        side: Side of a tile in pixels.
        file: Path for messages.

    Raises:
        ModelFormatError: It is neither.
    """
    grids = re.findall(r"\((\d+)x(\d+)\)", value) if isinstance(value, str) else []
    if not grids:
        return parse_pinpoints(value, file)
    # Of texts without end, Python makes no number.
    first, last = ([int(number[:3]) for number in grids[index]] for index in (0, -1))
    if not all(1 <= low <= high < MAX_TILES for low, high in zip(first, last, strict=True)):
        raise ModelFormatError(
            f"{file} has image_grid_pinpoints {shorten_value(value)}; a range of grids goes from small to large, with "
            f"1 to {MAX_TILES - 1} tiles along each side"
        )
    return grid_pinpoints(
        [
            f"{columns}x{rows}"
            for columns in range(first[0], last[0] + 1)
            for rows in range(first[1], last[1] + 1)
        ],
        side,
    )


def parse_pinpoints(value: object, file: Path) -> tuple[tuple[int, int], ...]:
    """Parse `image_grid_pinpoints`, in its own order of width and height.

    Raises:
        ModelFormatError: It is not a list of pairs of pixels.
    """
    if isinstance(value, list) and value:
        pairs = [
            (pair[0], pair[1])
            for pair in value
            if isinstance(pair, list)
            and len(pair) == 2
            and all(type(side) is int and side > 0 for side in pair)
        ]
        if len(pairs) == len(value):
            return tuple(pairs)
    raise ModelFormatError(
        f"{file} has image_grid_pinpoints {shorten_value(value)}; it must list pairs of pixels"
    )


def known_tower(name: str) -> tuple[PretrainedConfig, ImageProcessor] | None:
    """Return config and image processor of one of LLaVA's vision towers by its exact hub name; None if unknown."""
    if name == _SIGLIP:
        half = (0.5, 0.5, 0.5)
        processor = ImageProcessor(side=384, mean=half, std=half, resize_without_crop=True)
        return SiglipVisionConfig(**_SIGLIP_SO400M, image_size=384), processor
    if name not in _SIDES:
        return None
    side = _SIDES[name]
    processor = ImageProcessor(side=side, mean=_CLIP_MEAN, std=_CLIP_STD)
    return CLIPVisionConfig(**_CLIP_L14, image_size=side), processor


def without_last_layer(tower: PretrainedConfig) -> PretrainedConfig:
    """Return the config of a SigLIP tower as LLaVA's own code trains and saves it: without last layer and head."""
    settings = tower.to_dict()
    layers = {"num_hidden_layers": settings["num_hidden_layers"] - 1, "vision_use_head": False}
    return SiglipVisionConfig(**{**settings, **layers})


def tower_difference(first: PretrainedConfig, second: PretrainedConfig) -> str | None:
    """Return the name of a size in which two vision towers differ; None if there is none."""
    names = (*_CLIP_L14.keys() - {"projection_dim"}, "image_size")
    sizes, other_sizes = first.to_dict(), second.to_dict()
    return next((name for name in sorted(names) if sizes.get(name) != other_sizes.get(name)), None)


def hub_name(config: PretrainedConfig) -> str | None:
    """Return the hub name of LLaVA's vision tower with these sizes; None if there is none."""
    if config.model_type != "clip_vision_model":
        return None
    for name in _SIDES:
        tower = known_tower(name)
        assert tower
        if tower_difference(tower[0], config) is None:
            return name
    return None
