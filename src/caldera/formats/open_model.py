"""Models from any path that means one: a model folder of caldera or llava-hf, or the folder of a run."""

import logging
from pathlib import Path

import torch

from caldera.formats.importing.import_model import check_and_rename
from caldera.formats.importing.llava_hf import read_llava_hf
from caldera.formats.metadata import METADATA_FILE
from caldera.formats.model_folder import build_on_meta, open_lazily, with_weights
from caldera.formats.model_paths import find_model
from caldera.formats.safetensors_files import LazyWeight, weight_files
from caldera.model.bundle import LlavaBundle

_log = logging.getLogger(__name__)


def load_model(path: str | Path, dtype: torch.dtype = torch.float32) -> LlavaBundle:
    """Load a model; no code of its folder is run.

    Args:
        path: A model folder of caldera or llava-hf, or the folder of a finished run.
        dtype: Dtype of the weights in memory; weights that are stored in it stay mapped from their files.

    Raises:
        ModelFormatError: The path is something else, and the message states what to do; or a file is missing or broken,
            or weights and config do not fit exactly.
    """
    return with_weights(*open_model(path), dtype)


def open_model(path: str | Path) -> tuple[LlavaBundle, dict[str, LazyWeight]]:
    """Open a model without reading the numbers of its weights.

    Returns:
        The assistant on the meta device, and its weights by their names on disk.

    Raises:
        ModelFormatError: As for `load_model`.
    """
    folder = find_model(path)
    if (folder / METADATA_FILE).is_file():
        return open_lazily(folder)
    weight_files(folder)  # called for its error about folders without safetensors
    source = read_llava_hf(folder, None, None)
    for note in source.notes:
        _log.info("%s: %s", folder, note)
    assistant = build_on_meta(
        source.vision, source.language, source.tokenizer, source.processor, source.metadata
    )
    return assistant, check_and_rename(assistant.model, source.weights, folder)
