"""A model folder in, a working model out, and back: a folder that transformers itself loads, plus `caldera.json`.

What transformers cannot express, such as a single linear projector, is stored under a model type and an activation it
does not know, so that it refuses the folder instead of loading half of it.
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
from caldera.model.llava import Llava, changes_logits
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

_INNER_MODEL = ("clip_vision_model", "siglip_vision_model")
"""Vision towers whose weights llava-hf's folders name `vision_model`; all others have plain names."""

CHAT_TEMPLATE = (
    "{{ 'A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user\\'s questions. ' }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% set images = message['content'] | selectattr('type', 'equalto', 'image') | list %}"
    "{% set texts = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') %}"
    "{% if images | length == 1 %}{{ ('<image>\\n' ~ (texts | join | trim)) | trim }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endif %}{{ ' ASSISTANT:' }}"
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
    vision = model.vision.tower
    inner = vision.config.model_type in _INNER_MODEL
    weights = to_disk(vision.state_dict(), model.projector.state_dict(), language, inner=inner)
    with whole_folder(folder) as fresh:
        write_json(fresh / "config.json", _config(assistant))
        write_weights(fresh, weights)
        _processor(assistant).save_pretrained(fresh)
        ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
        GenerationConfig(**ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(fresh)
        write_json(fresh / FILE, assistant.card.model_dump())


def _config(assistant: Assistant) -> dict[str, Any]:
    """Return the config that transformers reads."""
    model = assistant.model
    config = LlavaConfig(
        vision_config=model.vision.tower.config.to_dict(),
        text_config=model.language.config.to_dict(),
        image_token_index=model.image_token_id,
        image_seq_length=model.vision.image_tokens,
        projector_hidden_act="gelu",
        **_selection(model.vision),
        tie_word_embeddings=model.language.config.tie_word_embeddings,
    ).to_dict()
    strange = _strange_to_transformers(model)
    config["architectures"] = ["Llava"] if strange else ["LlavaForConditionalGeneration"]
    config["model_type"] = "caldera_llava" if strange else "llava"
    if strange:
        config["projector_hidden_act"] = f"none, {strange}"
    config["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    return config


def _selection(vision: VisionTower) -> dict[str, Any]:
    """Return in the words of transformers' config which features of a tower are projected.

    Its strategy `default` leaves out the first position, `full` none.
    """
    skips_one = vision.select == "patch" and vision.leading
    return {
        "vision_feature_layer": vision.select_layer,
        "vision_feature_select_strategy": "default" if skips_one else "full",
    }


def _check_agreement(config: dict[str, Any], vision: VisionTower, folder: Path) -> None:
    """Compare what config and card both say of the features that are projected.

    Raises:
        ModelFolderError: Transformers would project other features than caldera.
    """
    for name, wanted in _selection(vision).items():
        if config.get(name) != wanted:
            raise ModelFolderError(
                f"{folder}: config.json has {name} {config.get(name)!r}, {FILE} means {wanted!r}; they must agree"
            )


def _strange_to_transformers(model: Llava) -> str | None:
    """Say why transformers' own class would not give this model's logits; None where it does."""
    vision, language = model.vision, model.language
    if not isinstance(model.projector, MlpProjector):
        return "a single linear projector"
    if vision.select == "patch" and vision.leading > 1:
        return f"a vision tower with {vision.leading} positions before its patches"
    if changes_logits(language.config):
        return "a language model that changes its logits behind the head"
    head = language.get_output_embeddings()
    if language.base_model_prefix != "model" or head.bias is not None:
        return "a language model whose parts have other names"
    return None


def _processor(assistant: Assistant) -> LlavaProcessor:
    """Return the processor that transformers reads."""
    shape, vision = assistant.processor, assistant.model.vision
    square = {"height": shape.side, "width": shape.side}
    padding: dict[str, Any] = {"do_pad": True} if shape.aspect == "pad" else {}
    factory = LlavaImageProcessorPil if padding else CLIPImageProcessorPil
    pixels = factory(
        size=square if shape.squash else {"shortest_edge": shape.edge or shape.side},
        crop_size=square,
        do_center_crop=not shape.squash,
        image_mean=list(shape.mean),
        image_std=list(shape.std),
        resample=shape.resample,
        **padding,
    )
    return LlavaProcessor(
        pixels,
        assistant.tokenizer,
        patch_size=vision.tower.config.patch_size,
        vision_feature_select_strategy=_selection(vision)["vision_feature_select_strategy"],
        num_additional_image_tokens=vision.leading,
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
    _check_agreement(config, vision, folder)
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


def _geometry(content: dict[str, Any]) -> dict[str, Any]:
    """Read out of an image processor's settings how a picture comes to its square.

    Raises:
        ValueError: It does not end as a square, or a square is cut out of what is smaller.
        KeyError: A size is missing.
    """
    size, crop = content["size"], content.get("crop_size")
    if isinstance(size, int):
        size = {"shortest_edge": size}
    cropped = bool(content.get("do_center_crop", crop is not None))
    if "shortest_edge" not in size:
        if size["height"] != size["width"] or cropped:
            raise ValueError(f"size {size} with crop_size {crop} is no square that is only resized")
        return {"side": size["height"], "squash": True}
    edge = size["shortest_edge"]
    crop = {"height": crop or edge, "width": crop or edge} if not isinstance(crop, dict) else crop
    if not cropped or not crop["height"] == crop["width"] <= edge:
        raise ValueError(f"size {size} with crop_size {crop} does not end as a square")
    return {"side": crop["height"], "edge": None if crop["height"] == edge else edge}


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
            return PictureProcessor(
                **_geometry(content),
                mean=tuple(content["image_mean"]),
                std=tuple(content["image_std"]),
                aspect=card.aspect if card else "pad" if content.get("do_pad") else "square",
                resample=content.get("resample", 3),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFolderError(
                f"{folder / name} does not say how pictures are prepared: {error}"
            ) from None
    raise ModelFolderError(f"{folder} has no preprocessor_config.json")
