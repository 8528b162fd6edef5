"""A model folder in, a working model out, and back: a folder that transformers itself loads, plus `caldera.json`.

What transformers cannot express, a single linear projector, is stored under a model type and an activation it does not
know, so that it refuses the folder instead of loading half of it.
"""

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
    CLIPImageProcessorPil,
    GenerationConfig,
    LlavaConfig,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from caldera.batches.pictures import PictureProcessor
from caldera.errors import ModelFolderError
from caldera.model.card import FILE, Card, read_card
from caldera.model.llava import Llava
from caldera.model.projector import MlpProjector, build_projector
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

IMAGE_TOKEN = "<image>"

CHAT_TEMPLATE = (
    "{{ 'A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user\\'s questions. ' }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ ' ASSISTANT:' }}"
    "{% else %}{{ ' ' }}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
"""vicuna_v1 for transformers' `apply_chat_template`; caldera itself never runs a template from a folder."""


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
    weights = to_disk(model.vision.tower.state_dict(), model.projector.state_dict(), language)
    with whole_folder(folder) as fresh:
        write_json(fresh / "config.json", _config(assistant))
        write_weights(fresh, weights)
        _processor(assistant).save_pretrained(fresh)
        ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
        GenerationConfig(**ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(fresh)
        write_json(fresh / FILE, assistant.card.model_dump())


def _config(assistant: Assistant) -> dict[str, Any]:
    """Return the config that transformers reads."""
    model, card = assistant.model, assistant.card
    config = LlavaConfig(
        vision_config=model.vision.tower.config.to_dict(),
        text_config=model.language.config.to_dict(),
        image_token_index=model.image_token_id,
        image_seq_length=model.vision.image_tokens,
        projector_hidden_act="gelu",
        **_selection(card),
        tie_word_embeddings=model.language.config.tie_word_embeddings,
    ).to_dict()
    known = isinstance(model.projector, MlpProjector)
    config["architectures"] = ["LlavaForConditionalGeneration"] if known else ["Llava"]
    config["model_type"] = "llava" if known else "caldera_llava"
    if not known:
        config["projector_hidden_act"] = "none, a single linear projector"
    config["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    return config


def _selection(card: Card) -> dict[str, Any]:
    """Return in the words of transformers' config which features a card says are projected."""
    return {
        "vision_feature_layer": card.select_layer,
        "vision_feature_select_strategy": "default" if card.select == "patch" else "full",
    }


def _check_agreement(config: dict[str, Any], card: Card, folder: Path) -> None:
    """Compare what config and card both say.

    Raises:
        ModelFolderError: Transformers would project other features than caldera.
    """
    for name, wanted in _selection(card).items():
        if config.get(name) != wanted:
            raise ModelFolderError(
                f"{folder}: config.json has {name} {config.get(name)!r}, {FILE} means {wanted!r}; they must agree"
            )


def _processor(assistant: Assistant) -> LlavaProcessor:
    """Return the processor that transformers reads."""
    shape, tower = assistant.processor, assistant.model.vision.tower
    settings: dict[str, Any] = {
        "size": {"shortest_edge": shape.side},
        "crop_size": {"height": shape.side, "width": shape.side},
        "image_mean": list(shape.mean),
        "image_std": list(shape.std),
        "resample": shape.resample,
    }
    pixels = (
        LlavaImageProcessorPil(do_pad=True, **settings)
        if shape.aspect == "pad"
        else CLIPImageProcessorPil(**settings)
    )
    return LlavaProcessor(
        pixels,
        assistant.tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=_selection(assistant.card)["vision_feature_select_strategy"],
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )


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
    _check_agreement(config, card, folder)
    weights = read_weights(folder)
    check_owners(weights, folder)
    tower = _load_part(
        AutoModel, _part(config, "vision_config", folder), weights, VISION, folder, dtype
    )
    language = _load_part(
        AutoModelForCausalLM, _part(config, "text_config", folder), weights, LANGUAGE, folder, dtype
    )
    projector = build_projector(
        card.projector, tower.config.hidden_size, language.config.hidden_size
    )
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
    model = Llava(
        VisionTower(tower, card.select_layer, card.select),
        projector.to(dtype),
        language,
        slot,
    )
    return Assistant(model.eval(), tokenizer, load_processor(folder, card), card)


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


def _part(config: dict[str, Any], key: str, folder: Path) -> PretrainedConfig:
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


def load_processor(folder: Path, card: Card | None = None) -> PictureProcessor:
    """Read how pictures are prepared from `processor_config.json` or `preprocessor_config.json`.

    Args:
        folder: A model folder or a vision tower's.
        card: Says how a picture that is not square is shown; without one, the file does.

    Raises:
        ModelFolderError: Neither is there, or it lacks a setting.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            continue
        try:
            content = json.loads((folder / name).read_bytes())
            content = content.get("image_processor", content)
            size = content["size"]
            return PictureProcessor(
                side=size.get("shortest_edge") or size["height"],
                mean=tuple(content["image_mean"]),
                std=tuple(content["image_std"]),
                aspect=card.aspect if card else "pad" if content.get("do_pad") else "square",
                resample=content.get("resample", 3),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ModelFolderError(
                f"{folder / name} does not say how pictures are prepared"
            ) from None
    raise ModelFolderError(f"{folder} has no preprocessor_config.json")
