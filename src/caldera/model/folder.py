"""A model folder in, a working model out, and back: a folder that transformers itself loads, plus `caldera.json`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from caldera.batches.pictures import PictureProcessor
from caldera.errors import ModelFolderError
from caldera.model.card import FILE, Card, read_card
from caldera.model.llava import Llava
from caldera.model.preparation import load_processor
from caldera.model.projector import add_newline, build_projector
from caldera.model.transformers_files import (
    IMAGE_TOKEN,
    check_agreement,
    config_of,
    processor_of,
)
from caldera.model.vision import VisionTower
from caldera.model.weights import (
    LANGUAGE,
    PROJECTOR,
    VISION,
    check_fit,
    check_owners,
    fill,
    from_disk,
    read_weights,
    tied_names,
    to_disk,
    write_weights,
)
from caldera.storage import whole_folder, write_json

_INNER_MODEL = ("clip_vision_model", "siglip_vision_model")
"""Vision towers whose weights llava-hf's folders name `vision_model`; all others have plain names."""


@dataclass(frozen=True, slots=True)
class Assistant:
    """A model with everything needed to use it."""

    model: Llava
    tokenizer: PreTrainedTokenizerFast
    processor: PictureProcessor
    card: Card


def save_assistant(folder: Path, assistant: Assistant) -> None:
    """Write a model folder, whole or not at all.

    Raises:
        OutputError: It could not be written.
    """
    model, tokenizer = assistant.model, assistant.tokenizer
    language = dict(model.language.state_dict())
    for name in tied_names(model.language):
        language.pop(name, None)
    vision = model.vision.tower
    inner = vision.config.model_type in _INNER_MODEL
    weights = to_disk(vision.state_dict(), model.projector.state_dict(), language, inner=inner)
    with whole_folder(folder) as fresh:
        write_json(fresh / "config.json", config_of(model, assistant.card))
        write_weights(fresh, weights)
        processor_of(assistant.processor, model.vision, tokenizer).save_pretrained(fresh)
        ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
        GenerationConfig(**ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(fresh)
        write_json(fresh / FILE, assistant.card.model_dump())


def load_assistant(folder: Path, dtype: torch.dtype = torch.float32) -> Assistant:
    """Load a model folder; its name is never looked at, and nothing of it is run.

    Args:
        folder: Written by `save_assistant`.
        dtype: Of the weights in memory.

    Raises:
        ModelFolderError: A file is missing or broken, or the weights do not fit the config both ways.
    """
    if not folder.is_dir():
        raise ModelFolderError(
            f"{folder} is not a folder; give a model folder such as runs/demo/model"
        )
    card = read_card(folder)
    config = read_config(folder)
    weights = read_weights(folder)
    check_owners(weights, folder)
    tower = _load_part(
        AutoModel, part_config(config, "vision_config", folder), weights, VISION, folder, dtype
    )
    language = _load_part(
        AutoModelForCausalLM,
        part_config(config, "text_config", folder),
        weights,
        LANGUAGE,
        folder,
        dtype,
    )
    projector = build_projector(
        card.projector, tower.config.hidden_size, language.config.hidden_size
    )
    if card.aspect == "anyres":
        add_newline(projector)
    projector_weights = from_disk(weights, PROJECTOR)
    check_fit(projector, projector_weights, "projector", folder)
    projector.load_state_dict(projector_weights)
    tokenizer = load_tokenizer(folder)
    slot = image_token_id(tokenizer)
    if config.get("image_token_index") != slot:
        raise ModelFolderError(
            f"{folder}: config.json puts pictures at token {config.get('image_token_index')}, the tokenizer at "
            f"{slot}; they must agree"
        )
    processor = load_processor(folder, card)
    vision = VisionTower(tower, processor.side, card.select_layer, card.select)
    check_agreement(config, vision, card, folder)
    model = Llava(vision, projector.to(dtype), language, slot)
    return Assistant(model.eval(), tokenizer, processor, card)


def read_config(folder: Path) -> dict[str, Any]:
    """Read a `config.json` as data.

    Raises:
        ModelFolderError: It is missing or broken, or asks for code of its own to be run.
    """
    for name in ("config.json", "tokenizer_config.json"):
        try:
            config = json.loads((folder / name).read_bytes())
        except FileNotFoundError:
            if name == "config.json":
                raise ModelFolderError(f"{folder} has no config.json; check the path") from None
            continue
        except (OSError, ValueError, RecursionError):
            raise ModelFolderError(f"{folder / name} is not readable JSON") from None
        if not isinstance(config, dict):
            raise ModelFolderError(f"{folder / name} should hold a JSON object")
        if "auto_map" in config:
            raise ModelFolderError(
                f"{folder / name} has 'auto_map', which would run code from the folder; refused"
            )
    return json.loads((folder / "config.json").read_bytes())


def part_config(config: dict[str, Any], key: str, folder: Path) -> PretrainedConfig:
    """Build the config of one tower.

    Raises:
        ModelFolderError: It is missing, or of a kind transformers does not know.
    """
    part = config.get(key)
    if not isinstance(part, dict) or "auto_map" in part or "model_type" not in part:
        raise ModelFolderError(f"{folder / 'config.json'} has no usable {key!r}")
    settings = {name: value for name, value in part.items() if not name.startswith("_")}
    try:
        return AutoConfig.for_model(**settings)
    except (ValueError, TypeError) as error:
        raise ModelFolderError(f"{folder / 'config.json'}: {key!r}: {error}") from None


def _load_part(
    factory: type[AutoModel] | type[AutoModelForCausalLM],
    config: PretrainedConfig,
    weights: dict[str, torch.Tensor],
    prefix: str,
    folder: Path,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """Load one tower out of a folder's weights."""
    with torch.device("meta"):
        shell = factory.from_config(config)  # type: ignore[no-untyped-call]
    part = from_disk(weights, prefix)
    optional = tied_names(shell) if factory is AutoModelForCausalLM else frozenset()
    check_fit(shell, part, prefix.rstrip("."), folder, optional)
    return fill(shell, part, dtype)


def image_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id of the token that stands for pictures.

    Raises:
        ModelFolderError: The tokenizer has no such token.
    """
    vocabulary = tokenizer.get_vocab()
    if IMAGE_TOKEN not in vocabulary:
        raise ModelFolderError(
            f"the tokenizer in {tokenizer.name_or_path} has no token {IMAGE_TOKEN!r}, so pictures have no place; "
            "copy the model folder again"
        )
    return vocabulary[IMAGE_TOKEN]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a folder's tokenizer.

    Raises:
        ModelFolderError: It is missing, broken, or not a fast one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelFolderError(f"{folder} has no tokenizer that transformers can load") from None
    if not tokenizer.is_fast:
        raise ModelFolderError(f"the tokenizer in {folder} is not a fast one (tokenizer.json)")
    return tokenizer  # type: ignore[return-value] # fast, as checked
