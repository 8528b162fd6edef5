"""One stage in one folder.

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

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from caldera.batches.image_sources import DecodedImages, ImageSource
from caldera.batches.samples import Sample, SampleBuilder
from caldera.conversation import Conversation
from caldera.devices import DeviceConfig, Runtime, tune_malloc
from caldera.errors import ConversationError, InputError, UsageError
from caldera.files.atomic import lock_folder, to_plain_json, write_json
from caldera.files.skipped import SkippedItems
from caldera.formats.assemble import add_special_tokens, with_image_aspect
from caldera.formats.lora_adapter import digest_base, save_adapter
from caldera.formats.metadata import read_card
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.formats.weight_names import digest_weights
from caldera.images.anyres import grid_pinpoints
from caldera.model.assistant import LlavaBundle, ModelMetadata
from caldera.model.llava import Llava
from caldera.model.lora import add_lora, merge_lora_layers, target_layers
from caldera.model.projector import match_embedding_scale
from caldera.overrides import with_former_names
from caldera.templates.template import find_template
from caldera.training.checkpoint import Checkpoint, matching_checkpoint
from caldera.training.loop import TrainingResult, TrainingRun, train
from caldera.training.parameters import TrainableReport, set_trainable
from caldera.training.prefetch import PrefetchConfig
from caldera.training.stage import Stage
from caldera.training.validation_split import split_validation
from caldera.training.vision_features import cached_tower_features


def run_fingerprint(
    stage: Stage,
    assistant: LlavaBundle,
    samples: Sequence[Sample],
    images: Path,
    compute: DeviceConfig,
) -> str:
    """Return a digest of what decides how a run goes, but for the device and the versions of the libraries.

    Args:
        stage: Every setting counts.
        assistant: Its weights count, how its tower is read, how images are prepared, and whether it is fresh.
        samples: Their numbers count. An image counts by its path and its size in bytes, so data may be moved, and a
            image that is repaired makes another run.
        images: Folder that the images' paths start from; it does not count itself.
        compute: The precision counts.
    """
    vision = assistant.model.vision
    said = {
        # Former names of settings: runs of earlier versions keep their fingerprint.
        "stage": with_former_names(asdict(stage)),
        "weights": digest_weights(assistant.model.state_dict()),
        "features": [vision.select_layer, vision.select],
        "preparation": with_former_names(asdict(assistant.processor)),
        "after": assistant.card.stage,
        "precision": str(compute.dtype),
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    sizes = {path: path.stat().st_size for sample in samples for path in sample.images}
    for sample in samples:
        shown = [(os.path.relpath(path, images), sizes[path]) for path in sample.images]
        digest.update(repr((sample.id, sample.ids, sample.labels, shown)).encode())
    return digest.hexdigest()


log = logging.getLogger(__name__)

_CALIBRATION_IMAGES = 64
"""Images whose features decide how a fresh projector is scaled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """Conversations and where their images are."""

    conversations: Sequence[Conversation]
    images: Path
    """Folder that image paths start from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """One stage on one data set in one folder."""

    stage: Stage
    assistant: LlavaBundle
    """Where to start; its model is changed."""

    data: TrainingData
    out: Path
    """The run's folder."""

    features: Path
    """Folder of kept features; stages and runs may share it."""

    means: Runtime
    skips: SkippedItems
    """Takes bad records."""

    resume: bool = False
    """Go on from a checkpoint, or keep a finished model of the same settings and data."""

    def run(self) -> tuple[LlavaBundle, TrainingResult | None]:
        """Train and write the model folder.

        Returns:
            The trained assistant, and what training came to; None where the model stood there already.

        Raises:
            CalderaError: The folder is in use, data is bad, training failed, or writing did.
        """
        tune_malloc()
        assistant = self.assistant
        add_special_tokens(
            assistant.tokenizer, assistant.model.language, find_template(self.stage.template)
        )
        job = (
            self
            if self.stage.aspect is None
            else replace(self, assistant=self._with_stage_aspect())
        )
        with lock_folder(self.out):
            return job._run()

    def _with_stage_aspect(self) -> LlavaBundle:
        """Return the assistant with images shown as the stage wants them."""
        stage, side = self.stage, self.assistant.processor.side
        assert stage.aspect is not None
        pinpoints = grid_pinpoints(stage.grid_pinpoints, side) if stage.aspect == "anyres" else ()
        return with_image_aspect(self.assistant, stage.aspect, pinpoints, seed=stage.seed)

    def _run(self) -> tuple[LlavaBundle, TrainingResult | None]:
        """Train unless that was done before."""
        samples = self._samples()
        identity = run_fingerprint(
            self.stage, self.assistant, samples, self.data.images, self.means.compute
        )
        if self._is_done(identity):
            log.info("%s is done already", self.out / "model")
            return load_model_folder(self.out / "model"), None
        found = matching_checkpoint(self.out / "checkpoints", identity)
        if found and not self.resume:
            raise UsageError(
                f"{self.out} holds this run, broken off after step {found.step}; give --resume to go on, or "
                "choose another --out"
            )
        write_json(self.out / "stage.json", asdict(self.stage))
        return self._train_and_save(samples, identity, found)

    def _is_done(self, identity: str) -> bool:
        """Tell whether the folder holds the result of this very run, to be kept.

        Raises:
            UsageError: It holds another run's result, or this one's and --resume was not given.
        """
        if not (self.out / "model").exists():
            return False
        if read_card(self.out / "model").source_digests.get("run") != identity:
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
        maker = SampleBuilder(
            tokenizer=self.assistant.tokenizer,
            template=find_template(self.stage.template),
            image_token_id=model.image_token_id,
            layout=self.assistant.processor.layout,
            count_tokens=model.count_tokens,
            max_length=self.stage.max_length,
            context_length=model.context_length,
        )
        conversations = self.data.conversations
        with self.means.progress.task("reading conversations", len(conversations)) as tick:
            return maker.build_all(conversations, self.data.images, self.skips, tick)

    def _train_and_save(
        self, samples: list[Sample], identity: str, found: Checkpoint | None
    ) -> tuple[LlavaBundle, TrainingResult]:
        """Freeze, look at the images, train, and save."""
        assistant, compute = self.assistant, self.means.compute
        base = self._add_lora()
        log_trainable(set_trainable(assistant.model, self.stage.trainable), self.stage)
        source, samples = self._choose_image_source(samples)
        if self.skips.items:
            self.skips.write(self.out / "bad.jsonl")
            listed = self.out / "bad.jsonl"
            log.warning("%d bad records left out, listed in %s", len(self.skips.items), listed)
        if self.stage.calibrate_projector and assistant.card.stage is None:
            _calibrate_projector(assistant.model, samples, source)
        learning, held_out = split_validation(samples, self.stage.validation_size, self.stage.seed)
        _move_to_device(assistant, compute)
        assistant.model.set_gradient_checkpointing(self.stage.gradient_checkpointing)
        run = TrainingRun(
            stage=self.stage,
            model=assistant.model,
            samples=learning,
            held_out=held_out,
            images=source,
            loading=PrefetchConfig(
                workers=self.means.workers if isinstance(source, DecodedImages) else 0
            ),
            compute=compute,
            folder=self.out,
            progress=self.means.progress,
            identity=identity,
        )
        outcome = train(run, found)
        trained = replace(assistant, card=self._updated_metadata(identity, outcome))
        if self.stage.lora:
            seed = self.stage.seed
            save_adapter(self.out / "adapter", trained, self.stage.lora, base, newline_seed=seed)
            merge_lora_layers(trained.model.language)
        save_model_folder(self.out / "model", trained)
        return trained, outcome

    def _add_lora(self) -> str:
        """Put low-rank factors into the language model, if the stage wants them; return what they stand on.

        Raises:
            UsageError: The model has no such layers.
        """
        model, lora = self.assistant.model, self.stage.lora
        if lora is None:
            return ""
        base = digest_base(model, set(self.stage.trainable) - {"language"})
        layers = target_layers(model.language, lora.targets)
        add_lora(model.language, layers, lora, seed=self.stage.seed)
        log.info("language model: factors of rank %d in %d layers", lora.rank, len(layers))
        return base

    def _choose_image_source(self, samples: list[Sample]) -> tuple[ImageSource, list[Sample]]:
        """Choose where images come from, and leave out samples whose images cannot be used."""
        paths = list(dict.fromkeys(path for sample in samples for path in sample.images))
        if "vision" in self.stage.trainable or not self.stage.cache_features or not paths:
            return DecodedImages(self.assistant.processor), samples
        bad: dict[Path, InputError] = {}
        source = cached_tower_features(
            self.assistant,
            self.features,
            paths,
            means=self.means,
            on_fault=bad.__setitem__,
        )
        for sample in samples:
            if unusable := [path for path in sample.images if path in bad]:
                self.skips.add_or_raise(f"record {sample.id!r}", bad[unusable[0]])
        self.skips.raise_if_over_limit(
            len(self.data.conversations)
        )  # what was left out before counts in both
        usable = [sample for sample in samples if not bad.keys() & set(sample.images)]
        if not usable:
            raise ConversationError("no record is left to train on")
        return source, usable

    def _updated_metadata(self, identity: str, outcome: TrainingResult) -> ModelMetadata:
        """Write what this stage did on the assistant's card."""
        card, stage = self.assistant.card, self.stage
        loss = outcome.last_validation_loss
        return card.model_copy(
            update={
                "template": stage.template,
                "stage": stage.name,
                "recipe": {**card.recipe, stage.name: to_plain_json(asdict(stage))},
                "source_digests": {**card.source_digests, "run": identity},
                "metrics": {} if loss is None else {"validation_loss": loss},
            }
        )


def log_trainable(parts: Sequence[TrainableReport], stage: Stage) -> None:
    """Log which parts learn, how many of their weights, and how fast."""
    for part in parts:
        state = "frozen"
        if part.trainable:
            some = "" if part.trainable == part.parameters else f"{part.trainable:,} of them "
            state = f"{some}learn at {stage.learning_rate_of(part.part):g}"
        log.info("%-10s %14s parameters  %s", part.part, f"{part.parameters:,}", state)


def _calibrate_projector(model: Llava, samples: Sequence[Sample], source: ImageSource) -> None:
    """Scale the fresh projector by the features of the first images, if there are any."""
    paths = [path for sample in samples for path in sample.images][:_CALIBRATION_IMAGES]
    if not paths:
        log.info("fit_projector: no record has an image, the projector stays as it was")
        return
    with torch.no_grad():
        features = model.patch_features(source(paths)).float()
    match_embedding_scale(model.projector, features, model.embedding_weight)


def _move_to_device(assistant: LlavaBundle, compute: DeviceConfig) -> None:
    """Bring the model to the device, with the attention that is fastest there."""
    assistant.model.to(compute.device)
    assistant.model.choose_batch_layout(compute.attention)
    assistant.model.vision.tower.set_attn_implementation(compute.attention)
