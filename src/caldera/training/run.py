"""A stage, an assistant and a data set in, a run folder with a trained model folder out.

```
OUT/
  stage.json        every setting
  metrics.jsonl     a line for each step
  tensorboard/      the same for TensorBoard
  checkpoints/      the newest two, for --resume
  bad.jsonl         records that were left out, if that was allowed
  adapter/          with low-rank factors: these in peft's format, and what else trained
  model/            the result, factors folded in
```
"""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from caldera.batches.anyres import pinpoints_of
from caldera.batches.picture_sources import PictureSource, Pixels
from caldera.batches.samples import Sample, SampleMaker
from caldera.batches.templates import find_template
from caldera.conversation import Conversation
from caldera.errors import InputError, RecordError, UsageError
from caldera.model.adapter import base_digest, save_adapter
from caldera.model.assemble import add_tokens, show_as
from caldera.model.card import Card, read_card
from caldera.model.folder import Assistant, load_assistant, save_assistant
from caldera.model.llava import Llava
from caldera.model.low_rank import add_factors, chosen_layers, fold
from caldera.model.projector import fit_spread
from caldera.processor import keep_freed_memory
from caldera.skips import Skips
from caldera.storage import as_json, holding, write_json
from caldera.training.checkpoint import Checkpoint, own_checkpoint
from caldera.training.devices import Compute, Means
from caldera.training.features import tower_features
from caldera.training.freeze import PartReport, train_only
from caldera.training.identity import identity_of
from caldera.training.loading import Loading
from caldera.training.loop import Outcome, Run, train
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
class StageJob:
    """One stage on one data set in one folder."""

    stage: Stage
    assistant: Assistant
    """Where to start; its model is changed."""

    data: DataSet
    out: Path
    """The run's folder."""

    features: Path
    """Folder of kept features; stages and runs may share it."""

    means: Means
    skips: Skips
    """Takes bad records."""

    resume: bool = False
    """Go on from a checkpoint, or keep a finished model of the same settings and data."""

    def run(self) -> tuple[Assistant, Outcome | None]:
        """Train and write the model folder.

        Returns:
            The trained assistant, and what training came to; None where the model stood there already.

        Raises:
            CalderaError: The folder is in use, data is bad, training failed, or writing did.
        """
        keep_freed_memory()
        assistant = self.assistant
        add_tokens(
            assistant.tokenizer, assistant.model.language, find_template(self.stage.template)
        )
        job = self if self.stage.aspect is None else replace(self, assistant=self._shown())
        with holding(self.out):
            return job._run()

    def _shown(self) -> Assistant:
        """Return the assistant with pictures shown as the stage wants them."""
        stage, side = self.stage, self.assistant.processor.side
        assert stage.aspect is not None
        pinpoints = pinpoints_of(stage.grids, side) if stage.aspect == "anyres" else ()
        return show_as(self.assistant, stage.aspect, pinpoints, seed=stage.seed)

    def _run(self) -> tuple[Assistant, Outcome | None]:
        """Train unless that was done before."""
        samples = self._samples()
        identity = identity_of(
            self.stage, self.assistant, samples, self.data.pictures, self.means.compute
        )
        if self._is_done(identity):
            log.info("%s is done already", self.out / "model")
            return load_assistant(self.out / "model"), None
        found = own_checkpoint(self.out / "checkpoints", identity)
        if found and not self.resume:
            raise UsageError(
                f"{self.out} holds this run, broken off after step {found.step}; give --resume to go on, or "
                "choose another --out"
            )
        write_json(self.out / "stage.json", asdict(self.stage))
        return self._train(samples, identity, found)

    def _is_done(self, identity: str) -> bool:
        """Tell whether the folder holds the result of this very run, to be kept.

        Raises:
            UsageError: It holds another run's result, or this one's and --resume was not given.
        """
        if not (self.out / "model").exists():
            return False
        if read_card(self.out / "model").parents.get("run") != identity:
            raise UsageError(
                f"{self.out} holds a finished run of other data, settings or weights; choose another --out"
            )
        if not self.resume:
            raise UsageError(
                f"{self.out} holds this very run, finished; give --resume to keep it, or choose another --out"
            )
        return True

    def _samples(self) -> list[Sample]:
        """Encode the data set for this stage and model."""
        model = self.assistant.model
        maker = SampleMaker(
            tokenizer=self.assistant.tokenizer,
            template=find_template(self.stage.template),
            image_token_id=model.image_token_id,
            layout=self.assistant.processor.layout,
            count_tokens=model.count_tokens,
            max_length=self.stage.max_length,
            context_length=model.context_length,
        )
        conversations = self.data.conversations
        with self.means.progress.job("reading conversations", len(conversations)) as tick:
            return maker.make_all(conversations, self.data.pictures, self.skips, tick)

    def _train(
        self, samples: list[Sample], identity: str, found: Checkpoint | None
    ) -> tuple[Assistant, Outcome]:
        """Freeze, look at the pictures, train, and save."""
        assistant, compute = self.assistant, self.means.compute
        base = self._add_factors()
        report_parts(train_only(assistant.model, self.stage.trains), self.stage)
        source, samples = self._pictures(samples)
        if self.skips.taken:
            self.skips.write(self.out / "bad.jsonl")
            listed = self.out / "bad.jsonl"
            log.warning("%d bad records left out, listed in %s", len(self.skips.taken), listed)
        if self.stage.fit_projector and assistant.card.stage is None:
            _fit_projector(assistant.model, samples, source)
        learning, held_out = split_off(samples, self.stage.validation_rows, self.stage.seed)
        _place_model(assistant, compute)
        assistant.model.recompute_layers(self.stage.recompute)
        run = Run(
            stage=self.stage,
            model=assistant.model,
            samples=learning,
            held_out=held_out,
            pictures=source,
            loading=Loading(workers=self.means.workers if isinstance(source, Pixels) else 0),
            compute=compute,
            folder=self.out,
            progress=self.means.progress,
            identity=identity,
        )
        outcome = train(run, found)
        trained = replace(assistant, card=self._card(identity, outcome))
        if self.stage.lora:
            seed = self.stage.seed
            save_adapter(self.out / "adapter", trained, self.stage.lora, base, newline_seed=seed)
            fold(trained.model.language)
        save_assistant(self.out / "model", trained)
        return trained, outcome

    def _add_factors(self) -> str:
        """Put low-rank factors into the language model, if the stage wants them; return what they stand on.

        Raises:
            UsageError: The model has no such layers.
        """
        model, lora = self.assistant.model, self.stage.lora
        if lora is None:
            return ""
        base = base_digest(model, set(self.stage.trains) - {"language"})
        layers = chosen_layers(model.language, lora.targets)
        add_factors(model.language, layers, lora, seed=self.stage.seed)
        log.info("language model: factors of rank %d in %d layers", lora.rank, len(layers))
        return base

    def _pictures(self, samples: list[Sample]) -> tuple[PictureSource, list[Sample]]:
        """Choose where pictures come from, and leave out samples whose pictures cannot be used."""
        paths = list(dict.fromkeys(path for sample in samples for path in sample.pictures))
        if "vision" in self.stage.trains or not self.stage.keep_features or not paths:
            return Pixels(self.assistant.processor), samples
        bad: dict[Path, InputError] = {}
        source = tower_features(
            self.assistant,
            self.features,
            paths,
            means=self.means,
            on_fault=bad.__setitem__,
        )
        for sample in samples:
            if unusable := [path for path in sample.pictures if path in bad]:
                self.skips.take(f"record {sample.id!r}", bad[unusable[0]])
        self.skips.check(len(self.data.conversations))  # what was left out before counts in both
        usable = [sample for sample in samples if not bad.keys() & set(sample.pictures)]
        if not usable:
            raise RecordError("no record is left to train on")
        return source, usable

    def _card(self, identity: str, outcome: Outcome) -> Card:
        """Write what this stage did on the assistant's card."""
        card, stage = self.assistant.card, self.stage
        loss = outcome.last_validation_loss
        return card.model_copy(
            update={
                "template": stage.template,
                "stage": stage.name,
                "recipe": {**card.recipe, stage.name: as_json(asdict(stage))},
                "parents": {**card.parents, "run": identity},
                "metrics": {} if loss is None else {"validation_loss": loss},
            }
        )


