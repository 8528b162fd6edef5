"""Weights by name: llava-hf's names on disk, the parts' own names in memory, and nothing loaded that does not fit."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from caldera.errors import ModelFolderError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

VISION = "vision_tower."
PROJECTOR = "multi_modal_projector."
LANGUAGE = "language_model."

NEWLINE = "image_newline"
"""On disk the vector that ends each row of tiles stands beside the parts; in memory it is the projector's."""

_INNER = "vision_model."
"""Stands in vision weights' names on disk, and in memory in some releases of transformers."""


def to_disk(
    vision: Mapping[str, Tensor],
    projector: Mapping[str, Tensor],
    language: Mapping[str, Tensor],
    *,
    inner: bool,
) -> dict[str, Tensor]:
    """Join the parts' weights under llava-hf's names; `inner` where a tower's stand below `vision_model`."""
    below = VISION + _INNER if inner else VISION
    named = {f"{below}{name.removeprefix(_INNER)}": each for name, each in vision.items()}
    named |= {
        NEWLINE if name == "newline" else f"{PROJECTOR}{name}": each
        for name, each in projector.items()
    }
    return named | {f"{LANGUAGE}{name}": each for name, each in language.items()}


def from_disk(named: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take one part's weights out of a folder's."""
    beside = {"newline": named[NEWLINE]} if prefix == PROJECTOR and NEWLINE in named else {}
    return beside | {
        name.removeprefix(prefix).removeprefix(_INNER): each
        for name, each in named.items()
        if name.startswith(prefix)
    }


def write_weights(folder: Path, weights: Mapping[str, Tensor], max_shard: str = "5GB") -> None:
    """Write safetensors, in several files and an index where one would be too large."""
    plan = split_torch_state_dict_into_shards(dict(weights), max_shard_size=max_shard)
    for file, names in plan.filename_to_tensors.items():
        shard = {name: weights[name].contiguous() for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=1))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all safetensors of a folder.

    Raises:
        ModelFolderError: A file is missing, cut, or named outside the folder.
    """
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, "pt") as opened:
                weights |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise ModelFolderError(f"{file} is missing; copy the model folder again") from None
        except (SafetensorError, OSError) as error:
            raise ModelFolderError(f"{file} is broken or cut ({error}); copy it again") from None
    return weights


def weight_files(folder: Path) -> list[Path]:
    """List the weight files of a folder.

    Raises:
        ModelFolderError: There are none, or the index names a file outside the folder.
    """
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise ModelFolderError(f"{folder} has no {WEIGHTS}; check the path")
        return [folder / WEIGHTS]
    try:
        names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelFolderError(f"{folder / INDEX} is not an index of weights") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelFolderError(f"{folder / INDEX} names {name!r}, outside the folder; refused")
    return [folder / name for name in sorted(names)]


def digest(folder: Path) -> str:
    """Return the sha256 of a folder's weights, in hexadecimal."""
    total = hashlib.sha256()
    for file in weight_files(folder):
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 of weights in memory, by name and content."""
    total = hashlib.sha256()
    for name, each in sorted(weights.items()):
        total.update(f"{name} {each.dtype} {tuple(each.shape)}".encode())
        total.update(each.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def check_owners(weights: Mapping[str, Tensor], source: Path) -> None:
    """Refuse weights that belong to no part.

    Raises:
        ModelFolderError: There are some; the message names the first.
    """
    parts = (VISION, PROJECTOR, LANGUAGE)
    stray = sorted(name for name in weights if name != NEWLINE and not name.startswith(parts))
    if stray:
        raise ModelFolderError(
            f"the weights in {source} hold {stray[:3]}, which belong to no part; their names must start with "
            f"{VISION}, {PROJECTOR} or {LANGUAGE}"
        )


def check_fit(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    part: str,
    source: Path,
    optional: frozenset[str] = frozenset(),
) -> None:
    """Compare names and shapes of weights with what a module takes; `optional` ones may be missing.

    Raises:
        ModelFolderError: A weight is missing, not expected, or has another shape.
    """
    wanted = {
        name.removeprefix(_INNER): tuple(each.shape) for name, each in module.state_dict().items()
    }
    given = {name: tuple(each.shape) for name, each in weights.items()}
    missing = sorted(wanted.keys() - given.keys() - optional)
    surplus = sorted(given.keys() - wanted.keys())
    if missing or surplus:
        raise ModelFolderError(
            f"the weights in {source} do not fit its {part}: missing {missing[:3]}, unexpected {surplus[:3]}"
        )
    for name, shape in given.items():
        if wanted[name] != shape:
            raise ModelFolderError(
                f"the weight {name} of the {part} in {source} has shape {shape}; it needs {wanted[name]}"
            )


def tied_names(language: PreTrainedModel) -> frozenset[str]:
    """Name the weights that a language model shares with its embeddings, which need not be given."""
    tied = language.config.tie_word_embeddings
    return frozenset(language._tied_weights_keys or ()) if tied else frozenset()


def fill(
    shell: PreTrainedModel, weights: Mapping[str, Tensor], dtype: torch.dtype
) -> PreTrainedModel:
    """Build the model that `shell` outlines, with checked weights and without initialising any at random."""
    state = dict(weights)
    if any(name.startswith(_INNER) for name in shell.state_dict()):
        state = {f"{_INNER}{name}": each for name, each in state.items()}
    built: PreTrainedModel = type(shell).from_pretrained(
        None, config=shell.config, state_dict=state, dtype=dtype
    )
    return built.eval()
