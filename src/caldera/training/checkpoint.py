"""The state of a run in, a folder out that is whole or not there; and back, from the newest one that is sound.

A checkpoint holds what moves: the trained weights, AdamW's moments, and the place in the data. Frozen weights are those
of the run's start. It is safetensors and JSON; nothing is unpickled.
"""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from caldera.errors import ModelFormatError, UsageError
from caldera.files.atomic import atomic_folder, translate_os_errors, write_json

log = logging.getLogger(__name__)

_STATE, _WEIGHTS, _MANIFEST = "state.json", "tensors.safetensors", "manifest.json"
_KEEP_LAST = 2
"""Checkpoints that stay; older ones are removed once a new one is whole."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run's state after `step` steps."""

    step: int
    identity: str
    """Digest of data, settings and starting weights; a run goes on only from a checkpoint of its own."""

    tensors: dict[str, Tensor]
    extra: dict[str, Any]
    """Numbers that the run wants back, such as losses."""


def collect_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Collect the weights that move and the optimizer's moments, by name."""
    names = {each: name for name, each in model.named_parameters()}
    tensors = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            tensors[f"weights.{name}"] = parameter.detach()
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimiser.{key}.{name}"] = value
    return tensors


@torch.no_grad()
def restore_state(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Put what `gather` collected back.

    Raises:
        ModelFolderError: It is not what this model and stage train.
    """
    names = {each: name for name, each in model.named_parameters()}
    moving = [each for group in optimizer.param_groups for each in group["params"]]
    if {f"weights.{names[each]}" for each in moving} != {
        name for name in tensors if name.startswith("weights.")
    }:
        raise ModelFormatError("the checkpoint holds other weights than this stage trains")
    for parameter in moving:
        name = names[parameter]
        parameter.copy_(tensors[f"weights.{name}"])
        state = {
            key.split(".", 2)[1]: value.to(parameter.device, copy=True)
            for key, value in tensors.items()
            if key.startswith("optimiser.") and key.split(".", 2)[2] == name
        }
        if state:
            optimizer.state[parameter] = state


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder/step-N`, then remove all but the newest few.

    Raises:
        OutputError: It could not be written; earlier checkpoints stay.
    """
    with atomic_folder(folder / _name(checkpoint.step)) as fresh:
        tensors = {name: each.contiguous().cpu() for name, each in checkpoint.tensors.items()}
        save_file(tensors, fresh / _WEIGHTS)
        state = {
            "step": checkpoint.step,
            "identity": checkpoint.identity,
            "extra": checkpoint.extra,
        }
        write_json(fresh / _STATE, state)
        write_json(fresh / _MANIFEST, {name: _digest(fresh / name) for name in (_WEIGHTS, _STATE)})
    with translate_os_errors(folder):
        for old in _checkpoints(folder)[_KEEP_LAST:]:
            shutil.rmtree(old)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Load the newest sound checkpoint in `folder`; broken ones are named in a warning and passed over."""
    for path in _checkpoints(folder):
        try:
            manifest = json.loads((path / _MANIFEST).read_text())
            if any(_digest(path / name) != manifest[name] for name in (_WEIGHTS, _STATE)):
                raise ValueError("its content is not what was written")
            state = json.loads((path / _STATE).read_text())
            tensors = load_file(path / _WEIGHTS)
            return Checkpoint(state["step"], state["identity"], tensors, state["extra"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            log.warning("passing over the broken checkpoint %s: %s", path, error)
    return None


def matching_checkpoint(folder: Path, identity: str) -> Checkpoint | None:
    """Load the newest sound checkpoint in `folder`, if there is one.

    Raises:
        UsageError: It is not of the run called `identity`.
    """
    found = latest_checkpoint(folder)
    if found and found.identity != identity:
        raise UsageError(
            f"the checkpoint in {folder} was made with other data, settings or weights; choose another --out, or "
            "remove that folder"
        )
    return found


def remove_after(folder: Path, step: int) -> None:
    """Remove the checkpoints after `step`, which are broken, or a run would go on from them; 0 removes all.

    Left there, they would count as the newest, and those that the run writes next would be removed in their place.

    Raises:
        OutputError: One cannot be removed.
    """
    with translate_os_errors(folder):
        for path in _checkpoints(folder):
            if path.name > _name(step):
                shutil.rmtree(path)


def _name(step: int) -> str:
    """Return what the checkpoint of a step is called; names sort as steps do."""
    return f"step-{step:08d}"


def _checkpoints(folder: Path) -> list[Path]:
    """List checkpoints, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