def report_parts(parts: Sequence[PartReport], stage: Stage) -> None:
    """Log which parts learn, how many of their weights, and how fast."""
    for part in parts:
        state = "frozen"
        if part.trainable:
            some = "" if part.trainable == part.parameters else f"{part.trainable:,} of them "
            state = f"{some}learn at {stage.rate_of(part.part):g}"
        log.info("%-10s %14s parameters  %s", part.part, f"{part.parameters:,}", state)


def split_off(samples: Sequence[Sample], rows: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Hold out about `rows` samples, at most a tenth, that share no picture with the others.

    Where all hang together, each sharing a picture with a next, this holds for their first pictures only.

    Returns:
        Samples to learn from, and samples held out.
    """
    wanted = min(rows, len(samples) // 10)
    held_out = _take(_by_shared_pictures(samples), wanted, seed)
    if wanted and not held_out:
        log.warning(
            "all records hang together by pictures they share: held-out ones are not new in all their pictures"
        )
        held_out = _take(_grouped(samples, lambda path: path), wanted, seed)
    learning = [sample for at, sample in enumerate(samples) if at not in held_out]
    return learning, [samples[at] for at in sorted(held_out)]


def _take(groups: list[list[int]], wanted: int, seed: int) -> set[int]:
    """Return the members of random groups, as many as fit into `wanted`."""
    random.Random(seed).shuffle(groups)
    taken: set[int] = set()
    for group in groups:
        if len(taken) + len(group) <= wanted:
            taken.update(group)
    return taken


def _by_shared_pictures(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the indices of samples in groups that share no picture with each other."""
    above: dict[Path, Path] = {}  # a forest; the pictures of a group are one tree

    def top(path: Path) -> Path:
        while above.setdefault(path, path) != path:
            above[path] = path = above[above[path]]
        return path

    for sample in samples:
        for path in sample.pictures[1:]:
            above[top(path)] = top(sample.pictures[0])
    return _grouped(samples, top)


def _grouped(samples: Sequence[Sample], key: Callable[[Path], Path]) -> list[list[int]]:
    """Return the indices of samples in groups by the key of their first picture; one without stands alone."""
    groups: dict[Path | int, list[int]] = {}
    for at, sample in enumerate(samples):
        groups.setdefault(key(sample.pictures[0]) if sample.pictures else at, []).append(at)
    return list(groups.values())


def _fit_projector(model: Llava, samples: Sequence[Sample], source: PictureSource) -> None:
    """Scale the fresh projector by the features of the first pictures, if there are any."""
    paths = [path for sample in samples for path in sample.pictures][:_FIT_ON]
    if not paths:
        log.info("fit_projector: no record has a picture, the projector stays as it was")
        return
    with torch.no_grad():
        features = model.patch_features(source(paths)).float()
    fit_spread(model.projector, features, model.word_table)


def _place_model(assistant: Assistant, compute: Compute) -> None:
    """Bring the model to the device, with the attention that is fastest there."""
    assistant.model.to(compute.device)
    assistant.model.arrange(compute.attention)
    assistant.model.vision.tower.set_attn_implementation(compute.attention)
