"""The config of an original LLaVA folder in, what it says of the model out; and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, PretrainedConfig

from caldera.errors import ModelFormatError
from caldera.formats.config import sub_config
from caldera.images.processor import ImageProcessor
from caldera.model.projector import PROJECTORS

LANGUAGE_TYPES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}
"""Model types of original configs, and the language model in each; `llava` is LLaVA-1's."""

LLAVA_CLASSES = {
    "llama": ("llava_llama", "LlavaLlamaForCausalLM"),
    "mistral": ("llava_mistral", "LlavaMistralForCausalLM"),
}
"""Language models that LLaVA's own code has classes for: model type and class."""

_REFUSED = {
    "llava_mpt": "LLaVA's own code cannot run its MPT models either (spec 9.19)",
}

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
"""The vision towers of LLaVA's releases by their exact hub names, and the images they see (spec 1.2)."""

_LLAVA_KEYS = {
    "architectures", "freeze_mm_mlp_adapter", "freeze_mm_vision_resampler", "image_aspect_ratio",
    "image_crop_resolution", "image_grid_pinpoints", "image_split_resolution", "model_type", "s2", "s2_scales",
    "tokenizer_model_max_length", "tokenizer_padding_side", "tune_mm_mlp_adapter", "tune_mm_vision_resampler",
    "unfreeze_mm_vision_tower", "use_mm_proj",
}  # fmt: skip
"""Settings that are not the language model's; so are all that begin with `mm_` (spec 1.9)."""


@dataclass(frozen=True, slots=True)
class OriginalSettings:
    """What an original config says, in caldera's words."""

    language: PretrainedConfig
    projector: str
    select_layer: int
    select: str
    aspect: str
    pinpoints: tuple[tuple[int, int], ...]
    """(width, height) pairs; empty but for `anyres`."""

    tower: str
    """The vision tower's name on the hub."""

    tower_trained: bool
    """Whether the folder's own weights of the tower are the ones to use."""


def is_original(config: Mapping[str, Any]) -> bool:
    """Tell whether a config is one of LLaVA's own code."""
    return "mm_vision_tower" in config or "mm_hidden_size" in config


def read_original(config: Mapping[str, Any], file: Path) -> OriginalSettings:
    """Read an original config.

    Raises:
        ModelFolderError: A setting is missing, or means what caldera cannot do; the message names it.
    """
    kind = config.get("model_type")
    if kind not in LANGUAGE_TYPES:
        reason = _REFUSED.get(str(kind), f"known: {', '.join(LANGUAGE_TYPES)}")
        raise ModelFormatError(f"{file} has model_type {kind!r}, which is not imported: {reason}")
    _check_supported(config, file)
    aspect, pinpoints = _image_aspect(config, file)
    own = {
        name: value
        for name, value in config.items()
        if name not in _LLAVA_KEYS and not name.startswith("mm_")
    }
    text = {**own, "model_type": LANGUAGE_TYPES[str(kind)]}
    layer = config.get("mm_vision_select_layer")
    if type(layer) is not int:
        raise ModelFormatError(f"{file} has mm_vision_select_layer {layer!r}; it must be a number")
    return OriginalSettings(
        language=sub_config({"text_config": text}, "text_config", file),
        projector=str(config.get("mm_projector_type", "linear")),
        select_layer=layer,
        select=str(config.get("mm_vision_select_feature", "patch")),
        aspect=aspect,
        pinpoints=pinpoints,
        tower=str(config.get("mm_vision_tower")),
        tower_trained=config.get("unfreeze_mm_vision_tower") is True,
    )


def _check_supported(config: Mapping[str, Any], file: Path) -> None:
    """Refuse settings that another model than caldera's is made by.

    Raises:
        ModelFolderError: There is one.
    """
    allowed: dict[str, tuple[object, ...]] = {
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
    for name, values in allowed.items():
        if config.get(name) not in values:
            known = ", ".join(str(each) for each in values if each is not None) or "none"
            raise ModelFormatError(
                f"{file} has {name} {config[name]!r}, which is not supported; known: {known}"
            )
    if config.get("mm_use_im_start_end"):
        raise ModelFormatError(
            f"{file} has mm_use_im_start_end true: such models see <im_start> and <im_end> around each image, which "
            "no template of caldera's writes; not supported"
        )


def _image_aspect(config: Mapping[str, Any], file: Path) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Read how images are shown, and the grids of tiles if they are cut to such.

    Raises:
        ModelFolderError: Tiles are joined in a way that is not supported, or the grids are no pairs.
    """
    aspect = config.get("image_aspect_ratio") or "square"
    if aspect != "anyres":
        return aspect, ()
    if config.get("mm_patch_merge_type") != "spatial_unpad":
        raise ModelFormatError(
            f"{file} has image_aspect_ratio anyres with mm_patch_merge_type "
            f"{config.get('mm_patch_merge_type', 'flat')!r}; only spatial_unpad is supported"
        )
    return aspect, parse_pinpoints(config.get("image_grid_pinpoints"), file)


def parse_pinpoints(said: object, file: Path) -> tuple[tuple[int, int], ...]:
    """Read `image_grid_pinpoints` in the order that it has.

    Raises:
        ModelFolderError: It is no list of pairs of pixels.
    """
    if isinstance(said, list) and said:
        pairs = [tuple(each) for each in said if isinstance(each, list)]
        good = [
            each for each in pairs if len(each) == 2 and all(type(n) is int and n > 0 for n in each)
        ]
        if len(good) == len(said):
            return tuple((first, second) for first, second in good)
    raise ModelFormatError(
        f"{file} has image_grid_pinpoints {said!r}; it must list pairs of pixels"
    )


def known_tower(name: str) -> tuple[CLIPVisionConfig, ImageProcessor] | None:
    """Return the config of one of LLaVA's own vision towers by its exact hub name, and how it sees images."""
    if name not in _SIDES:
        return None
    side = _SIDES[name]
    processor = ImageProcessor(side=side, mean=_CLIP_MEAN, std=_CLIP_STD)
    return CLIPVisionConfig(**_CLIP_L14, image_size=side), processor


def tower_difference(one: PretrainedConfig, other: PretrainedConfig) -> str | None:
    """Name a size in which two vision towers differ; None where they do not."""
    names = (*_CLIP_L14.keys() - {"projection_dim"}, "image_size")
    first, second = one.to_dict(), other.to_dict()
    return next((name for name in sorted(names) if first.get(name) != second.get(name)), None)


def hub_name(config: PretrainedConfig) -> str | None:
    """Return the hub name of the vision tower of LLaVA's own that has these sizes; None if there is none."""
    if config.model_type != "clip_vision_model":
        return None
    for name in _SIDES:
        known = known_tower(name)
        assert known
        if tower_difference(known[0], config) is None:
            return name
    return None
