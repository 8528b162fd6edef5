"""Export of a caldera model folder to a folder that LLaVA's own code loads."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from caldera.errors import UsageError
from caldera.files.atomic import atomic_folder, write_json
from caldera.formats.open_model import open_model
from caldera.formats.original.config import (
    LLAVA_CLASSES,
    TOWER_FOLDER,
    conversation_mode,
    hub_name,
    known_tower,
)
from caldera.formats.original.tokenizer import write_tokenizer
from caldera.formats.safetensors_files import LazyWeight, write_weights
from caldera.formats.tokenizer import vocab_size_without_image
from caldera.formats.transformers_config import public_settings, to_image_processor
from caldera.formats.weight_merging import first_rows
from caldera.formats.weight_names import (
    LANGUAGE,
    VISION,
    select_part,
    stored_dtype,
    to_original,
)
from caldera.model.bundle import LlavaBundle, eos_token_ids

_ROPE_TYPES = {"llama": ("default", "linear", "dynamic"), "mistral": ("default",)}
"""Types of position embeddings in transformers 4.37, by language model."""

_ROPE_SETTINGS = {"rope_type", "rope_theta", "factor"}
"""All settings of these types."""

_LATER_SETTINGS = ("dtype", "head_dim", "mlp_bias", "transformers_version")
"""Settings that transformers 4.37 does not have."""


def write_original(
    folder: Path, out: Path, tick: Callable[[str], None] = lambda file: None
) -> tuple[str, ...]:
    """Write a model folder in the layout of LLaVA's own code, completely or not at all.

    The vision tower's weights are included and marked as trained, so that LLaVA's code uses them. The tokens that
    caldera appended to the vocabulary, and their rows, are omitted.

    Args:
        folder: A caldera model folder.
        out: The folder to write.
        tick: Called after each weight with the name of its file.

    Returns:
        Notes for the user.

    Raises:
        ModelFormatError: The folder cannot be loaded.
        UsageError: LLaVA's own code has no class for such a model, or `out` exists.
        OutputError: The folder could not be written.
    """
    if out.exists():
        raise UsageError(f"{out} exists; choose another place or remove it first")
    assistant, weights = open_model(folder)
    _check_expressible(assistant)
    vocab_size = vocab_size_without_image(assistant.tokenizer)
    original_weights = {
        to_original(name): weight for name, weight in _drop_added_rows(weights, vocab_size).items()
    }
    with atomic_folder(out) as fresh:
        tower, tower_note = _write_tower(fresh, out, assistant, weights)
        write_json(fresh / "config.json", _config(assistant, weights, vocab_size, tower))
        write_weights(fresh, original_weights, tick=tick)
        tokenizer_notes = write_tokenizer(assistant.tokenizer, fresh)
        ends = eos_token_ids(assistant)
        generation = {
            "bos_token_id": assistant.tokenizer.bos_token_id,
            "eos_token_id": ends[0] if len(ends) == 1 else ends,
        }
        write_json(fresh / "generation_config.json", generation)
    return (
        *tower_note,
        *tokenizer_notes,
        *_usage_notes(out, assistant),
    )


def _usage_notes(out: Path, assistant: LlavaBundle) -> Iterator[str]:
    """Yield how to call the folder, and the conversation mode; LLaVA's own code guesses both from the name."""
    parts = {
        "llava": True,
        "mistral": assistant.model.language.config.model_type == "mistral",
        "mpt": False,
    }
    wrong = [name for name, needed in parts.items() if (name in out.name.lower()) != needed]
    if wrong:
        names = ", ".join(f"{'with' if parts[name] else 'without'} {name!r}" for name in wrong)
        yield f"LLaVA's own code chooses the class by the folder's name: rename {out.name!r} to a name {names}"
    template = assistant.card.template
    if mode := conversation_mode(template):
        yield f"its prompts are LLaVA's conversation mode {mode}: pass --conv-mode {mode}"
    else:
        yield f"LLaVA's own code has no conversation mode with the prompts of caldera's {template!r}: add one to it"


