"""A model folder in, a working model out, and back: a folder that transformers itself loads, plus `caldera.json`.

What transformers cannot express, such as a single linear projector, is stored under a model type and an activation it
does not know, so that it refuses the folder instead of loading half of it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
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
from caldera.model.config import part_config, read_config
from caldera.model.llava import Llava, changes_logits
from caldera.model.projector import MlpProjector, build_projector
from caldera.model.tensor_files import Weight, held, write_weights
from caldera.model.tokenizer import IMAGE_TOKEN, image_token_id, load_tokenizer
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
    stored_dtype,
    tied_names,
    to_disk,
)
from caldera.storage import whole_folder, write_json

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
    model = assistant.model
    language = dict(model.language.state_dict())
    for name in tied_names(model.language):
        language.pop(name, None)
    states = model.vision.tower.state_dict(), model.projector.state_dict(), language
    vision, projector, speaker = (
        {name: held(each) for name, each in one.items()} for one in states
    )
    weights = to_disk(vision, projector, speaker, inner=stands_below(model.vision.tower))
    with whole_folder(folder) as fresh:
        write_assistant(fresh, assistant, weights)


def write_assistant(
    folder: Path,
    assistant: Assistant,
    weights: Mapping[str, Weight],
    tick: Callable[[str], None] = lambda file: None,
) -> None:
    """Fill a fresh folder.

    Args:
        folder: Stands, empty.
        assistant: Its model may be an outline, without numbers.
        weights: Of the model, by their names on disk.
        tick: Called after each weight with the file that it is in.
    """
    tokenizer = assistant.tokenizer
    write_json(folder / "config.json", _config(assistant, stored_dtype(weights)))
    write_weights(folder, weights, tick=tick)
    _processor(assistant).save_pretrained(folder)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    GenerationConfig(**ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    write_json(folder / FILE, assistant.card.model_dump())


def stands_below(vision: PreTrainedModel) -> bool:
    """Tell whether llava-hf's folders name a vision tower's weights below `vision_model`."""
    return vision.config.model_type in _INNER_MODEL


def _config(assistant: Assistant, dtype: torch.dtype) -> dict[str, Any]:
    """Return the config that transformers reads, of weights in `dtype`."""
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
    strange = beyond_transformers(model)
    config["architectures"] = ["Llava"] if strange else ["LlavaForConditionalGeneration"]
    config["model_type"] = "caldera_llava" if strange else "llava"
    if strange:
        config["projector_hidden_act"] = f"none, {strange}"
    config["dtype"] = str(dtype).removeprefix("torch.")
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


def beyond_transformers(model: Llava) -> str | None:
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

    Weights that are stored in `dtype` stay mapped from their files, so they take memory once, and only when used.

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
    outlined = outline(
        part_config(config, "vision_config", folder / "config.json"),
        part_config(config, "text_config", folder / "config.json"),
        load_tokenizer(folder),
        load_processor(folder, card),
        card,
    )
    model = outlined.model
    if config.get("image_token_index") != model.image_token_id:
        raise ModelFolderError(
            f"{folder}: config.json puts pictures at token {config.get('image_token_index')}, the tokenizer at "
            f"{model.image_token_id}; they must agree"
        )
    _check_agreement(config, model.vision, folder)
    check_weights(model, weights, folder)
    model.vision.tower = fill(model.vision.tower, from_disk(weights, VISION), dtype)
    model.language = fill(model.language, from_disk(weights, LANGUAGE), dtype)
    bridge = {name: each.read().to(dtype) for name, each in from_disk(weights, PROJECTOR).items()}
    model.projector.load_state_dict(bridge, assign=True)
    return outlined


def outline(
    vision: PretrainedConfig,
    language: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    processor: PictureProcessor,
    card: Card,
) -> Assistant:
    """Build an assistant whose weights have shapes but no numbers yet.

    Raises:
        ModelFolderError: Transformers cannot build a tower from its config, or the tokenizer has no token for pictures.
        UnknownNameError: There is no such projector.
    """
    with torch.device("meta"):
        tower = _shell(AutoModel, vision)
        speaker = _shell(AutoModelForCausalLM, language)
        bridge = build_projector(
            card.projector, tower.config.hidden_size, speaker.config.hidden_size
        )
        sight = VisionTower(tower, processor.side, card.select_layer, card.select)
    model = Llava(sight, bridge, speaker, image_token_id(tokenizer))
    return Assistant(model.eval(), tokenizer, processor, card)


def _shell(
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
        raise ModelFolderError(
            f"transformers cannot build the {config.model_type!r} of the config: {reason}"
        ) from None


def check_weights(model: Llava, weights: Mapping[str, Weight], source: Path) -> None:
    """Compare a folder's weights with what a model takes, both ways.

    Raises:
        ModelFolderError: They do not fit; the message names the first that do not.
    """
    check_owners(weights, source)
    optional = tied_names(model.language)
    check_fit(model.vision.tower, from_disk(weights, VISION), "vision_tower", source)
    check_fit(model.projector, from_disk(weights, PROJECTOR), "projector", source)
    check_fit(model.language, from_disk(weights, LANGUAGE), "language_model", source, optional)


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
