"""Files on a user's disk in, one stage or one evaluation done: what the commands `train` and `evaluate` call."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from caldera.conversation import read_conversations
from caldera.devices import Runtime
from caldera.errors import UnknownNameError, UsageError
from caldera.files.skipped import SkippedItems
from caldera.formats.assemble import assemble
from caldera.formats.lora_adapter import merge_adapter
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.images.processor import ASPECTS, ImageAspect
from caldera.model.assistant import LlavaBundle
from caldera.model.vision_tower import FeatureSelect
from caldera.recipes.towers import resolve_tower
from caldera.training.job import TrainingData, TrainingJob
from caldera.training.loop import TrainingResult
from caldera.training.stage import Stage

_Name = TypeVar("_Name", bound=str)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFiles:
    """Where a stage reads and writes."""

    data: Path
    """Conversations, `.json` or `.jsonl`."""

    images: Path | None
    """Folder that image paths start from; the data file's own if None."""

    out: Path
    ignore: frozenset[str] = frozenset()
    """Surplus fields of records to pass over."""


def parse_aspect(name: str) -> ImageAspect:
    """Return the way of showing images called exactly `name`.

    Raises:
        UnknownNameError: There is none.
    """
    return _choice("aspect", name, ASPECTS)


def parse_select(name: str) -> FeatureSelect:
    """Return the choice among a tower's positions called exactly `name`.

    Raises:
        UnknownNameError: There is none.
    """
    return _choice("select", name, get_args(FeatureSelect))


def _choice(what: str, name: str, known: Sequence[_Name]) -> _Name:
    """Return the one of `known` that is `name`.

    Raises:
        UnknownNameError: There is none.
    """
    for each in known:
        if each == name:
            return each
    raise UnknownNameError(what, name, known)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelParts:
    """What a new assistant is joined from, by the names a user gives."""

    vision: str
    language: str
    projector: str
    aspect: ImageAspect
    select_layer: int = -2
    select: FeatureSelect = "patch"


def build_model(parts: ModelParts, stage: Stage, work: Path) -> LlavaBundle:
    """Join two towers with a fresh projector, as a stage needs them; GGUF files are unpacked in `work`.

    Raises:
        CalderaError: A tower or the projector is not there, or cannot be loaded.
    """
    return assemble(
        resolve_tower(parts.vision, work),
        resolve_tower(parts.language, work),
        projector=parts.projector,
        aspect=parts.aspect,
        select_layer=parts.select_layer,
        select=parts.select,
        template=stage.template,
        seed=stage.seed,
    )


def train_stage(
    stage: Stage,
    start: LlavaBundle,
    files: TrainingFiles,
    *,
    means: Runtime,
    max_bad: float,
    resume: bool,
) -> TrainingResult | None:
    """Run a stage on a data file; None where its result stood there already.

    Raises:
        CalderaError: The data is bad, the folder is in use, or training failed.
    """
    data = TrainingData(
        conversations=read_conversations(files.data, files.ignore),
        images=files.images or files.data.parent,
    )
    job = TrainingJob(
        stage=stage,
        assistant=start,
        data=data,
        out=files.out,
        features=files.out.parent / "features",
        means=means,
        skips=SkippedItems(max_bad),
        resume=resume,
    )
    _, outcome = job.run()
    return outcome


def merge_adapter_folder(adapter: Path, model: Path, out: Path) -> None:
    """Fold an adapter folder into the model folder it stands on, and write the merged model folder.

    Raises:
        UsageError: Something stands at `out` already.
        ModelFolderError: One of the two cannot be read, or the adapter is for another model.
        OutputError: The result cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out} is there already; choose another --out")
    save_model_folder(out, merge_adapter(adapter, load_model_folder(model)))
