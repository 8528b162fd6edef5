"""Config and processor of a model folder, as transformers reads them.

A model that transformers cannot express, such as one with a single linear projector, gets a model type and an
activation that it does not know, so that it rejects the folder instead of loading half of it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaImageProcessorPil,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from caldera.errors import ModelFormatError
from caldera.formats.metadata import METADATA_FILE
from caldera.formats.onevision_processor import VIDEO_TOKEN, LlavaOnevisionProcessor
from caldera.formats.tokenizer import IMAGE_TOKEN
from caldera.images.anyres import Size
from caldera.images.processor import ImageProcessor
from caldera.model.bundle import ModelMetadata
from caldera.model.llava import Llava, logit_settings
from caldera.model.projector import MlpProjector
from caldera.model.vision_tower import VisionTower

Pinpoints = list[list[int]]
"""Pairs in transformers' order: (height, width)."""


def pinpoints_to_disk(pinpoints: tuple[Size, ...]) -> Pinpoints:
    """Turn (width, height) into transformers' (height, width), which breaks ties as LLaVA does."""
    return [[height, width] for width, height in pinpoints]


def pinpoints_from_disk(pinpoints: Iterable[Sequence[int]]) -> tuple[Size, ...]:
    """Turn transformers' (height, width) into (width, height)."""
    return tuple((width, height) for height, width in pinpoints)


