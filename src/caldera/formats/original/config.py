"""Config of an original LLaVA folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, PretrainedConfig

from caldera.errors import ModelFormatError, shorten_value
from caldera.formats.config import sub_config
from caldera.images.processor import ImageProcessor
from caldera.model.projector import PROJECTORS

LANGUAGE_TYPES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}
"""Model types of original configs, and the language model of each; `llava` is LLaVA v1's."""

LLAVA_CLASSES = {
    "llama": ("llava_llama", "LlavaLlamaForCausalLM"),
    "mistral": ("llava_mistral", "LlavaMistralForCausalLM"),
}
"""Model type and class in LLaVA's own code, by language model."""

CONVERSATION_MODES = {
    "plain": "plain",
    "v0": "llava_v0",
    "vicuna_v1": "vicuna_v1",
    "llava_v1": "llava_v1",
    "llama_2": "llama_2",
    "llava_llama_2": "llava_llama_2",
    "mpt": "mpt",
    "mistral_instruct": "mistral_instruct",
    "chatml_direct": "chatml_direct",
}
"""Conversation modes of LLaVA's own code, by caldera's template with the same prompts."""

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
_SIDES = {"openai/clip-vit-large-patch14": 224, "openai/clip-vit-large-patch14-336": 336}
"""Vision towers of LLaVA's releases by their exact hub names, and the sides of their images."""

_LLAVA_KEYS = {
    "architectures",
    "freeze_mm_mlp_adapter",
    "freeze_mm_vision_resampler",
    "image_aspect_ratio",
    "image_crop_resolution",
    "image_grid_pinpoints",
    "image_split_resolution",
    "model_type",
    "s2",
    "s2_scales",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "tune_mm_mlp_adapter",
    "tune_mm_vision_resampler",
    "unfreeze_mm_vision_tower",
    "use_mm_proj",
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
    pinpoints: tuple[tuple[int, int], ...]
    """(width, height) pairs for `anyres`; otherwise empty."""

    tower: str
    """Name of the vision tower on the hub."""

    tower_trained: bool
    """Whether to use the folder's own weights of the tower."""


def is_original(config: Mapping[str, Any]) -> bool:
    """Return whether a config is one of LLaVA's own code."""
    return "mm_vision_tower" in config or "mm_hidden_size" in config


def read_original(config: Mapping[str, Any], file: Path) -> OriginalSettings:
    """Read an original config.

    Raises:
        ModelFormatError: A setting is missing or not supported; the message names it.
    """
    model_type = config.get("model_type")
    if model_type not in LANGUAGE_TYPES:
        reason = _UNSUPPORTED.get(str(model_type), f"known: {', '.join(LANGUAGE_TYPES)}")
        raise ModelFormatError(
            f"{file} has model_type {model_type!r}, which is not supported: {reason}"
        )
    _check_supported(config, file)
    aspect, pinpoints = _image_aspect(config, file)
    language = {
        name: value
        for name, value in config.items()
        if name not in _LLAVA_KEYS and not name.startswith("mm_")
    }
    language["model_type"] = LANGUAGE_TYPES[str(model_type)]
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
        aspect=aspect,
        pinpoints=pinpoints,
        tower=str(config.get("mm_vision_tower")),
        tower_trained=config.get("unfreeze_mm_vision_tower") is True,
    )


def _check_supported(config: Mapping[str, Any], file: Path) -> None:
    """Raise ModelFormatError if a setting has a value that caldera does not support."""
    supported: dict[str, tuple[object, ...]] = {
        "mm_projector_type": (None, *PROJECTORS),
        "mm_resampler_type": (None,),
        "mm_vision_select_feature": (None, "patch", "cls_patch"),
        "mm_patch_merge_type": (None, "flat", "spatial_unpad"),
        "image_aspect_ratio": (None, "square", "pad", "anyres"),
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


def _image_aspect(config: Mapping[str, Any], file: Path) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return the image aspect, and the canvases of tiles for `anyres`."""
    aspect = config.get("image_aspect_ratio") or "square"
    if aspect != "anyres":
        return aspect, ()
    if config.get("mm_patch_merge_type") != "spatial_unpad":
        raise ModelFormatError(
            f"{file} has image_aspect_ratio anyres with mm_patch_merge_type "
            f"{config.get('mm_patch_merge_type', 'flat')!r}; only spatial_unpad is supported"
        )
    return aspect, parse_pinpoints(config.get("image_grid_pinpoints"), file)


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
        f"{file} has image_grid_pinpoints {value!r}; it must list pairs of pixels"
    )


def known_tower(name: str) -> tuple[CLIPVisionConfig, ImageProcessor] | None:
    """Return config and image processor of one of LLaVA's vision towers by its exact hub name; None if unknown."""
    if name not in _SIDES:
        return None
    side = _SIDES[name]
    processor = ImageProcessor(side=side, mean=_CLIP_MEAN, std=_CLIP_STD)
    return CLIPVisionConfig(**_CLIP_L14, image_size=side), processor


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
