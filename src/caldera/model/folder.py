"""A model folder in, a working model out, and back: a folder that transformers itself loads, plus `caldera.json`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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

from caldera.batches.anyres import Layout
from caldera.batches.pictures import PictureProcessor
from caldera.batches.templates import find_template
from caldera.batches.text_ids import start_ids
from caldera.errors import ModelFolderError
from caldera.model.card import FILE, Card, read_card
from caldera.model.chat_templates import chat_template
from caldera.model.config import part_config, read_config
from caldera.model.llava import Llava
from caldera.model.preparation import load_processor
from caldera.model.projector import add_newline, build_projector
from caldera.model.tensor_files import Weight, held, write_weights
from caldera.model.tokenizer import image_token_id, load_tokenizer
from caldera.model.transformers_files import check_agreement, config_of, processor_of
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


@dataclass(frozen=True, slots=True)
class Assistant:
    """A model with everything needed to use it."""

    model: Llava
    tokenizer: PreTrainedTokenizerFast
    processor: PictureProcessor
    card: Card

    def layouts(self, paths: Iterable[Path]) -> tuple[Layout, ...]:
        """Return how pictures are shown.

        Raises:
            PictureError: The size of one counts, but cannot be read.
        """
        return tuple(self.processor.layout(path) for path in paths)

    def image_tokens(self, layouts: Iterable[Layout]) -> list[int]:
        """Return how many tokens each picture becomes."""
        return [self.model.count_tokens(layout) for layout in layouts]


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
    model, tokenizer, card = assistant.model, assistant.tokenizer, assistant.card
    write_json(folder / "config.json", config_of(model, card, stored_dtype(weights)))
    write_weights(folder, weights, tick=tick)
    jinja = chat_template(find_template(card.template), starts=bool(start_ids(tokenizer)))
    processor_of(assistant.processor, model.vision, tokenizer, jinja).save_pretrained(folder)
    ends = {"eos_token_id": end_ids(assistant), "bos_token_id": tokenizer.bos_token_id}
    GenerationConfig(**ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    write_json(folder / FILE, assistant.card.model_dump())


def end_ids(assistant: Assistant) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's end mark, and the template's own where it has one."""
    tokenizer = assistant.tokenizer
    special = find_template(assistant.card.template).end_token
    own = tokenizer.backend_tokenizer.token_to_id(special) if special else None
    return [end for end in dict.fromkeys([tokenizer.eos_token_id, own]) if end is not None]


def stands_below(vision: PreTrainedModel) -> bool:
    """Tell whether llava-hf's folders name a vision tower's weights below `vision_model`."""
    return vision.config.model_type in _INNER_MODEL


def load_assistant(folder: Path, dtype: torch.dtype = torch.float32) -> Assistant:
    """Load a model folder; its name is never looked at, and nothing of it is run.

    Weights that are stored in `dtype` stay mapped from their files, so they take memory once, and only when used.

    Args:
        folder: Written by `save_assistant`.
        dtype: Of the weights in memory.

    Raises:
        ModelFolderError: A file is missing or broken, or the weights do not fit the config both ways.
    """
    outlined, weights = open_outline(folder)
    model = outlined.model
    model.vision.tower = fill(model.vision.tower, from_disk(weights, VISION), dtype)
    model.language = fill(model.language, from_disk(weights, LANGUAGE), dtype)
    bridge = {name: each.read().to(dtype) for name, each in from_disk(weights, PROJECTOR).items()}
    model.projector.load_state_dict(bridge, assign=True)
    return outlined


def open_outline(folder: Path) -> tuple[Assistant, dict[str, Weight]]:
    """Open a model folder without reading a number of its weights.

    Returns:
        The assistant, whose weights have only shapes, and its weights by their names on disk.

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
    check_agreement(config, model.vision, card, folder)
    check_weights(model, weights, folder)
    return outlined, weights


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
        if card.aspect == "anyres":
            add_newline(bridge)
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
    check_owners(weights, source, tiled=model.projector.newline is not None)
    optional = tied_names(model.language)
    check_fit(model.vision.tower, from_disk(weights, VISION), "vision_tower", source)
    check_fit(model.projector, from_disk(weights, PROJECTOR), "projector", source)
    check_fit(model.language, from_disk(weights, LANGUAGE), "language_model", source, optional)
