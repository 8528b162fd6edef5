"""Names of weights in every layout, and checks of names and shapes against a model."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caldera.errors import ModelFormatError
from caldera.formats.safetensors_files import (
    INDEX,
    LazyWeight,
    merge_listings,
    read_safetensors,
    weight_files,
)
from caldera.formats.weight_files import read_folder

_Weight = TypeVar("_Weight")
"""A tensor, or a weight that is not read yet."""

VISION = "vision_tower."
PROJECTOR = "multi_modal_projector."
LANGUAGE = "language_model."

NEWLINE = "image_newline"
"""Embedding at the end of each row of tiles: outside the parts on disk, a parameter of the projector in memory."""

_VISION_MODEL = "vision_model."
"""Part of vision weights' names on disk, and in memory in some releases of transformers."""

_FORMER_NAMES = {f"projector.{NEWLINE}": "projector.newline"}
"""Names of weights in memory that earlier versions digested."""


def with_disk_names(
    vision: Mapping[str, _Weight],
    projector: Mapping[str, _Weight],
    language: Mapping[str, _Weight],
    *,
    prefixed: bool,
) -> dict[str, _Weight]:
    """Join the parts' weights under llava-hf's names; `prefixed` puts the tower's below `vision_model`."""
    prefix = VISION + _VISION_MODEL if prefixed else VISION
    weights = {
        f"{prefix}{name.removeprefix(_VISION_MODEL)}": weight for name, weight in vision.items()
    }
    weights |= {
        NEWLINE if name == NEWLINE else f"{PROJECTOR}{name}": weight
        for name, weight in projector.items()
    }
    return weights | {f"{LANGUAGE}{name}": weight for name, weight in language.items()}


def select_part(weights: Mapping[str, _Weight], prefix: str) -> dict[str, _Weight]:
    """Select the weights of one part, under their names in memory."""
    newline = {NEWLINE: weights[NEWLINE]} if prefix == PROJECTOR and NEWLINE in weights else {}
    return newline | {
        name.removeprefix(prefix).removeprefix(_VISION_MODEL): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }


def read_weights(folder: Path) -> dict[str, LazyWeight]:
    """List the weights in all safetensors of a folder, without reading their numbers.

    Raises:
        ModelFormatError: A file is missing, truncated, or outside the folder, or does not match the index.
    """
    return merge_listings(
        {file: read_safetensors(file) for file in weight_files(folder)}, folder / INDEX
    )


def digest_folder(folder: Path) -> str:
    """Return the sha256 of a folder's weight files, in hexadecimal."""
    return digest_of_files(read_folder(folder).files)


def digest_of_files(files: Iterable[Path]) -> str:
    """Return the sha256 of files, in hexadecimal."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def digest_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 of weights in memory, by name and content."""
    total = hashlib.sha256()
    for name, tensor in sorted((_FORMER_NAMES.get(name, name), weights[name]) for name in weights):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def check_known_prefixes(weights: Iterable[str], source: Path, *, tiled: bool) -> None:
    """Reject weights that belong to no part; the newline embedding is allowed only if images are `tiled`.

    Raises:
        ModelFormatError: There are some; the message names the first.
    """
    parts = (VISION, PROJECTOR, LANGUAGE)
    allowed = {NEWLINE} if tiled else set()
    unknown = sorted(name for name in weights if name not in allowed and not name.startswith(parts))
    if unknown:
        raise ModelFormatError(
            f"the weights in {source} hold {unknown[:3]}, which belong to no part; their names must start with "
            f"{VISION}, {PROJECTOR} or {LANGUAGE}"
        )


