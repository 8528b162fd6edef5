"""A model folder in, a working model out, and back: a folder that transformers itself loads, plus `caldera.json`."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from caldera.errors import ModelFormatError
from caldera.files.atomic import atomic_folder, write_json
from caldera.formats.config import read_config, sub_config
from caldera.formats.image_processor import load_processor
from caldera.formats.metadata import METADATA_FILE, read_card
from caldera.formats.safetensors_files import LazyWeight, from_memory, write_weights
from caldera.formats.tokenizer import image_token_id, load_tokenizer
from caldera.formats.transformers_config import (
    check_config_matches,
    to_transformers_config,
    to_transformers_processor,
)
from caldera.formats.weight_names import (
    LANGUAGE,
    PROJECTOR,
    VISION,
    check_known_prefixes,
    check_shapes,
    load_into,
    read_weights,
    select_part,
    stored_dtype,
    tied_names,
    with_disk_names,
)
from caldera.images.processor import ImageProcessor
from caldera.model.assistant import LlavaBundle, ModelMetadata, eos_token_ids
from caldera.model.llava import Llava
from caldera.model.projector import add_image_newline, build_projector
from caldera.model.vision_tower import VisionTower
from caldera.templates.jinja import chat_template
from caldera.templates.template import find_template
from caldera.templates.tokenization import start_ids

_PREFIXED_TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Vision towers whose weights llava-hf's folders name `vision_model`; all others have plain names."""


def save_model_folder(folder: Path, assistant: LlavaBundle) -> None:
    """Write a model folder, whole or not at all.

    Raises:
        OutputError: It could not be written.
    """
    model = assistant.model
    language = dict(model.language.state_dict())
    for name in tied_names(model.language):
        language.pop(name, None)
    states = model.vision.tower.state_dict(), model.projector.state_dict(), language
    vision, projector, speaker = (
        {name: from_memory(each) for name, each in one.items()} for one in states
    )
    weights = with_disk_names(
        vision, projector, speaker, inner=uses_vision_model_prefix(model.vision.tower)
    )
    with atomic_folder(folder) as fresh:
        fill_model_folder(fresh, assistant, weights)


def fill_model_folder(
    folder: Path,
    assistant: LlavaBundle,
    weights: Mapping[str, LazyWeight],
    tick: Callable[[str], None] = lambda file: None,
) -> None:
    """Fill a fresh folder.

    Args:
        folder: Stands, empty.
        assistant: Its model may be an outline, without numbers.
        weights: Of the model, by their names on disk.
        tick: Called after each weight with the file that it is in.
    """
    model, tokenizer, card = assistant.model, assistant.tokenizer, assistant.card
    write_json(folder / "config.json", to_transformers_config(model, card, stored_dtype(weights)))
    write_weights(folder, weights, tick=tick)
    jinja = chat_template(find_template(card.template), starts=bool(start_ids(tokenizer)))
    to_transformers_processor(assistant.processor, model.vision, tokenizer, jinja).save_pretrained(
        folder
    )
    ends = {"eos_token_id": eos_token_ids(assistant), "bos_token_id": tokenizer.bos_token_id}
    GenerationConfig(**ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    write_json(folder / METADATA_FILE, assistant.card.model_dump())


def uses_vision_model_prefix(vision: PreTrainedModel) -> bool:
    """Tell whether llava-hf's folders name a vision tower's weights below `vision_model`."""
    return vision.config.model_type in _PREFIXED_TOWERS


def load_model_folder(folder: Path, dtype: torch.dtype = torch.float32) -> LlavaBundle:
    """Load a model folder; its name is never looked at, and nothing of it is run.

    Weights that are stored in `dtype` stay mapped from their files, so they take memory once, and only when used.

    Args:
        folder: Written by `save_assistant`.
        dtype: Of the weights in memory.

    Raises:
        ModelFolderError: A file is missing or broken, or the weights do not fit the config both ways.
    """
    outlined, weights = open_lazily(folder)
    model = outlined.model
    model.vision.tower = load_into(model.vision.tower, select_part(weights, VISION), dtype)
    model.language = load_into(model.language, select_part(weights, LANGUAGE), dtype)
    projector = {
        name: each.read().to(dtype) for name, each in select_part(weights, PROJECTOR).items()
    }
    model.projector.load_state_dict(projector, assign=True)
    return outlined


def open_lazily(folder: Path) -> tuple[LlavaBundle, dict[str, LazyWeight]]:
    """Open a model folder without reading a number of its weights.

    Returns:
        The assistant, whose weights have only shapes, and its weights by their names on disk.

    Raises:
        ModelFolderError: A file is missing or broken, or the weights do not fit the config both ways.
    """
    if not folder.is_dir():
        raise ModelFormatError(
            f"{folder} is not a folder; give a model folder such as runs/demo/model"
        )
    card = read_card(folder)
    config = read_config(folder)
    weights = read_weights(folder)
    outlined = build_on_meta(
        sub_config(config, "vision_config", folder / "config.json"),
        sub_config(config, "text_config", folder / "config.json"),
        load_tokenizer(folder),
        load_processor(folder, card),
        card,
    )
    model = outlined.model
    if config.get("image_token_index") != model.image_token_id:
        raise ModelFormatError(
            f"{folder}: config.json puts images at token {config.get('image_token_index')}, the tokenizer at "
            f"{model.image_token_id}; they must agree"
        )
    check_config_matches(config, model.vision, card, folder)
    check_weights(model, weights, folder)
    return outlined, weights


def build_on_meta(
    vision: PretrainedConfig,
    language: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    processor: ImageProcessor,
    card: ModelMetadata,
) -> LlavaBundle:
    """Build an assistant whose weights have shapes but no numbers yet.

    Raises:
        ModelFolderError: Transformers cannot build a tower from its config, or the tokenizer has no token for images.
        UnknownNameError: There is no such projector.
    """
    with torch.device("meta"):
        tower = _build_on_meta(AutoModel, vision)
        speaker = _build_on_meta(AutoModelForCausalLM, language)
        projector = build_projector(
            card.projector, tower.config.hidden_size, speaker.config.hidden_size
        )
        if card.image_aspect == "anyres":
            add_image_newline(projector)
        vision_tower = VisionTower(
            tower, processor.side, card.vision_feature_layer, card.feature_select
        )
    model = Llava(vision_tower, projector, speaker, image_token_id(tokenizer))
    return LlavaBundle(model.eval(), tokenizer, processor, card)


def _build_on_meta(
    factory: type[AutoModel] | type[AutoModelForCausalLM], config: PretrainedConfig
) -> PreTrainedModel:
    """Build one tower without weights.

    Raises:
        ModelFolderError: Its settings contradict each other.
    """
    try:
        return factory.from_config(config)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelFormatError(
            f"transformers cannot build the {config.model_type!r} of the config: {reason}"
        ) from None


def check_weights(model: Llava, weights: Mapping[str, LazyWeight], source: Path) -> None:
    """Compare a folder's weights with what a model takes, both ways.

    Raises:
        ModelFolderError: They do not fit; the message names the first that do not.
    """
    check_known_prefixes(weights, source, tiled=model.projector.image_newline is not None)
    optional = tied_names(model.language)
    check_shapes(model.vision.tower, select_part(weights, VISION), "vision_tower", source)
    check_shapes(model.projector, select_part(weights, PROJECTOR), "projector", source)
    check_shapes(model.language, select_part(weights, LANGUAGE), "language_model", source, optional)
