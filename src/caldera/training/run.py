"""A stage, an assistant and a data set in, a run folder with a trained model folder out.

```
OUT/
  stage.json        every setting
  metrics.jsonl     a line for each step
  tensorboard/      the same for TensorBoard
  checkpoints/      the newest two, for --resume
  bad.jsonl         records that were left out, if that was allowed
  model/            the result
```
"""

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from caldera.batches.picture_sources import PictureSource, Pixels
from caldera.batches.samples import Sample, SampleMaker
from caldera.batches.templates import find_template
from caldera.conversation import Conversation
from caldera.errors import InputError, UsageError
from caldera.model.folder import Assistant, load_assistant, save_assistant
from caldera.model.projector import fit_spread
from caldera.model.weights import digest_of
from caldera.progress import Progress
from caldera.skips import Skips
from caldera.storage import holding, write_json
from caldera.training.devices import Compute, Means, keep_freed_memory
from caldera.training.features import tower_features
from caldera.training.freeze import PartReport, train_only
from caldera.training.loop import Outcome, Run, identity_of, train
from caldera.training.stage import Stage

log = logging.getLogger(__name__)

_FIT_ON = 64
"""Pictures whose features decide how a fresh projector is scaled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """Conversations and where their pictures are."""

    conversations: Sequence[Conversation]
    pictures: Path
    """Folder that picture paths start from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a stage works."""

    out: Path
    """The run's folder."""

    features: Path
    """Folder of kept features; stages and runs may share it."""


def run_stage(
    stage: Stage,
    assistant: Assistant,
    data: DataSet,
    place: Place,
    *,
    means: Means,
    skips: Skips,
    resume: bool = False,
) -> tuple[Assistant, Outcome | None]:
    """Train `assistant` as `stage` says and write its model folder.

    Args:
        stage: What to train, and how.
        assistant: Where to start; its model is changed.
        data: What to learn from.
        place: Where to write.
        means: Device, precision, and who follows the work.
        skips: Takes bad records.
        resume: Go on from a checkpoint, or keep a finished model of the same settings and data.

    Returns:
        The trained assistant, and what training came to; None where the model stood there already.

    Raises:
        CalderaError: The folder is in use, data is bad, training failed, or writing did.
    """
    keep_freed_memory()
    with holding(place.out):
        samples = _samples(stage, assistant, data, means.progress, skips)
        parents = {"start": digest_of(assistant.model.state_dict())}
        identity = identity_of(stage, samples, parents)
        if resume and _finished(place.out, identity):
            log.info("%s is done already", place.out / "model")
            return load_assistant(place.out / "model"), None
        if (place.out / "model").exists() and not resume:
            raise UsageError(
                f"{place.out} holds a finished run; choose another --out, or pass --resume to go on"
            )
        write_json(place.out / "stage.json", asdict(stage))
        report_parts(train_only(assistant.model, stage.trains))
        source, samples = _pictures(stage, assistant, samples, place, means, skips)
        if skips.taken:
            skips.write(place.out / "bad.jsonl")
            log.warning(
                "%d bad records left out, listed in %s", len(skips.taken), place.out / "bad.jsonl"
            )
        if stage.fit_projector and assistant.card.stage is None:
            _fit_projector(assistant, samples, source)
        learning, held_out = _split(samples, stage)
        _place_model(assistant, means.compute)
        run = Run(
            stage=stage,
            model=assistant.model,
            samples=learning,
            held_out=held_out,
            pictures=source,
            padding_id=assistant.tokenizer.pad_token_id,
            compute=means.compute,
            folder=place.out,
            progress=means.progress,
            identity=identity,
        )
        outcome = train(run, resume=resume)
        trained = _with_card(assistant, stage, identity, outcome)
        save_assistant(place.out / "model", trained)
        return trained, outcome


def report_parts(parts: Sequence[PartReport]) -> None:
    """Log which parts learn."""
    for part in parts:
        state = "learns" if part.trainable else "frozen"
        log.info("%-10s %12s parameters  %s", part.part, f"{part.parameters:,}", state)