def check_shapes(
    module: nn.Module,
    weights: Mapping[str, LazyWeight],
    part: str,
    source: Path,
    optional: frozenset[str] = frozenset(),
) -> None:
    """Check that names and shapes of weights fit a module; `optional` ones may be missing.

    Raises:
        ModelFormatError: A weight is missing, unexpected, has another shape, or is not of floating point.
    """
    expected = {
        name.removeprefix(_VISION_MODEL): tensor for name, tensor in module.state_dict().items()
    }
    missing = sorted(expected.keys() - weights.keys() - optional)
    unexpected = sorted(weights.keys() - expected.keys())
    if missing or unexpected:
        raise ModelFormatError(
            f"the weights in {source} do not fit its {part}: missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
    for name, weight in weights.items():
        shape = tuple(expected[name].shape)
        if shape != weight.shape:
            raise ModelFormatError(
                f"the weight {name} of the {part} in {source} has shape {weight.shape}; it needs {shape}"
            )
        if expected[name].is_floating_point() and not weight.dtype.is_floating_point:
            raise ModelFormatError(
                f"the weight {name} of the {part} in {source} holds {weight.dtype}; it needs float32, float16 "
                "or bfloat16, not quantized"
            )


def tied_names(language: PreTrainedModel) -> frozenset[str]:
    """Return the names of weights that are tied to the embeddings, which a folder may omit."""
    tied = language.config.tie_word_embeddings
    return frozenset(language._tied_weights_keys or ()) if tied else frozenset()


def load_into(
    outline: PreTrainedModel, weights: Mapping[str, LazyWeight], dtype: torch.dtype
) -> PreTrainedModel:
    """Build a model like one on the meta device, with checked weights and no random initialization.

    Weights that are stored in `dtype` stay mapped from their file; others are converted one by one.
    """
    state = {
        name: weight.read().to(dtype if weight.dtype.is_floating_point else weight.dtype)
        for name, weight in weights.items()
    }
    if any(name.startswith(_VISION_MODEL) for name in outline.state_dict()):
        state = {f"{_VISION_MODEL}{name}": tensor for name, tensor in state.items()}
    model: PreTrainedModel = type(outline).from_pretrained(
        None, config=outline.config, state_dict=state, dtype=dtype
    )
    return model.eval()


def stored_dtype(weights: Mapping[str, LazyWeight]) -> torch.dtype:
    """Return the dtype of most of the weights' bytes."""
    nbytes: Counter[torch.dtype] = Counter()
    for weight in weights.values():
        nbytes[weight.dtype] += weight.nbytes
    return nbytes.most_common(1)[0][0] if nbytes else torch.float32


_TOWER = "model.vision_tower.vision_tower."
_PROJECTOR = "model.mm_projector."
_LAYERS = {"0.": "linear_1.", "2.": "linear_2."}

_DERIVED_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Ends of names that older releases stored, and that follow from the config."""

_TEXT_TOWER = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
)
"""Weights of a CLIP or SigLIP folder that are not the vision tower's."""


def rename_weights(
    weights: Mapping[str, LazyWeight], rename: Callable[[str], str], source: Path
) -> dict[str, LazyWeight]:
    """Return weights under other names, without buffers that follow from the config.

    Raises:
        ModelFormatError: Two get the same name.
    """
    renamed: dict[str, LazyWeight] = {}
    old_names: dict[str, str] = {}
    for name, weight in weights.items():
        if name.endswith(_DERIVED_BUFFERS):
            continue
        new = rename(name)
        if new in renamed:
            raise ModelFormatError(
                f"the weights in {source} hold both {old_names[new]} and {name}, which are one weight"
            )
        renamed[new], old_names[new] = weight, name
    return renamed


def from_llava_hf(name: str) -> str:
    """Return the classic name of a weight that has that name, or the name of transformers 5 in memory."""
    name = name.removeprefix("model.")
    if name.startswith("lm_head."):
        return LANGUAGE + name
    if name.startswith(LANGUAGE):
        rest = name.removeprefix(LANGUAGE)
        return name if rest.startswith(("model.", "lm_head.")) else f"{LANGUAGE}model.{rest}"
    return strip_vision_model(name)


def strip_vision_model(name: str) -> str:
    """Return a vision tower's name without `vision_model`, if it has it."""
    return name.replace(VISION + _VISION_MODEL, VISION, 1) if name.startswith(VISION) else name


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
        return f"{_TOWER}{_VISION_MODEL}{strip_vision_model(name).removeprefix(VISION)}"
    if name.startswith(PROJECTOR):
        rest = name.removeprefix(PROJECTOR)
        for original, hf in _LAYERS.items():
            if rest.startswith(hf):
                return _PROJECTOR + original + rest.removeprefix(hf)
        return _PROJECTOR + rest
    if name == NEWLINE:
        return f"model.{NEWLINE}"
    return name.removeprefix(LANGUAGE)


def from_projector_file(name: str) -> str:
    """Return llava-hf's name of a weight in `mm_projector.bin`; any prefix of `mm_projector` is ignored."""
    _, prefix, rest = name.partition("mm_projector.")
    return from_original(_PROJECTOR + rest) if prefix else name


def from_non_lora_trainables(name: str) -> str:
    """Return llava-hf's name of a weight in `non_lora_trainables.bin`, whose names peft's wrapper prefixes."""
    name = name.removeprefix("base_model.")
    wrapped = name.startswith(("model.model.", "model.lm_head."))
    return from_original(name.removeprefix("model.") if wrapped else name)


def from_vision_folder(weights: Mapping[str, LazyWeight], prefix: str) -> dict[str, LazyWeight]:
    """Return the vision tower's weights of a folder that holds it alone, with a text tower, or with a classifier.

    Args:
        weights: All weights of the folder.
        prefix: What the names of a classifier's tower start with, such as `resnet`.
    """
    tower = {
        name.removeprefix(f"{prefix}."): weight
        for name, weight in weights.items()
        if name.startswith(f"{prefix}.")
    }
    return {
        VISION + name.removeprefix(_VISION_MODEL): weight
        for name, weight in (tower or weights).items()
        if not name.startswith(_TEXT_TOWER)
    }


def disk_name(name: str, prefixed: bool) -> str:
    """Return a weight's name in a folder; `prefixed` puts a tower's weights below `vision_model`."""
    if prefixed and name.startswith(VISION) and not name.startswith(VISION + _VISION_MODEL):
        return VISION + _VISION_MODEL + name.removeprefix(VISION)
    return name
