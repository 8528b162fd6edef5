"""Model folders: reader and writer of a folder that transformers itself loads, plus `caldera.json`."""

import json
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
    ProcessorMixin,
)

from caldera.errors import ModelFormatError
from caldera.files.atomic import atomic_folder, write_json
from caldera.formats.chat_template import folder_chat_template
from caldera.formats.config import build_on_meta_device, read_config, sub_config
from caldera.formats.image_processor import load_processor
from caldera.formats.metadata import METADATA_FILE, read_metadata
from caldera.formats.safetensors_files import LazyWeight, from_memory, write_weights
from caldera.formats.tokenizer import copy_sentencepiece, image_token_id, load_tokenizer
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
from caldera.model.bundle import LlavaBundle, ModelMetadata, eos_token_ids
from caldera.model.llava import Llava
from caldera.model.projector import add_image_newline, build_projector
from caldera.model.vision_tower import VisionTower

_PREFIXED_TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Vision towers whose weights llava-hf's folders put below `vision_model`."""


def save_model_folder(folder: Path, assistant: LlavaBundle) -> None:
    """Write a model folder, completely or not at all.

    Raises:
        OutputError: The folder could not be written.
    """
    model = assistant.model
    language = dict(model.language.state_dict())
    for name in tied_names(model.language):
        language.pop(name, None)
    tensors = with_disk_names(
        model.vision.tower.state_dict(),
        model.projector.state_dict(),
        language,
        prefixed=uses_vision_model_prefix(model.vision.tower),
    )
    weights = {name: from_memory(tensor) for name, tensor in tensors.items()}
    with atomic_folder(folder) as fresh:
        fill_model_folder(fresh, assistant, weights)


def fill_model_folder(
    folder: Path,
    assistant: LlavaBundle,
    weights: Mapping[str, LazyWeight],
    tick: Callable[[str], None] = lambda file: None,
) -> None:
    """Write the files of a model folder.

    Args:
        folder: An existing, empty folder.
        assistant: Its model may be on the meta device.
        weights: Weights of the model by their names on disk.
        tick: Called after each weight with the name of its file.
    """
    model, tokenizer, metadata = assistant.model, assistant.tokenizer, assistant.card
    config = to_transformers_config(model, metadata, tokenizer, stored_dtype(weights))
    write_json(folder / "config.json", config)
    write_weights(folder, weights, tick=tick)
    jinja = folder_chat_template(metadata.template, tokenizer)
    processor = to_transformers_processor(assistant.processor, model.vision, tokenizer, jinja)
    processor.save_pretrained(folder)
    _add_files_of_transformers_4(folder, processor)
    copy_sentencepiece(tokenizer, folder)
    GenerationConfig(
        eos_token_id=eos_token_ids(assistant),
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    write_json(folder / METADATA_FILE, metadata.model_dump())


def _add_files_of_transformers_4(folder: Path, processor: ProcessorMixin) -> None:
    """Write what transformers 4 reads in another file, or by another name, than 5."""
    processor.image_processor.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_bytes())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["additional_special_tokens"] = config.pop("extra_special_tokens", [])
    write_json(path, config)


def uses_vision_model_prefix(vision: PreTrainedModel) -> bool:
    """Return whether llava-hf's folders put a vision tower's weights below `vision_model`."""
    return vision.config.model_type in _PREFIXED_TOWERS


def load_model_folder(folder: Path, dtype: torch.dtype = torch.float32) -> LlavaBundle:
    """Load a model folder by its content alone; no code of it is run.

    Weights that are stored in `dtype` stay mapped from their files: they take memory once, when they are used.

    Args:
        folder: A folder from `save_model_folder`.
        dtype: Dtype of the weights in memory.

    Raises:
        ModelFormatError: A file is missing or broken, or weights and config do not fit exactly.
    """
    return with_weights(*open_lazily(folder), dtype)


def with_weights(
    assistant: LlavaBundle, weights: Mapping[str, LazyWeight], dtype: torch.dtype
) -> LlavaBundle:
    """Read the checked weights of an assistant on the meta device, and return it with them."""
    model = assistant.model
    model.vision.tower = load_into(model.vision.tower, select_part(weights, VISION), dtype)
    model.language = load_into(model.language, select_part(weights, LANGUAGE), dtype)
    projector = {
        name: weight.read().to(dtype) for name, weight in select_part(weights, PROJECTOR).items()
    }
    model.projector.load_state_dict(projector, assign=True)
    return assistant


def open_lazily(folder: Path) -> tuple[LlavaBundle, dict[str, LazyWeight]]:
    """Open a model folder without reading the numbers of its weights.

    Returns:
        The assistant on the meta device, and its weights by their names on disk.

    Raises:
        ModelFormatError: A file is missing or broken, or weights and config do not fit exactly.
    """
    if not folder.is_dir():
        raise ModelFormatError(
            f"{folder} is not a folder; give a model folder such as runs/demo/model"
        )
    metadata = read_metadata(folder)
    config = read_config(folder)
    weights = read_weights(folder)
    assistant = build_on_meta(
        sub_config(config, "vision_config", folder / "config.json"),
        sub_config(config, "text_config", folder / "config.json"),
        load_tokenizer(folder),
        load_processor(folder, metadata),
        metadata,
    )
    model = assistant.model
    if config.get("image_token_index") != model.image_token_id:
        raise ModelFormatError(
            f"{folder}: config.json has image token {config.get('image_token_index')}, the tokenizer "
            f"{model.image_token_id}; they must agree"
        )
    check_config_matches(config, model.vision, metadata, folder)
    check_weights(model, weights, folder)
    return assistant, weights


def build_on_meta(
    vision: PretrainedConfig,
    language: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    processor: ImageProcessor,
    metadata: ModelMetadata,
) -> LlavaBundle:
    """Build an assistant on the meta device: its weights have shapes but no numbers.

    Raises:
        ModelFormatError: Transformers cannot build a tower from its config, or the tokenizer has no image token.
        UnknownNameError: There is no such projector.
    """
    tower = build_on_meta_device(AutoModel, vision)
    language_model = build_on_meta_device(AutoModelForCausalLM, language)
    with torch.device("meta"):
        vision_tower = VisionTower(
            tower, processor.side, metadata.vision_feature_layer, metadata.feature_select
        )
        projector = build_projector(
            metadata.projector, vision_tower.width, language_model.config.hidden_size
        )
        if metadata.image_aspect == "anyres":
            add_image_newline(projector)
    model = Llava(vision_tower, projector, language_model, image_token_id(tokenizer))
    return LlavaBundle(model.eval(), tokenizer, processor, metadata)


def check_weights(model: Llava, weights: Mapping[str, LazyWeight], source: Path) -> None:
    """Check that weights, by their names on disk, fit a model exactly.

    Raises:
        ModelFormatError: They do not; the message names the first that do not fit.
    """
    check_known_prefixes(weights, source, tiled=model.projector.image_newline is not None)
    optional = tied_names(model.language)
    check_shapes(model.vision.tower, select_part(weights, VISION), "vision_tower", source)
    check_shapes(model.projector, select_part(weights, PROJECTOR), "projector", source)
    check_shapes(model.language, select_part(weights, LANGUAGE), "language_model", source, optional)
