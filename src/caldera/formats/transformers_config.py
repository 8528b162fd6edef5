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
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from caldera.errors import ModelFormatError
from caldera.formats.metadata import METADATA_FILE
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
    model: Llava, metadata: ModelMetadata, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the config that transformers reads, for weights in `dtype`."""
    tiles: dict[str, Any] = {}
    if metadata.pinpoints:
        tiles["image_grid_pinpoints"] = pinpoints_to_disk(metadata.pinpoints)
    config = (LlavaNextConfig if tiles else LlavaConfig)(
        vision_config=model.vision.tower.config.to_dict(),
        text_config=model.language.config.to_dict(),
        image_token_index=model.image_token_id,
        image_seq_length=model.vision.tokens_per_view,
        projector_hidden_act="gelu",
        **feature_selection(model.vision),
        **tiles,
        tie_word_embeddings=model.language.config.tie_word_embeddings,
    ).to_dict()
    unsupported = unsupported_by_transformers(model)
    name = "LlavaNext" if tiles else "Llava"
    config["architectures"] = [name if unsupported else f"{name}ForConditionalGeneration"]
    if unsupported:
        config["model_type"] = "caldera_llava"
        config["projector_hidden_act"] = f"none, {unsupported}"
    config["dtype"] = str(dtype).removeprefix("torch.")
    return config


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
    pinpoints = pinpoints_to_disk(metadata.pinpoints) if metadata.pinpoints else None
    settings = {**feature_selection(vision), "image_grid_pinpoints": pinpoints}
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
    if vision.select == "patch" and vision.num_prefix_tokens > 1:
        return f"a vision tower with {vision.num_prefix_tokens} positions before its patches"
    if logit_settings(language.config):
        return "a language model that transforms its logits after the head"
    head = language.get_output_embeddings()
    if language.base_model_prefix != "model" or head.bias is not None:
        return "a language model whose parts have other names"
    return None


def to_transformers_processor(
    processor: ImageProcessor,
    vision: VisionTower,
    tokenizer: PreTrainedTokenizerFast,
    chat_template: str,
) -> LlavaProcessor | LlavaNextProcessor:
    """Return the processor that transformers reads; `chat_template` is in Jinja."""
    factory = LlavaNextProcessor if processor.aspect == "anyres" else LlavaProcessor
    return factory(
        to_image_processor(processor),
        tokenizer,
        patch_size=vision.tower.config.patch_size,
        vision_feature_select_strategy=feature_selection(vision)["vision_feature_select_strategy"],
        num_additional_image_tokens=vision.num_prefix_tokens,
        image_token=IMAGE_TOKEN,
        chat_template=chat_template,
    )


def to_image_processor(
    processor: ImageProcessor,
) -> CLIPImageProcessorPil | LlavaImageProcessorPil | LlavaNextImageProcessorPil:
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
            return LlavaNextImageProcessorPil(**settings, image_grid_pinpoints=pinpoints)
