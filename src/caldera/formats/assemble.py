"""Assembly of a new assistant from a vision tower, a language model and a fresh projector."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipVisionModel,
)

from caldera.errors import ModelFormatError, UsageError
from caldera.formats.config import (
    CONFIG_ERRORS,
    build_on_meta_device,
    error_line,
    missing_package,
    read_config,
)
from caldera.formats.hub_models import source_name
from caldera.formats.image_processor import load_processor
from caldera.formats.tokenizer import add_image_token, image_token_id, load_tokenizer
from caldera.formats.weight_files import read_folder
from caldera.formats.weight_merging import VOCAB_MULTIPLE, mean_row, padded_vocab_size
from caldera.formats.weight_names import digest_folder
from caldera.images.anyres import RELEASED_GRIDS, ImageAspect, Size, grid_pinpoints
from caldera.model.bundle import LlavaBundle, ModelMetadata
from caldera.model.llava import Llava, check_logits_match
from caldera.model.projector import add_image_newline, build_projector
from caldera.model.vision_tower import FeatureSelect, VisionTower
from caldera.templates.registry import find_template
from caldera.templates.template import Template
from caldera.templates.tokenization import context_tokenizer

CONTRASTIVE_MODELS: dict[str, type[PreTrainedModel]] = {
    "clip": CLIPVisionModel,
    "siglip": SiglipVisionModel,
}
"""Model types with an image and a text tower, and the class that loads the image tower alone."""


def assemble(  # noqa: PLR0913 - the settings of the metadata, by name
    vision: Path,
    language: Path,
    *,
    projector: str = "mlp2x_gelu",
    template: str = "vicuna_v1",
    aspect: ImageAspect = "square",
    pinpoints: tuple[Size, ...] = (),
    vision_feature_layer: int = -2,
    feature_select: FeatureSelect = "patch",
    vocab_multiple: int = VOCAB_MULTIPLE,
    seed: int = 0,
) -> LlavaBundle:
    """Join a vision tower and a language model with a fresh projector.

    Args:
        vision: Folder of a vision tower in transformers' format.
        language: Folder of a causal language model with its tokenizer.
        projector: A name in PROJECTORS.
        template: Name of the chat template.
        aspect: How images that are not square are prepared.
        pinpoints: Canvas sizes for `anyres`, (width, height); LLaVA-NeXT's grids of the tower's own side if empty.
        vision_feature_layer: Hidden state of the tower that is projected.
        feature_select: Whether the features include the class token.
        vocab_multiple: Multiple that the rows of the embedding tables are filled up to if they grow; 1 for none.
        seed: Seed of the projector's weights.

    Raises:
        ModelFormatError: A folder cannot be loaded.
        UnknownNameError: There is no such projector or template.
    """
    metadata = ModelMetadata(
        projector=projector,
        template=template,
        vision_feature_layer=vision_feature_layer,
        feature_select=feature_select,
        source_digests={"vision": digest_folder(vision), "language": digest_folder(language)},
        sources={"vision": source_name(vision), "language": source_name(language)},
    )
    processor = load_processor(vision)
    factory = CONTRASTIVE_MODELS.get(read_config(vision).get("model_type", ""), AutoModel)
    tower = VisionTower(
        _load(vision, factory), processor.side, vision_feature_layer, feature_select
    )
    language_model = _load(language, AutoModelForCausalLM)
    check_logits_match(language_model)
    tokenizer = load_tokenizer(language)
    image_id = add_special_tokens(
        tokenizer, language_model, find_template(template), vocab_multiple
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        connector = build_projector(projector, tower.width, language_model.config.hidden_size)
    model = Llava(tower, connector, language_model, image_id)
    return with_image_aspect(
        LlavaBundle(model.eval(), tokenizer, processor, metadata), aspect, pinpoints, seed=seed
    )


def with_image_aspect(
    assistant: LlavaBundle,
    aspect: ImageAspect,
    pinpoints: tuple[Size, ...] = (),
    anyres_max: int | None = None,
    *,
    seed: int = 0,
) -> LlavaBundle:
    """Return an assistant with another image aspect; its projector gains or loses the newline embedding of tiles.

    Args:
        assistant: Its model is changed in place.
        aspect: How images that are not square are prepared.
        pinpoints: Canvas sizes for `anyres`, (width, height); LLaVA-NeXT's grids of the tower's own side if empty.
        anyres_max: LLaVA-OneVision's limit of `anyres`; None for LLaVA-NeXT's, which has none.
        seed: Seed of a fresh newline embedding.

    Raises:
        UsageError: The pinpoints do not divide into tiles, or the features include the class token.
    """
    settings: dict[str, Any] = {
        "image_aspect": aspect,
        "pinpoints": pinpoints,
        "anyres_max": anyres_max,
    }
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
        metadata = ModelMetadata.model_validate({**assistant.card.model_dump(), **settings})
        processor = assistant.processor.with_aspect(aspect, settings["pinpoints"], anyres_max)
    except ValidationError as error:
        raise UsageError(f"aspect {aspect!r}: {error.errors()[0]['msg']}") from None
    except ValueError as error:
        raise UsageError(f"aspect {aspect!r}: {error}") from None
    return replace(assistant, card=metadata, processor=processor)


def _load(folder: Path, factory: Any) -> PreTrainedModel:  # noqa: ANN401 - transformers' factories share no type
    """Load a vision tower or language model in fp32."""
    read_config(folder)  # rejects settings that would run code
    source: dict[str, Any] = {"pretrained_model_name_or_path": folder, "use_safetensors": True}
    if any(file.suffix != ".safetensors" for file in read_folder(folder).files):
        source = {"pretrained_model_name_or_path": None}
        factory, source["config"] = _model_class(folder, factory)
        # Pickles are read here: transformers would unpickle them.
        weights = read_folder(folder).weights
        source["state_dict"] = {name: weight.read() for name, weight in weights.items()}
    try:
        model, report = factory.from_pretrained(
            **source, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except ImportError as error:
        raise missing_package(folder, error) from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelFormatError(f"{folder} cannot be loaded: {reason}") from None
    if report["missing_keys"]:
        raise ModelFormatError(f"{folder} lacks the weights {sorted(report['missing_keys'])[:3]}")
    return model.eval()


def _model_class(folder: Path, factory: Any) -> tuple[Any, PretrainedConfig]:  # noqa: ANN401 - as above
    """Return the class of a folder's model, and its config."""
    try:
        if factory in CONTRASTIVE_MODELS.values():
            return factory, factory.config_class.from_pretrained(folder, local_files_only=True)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except CONFIG_ERRORS as error:
        raise ModelFormatError(f"{folder / 'config.json'}: {error_line(error)}") from None
    return type(build_on_meta_device(factory, config)), config


