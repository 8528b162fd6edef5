"""A model folder in, a session ready to talk out."""

from dataclasses import replace
from pathlib import Path

import torch

from caldera.batches.picture_sources import Pixels
from caldera.chat.session import Session
from caldera.inference.generate import Generator
from caldera.inference.sampling import Sampling
from caldera.model.card import read_card
from caldera.model.folder import load_assistant
from caldera.model.weights import read_weights, stored_dtype
from caldera.training.devices import Compute


def open_session(folder: Path, sampling: Sampling, compute: Compute) -> Session:
    """Load a model folder and open a session with it.

    Raises:
        ModelFolderError: The folder cannot be loaded.
    """
    assistant = load_assistant(folder, compute.dtype)
    assistant.model.to(compute.device)
    return Session(Generator(assistant, Pixels(assistant.processor)), sampling)


def as_stored(folder: Path, compute: Compute) -> Compute:
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
