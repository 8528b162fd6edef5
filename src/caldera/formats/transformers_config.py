"""An Assistant in, the files that transformers reads of a model folder out: config and processor.

What transformers cannot express, such as a single linear projector, is stored under a model type and an activation it
does not know, so that it refuses the folder instead of loading half of it.
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
from caldera.model.assistant import ModelMetadata
from caldera.model.llava import Llava, logit_settings
from caldera.model.projector import MlpProjector
from caldera.model.vision_tower import VisionTower

Pinpoints = list[list[int]]
"""As transformers writes and reads them: (height, width)."""


def pinpoints_to_disk(pinpoints: tuple[Size, ...]) -> Pinpoints:
    """Turn (width, height) into transformers' (height, width), so that it settles ties as LLaVA does (spec 8.3)."""
    return [[height, width] for width, height in pinpoints]


def pinpoints_from_disk(pinpoints: Iterable[Sequence[int]]) -> tuple[Size, ...]:
    """Turn transformers' (height, width) into (width, height)."""
    return tuple((width, height) for height, width in pinpoints)


def to_transformers_config(model: Llava, card: ModelMetadata, dtype: torch.dtype) -> dict[str, Any]:
    """Return the config that transformers reads, of weights in `dtype`."""
    tiles: dict[str, Any] = {}
    if card.pinpoints:
        tiles["image_grid_pinpoints"] = pinpoints_to_disk(card.pinpoints)
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
    strange = unsupported_by_transformers(model)
    name = "LlavaNext" if tiles else "Llava"
    config["architectures"] = [name if strange else f"{name}ForConditionalGeneration"]
    if strange:
        config["model_type"] = "caldera_llava"
        config["projector_hidden_act"] = f"none, {strange}"
    config["dtype"] = str(dtype).removeprefix("torch.")
    return config


def feature_selection(vision: VisionTower) -> dict[str, Any]:
    """Return in the words of transformers' config which features of a tower are projected.

    Its strategy `default` leaves out the first position, `full` none.
    """
    skips_one = vision.select == "patch" and vision.num_prefix_tokens
    return {
        "vision_feature_layer": vision.select_layer,
        "vision_feature_select_strategy": "default" if skips_one else "full",
    }


def check_config_matches(
    config: dict[str, Any], vision: VisionTower, card: ModelMetadata, folder: Path
) -> None:
    """Compare what config and card both say of the features that are projected.

    Raises:
        ModelFolderError: Transformers would project other features than caldera, or cut other tiles.
    """
    tiles = {"image_grid_pinpoints": pinpoints_to_disk(card.pinpoints) if card.pinpoints else None}
    for name, wanted in {**feature_selection(vision), **tiles}.items():
        if config.get(name) != wanted:
            raise ModelFormatError(
                f"{folder}: config.json has {name} {config.get(name)!r}, {METADATA_FILE} means {wanted!r}; they must agree"
            )


def unsupported_by_transformers(model: Llava) -> str | None:
    """Say why transformers' own class would not give this model's logits; None where it does."""
    vision, language = model.vision, model.language
    if not isinstance(model.projector, MlpProjector):
        return "a single linear projector"
    if vision.select == "patch" and vision.num_prefix_tokens > 1:
        return f"a vision tower with {vision.num_prefix_tokens} positions before its patches"
    if logit_settings(language.config):
        return "a language model that changes its logits behind the head"
    head = language.get_output_embeddings()
    if language.base_model_prefix != "model" or head.bias is not None:
        return "a language model whose parts have other names"
    return None


def to_transformers_processor(
    shape: ImageProcessor,
    vision: VisionTower,
    tokenizer: PreTrainedTokenizerFast,
    chat_template: str,
) -> LlavaProcessor | LlavaNextProcessor:
    """Return the processor that transformers reads; `chat_template` is in Jinja."""
    factory = LlavaNextProcessor if shape.aspect == "anyres" else LlavaProcessor
    return factory(
        _image_processor(shape),
        tokenizer,
        patch_size=vision.tower.config.patch_size,
        vision_feature_select_strategy=feature_selection(vision)["vision_feature_select_strategy"],
        num_additional_image_tokens=vision.num_prefix_tokens,
        image_token=IMAGE_TOKEN,
        chat_template=chat_template,
    )


def _image_processor(
    shape: ImageProcessor,
) -> CLIPImageProcessorPil | LlavaImageProcessorPil | LlavaNextImageProcessorPil:
    """Return the image processor that makes the same pixels in transformers."""
    square = {"height": shape.side, "width": shape.side}
    settings: dict[str, Any] = {
        "size": square
        if shape.resize_without_crop
        else {"shortest_edge": shape.resize_shortest_edge or shape.side},
        "crop_size": square,
        "do_center_crop": not shape.resize_without_crop,
        "image_mean": list(shape.mean),
        "image_std": list(shape.std),
        "resample": shape.resample,
    }
    match shape.aspect:
        case "square":
            return CLIPImageProcessorPil(**settings)
        case "pad":
            return LlavaImageProcessorPil(**settings, do_pad=True)
        case "anyres":
            pinpoints = pinpoints_to_disk(shape.pinpoints)
            return LlavaNextImageProcessorPil(**settings, image_grid_pinpoints=pinpoints)