def _check_expressible(assistant: LlavaBundle) -> None:
    """Raise UsageError if LLaVA's own code, with transformers 4.37, would compute something else."""
    vision, language = assistant.model.vision.tower.config, assistant.model.language.config
    if language.model_type not in LLAVA_CLASSES or vision.model_type != "clip_vision_model":
        raise UsageError(
            f"LLaVA's own code joins CLIP with {' or '.join(LLAVA_CLASSES)}, not {vision.model_type} with "
            f"{language.model_type}; export it in another format"
        )
    settings = language.to_dict()
    rope, head_dim = settings["rope_parameters"], settings.get("head_dim")
    has_known_rope = rope["rope_type"] in _ROPE_TYPES[language.model_type]
    processor = assistant.processor
    faults = {
        f"rope_parameters {rope}": not has_known_rope or rope.keys() - _ROPE_SETTINGS,
        f"head_dim {head_dim}": head_dim
        and head_dim * settings["num_attention_heads"] != settings["hidden_size"],
        "mlp_bias": settings.get("mlp_bias"),
        "limit of tiles (anyres_max)": processor.anyres_max,
        f"tiles that are not resized bicubically (resample {processor.resample})": (
            processor.aspect == "anyres" and processor.resample != Image.Resampling.BICUBIC
        ),
    }
    if reasons := [name for name, is_fault in faults.items() if is_fault]:
        raise UsageError(
            f"LLaVA's own code, with transformers 4.37, has no {' and no '.join(reasons)} for {language.model_type}; "
            "export it in another format"
        )


def _drop_added_rows(weights: Mapping[str, LazyWeight], vocab_size: int) -> dict[str, LazyWeight]:
    """Return weights whose embedding tables have `vocab_size` rows."""
    tables = (f"{LANGUAGE}model.embed_tokens.weight", f"{LANGUAGE}lm_head.weight")
    return {
        name: first_rows(weight, vocab_size) if name in tables else weight
        for name, weight in weights.items()
    }


def _without_later_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _LATER_SETTINGS}


def _dtype_name(weights: Mapping[str, LazyWeight]) -> str:
    return str(stored_dtype(weights)).removeprefix("torch.")


def _config(
    assistant: LlavaBundle, weights: Mapping[str, LazyWeight], vocab_size: int, tower: str
) -> dict[str, Any]:
    """Return the config that LLaVA's own code reads."""
    metadata, language = assistant.card, assistant.model.language.config
    model_type, architecture = LLAVA_CLASSES[language.model_type]
    text = _without_later_settings(public_settings(language))
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = None
    if rope["rope_type"] != "default":
        text["rope_scaling"] = {"type": rope["rope_type"], "factor": float(rope["factor"])}
    anyres = metadata.image_aspect not in ("square", "pad")
    return {
        **text,
        "architectures": [architecture],
        "model_type": model_type,
        "torch_dtype": _dtype_name(weights),
        "vocab_size": vocab_size,
        "pad_token_id": None,
        "image_aspect_ratio": metadata.image_aspect,
        "image_grid_pinpoints": metadata.model_dump(mode="json")["pinpoints"] if anyres else None,
        "freeze_mm_mlp_adapter": False,
        "mm_hidden_size": assistant.model.vision.width,
        "mm_patch_merge_type": "spatial_unpad" if anyres else "flat",
        "mm_projector_lr": None,
        "mm_projector_type": metadata.projector,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": metadata.feature_select,
        "mm_vision_select_layer": metadata.vision_feature_layer,
        "mm_vision_tower": tower,
        "tokenizer_model_max_length": assistant.model.context_length,
        "tokenizer_padding_side": "right",
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": True,
        "use_mm_proj": True,
    }


def _write_tower(
    fresh: Path, out: Path, assistant: LlavaBundle, weights: Mapping[str, LazyWeight]
) -> tuple[str, tuple[str, ...]]:
    """Return the vision tower's name for LLaVA's own code, with notes; write the tower if it has no hub name."""
    config = assistant.model.vision.tower.config
    processor = assistant.processor.with_aspect("square")
    name = hub_name(config)
    hub_tower = known_tower(name) if name else None
    if name and hub_tower and hub_tower[1] == processor:
        return name, ()
    folder = fresh / TOWER_FOLDER
    folder.mkdir()
    tower = select_part(weights, VISION)
    settings = {**public_settings(config), "architectures": ["CLIPVisionModel"]}
    settings |= {"torch_dtype": _dtype_name(tower)}
    write_json(folder / "config.json", _without_later_settings(settings))
    write_weights(folder, {f"vision_model.{name}": weight for name, weight in tower.items()})
    to_image_processor(processor).save_pretrained(folder)
    path = str(out.absolute() / TOWER_FOLDER)
    return path, (
        f"its config names the vision tower by its path, {path}: change mm_vision_tower when the folder moves",
    )
