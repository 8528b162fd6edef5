"""Checkpoints of a run, written atomically and verified when they are read.

A checkpoint holds the trainable weights, AdamW's moments and the step. Frozen weights are those that the run started
with. It is safetensors and JSON; nothing is unpickled.
"""

import hashlib
import json
import logging
import re
import shutil
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from caldera.errors import ModelFormatError
from caldera.files.atomic import atomic_folder, translate_os_errors, write_json

log = logging.getLogger(__name__)

_STATE, _WEIGHTS, _MANIFEST = "state.json", "tensors.safetensors", "manifest.json"
_NAME = re.compile(r"step-\d{8,}")
_KEEP_LAST = 2
"""Checkpoints that remain; older ones are removed once a new one is complete."""

_FORMER_NEWLINE, _NEWLINE = "projector.newline", "projector.image_newline"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State of a run after `step` steps."""

    step: int
    fingerprint: str
    """Digest of the run's fingerprint; a run resumes only from its own checkpoints."""

    tensors: dict[str, Tensor]
    extra: dict[str, Any]
    """Further numbers that the run needs, such as losses."""


def collect_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the trainable weights and the optimizer's moments, by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            tensors[f"weights.{name}"] = parameter.detach()
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
    return tensors


@torch.no_grad()
def restore_state(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Restore what `collect_state` returned.

    Raises:
        ModelFormatError: The weights are not those that this model and stage train.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    trainable = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    expected = {f"weights.{names[parameter]}" for parameter in trainable}
    if expected != {name for name in tensors if name.startswith("weights.")}:
        raise ModelFormatError("the checkpoint holds other weights than this stage trains")
    for parameter in trainable:
        name = names[parameter]
        parameter.copy_(tensors[f"weights.{name}"])
        state = {
            key.split(".", 2)[1]: value.to(parameter.device, copy=True)
            for key, value in tensors.items()
            if key.startswith("optimizer.") and key.split(".", 2)[2] == name
        }
        if state:
            optimizer.state[parameter] = state


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder/step-N`, then remove all but the latest few; return its path.

    Raises:
        OutputError: It could not be written; earlier checkpoints remain.
    """
    path = folder / _name(checkpoint.step)
    with atomic_folder(path) as partial:
        tensors = {name: tensor.contiguous().cpu() for name, tensor in checkpoint.tensors.items()}
        save_file(tensors, partial / _WEIGHTS)
        state = {
            "step": checkpoint.step,
            "identity": checkpoint.fingerprint,
            "extra": checkpoint.extra,
        }
        write_json(partial / _STATE, state)
        digests = {name: _digest(partial / name) for name in (_WEIGHTS, _STATE)}
        write_json(partial / _MANIFEST, digests)
    with translate_os_errors(folder):
        for old in _checkpoints(folder)[_KEEP_LAST:]:
            shutil.rmtree(old)
    return path


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Load the latest valid checkpoint in `folder`; skip corrupt ones with a warning."""
    for path in _checkpoints(folder):
        try:
            manifest = json.loads((path / _MANIFEST).read_text())
            if any(_digest(path / name) != manifest[name] for name in (_WEIGHTS, _STATE)):
                raise ValueError("its content differs from what was written")
            state = json.loads((path / _STATE).read_text())
            tensors = load_file(path / _WEIGHTS)
            tensors = {_current_name(name): tensor for name, tensor in tensors.items()}
            return Checkpoint(state["step"], state["identity"], tensors, state["extra"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("skipping the corrupt checkpoint %s: %s", path, error)
    return None


def _current_name(name: str) -> str:
    """Return the name of a tensor, given one of a checkpoint that may be of an earlier version."""
    if name.startswith("optimiser."):
        name = name.replace("optimiser.", "optimizer.", 1)
    return (
        f"{name.removesuffix(_FORMER_NEWLINE)}{_NEWLINE}"
        if name.endswith(f".{_FORMER_NEWLINE}")
        else name
    )


def set_aside_corrupt(folder: Path, step: int) -> None:
    """Rename the checkpoints after `step`, which are corrupt: they would count as the latest. None is removed.

    Raises:
        OutputError: One cannot be renamed.
    """
    with translate_os_errors(folder):
        for path in _checkpoints(folder):
            if path.name > _name(step):
                names = (f"corrupt-{number}-{path.name}" for number in count(1))
                target = next(folder / name for name in names if not (folder / name).exists())
                path.replace(target)
                log.warning("kept the corrupt checkpoint %s as %s", path, target.name)


def _name(step: int) -> str:
    """Return the name of the checkpoint of a step; names sort as steps do."""
    return f"step-{step:08d}"


def _checkpoints(folder: Path) -> list[Path]:
    """List checkpoints, latest first."""
    folders = (
        path for path in folder.glob("step-*") if path.is_dir() and _NAME.fullmatch(path.name)
    )
    return sorted(folders, reverse=True)


def _digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
