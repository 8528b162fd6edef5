"""A model folder in, an engine or a session that is ready to answer out."""

from dataclasses import replace
from pathlib import Path

import torch

from caldera.chat.session import Session
from caldera.inference.engine import Engine, EngineConfig
from caldera.inference.sampling import SamplingParams
from caldera.model.card import read_card
from caldera.model.folder import load_model_folder
from caldera.model.weights import read_weights, stored_dtype
from caldera.training.devices import DeviceConfig


def load_engine(
    folder: Path, compute: DeviceConfig, settings: EngineConfig | None = None
) -> Engine:
    """Load a model folder and start an engine on it.

    Raises:
        ModelFolderError: The folder cannot be loaded.
        UsageError: int8 is asked for, but this model or device cannot.
    """
    assistant = load_model_folder(folder, compute.dtype)
    assistant.model.to(compute.device)
    return Engine(assistant, settings)


def load_session(
    folder: Path,
    sampling: SamplingParams,
    compute: DeviceConfig,
    settings: EngineConfig | None = None,
) -> Session:
    """Load a model folder and open a session with it.

    Raises:
        ModelFolderError: The folder cannot be loaded.
        UsageError: int8 is asked for, but this model or device cannot.
    """
    return Session(load_engine(folder, compute, settings), sampling)


def with_stored_dtype(folder: Path, compute: DeviceConfig) -> DeviceConfig:
    """Return fp32 for a folder that is stored so, and the fast precision for one that is stored in fp16 or bf16.

    Args:
        folder: A model folder.
        compute: A device and the precision that is fastest on it.

    Raises:
        ModelFolderError: It is no model folder, or its weights cannot be listed.
    """
    if not folder.is_dir():
        return compute  # loading says what is wrong
    read_card(folder)  # so does this of what is no model folder, before its weights are missed
    stored_so = stored_dtype(read_weights(folder)) == torch.float32
    return replace(compute, dtype=torch.float32) if stored_so else compute
