"""A caldera model folder in, a folder that LLaVA's own code loads out."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil, GenerationConfig

from caldera.errors import UsageError
from caldera.files.atomic import atomic_folder, write_json
from caldera.formats.model_folder import open_lazily
from caldera.formats.original.config import LLAVA_CLASSES, hub_name, known_tower
from caldera.formats.safetensors_files import LazyWeight, check_inside_folder, write_weights
from caldera.formats.tokenizer import (
    SENTENCEPIECE_FILE,
    save_without_image_token,
    vocab_size_without_image,
)
from caldera.formats.weight_merging import first_rows
from caldera.formats.weight_names import (
    LANGUAGE,
    VISION,
    select_part,
    stored_dtype,
    to_original,
)
from caldera.model.assistant import LlavaBundle

TOWER = "vision_tower"
"""Folder of a vision tower that has no name on the hub."""


def write_original(
    folder: Path, out: Path, tick: Callable[[str], None] = lambda file: None
) -> tuple[str, ...]:
    """Write a model folder in the layout of LLaVA's own code, whole or not at all.

    The vision tower's weights are inside, marked as trained, so that they are the ones which are used. The tokens that
    caldera puts behind the vocabulary, and their rows, are left away.

    Args:
        folder: A caldera model folder.
        out: Where the folder will stand.
        tick: Called after each weight with the file that it is in.

    Returns:
        What the user should know.

    Raises:
        ModelFolderError: The folder cannot be loaded.
        UsageError: LLaVA's own code has no class for such a model, or something stands at `out`.
        OutputError: It could not be written.
    """
    if out.exists():
        raise UsageError(f"{out} exists; choose another place or remove it first")
    assistant, weights = open_lazily(folder)
    card = assistant.card
    _check_expressible(assistant)
    words = vocab_size_without_image(assistant.tokenizer)
    named = {
        to_original(name): each
        for name, each in _drop_added_rows(weights, assistant, words).items()
    }
    with atomic_folder(out) as fresh:
        tower, tower_note = _write_tower(fresh, out, assistant, weights)
        write_json(fresh / "config.json", _config(assistant, weights, words, tower))
        write_weights(fresh, named, tick=tick)
        save_without_image_token(assistant.tokenizer, fresh)
        ends = assistant.tokenizer.bos_token_id, assistant.tokenizer.eos_token_id
        GenerationConfig(bos_token_id=ends[0], eos_token_id=ends[1]).save_pretrained(fresh)
        sentences = (folder / SENTENCEPIECE_FILE).is_file()
        if sentences:
            shutil.copyfile(
                check_inside_folder(folder / SENTENCEPIECE_FILE), fresh / SENTENCEPIECE_FILE
            )
    return (
        *tower_note,
        *(() if sentences else (_NO_SENTENCEPIECE,)),
        f"LLaVA's own code picks class and template by the folder's name: call it llava-..., and ask with the "
        f"conversation mode that is caldera's {card.template!r}",
    )


_NO_SENTENCEPIECE = f"there is no {SENTENCEPIECE_FILE}, which LLaVA's own code reads LLaMA's words from: copy the base's"


def _check_expressible(assistant: LlavaBundle) -> None:
    """Refuse a model that LLaVA's own code has no class for.

    Raises:
        UsageError: It is one.
    """
    vision, language = assistant.model.vision.tower.config, assistant.model.language.config
    if language.model_type not in LLAVA_CLASSES or vision.model_type != "clip_vision_model":
        raise UsageError(
            f"LLaVA's own code joins CLIP with {' or '.join(LLAVA_CLASSES)}, not {vision.model_type} with "
            f"{language.model_type}; export it in another format"
        )


def _drop_added_rows(
    weights: Mapping[str, LazyWeight], assistant: LlavaBundle, words: int
) -> dict[str, LazyWeight]:
    """Return weights whose tables of words end with the last word."""
    tables = (f"{LANGUAGE}model.embed_tokens.weight", f"{LANGUAGE}lm_head.weight")
    return {
        name: first_rows(each, words) if name in tables else each for name, each in weights.items()
    }


def _config(
    assistant: LlavaBundle, weights: Mapping[str, LazyWeight], words: int, tower: str
) -> dict[str, Any]:
    """Return the config that LLaVA's own code reads (spec 1.9)."""
    card, language = assistant.card, assistant.model.language.config
    kind, architecture = LLAVA_CLASSES[language.model_type]
    text = language.to_dict()
    text.pop("dtype", None)
    turning = dict(text.pop("rope_parameters", None) or {})
    text["rope_theta"] = turning.pop("rope_theta", 10000.0)
    text["rope_scaling"] = None
    if (scaling := turning.pop("rope_type", "default")) != "default":
        text["rope_scaling"] = {"type": scaling, **turning}
    anyres = card.image_aspect not in ("square", "pad")
    return {
        **text,
        "architectures": [architecture],
        "model_type": kind,
        "torch_dtype": str(stored_dtype(weights)).removeprefix("torch."),
        "vocab_size": words,
        "pad_token_id": None,
        "image_aspect_ratio": card.image_aspect,
        "image_grid_pinpoints": card.model_dump(mode="json")["pinpoints"] if anyres else None,
        "mm_hidden_size": assistant.model.vision.width,
        "mm_patch_merge_type": "spatial_unpad" if anyres else "flat",
        "mm_projector_type": card.projector,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": card.feature_select,
        "mm_vision_select_layer": card.vision_feature_layer,
        "mm_vision_tower": tower,
        "tokenizer_model_max_length": assistant.model.context_length,
        "tokenizer_padding_side": "right",
        "unfreeze_mm_vision_tower": True,
        "use_mm_proj": True,
    }


def _write_tower(
    fresh: Path, out: Path, assistant: LlavaBundle, weights: Mapping[str, LazyWeight]
) -> tuple[str, tuple[str, ...]]:
    """Return what LLaVA's own code finds the vision tower by, and what to say of it; write it if it has no hub name.

    Args:
        fresh: The folder that is being filled.
        out: Where it will stand.
        assistant: The model.
        weights: Of the model.
    """
    config = assistant.model.vision.tower.config
    shape = replace(assistant.processor, aspect="square")
    name = hub_name(config)
    known = known_tower(name) if name else None
    if name and known and known[1] == shape:
        return name, ()
    place = fresh / TOWER
    place.mkdir()
    write_json(place / "config.json", {**config.to_dict(), "architectures": ["CLIPVisionModel"]})
    tower = select_part(weights, VISION)
    write_weights(place, {f"vision_model.{name}": each for name, each in tower.items()})
    square = {"height": shape.side, "width": shape.side}
    CLIPImageProcessorPil(
        size={"shortest_edge": shape.resize_shortest_edge or shape.side},
        crop_size=square,
        image_mean=list(shape.mean),
        image_std=list(shape.std),
        resample=shape.resample,
    ).save_pretrained(place)
    path = str(out.absolute() / TOWER)
    return path, (
        f"its config names the vision tower by its path, {path}: change mm_vision_tower when the folder moves",
    )
