"""Weights by name: llava-hf's names on disk, the parts' own names in memory, and nothing loaded that does not fit."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caldera.errors import ModelFormatError
from caldera.model.tensor_files import (
    INDEX,
    LazyWeight,
    merge_listings,
    read_safetensors,
    weight_files,
)

_Each = TypeVar("_Each")
"""Tensors, or weights that are not read yet."""

VISION = "vision_tower."
PROJECTOR = "multi_modal_projector."
LANGUAGE = "language_model."

NEWLINE = "image_newline"
"""On disk the vector that ends each row of tiles stands beside the parts; in memory it is the projector's."""

_INNER = "vision_model."
"""Stands in vision weights' names on disk, and in memory in some releases of transformers."""


def with_disk_names(
    vision: Mapping[str, _Each],
    projector: Mapping[str, _Each],
    language: Mapping[str, _Each],
    *,
    inner: bool,
) -> dict[str, _Each]:
    """Join the parts' weights under llava-hf's names; `inner` where a tower's stand below `vision_model`."""
    below = VISION + _INNER if inner else VISION
    named = {f"{below}{name.removeprefix(_INNER)}": each for name, each in vision.items()}
    named |= {
        NEWLINE if name == "newline" else f"{PROJECTOR}{name}": each
        for name, each in projector.items()
    }
    return named | {f"{LANGUAGE}{name}": each for name, each in language.items()}


def select_part(named: Mapping[str, _Each], prefix: str) -> dict[str, _Each]:
    """Take one part's weights out of a folder's."""
    beside = {"newline": named[NEWLINE]} if prefix == PROJECTOR and NEWLINE in named else {}
    return beside | {
        name.removeprefix(prefix).removeprefix(_INNER): each
        for name, each in named.items()
        if name.startswith(prefix)
    }


def read_weights(folder: Path) -> dict[str, LazyWeight]:
    """List the weights in all safetensors of a folder; none of their numbers is read yet.

    Raises:
        ModelFolderError: A file is missing, cut, or outside the folder, or does not hold what the index says.
    """
    return merge_listings(
        {file: read_safetensors(file) for file in weight_files(folder)}, folder / INDEX
    )


def digest_folder(folder: Path) -> str:
    """Return the sha256 of a folder's weights, in hexadecimal."""
    return digest_of_files(weight_files(folder))


def digest_of_files(files: Iterable[Path]) -> str:
    """Return the sha256 of weight files, in hexadecimal."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def digest_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 of weights in memory, by name and content."""
    total = hashlib.sha256()
    for name, each in sorted(weights.items()):
        total.update(f"{name} {each.dtype} {tuple(each.shape)}".encode())
        total.update(each.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def check_known_prefixes(weights: Iterable[str], source: Path, *, tiled: bool) -> None:
    """Refuse weights that belong to no part; the end of a row of tiles does only where images are `tiled`.

    Raises:
        ModelFolderError: There are some; the message names the first.
    """
    parts = (VISION, PROJECTOR, LANGUAGE)
    known = {NEWLINE} if tiled else set()
    stray = sorted(name for name in weights if name not in known and not name.startswith(parts))
    if stray:
        raise ModelFormatError(
            f"the weights in {source} hold {stray[:3]}, which belong to no part; their names must start with "
            f"{VISION}, {PROJECTOR} or {LANGUAGE}"
        )


def check_shapes(
    module: nn.Module,
    weights: Mapping[str, LazyWeight],
    part: str,
    source: Path,
    optional: frozenset[str] = frozenset(),
) -> None:
    """Compare names and shapes of weights with what a module takes; `optional` ones may be missing.

    Raises:
        ModelFolderError: A weight is missing, not expected, or has another shape, or no floating numbers.
    """
    wanted = {
        name.removeprefix(_INNER): tuple(each.shape) for name, each in module.state_dict().items()
    }
    given = {name: tuple(each.shape) for name, each in weights.items()}
    missing = sorted(wanted.keys() - given.keys() - optional)
    surplus = sorted(given.keys() - wanted.keys())
    if missing or surplus:
        raise ModelFormatError(
            f"the weights in {source} do not fit its {part}: missing {missing[:3]}, unexpected {surplus[:3]}"
        )
    for name, shape in given.items():
        if wanted[name] != shape:
            raise ModelFormatError(
                f"the weight {name} of the {part} in {source} has shape {shape}; it needs {wanted[name]}"
            )
        if not weights[name].dtype.is_floating_point:
            raise ModelFormatError(
                f"the weight {name} of the {part} in {source} holds {weights[name].dtype}; it needs float32, float16 "
                "or bfloat16, not quantised"
            )


def tied_names(language: PreTrainedModel) -> frozenset[str]:
    """Name the weights that a language model shares with its embeddings, which need not be given."""
    tied = language.config.tie_word_embeddings
    return frozenset(language._tied_weights_keys or ()) if tied else frozenset()


def load_into(
    shell: PreTrainedModel, weights: Mapping[str, LazyWeight], dtype: torch.dtype
) -> PreTrainedModel:
    """Build the model that `shell` outlines, with checked weights and without initializing any at random.

    Weights that are stored in `dtype` stay mapped from their file; others are converted one by one.
    """
    state = {name: each.read().to(dtype) for name, each in weights.items()}
    if any(name.startswith(_INNER) for name in shell.state_dict()):
        state = {f"{_INNER}{name}": each for name, each in state.items()}
    built: PreTrainedModel = type(shell).from_pretrained(
        None, config=shell.config, state_dict=state, dtype=dtype
    )
    return built.eval()


def stored_dtype(weights: Mapping[str, LazyWeight]) -> torch.dtype:
    """Return the kind of numbers that most of the weights' bytes are."""
    kinds: Counter[torch.dtype] = Counter()
    for each in weights.values():
        kinds[each.dtype] += each.nbytes
    return kinds.most_common(1)[0][0] if kinds else torch.float32
