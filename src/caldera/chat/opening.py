"""A model folder in, a session ready to talk out."""

from pathlib import Path

from caldera.batches.picture_sources import Pixels
from caldera.chat.session import Session
from caldera.inference.generate import Generator
from caldera.inference.sampling import Sampling
from caldera.model.folder import load_assistant
from caldera.training.devices import Compute


def open_session(folder: Path, sampling: Sampling, compute: Compute) -> Session:
    """Load a model folder and open a session with it.

    Raises:
        ModelFolderError: The folder cannot be loaded.
    """
    assistant = load_assistant(folder, compute.dtype)
    assistant.model.to(compute.device)
    return Session(Generator(assistant, Pixels(assistant.processor)), sampling)
