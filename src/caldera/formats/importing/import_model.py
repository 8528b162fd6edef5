"""Import of a model from another layout, or from two towers, into a caldera model folder.

The layout is detected by content, never by name. Weights are checked against the config before anything is written, and
are copied from file to file one at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from caldera.errors import ModelFormatError, OutputError, UsageError
from caldera.files.atomic import atomic_folder, free_bytes
from caldera.formats import weight_names
from caldera.formats.image_processor import describe_pixels
from caldera.formats.importing.readers import LAYOUT_READERS
from caldera.formats.importing.request import DTYPES, ImportRequest, detect_layout
from caldera.formats.model_folder import (
    build_on_meta,
    check_weights,
    fill_model_folder,
    load_model_folder,
    uses_vision_model_prefix,
)
from caldera.formats.safetensors_files import LazyWeight
from caldera.formats.transformers_config import unsupported_by_transformers
from caldera.formats.weight_merging import cast
from caldera.formats.weight_names import LANGUAGE, digest_of_files, stored_dtype, tied_names
from caldera.model.bundle import LlavaBundle
from caldera.model.llava import Llava, check_logits_match
from caldera.progress import Progress


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A model to import, checked, before the numbers of its weights are read."""

    layout: str
    assistant: LlavaBundle
    """Its model is on the meta device."""

    weights: Mapping[str, LazyWeight]
    """Weights by their names in a model folder."""

    files: Mapping[str, tuple[Path, ...]]
    """Weight files by role."""

    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelImportReport:
    """Layout, size and notes of an imported model."""

    layout: str
    tensors: int
    nbytes: int
    dtype: torch.dtype
    images: str
    """How an image becomes the pixels of the vision tower."""

    notes: tuple[str, ...]


def import_model(request: ImportRequest, out: Path, progress: Progress) -> ModelImportReport:
    """Write a caldera model folder from a model of another layout, or from two towers.

    Args:
        request: The model and its settings.
        out: The model folder to write.
        progress: Reports the progress.

    Raises:
        UsageError: An option is missing or does not fit the source.
        ModelFormatError: The source is broken, does not fit its config, or needs what caldera does not support.
        OutputError: The folder could not be written; nothing of it is left.
    """
    check_new_folder(out)
    source = open_source(request)
    weights = source.weights
    if request.dtype != "auto":
        weights = {name: cast(weight, DTYPES[request.dtype]) for name, weight in weights.items()}
    nbytes = sum(weight.nbytes for weight in weights.values())
    _check_space(out, nbytes)
    digests = _digests(source.files, progress)
    provenance = {"source_digests": digests, "sources": request.sources}
    metadata = source.assistant.card.model_copy(update=provenance)
    assistant = replace(source.assistant, card=metadata)
    with atomic_folder(out) as fresh, progress.task("write", len(weights)) as tick:
        fill_model_folder(fresh, assistant, weights, lambda file: tick(detail=file))
        written = load_model_folder(fresh, stored_dtype(weights))
        if request.source is None:
            check_logits_match(written.model.language)
    notes = (*source.notes, *_notes(assistant))
    images = describe_pixels(assistant.processor)
    return ModelImportReport(
        source.layout, len(weights), nbytes, stored_dtype(weights), images, notes
    )


def check_new_folder(out: Path) -> None:
    """Raise UsageError if the folder to write exists."""
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out or remove it first")


def open_source(request: ImportRequest) -> OpenSource:
    """Open a model of another layout, or two towers, without reading the numbers of the weights.

    Raises:
        UsageError: An option is missing or does not fit the source.
        ModelFormatError: The source is broken, does not fit its config, or needs what caldera does not support.
    """
    layout = "joined" if request.source is None else detect_layout(request.source, request.layout)
    source = LAYOUT_READERS[layout](request)
    assistant = build_on_meta(
        source.vision, source.language, source.tokenizer, source.processor, source.metadata
    )
    origin = request.source or request.language
    assert origin is not None
    weights = check_and_rename(assistant.model, source.weights, origin)
    return OpenSource(layout, assistant, weights, source.files, source.notes)


def check_and_rename(
    model: Llava, weights: Mapping[str, LazyWeight], source: Path
) -> dict[str, LazyWeight]:
    """Return weights under their names on disk, in order, after checking that they fit.

    A head that the config ties to the embeddings is dropped if it equals them, and rejected if not.
    """
    prefixed = uses_vision_model_prefix(model.vision.tower)
    renamed = {weight_names.disk_name(name, prefixed): weight for name, weight in weights.items()}
    check_weights(model, renamed, source)
    table = model.language.get_input_embeddings().weight
    table_name = next(name for name, weight in model.language.named_parameters() if weight is table)
    for name in (LANGUAGE + tied_name for tied_name in tied_names(model.language)):
        tied = renamed.pop(name, None)
        if tied is not None and not torch.equal(tied.read(), renamed[LANGUAGE + table_name].read()):
            raise ModelFormatError(
                f"the weight {name} in {source} is tied to the embeddings by the config, but differs from them"
            )
    return renamed


def _check_space(out: Path, nbytes: int) -> None:
    """Raise OutputError if the disk has too little space for the folder."""
    free = free_bytes(out)
    if free < nbytes:
        raise OutputError(
            f"cannot write {out}: it takes {nbytes / 1e9:.1f} GB, free are {free / 1e9:.1f}; free space or choose "
            "another place"
        )


def _digests(files: Mapping[str, tuple[Path, ...]], progress: Progress) -> dict[str, str]:
    """Return the sha256 of each group of source files."""
    groups = {name: paths for name, paths in files.items() if paths}
    digests = {}
    with progress.task("digests", len(groups)) as tick:
        for name, paths in groups.items():
            digests[name] = digest_of_files(paths)
            tick(detail=name)
    return digests


def _notes(assistant: LlavaBundle) -> tuple[str, ...]:
    """Return a note if transformers cannot load the folder."""
    unsupported = unsupported_by_transformers(assistant.model)
    if unsupported is None:
        return ()
    return (
        f"transformers cannot express {unsupported}: only caldera loads the folder, transformers rejects it",
    )
