"""Weight names in every layout."""

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
