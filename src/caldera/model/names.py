"""A weight's name in any layout in, llava-hf's name on disk out; and LLaVA's original name back."""

from collections.abc import Callable, Mapping
from pathlib import Path

from caldera.errors import ModelFormatError
from caldera.model.tensor_files import LazyWeight
from caldera.model.weights import LANGUAGE, NEWLINE, PROJECTOR, VISION

_INNER = "vision_model."
_TOWER = "model.vision_tower.vision_tower."
_PROJECTOR = "model.mm_projector."
_LAYERS = {"0.": "linear_1.", "2.": "linear_2."}

_DERIVED_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Endings of names that older releases stored and that follow from the config."""

_TEXT_TOWER = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
)
"""What a folder of CLIP or SigLIP holds beside its vision tower."""


def rename_weights(
    weights: Mapping[str, LazyWeight], rename: Callable[[str], str], source: Path
) -> dict[str, LazyWeight]:
    """Return weights under other names, without those that follow from the config.

    Raises:
        ModelFolderError: Two get the same name.
    """
    found: dict[str, LazyWeight] = {}
    origin: dict[str, str] = {}
    for name, each in weights.items():
        if name.endswith(_DERIVED_BUFFERS):
            continue
        new = rename(name)
        if new in found:
            raise ModelFormatError(
                f"the weights in {source} hold both {origin[new]} and {name}, which are one weight"
            )
        found[new], origin[new] = each, name
    return found


def from_llava_hf(name: str) -> str:
    """Return the classic name of a weight that has that or the one which transformers 5 has in memory (spec 8.2)."""
    name = name.removeprefix("model.")
    if name.startswith("lm_head."):
        return LANGUAGE + name
    if name.startswith(LANGUAGE):
        rest = name.removeprefix(LANGUAGE)
        return name if rest.startswith(("model.", "lm_head.")) else f"{LANGUAGE}model.{rest}"
    return strip_vision_model(name)


def strip_vision_model(name: str) -> str:
    """Return a vision tower's name without `vision_model`, which stands there or not."""
    return name.replace(VISION + _INNER, VISION, 1) if name.startswith(VISION) else name


def from_original(name: str) -> str:
    """Return llava-hf's name of a weight of an original folder."""
    if name.startswith(_TOWER):
        return strip_vision_model(VISION + name.removeprefix(_TOWER))
    if name.startswith(_PROJECTOR):
        rest = name.removeprefix(_PROJECTOR)
        return PROJECTOR + _LAYERS.get(rest[:2], rest[:2]) + rest[2:]
    if name == f"model.{NEWLINE}":
        return NEWLINE
    return LANGUAGE + name if name.startswith(("model.", "lm_head.")) else name


def to_original(name: str) -> str:
    """Return an original folder's name of a weight that has llava-hf's."""
    if name.startswith(VISION):
        return f"{_TOWER}{_INNER}{strip_vision_model(name).removeprefix(VISION)}"
    if name.startswith(PROJECTOR):
        rest = name.removeprefix(PROJECTOR)
        for theirs, ours in _LAYERS.items():
            if rest.startswith(ours):
                return _PROJECTOR + theirs + rest.removeprefix(ours)
        return _PROJECTOR + rest
    if name == NEWLINE:
        return f"model.{NEWLINE}"
    return name.removeprefix(LANGUAGE)


def from_projector_file(name: str) -> str:
    """Return llava-hf's name of a weight in `mm_projector.bin`; all before `mm_projector` is passed over (spec 3.6)."""
    _, mark, rest = name.partition("mm_projector.")
    return from_original(_PROJECTOR + rest) if mark else name


def from_non_lora_trainables(name: str) -> str:
    """Return llava-hf's name of a weight in `non_lora_trainables.bin`, which peft's wrapper stands around."""
    name = name.removeprefix("base_model.")
    wrapped = name.startswith(("model.model.", "model.lm_head."))
    return from_original(name.removeprefix("model.") if wrapped else name)


def from_vision_folder(weights: Mapping[str, LazyWeight]) -> dict[str, LazyWeight]:
    """Return the vision tower's weights of a folder that holds one, or one beside a tower for text."""
    own = {name: each for name, each in weights.items() if not name.startswith(_TEXT_TOWER)}
    return {VISION + name.removeprefix(_INNER): each for name, each in own.items()}


def disk_name(name: str, inner: bool) -> str:
    """Return the name that a folder has a weight under; `inner` where its vision tower's stand below `vision_model`."""
    if inner and name.startswith(VISION) and not name.startswith(VISION + _INNER):
        return VISION + _INNER + name.removeprefix(VISION)
    return name