def _samples(
    stage: Stage, assistant: Assistant, data: DataSet, progress: Progress, skips: Skips
) -> list[Sample]:
    """Encode the data set for this stage and model."""
    maker = SampleMaker(
        tokenizer=assistant.tokenizer,
        template=find_template(stage.template),
        image_token_id=assistant.model.image_token_id,
        image_tokens=assistant.model.vision.image_tokens,
        max_length=stage.max_length,
    )
    with progress.job("reading conversations", len(data.conversations)) as tick:
        return maker.make_all(data.conversations, data.pictures, skips, tick)


def _finished(out: Path, identity: str) -> bool:
    """Tell whether the folder holds the result of this very run."""
    card = out / "model" / "caldera.json"
    return card.is_file() and json.loads(card.read_text())["parents"].get("run") == identity


def _pictures(
    stage: Stage,
    assistant: Assistant,
    samples: list[Sample],
    place: Place,
    means: Means,
    skips: Skips,
) -> tuple[PictureSource, list[Sample]]:
    """Choose where pictures come from, and leave out samples whose pictures cannot be used."""
    paths = list(dict.fromkeys(path for sample in samples for path in sample.pictures))
    if "vision" in stage.trains or not stage.keep_features or not paths:
        return Pixels(assistant.processor), samples
    bad: dict[Path, InputError] = {}
    source = tower_features(
        assistant,
        place.features,
        paths,
        means=means,
        on_fault=bad.__setitem__,
    )
    for sample in samples:
        for path in sample.pictures:
            if path in bad:
                skips.take(f"record {sample.id!r}", bad[path])
                break
    skips.check(len(samples))
    return source, [sample for sample in samples if not bad.keys() & set(sample.pictures)]


def _fit_projector(assistant: Assistant, samples: Sequence[Sample], source: PictureSource) -> None:
    """Scale the fresh projector by the features of the first pictures."""
    paths = [path for sample in samples for path in sample.pictures][:_FIT_ON]
    model = assistant.model
    with torch.no_grad():
        features = model.patch_features(source(paths)).float()
    fit_spread(model.projector, features, model.word_table)


def _split(samples: Sequence[Sample], stage: Stage) -> tuple[list[Sample], list[Sample]]:
    """Cut off the held-out samples; records of one picture stay on one side.

    Raises:
        UsageError: That leaves nothing to learn from.
    """
    order = sorted({sample.pictures or (Path(sample.id),) for sample in samples})
    random.Random(stage.seed).shuffle(order)
    held_out: list[Sample] = []
    by_pictures: dict[tuple[Path, ...], list[Sample]] = {}
    for sample in samples:
        by_pictures.setdefault(sample.pictures or (Path(sample.id),), []).append(sample)
    for pictures in order:
        if len(held_out) >= stage.validation_rows:
            break
        held_out += by_pictures.pop(pictures)
    if not by_pictures:
        raise UsageError(
            f"validation_rows={stage.validation_rows} leaves nothing of {len(samples)} records to learn from"
        )
    kept = {sample.id for group in by_pictures.values() for sample in group}
    return [sample for sample in samples if sample.id in kept], held_out


def _place_model(assistant: Assistant, compute: Compute) -> None:
    """Bring the model to the device, with the attention that is fastest there."""
    assistant.model.to(compute.device)
    assistant.model.language.set_attn_implementation(compute.attention)
    assistant.model.vision.tower.set_attn_implementation(compute.attention)


def _with_card(assistant: Assistant, stage: Stage, identity: str, outcome: Outcome) -> Assistant:
    """Return the assistant with what this stage did written on its card."""
    losses = {"validation_loss": outcome.last_validation_loss} if stage.validation_rows else {}
    card = assistant.card.model_copy(
        update={
            "template": stage.template,
            "stage": stage.name,
            "recipe": {**assistant.card.recipe, stage.name: asdict(stage)},
            "parents": {**assistant.card.parents, "run": identity},
            "metrics": losses,
        }
    )
    return replace(assistant, card=card)