def to_transformers_config(
    model: Llava, metadata: ModelMetadata, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the config that transformers reads, for weights in `dtype`."""
    name, config_class = _CONFIG_CLASSES[model_type_of(metadata)]
    config = config_class(
        vision_config=public_settings(model.vision.tower.config),
        text_config=public_settings(model.language.config),
        image_token_index=model.image_token_id,
        image_seq_length=model.vision.tokens_per_view,
        projector_hidden_act="gelu",
        **feature_selection(model.vision),
        **{key: value for key, value in tile_settings(metadata).items() if value is not None},
        tie_word_embeddings=model.language.config.tie_word_embeddings,
    ).to_dict()
    unsupported = unsupported_by_transformers(model)
    config["architectures"] = [name if unsupported else f"{name}ForConditionalGeneration"]
    if unsupported:
        config["model_type"] = "caldera_llava"
        config["projector_hidden_act"] = f"none, {unsupported}"
    if "video_token_index" in config:
        # No id where there is no such token: transformers' default would be an ordinary one.
        config["video_token_index"] = tokenizer.get_vocab().get(VIDEO_TOKEN, -1)
    config["dtype"] = str(dtype).removeprefix("torch.")
    _add_former_rope_settings(config["text_config"])
    return config


def public_settings(config: PretrainedConfig) -> dict[str, Any]:
    """Return the settings of a config without the folder that it was loaded from."""
    settings: dict[str, Any] = config.to_dict()
    settings.pop("_name_or_path", None)
    return settings


def _add_former_rope_settings(text_config: dict[str, Any]) -> None:
    """Add the names that transformers 4 knows: without them, it computes with its own default base."""
    rope = dict(text_config.get("rope_parameters") or {})
    text_config |= {name: rope.pop(name) for name in _FORMER_ROPE_SETTINGS & rope.keys()}
    if rope.get("rope_type", "default") != "default":
        text_config["rope_scaling"] = rope


_FORMER_ROPE_SETTINGS = {"rope_theta", "partial_rotary_factor"}
"""Settings of rotary embeddings that transformers 4 reads from the config itself."""


_CONFIG_CLASSES: dict[str, tuple[str, Any]] = {
    "llava": ("Llava", LlavaConfig),
    "llava_next": ("LlavaNext", LlavaNextConfig),
    "llava_onevision": ("LlavaOnevision", LlavaOnevisionConfig),
}
"""Beginning of the class names, and class of the config, by transformers' `model_type`."""


def model_type_of(metadata: ModelMetadata) -> str:
    """Return transformers' `model_type` of a model."""
    if metadata.image_aspect != "anyres":
        return "llava"
    return "llava_next" if metadata.anyres_max is None else "llava_onevision"


def tile_settings(metadata: ModelMetadata) -> dict[str, Any]:
    """Return transformers' settings of tiles; None for those that the model does not have."""
    limit = metadata.anyres_max
    return {
        "image_grid_pinpoints": pinpoints_to_disk(metadata.pinpoints) or None,
        "vision_aspect_ratio": None if limit is None else f"anyres_max_{limit}",
    }


def feature_selection(vision: VisionTower) -> dict[str, Any]:
    """Return transformers' settings for the features that are projected.

    Its strategy `default` drops the first position, `full` none.
    """
    drops_first = vision.select == "patch" and vision.num_prefix_tokens
    return {
        "vision_feature_layer": vision.select_layer,
        "vision_feature_select_strategy": "default" if drops_first else "full",
    }


def check_config_matches(
    config: dict[str, Any], vision: VisionTower, metadata: ModelMetadata, folder: Path
) -> None:
    """Check that config and metadata agree on the projected features and the tiles.

    Raises:
        ModelFormatError: Transformers would project other features than caldera, or cut other tiles.
    """
    settings = {**feature_selection(vision), **tile_settings(metadata)}
    for name, expected in settings.items():
        if config.get(name) != expected:
            raise ModelFormatError(
                f"{folder}: config.json has {name} {config.get(name)!r}, {METADATA_FILE} means {expected!r}; "
                "they must agree"
            )


def unsupported_by_transformers(model: Llava) -> str | None:
    """Return why transformers' own class would not give this model's logits; None if it does."""
    vision, language = model.vision, model.language
    if not isinstance(model.projector, MlpProjector):
        return "a single linear projector"
    if reason := _unsupported_hidden_state(vision, tiled=model.projector.image_newline is not None):
        return reason
    if vision.select == "patch" and vision.num_prefix_tokens > 1:
        return f"a vision tower with {vision.num_prefix_tokens} positions before its patches"
    if logit_settings(language.config):
        return "a language model that transforms its logits after the head"
    head = language.get_output_embeddings()
    if language.base_model_prefix != "model" or head.bias is not None:
        return "a language model whose parts have other names"
    return None


def _unsupported_hidden_state(vision: VisionTower, *, tiled: bool) -> str | None:
    """Return why transformers' own class would not project a tower's hidden state; None if it does."""
    settings = vision.tower.config.to_dict()
    if vision.is_map:
        return "a vision tower whose hidden states are maps"
    if vision.width != settings.get("hidden_size"):
        return f"a vision tower whose hidden state {vision.select_layer} has another width than its hidden_size"
    if tiled and vision.patch_size != settings.get("patch_size"):
        return "tiles for a vision tower that merges its patches"
    return None


def to_transformers_processor(
    processor: ImageProcessor,
    vision: VisionTower,
    tokenizer: PreTrainedTokenizerFast,
    chat_template: str,
) -> LlavaProcessor | LlavaNextProcessor | LlavaOnevisionProcessor:
    """Return the processor that transformers reads; `chat_template` is in Jinja."""
    strategy = feature_selection(vision)["vision_feature_select_strategy"]
    if processor.anyres_max is not None:
        return LlavaOnevisionProcessor(
            to_image_processor(processor),
            tokenizer,
            num_image_tokens=vision.tokens_per_view,
            vision_feature_select_strategy=strategy,
            vision_aspect_ratio=f"anyres_max_{processor.anyres_max}",
            chat_template=chat_template,
        )
    factory = LlavaNextProcessor if processor.aspect == "anyres" else LlavaProcessor
    return factory(
        to_image_processor(processor),
        tokenizer,
        patch_size=int(vision.patch_size),
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=vision.num_prefix_tokens,
        image_token=IMAGE_TOKEN,
        chat_template=chat_template,
    )


def to_image_processor(
    processor: ImageProcessor,
) -> (
    CLIPImageProcessorPil
    | LlavaImageProcessorPil
    | LlavaNextImageProcessorPil
    | LlavaOnevisionImageProcessorPil
):
    """Return transformers' image processor that makes the same pixels."""
    square = {"height": processor.side, "width": processor.side}
    settings: dict[str, Any] = {
        "size": square
        if processor.resize_without_crop
        else {"shortest_edge": processor.resize_shortest_edge or processor.side},
        "crop_size": square,
        "do_center_crop": not processor.resize_without_crop,
        "image_mean": list(processor.mean),
        "image_std": list(processor.std),
        "resample": processor.resample,
    }
    match processor.aspect:
        case "square":
            return CLIPImageProcessorPil(**settings)
        case "pad":
            return LlavaImageProcessorPil(**settings, do_pad=True)
        case "anyres":
            pinpoints = pinpoints_to_disk(processor.pinpoints)
            if processor.anyres_max is not None:
                settings |= {"size": square, "crop_size": None, "do_center_crop": None}
                return LlavaOnevisionImageProcessorPil(**settings, image_grid_pinpoints=pinpoints)
            return LlavaNextImageProcessorPil(**settings, image_grid_pinpoints=pinpoints)
