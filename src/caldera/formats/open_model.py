"""Models from any path that means one: a model folder of caldera or llava-hf, a run's folder, or a name on the Hub."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from caldera.files.hub import hub_source
from caldera.formats.config import read_config
from caldera.formats.hub_models import released_template, shown_name
from caldera.formats.importing.import_model import open_source
from caldera.formats.importing.request import ImportRequest
from caldera.formats.metadata import METADATA_FILE
from caldera.formats.model_folder import open_lazily, with_weights
from caldera.formats.model_paths import find_model
from caldera.formats.original.config import is_original
from caldera.formats.safetensors_files import LazyWeight, weight_files
from caldera.model.bundle import LlavaBundle

_log = logging.getLogger(__name__)


def load_model(path: str | Path, dtype: torch.dtype = torch.float32) -> LlavaBundle:
    """Load a model; no code of its folder is run.

    Args:
        path: A model folder of caldera or llava-hf, the folder of a finished run, or a text ORG/NAME[@REVISION], which
            is downloaded from the Hugging Face Hub if it is not in its cache.
        dtype: Dtype of the weights in memory; weights that are stored in it stay mapped from their files.

    Raises:
        ModelFormatError: The path is something else, and the message states what to do; or a file is missing or broken,
            or weights and config do not fit exactly.
        HubError: The repository or a file of it cannot be used.
        OutputError: The disk has too little space for the download.
    """
    return with_weights(*open_model(path), dtype)


def open_model(path: str | Path) -> tuple[LlavaBundle, dict[str, LazyWeight]]:
    """Open a model without reading the numbers of its weights.

    Returns:
        The assistant on the meta device, and its weights by their names on disk.

    Raises:
        CalderaError: As for `load_model`.
    """
    folder = find_model(path)
    if (folder / METADATA_FILE).is_file():
        assistant, weights = open_lazily(folder)
    else:
        assistant, weights = _open_foreign(folder)
    if source := hub_source(folder):
        sources = {**assistant.card.sources, "source": source}
        card = assistant.card.model_copy(update={"sources": sources})
        assistant = replace(assistant, card=card)
    return assistant, weights


def _open_foreign(folder: Path) -> tuple[LlavaBundle, dict[str, LazyWeight]]:
    """Open a llava-hf folder, or a known release in the layout of LLaVA's own code."""
    if not is_original(read_config(folder)):
        weight_files(folder)  # called for its error about folders without safetensors
    source = open_source(ImportRequest(source=folder, template=released_template(folder)))
    for note in source.notes:
        _log.info("%s: %s", shown_name(folder), note)
    return source.assistant, dict(source.weights)
