"""A model from elsewhere, or two towers, in; a caldera model folder out, whole or not at all.

What a folder is, its content says, never its name. Weights are checked against the config before anything is written,
and go from file to file one at a time.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from caldera.errors import ModelFormatError, OutputError, UsageError
from caldera.files.atomic import atomic_folder, free_bytes
from caldera.formats import weight_names
from caldera.formats.importing.readers import LAYOUT_READERS
from caldera.formats.importing.request import DTYPES, ImportRequest, detect_layout
from caldera.formats.model_folder import (
    build_on_meta,
    check_weights,
    fill_model_folder,
    load_model_folder,
    uses_vision_model_prefix,
)
from caldera.formats.safetensors_files import LazyWeight, check_inside_folder
from caldera.formats.tokenizer import SENTENCEPIECE_FILE
from caldera.formats.transformers_config import unsupported_by_transformers
from caldera.formats.weight_merging import cast
from caldera.formats.weight_names import LANGUAGE, digest_of_files, stored_dtype, tied_names
from caldera.model.assistant import LlavaBundle
from caldera.model.llava import Llava, check_logits_match
from caldera.progress import Progress


@dataclass(frozen=True, slots=True)
class ModelImportReport:
    """What came in."""

    kind: str
    tensors: int
    nbytes: int
    dtype: torch.dtype
    notes: tuple[str, ...]


def import_model(what: ImportRequest, out: Path, progress: Progress) -> ModelImportReport:
    """Write a caldera model folder from a model of another layout, or from two towers.

    Args:
        what: The model.
        out: Where the folder will stand.
        progress: Follows the work.

    Raises:
        UsageError: An option is missing or does not fit what the source is.
        ModelFolderError: The source is broken, does not fit its config, or means what caldera does not do.
        OutputError: It could not be written; nothing of it is there.
    """
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out or remove it first")
    kind = "joined" if what.source is None else detect_layout(what.source, what.kind)
    incoming = LAYOUT_READERS[kind](what)
    assistant = build_on_meta(
        incoming.vision, incoming.language, incoming.tokenizer, incoming.processor, incoming.card
    )
    origin = what.source or what.language
    assert origin is not None
    weights = _check_and_rename(assistant.model, incoming.weights, origin)
    if what.dtype != "auto":
        weights = {name: cast(each, DTYPES[what.dtype]) for name, each in weights.items()}
    nbytes = sum(each.nbytes for each in weights.values())
    _check_space(out, nbytes)
    parents = _digests(incoming.files, progress)
    assistant = replace(assistant, card=assistant.card.model_copy(update={"parents": parents}))
    with atomic_folder(out) as fresh, progress.task("write", len(weights)) as tick:
        fill_model_folder(fresh, assistant, weights, lambda file: tick(detail=file))
        for folder in (what.source, what.base, what.language):
            if (
                folder
                and (folder / SENTENCEPIECE_FILE).is_file()
                and not (fresh / SENTENCEPIECE_FILE).exists()
            ):
                shutil.copyfile(
                    check_inside_folder(folder / SENTENCEPIECE_FILE), fresh / SENTENCEPIECE_FILE
                )
        written = load_model_folder(fresh, stored_dtype(weights))
        if kind == "joined":
            check_logits_match(written.model.language)
    notes = (*incoming.notes, *_notes(assistant))
    return ModelImportReport(kind, len(weights), nbytes, stored_dtype(weights), notes)


def _check_and_rename(
    model: Llava, weights: Mapping[str, LazyWeight], source: Path
) -> dict[str, LazyWeight]:
    """Return weights under their names on disk, in order, if they fit.

    Raises:
        ModelFolderError: They do not fit, or a head that is tied to the embeddings differs from them.
    """
    below = uses_vision_model_prefix(model.vision.tower)
    found = {weight_names.disk_name(name, below): each for name, each in weights.items()}
    check_weights(model, found, source)
    table = model.language.get_input_embeddings().weight
    name_of = next(name for name, each in model.language.named_parameters() if each is table)
    for name in (LANGUAGE + each for each in tied_names(model.language)):
        tied = found.pop(name, None)
        if tied is not None and not torch.equal(tied.read(), found[LANGUAGE + name_of].read()):
            raise ModelFormatError(
                f"the weight {name} in {source} is tied to the embeddings by the config, but differs from them"
            )
    return found


def _check_space(out: Path, nbytes: int) -> None:
    """Check that a folder will fit.

    Raises:
        OutputError: It will not.
    """
    free = free_bytes(out)
    if free < nbytes:
        raise OutputError(
            f"cannot write {out}: it takes {nbytes / 1e9:.1f} GB, free are {free / 1e9:.1f}; free space or choose "
            "another place"
        )


def _digests(files: Mapping[str, tuple[Path, ...]], progress: Progress) -> dict[str, str]:
    """Return the sha256 of what the model was made from."""
    given = {name: each for name, each in files.items() if each}
    digests = {}
    with progress.task("digests", len(given)) as tick:
        for name, each in given.items():
            digests[name] = digest_of_files(each)
            tick(detail=name)
    return digests


def _notes(assistant: LlavaBundle) -> tuple[str, ...]:
    """Say what transformers will make of the folder, where that is not the same."""
    strange = unsupported_by_transformers(assistant.model)
    if strange is None:
        return ()
    return (
        f"transformers cannot express {strange}: the folder is caldera's alone, and transformers refuses it",
    )
