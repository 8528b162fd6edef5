"""A vision tower's folder and a language model's folder in, a fresh Assistant out: the state before stage 1."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipVisionModel,
)

from caldera.errors import ModelFormatError, UsageError
from caldera.formats.config import read_config
from caldera.formats.image_processor import load_processor
from caldera.formats.tokenizer import add_image_token, image_token_id, load_tokenizer
from caldera.formats.weight_names import digest_folder
from caldera.images.anyres import RELEASED_GRIDS, Size, grid_pinpoints
from caldera.images.processor import ImageAspect
from caldera.model.assistant import LlavaBundle, ModelMetadata
from caldera.model.llava import Llava, check_logits_match
from caldera.model.projector import add_image_newline, build_projector
from caldera.model.vision_tower import FeatureSelect, VisionTower
from caldera.templates.template import Template, find_template
from caldera.templates.tokenization import context_tokenizer

_CONTRASTIVE_MODELS = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
"""Folders that hold an image and a text tower, and the class that takes the image tower out of them."""


def assemble(  # noqa: PLR0913 - the settings of a card, by name
    vision: Path,
    language: Path,
    *,
    projector: str = "mlp2x_gelu",
    template: str = "vicuna_v1",
    aspect: ImageAspect = "square",
    pinpoints: tuple[Size, ...] = (),
    select_layer: int = -2,
    select: FeatureSelect = "patch",
    seed: int = 0,
) -> LlavaBundle:
    """Join two towers with a fresh projector.

    Args:
        vision: Folder of a vision tower in transformers' format.
        language: Folder of a causal language model with its tokenizer.
        projector: A name in PROJECTORS.
        template: How conversations will be written.
        aspect: How images that are not square will be shown.
        pinpoints: Canvases for `anyres`, (width, height); LLaVA-NeXT's grids of the tower's own side if there are none.
        select_layer: Hidden state of the tower that is projected.
        select: Whether its class token is, too.
        seed: Of the projector's weights.

    Raises:
        ModelFolderError: A folder cannot be loaded.
        UnknownNameError: There is no such projector or template.
    """
    card = ModelMetadata(
        projector=projector,
        template=template,
        vision_feature_layer=select_layer,
        feature_select=select,
        source_digests={"vision": digest_folder(vision), "language": digest_folder(language)},
    )
    processor = load_processor(vision)
    factory = _CONTRASTIVE_MODELS.get(read_config(vision).get("model_type", ""), AutoModel)
    tower = VisionTower(_load(vision, factory), processor.side, select_layer, select)
    speaker = _load(language, AutoModelForCausalLM)
    check_logits_match(speaker)
    tokenizer = load_tokenizer(language)
    slot = add_special_tokens(tokenizer, speaker, find_template(template))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bridge = build_projector(projector, tower.width, speaker.config.hidden_size)
    model = Llava(tower, bridge, speaker, slot)
    return with_image_aspect(
        LlavaBundle(model.eval(), tokenizer, processor, card), aspect, pinpoints, seed=seed
    )


def with_image_aspect(
    assistant: LlavaBundle, aspect: ImageAspect, pinpoints: tuple[Size, ...] = (), *, seed: int = 0
) -> LlavaBundle:
    """Return an assistant that is shown images in another way; its projector gets or loses the end of a row of tiles.

    Args:
        assistant: Its model is changed.
        aspect: How images that are not square will be shown.
        pinpoints: Canvases for `anyres`, (width, height); LLaVA-NeXT's grids of the tower's own side if there are none.
        seed: Of a fresh end of a row.

    Raises:
        UsageError: The pinpoints do not cut into whole tiles, or the class token is among the features.
    """
    settings: dict[str, Any] = {"image_aspect": aspect, "pinpoints": pinpoints}
    projector = assistant.model.projector
    if aspect == "anyres":
        side = assistant.processor.side
        settings["pinpoints"] = pinpoints or grid_pinpoints(RELEASED_GRIDS, side)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_image_newline(projector)
    else:
        projector.image_newline = None
    try:
        card = ModelMetadata.model_validate({**assistant.card.model_dump(), **settings})
        processor = assistant.processor.with_aspect(aspect, settings["pinpoints"])
    except ValidationError as error:
        raise UsageError(f"aspect {aspect!r}: {error.errors()[0]['msg']}") from None
    except ValueError as error:
        raise UsageError(f"aspect {aspect!r}: {error}") from None
    return replace(assistant, card=card, processor=processor)


def _load(folder: Path, factory: Any) -> PreTrainedModel:  # noqa: ANN401 - transformers' factories share no type
    """Load one tower in fp32.

    Raises:
        ModelFolderError: It is missing, broken, or its weights do not fit.
    """
    read_config(folder)  # refuses what would run code
    try:
        model, report = factory.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelFormatError(f"{folder} cannot be loaded: {reason}") from None
    if report["missing_keys"]:
        raise ModelFormatError(f"{folder} lacks the weights {sorted(report['missing_keys'])[:3]}")
    return model.eval()


def add_special_tokens(
    tokenizer: PreTrainedTokenizerFast, language: PreTrainedModel, template: Template
) -> int:
    """Give tokenizer and model what they lack: a token for images, one for padding, and the template's special ones.

    The table grows to a multiple of 64; rows that were not there, and those of the template's new tokens, start as the
    mean of the old ones.

    Returns:
        Id of the token for images.
    """
    add_image_token(tokenizer)
    size = len(tokenizer)
    known = context_tokenizer(tokenizer).special
    missing = [token for token in template.tokens if token not in known]
    tokenizer.add_special_tokens(
        {"extra_special_tokens": missing}, replace_extra_special_tokens=False
    )
    old: int = language.get_input_embeddings().weight.shape[0]  # type: ignore[index, assignment] # a Parameter
    if len(tokenizer) > old:
        language.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    for layer in (language.get_input_embeddings(), language.get_output_embeddings()):
        table: Tensor = layer.weight  # type: ignore[assignment] # a Parameter
        _fill_with_mean(table, min(size, old), slice(size, len(tokenizer)))
        _fill_with_mean(table, old, slice(old, None))
    language.config.pad_token_id = tokenizer.pad_token_id
    return image_token_id(tokenizer)


@torch.no_grad()
def _fill_with_mean(table: Tensor, old: int, rows: slice) -> None:
    """Set rows to the mean of the first `old`."""
    table[rows] = table[:old].mean(dim=0)