def add_special_tokens(
    tokenizer: PreTrainedTokenizerFast,
    language: PreTrainedModel,
    template: Template,
    vocab_multiple: int = VOCAB_MULTIPLE,
) -> int:
    """Add the image token, a padding token and the template's special tokens where they are missing.

    Embedding tables that grow get a multiple of `vocab_multiple` rows. New rows, and rows of new tokens, start as the
    mean of the old ones.

    Returns:
        Id of the image token.
    """
    add_image_token(tokenizer)
    size = len(tokenizer)
    existing = context_tokenizer(tokenizer).special
    missing = [token for token in template.tokens if token not in existing]
    tokenizer.add_special_tokens(
        {"extra_special_tokens": missing}, replace_extra_special_tokens=False
    )
    old: int = language.get_input_embeddings().weight.shape[0]  # type: ignore[index, assignment] # a Parameter
    if len(tokenizer) > old:
        rows = padded_vocab_size(len(tokenizer), vocab_multiple)
        language.resize_token_embeddings(rows, mean_resizing=False)
    for layer in (language.get_input_embeddings(), language.get_output_embeddings()):
        table: Tensor = layer.weight  # type: ignore[assignment] # a Parameter
        with torch.no_grad():
            table[size : len(tokenizer)] = mean_row(table[: min(size, old)])
            table[old:] = mean_row(table[:old])
    language.config.pad_token_id = tokenizer.pad_token_id
    return image_token_id(tokenizer)
