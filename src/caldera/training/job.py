"""A training job of one stage on one data set, in one folder.

```
OUT/
  stage.json        every setting
  run.json          what decides the result, compared by --resume
  metrics.jsonl     a line for each step
  tensorboard/      the same for TensorBoard
  checkpoints/      the latest two, for --resume
  skipped.jsonl     records that were skipped, if that was allowed
  adapter/          with LoRA: its weights in peft's format, and the other trained weights
  model/            the result, LoRA merged
```
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from caldera.batches.feature_store import FeatureStore
from caldera.batches.image_checks import broken_images, truncated_images
from caldera.batches.image_sources import (
    CachedFeatures,
    DecodedImages,
    FrozenTower,
    ImageSource,
    OnImageError,
    cache_features,
    raise_image_error,
)
from caldera.batches.sampler import split_validation
from caldera.batches.samples import Sample, SampleBuilder
from caldera.conversation import Conversation
from caldera.datasets.origins import describe_data_file
from caldera.devices import DeviceConfig, Runtime, tune_malloc
from caldera.errors import ConversationError, InputError, UsageError
from caldera.files.atomic import lock_folder, to_plain_json
from caldera.files.skipped_items import SkippedItems
from caldera.formats.assemble import add_special_tokens, with_image_aspect
from caldera.formats.lora_adapter import digest_base, save_adapter
from caldera.formats.metadata import read_metadata
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.formats.photo_warning import PhotoWarning
from caldera.formats.weight_names import digest_weights
from caldera.images.anyres import TileLayout, grid_pinpoints
from caldera.images.decoding import DEFAULT_DECODING, TRUNCATED_NOTE, DecodingConfig
from caldera.interruption import deferred_signals
from caldera.model.bundle import LlavaBundle, ModelMetadata
from caldera.model.llava import Llava
from caldera.model.lora import add_lora, merge_lora_layers, target_layers
from caldera.model.projector import match_embedding_scale
from caldera.overrides import with_former_names
from caldera.templates.registry import find_template
from caldera.training.checkpoint import Checkpoint, latest_checkpoint
from caldera.training.fingerprint import RunFingerprint
from caldera.training.hyperparameters import Stage
from caldera.training.loop import EncodedData, TrainingResult, train
from caldera.training.parameters import TrainableReport, set_trainable

log = logging.getLogger(__name__)

_STORE_VERSION = 2
"""Version of feature stores; raised when their format changes, so that older ones are not read."""

_CALIBRATION_IMAGES = 64
"""Images whose features decide the scale of a fresh projector."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """Conversations and the folder of their images."""

    conversations: Sequence[Conversation]
    images: Path
    """Folder that image paths are relative to."""

    num_unreadable: int = 0
    """Records that were skipped when the data was read."""

    decoding: DecodingConfig = DEFAULT_DECODING
    """Limits on the images."""

    file: Path | None = None
    """File of the conversations, recorded in the metadata of the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """One stage on one data set in one folder."""

    stage: Stage
    assistant: LlavaBundle
    """Model to start from; it is changed in place."""

    data: TrainingData
    out: Path
    """Folder of the run."""

    features: Path
    """Folder of cached features; stages and runs may share it."""

    runtime: Runtime
    skipped: SkippedItems
    """Collects invalid records."""

    resume: bool = False
    """Whether to resume from a checkpoint, or keep the finished model of the same settings and data."""

    def run(self) -> tuple[LlavaBundle, TrainingResult | None]:
        """Train and write the model folder.

        Returns:
            The trained model, and a summary of the training; None where the model was finished before.

        Raises:
            CalderaError: The folder is in use, data is invalid, training failed, or a file could not be written.
        """
        tune_malloc()
        stage, model, compute = self.stage, self.assistant.model, self.runtime.compute
        add_special_tokens(self.assistant.tokenizer, model.language, find_template(stage.template))
        assistant = _with_stage_aspect(self.assistant, stage)
        with lock_folder(self.out):
            samples = self._encode(assistant)
            fingerprint = RunFingerprint(
                stage, assistant, samples, self.data.images, compute, self.data.decoding
            )
            if self._is_finished(fingerprint):
                log.info("%s was finished before", self.out / "model")
                return load_model_folder(self.out / "model"), None
            checkpoint = self._find_checkpoint(fingerprint)
            fingerprint.write(self.out)
            images = [*dict.fromkeys(path for sample in samples for path in sample.images)]
            PhotoWarning(assistant.card.source_digests).check_files(images, self.data.decoding)
            with deferred_signals() as request:
                trained, result = self._train(assistant, samples, fingerprint.digest, checkpoint)
                request.raise_if_requested(
                    f"stopped after stage {stage.name!r}, which is finished: its model is in {self.out / 'model'}"
                )
        return trained, result

    def _train(
        self,
        assistant: LlavaBundle,
        samples: list[Sample],
        fingerprint: str,
        checkpoint: Checkpoint | None,
    ) -> tuple[LlavaBundle, TrainingResult]:
        """Train, and write the model folder."""
        stage, model = self.stage, assistant.model
        base_digest = _add_lora(model, stage)
        _log_trainable(set_trainable(model, stage.trainable), stage)
        images, samples = self._choose_image_source(assistant, samples)
        if stage.calibrate_projector and assistant.card.stage is None:
            _calibrate_projector(model, samples, images)
        training, validation = split_validation(samples, stage.validation_size, stage.seed)
        _move_to_device(model, self.runtime.compute)
        model.set_gradient_checkpointing(stage.gradient_checkpointing)
        data = EncodedData(training, validation, images)
        result = train(self, data, fingerprint, checkpoint)
        model.reset_excluded_rows()
        card = _updated_metadata(assistant.card, stage, fingerprint, result)
        if self.data.file is not None:
            training_set = describe_data_file(self.data.file, len(samples))
            card = card.model_copy(update={"data": {**card.data, stage.name: training_set}})
        trained = replace(assistant, card=card)
        if stage.lora:
            adapter = self.out / "adapter"
            save_adapter(adapter, trained, stage.lora, base_digest, newline_seed=stage.seed)
            merge_lora_layers(model.language)
        save_model_folder(self.out / "model", trained)
        return trained, result

    def _encode(self, assistant: LlavaBundle) -> list[Sample]:
        """Encode the data set for this stage and model."""
        builder = SampleBuilder(
            tokenizer=assistant.tokenizer,
            template=find_template(self.stage.template),
            image_token_id=assistant.model.image_token_id,
            layouts=partial(assistant.processor.layouts, decoding=self.data.decoding),
            count_tokens=assistant.model.count_tokens,
            max_length=self.stage.max_length,
            context_length=assistant.model.context_length,
        )
        conversations = self.data.conversations
        with self.runtime.progress.task("encoding records", len(conversations)) as advance:
            return builder.build_all(conversations, self.data.images, self.skipped, advance)

    def _is_finished(self, fingerprint: RunFingerprint) -> bool:
        """Return whether the folder holds the result of this very run, and --resume was given."""
        if not (self.out / "model").exists():
            return False
        digest = read_metadata(self.out / "model").source_digests.get("run", "")
        if changes := fingerprint.changes(self.out, digest):
            raise UsageError(
                f"{self.out} holds a finished run of other data, settings or weights: {changes}; choose another --out"
            )
        if not self.resume:
            raise UsageError(
                f"{self.out} holds this very run, finished; add --resume to keep it, or choose another --out"
            )
        return True

    def _find_checkpoint(self, fingerprint: RunFingerprint) -> Checkpoint | None:
        """Return the latest valid checkpoint of this run; None if there is none."""
        checkpoint = latest_checkpoint(self.out / "checkpoints")
        if checkpoint is None:
            return None
        if changes := fingerprint.changes(self.out, checkpoint.fingerprint):
            raise UsageError(
                f"{self.out} holds a run made with other data, settings or weights: {changes}; resume it with the "
                "former ones, or choose another --out"
            )
        if not self.resume:
            raise UsageError(
                f"{self.out} holds this run, interrupted after step {checkpoint.step}; add --resume to resume it, or "
                "choose another --out"
            )
        return checkpoint

    @property
    def resume_advice(self) -> str:
        """The command that continues the run, for messages."""
        return f"repeat the command {'' if self.resume else 'with --resume '}to continue"

    def _choose_image_source(
        self, assistant: LlavaBundle, samples: list[Sample]
    ) -> tuple[ImageSource, list[Sample]]:
        """Return the source of images, and the samples whose images can all be used; the others are listed."""
        pairs = dict.fromkeys(
            pair for sample in samples for pair in zip(sample.images, sample.layouts, strict=True)
        )
        paths = list(dict.fromkeys(path for path, _ in pairs))
        errors: dict[Path, InputError] = {}
        decoding = self.data.decoding
        images: ImageSource = DecodedImages(assistant.processor, decoding)
        if "vision" not in self.stage.trainable and self.stage.cache_features and paths:
            images = cached_tower_features(
                assistant,
                self.features,
                [path for path, _ in pairs],
                [layout for _, layout in pairs],
                runtime=self.runtime,
                decoding=decoding,
                on_error=errors.__setitem__,
            )
        elif self.skipped.max_fraction > 0:
            # Otherwise the first broken image ends the run where it is decoded, possibly after days.
            errors = broken_images(paths, self.runtime, decoding)
        if decoding.allow_truncated:
            for path in truncated_images(paths, self.runtime):
                self.skipped.note(str(path), TRUNCATED_NOTE)
        for sample in samples:
            if unusable := [path for path in sample.images if path in errors]:
                self.skipped.add_or_raise(f"record {sample.id!r}", errors[unusable[0]])
        total = len(self.data.conversations) + self.data.num_unreadable
        self.skipped.finish(total, self.out / "skipped.jsonl")
        usable = [sample for sample in samples if not errors.keys() & set(sample.images)]
        if not usable:
            raise ConversationError("no record is left to train on")
        return images, usable


def cached_tower_features(
    assistant: LlavaBundle,
    folder: Path,
    paths: Sequence[Path],
    layouts: Sequence[TileLayout] | None = None,
    *,
    runtime: Runtime,
    decoding: DecodingConfig = DEFAULT_DECODING,
    on_error: OnImageError = raise_image_error,
) -> CachedFeatures:
    """Return a source of the vision tower's features of all images at `paths`, cached in `folder`.

    Args:
        assistant: Its vision tower encodes the images, as its processor prepares them.
        folder: Holds a store for each tower and preparation.
        paths: Images, each once in each layout.
        layouts: Tile layout of each image; None if each is the only image of its conversation.
        runtime: Device and precision of the tower, and progress reporting.
        decoding: Limits on the images.
        on_error: Called with each image that cannot be used; the source then lacks it.

    Raises:
        InputError: An image cannot be used, or the store cannot be read.
        TrainingError: Features are not finite in the precision.
        OutputError: The store cannot be written, or the disk has too little space.
    """
    compute = runtime.compute
    vision = assistant.model.vision.to(compute.device)

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        with compute.autocast():
            return vision(pixels.to(compute.device)).cpu()

    return cache_features(
        FeatureStore(folder, _store_name(assistant, compute, decoding), compute.dtype),
        paths,
        layouts,
        tower=FrozenTower(
            assistant.processor, encode, (vision.tokens_per_view, vision.width), decoding
        ),
        progress=runtime.progress,
        on_error=on_error,
    )


def _store_name(assistant: LlavaBundle, compute: DeviceConfig, decoding: DecodingConfig) -> str:
    """Return a digest of everything that features depend on except the image.

    The processor counts under its former class and field names, so that stores of earlier versions are found.
    """
    processor, vision = assistant.processor, assistant.model.vision
    names = with_former_names({field.name: field.name for field in fields(processor)})
    values = ", ".join(f"{former}={getattr(processor, name)!r}" for former, name in names.items())
    settings = (vision.select_layer, vision.select, str(compute.dtype))
    description = f"(PictureProcessor({values}), {', '.join(map(repr, settings))})"
    text = f"{_STORE_VERSION} {description} {digest_weights(vision.state_dict())}"
    if decoding != DEFAULT_DECODING:
        # An image may be used in part, or at another size, that is an error or smaller by default.
        text += f" {decoding}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _with_stage_aspect(assistant: LlavaBundle, stage: Stage) -> LlavaBundle:
    """Return the model with the stage's preparation of images that are not square, if it sets one."""
    if stage.aspect is None:
        return assistant
    side = assistant.processor.side
    pinpoints = grid_pinpoints(stage.grid_pinpoints, side) if stage.aspect == "anyres" else ()
    return with_image_aspect(assistant, stage.aspect, pinpoints, stage.anyres_max, seed=stage.seed)


def _add_lora(model: Llava, stage: Stage) -> str:
    """Add LoRA to the language model, if the stage has it; return the digest of the weights it is based on."""
    if stage.lora is None:
        return ""
    base_digest = digest_base(model, set(stage.trainable) - {"language"})
    layers = target_layers(model.language, stage.lora.targets)
    add_lora(model.language, layers, stage.lora, seed=stage.seed)
    log.info("language model: LoRA of rank %d in %d layers", stage.lora.rank, len(layers))
    return base_digest


def _log_trainable(parts: Sequence[TrainableReport], stage: Stage) -> None:
    """Log the number of trainable parameters and the learning rate of each part."""
    for part in parts:
        state = "frozen"
        if part.trainable:
            count = "all" if part.trainable == part.parameters else f"{part.trainable:,}"
            state = f"{count} trainable at {stage.learning_rate_of(part.part):g}"
            if part.batch_norms:
                state += f"; {part.batch_norms} batch norms keep their running statistics"
        log.info("%-10s %14s parameters  %s", part.part, f"{part.parameters:,}", state)


def _calibrate_projector(model: Llava, samples: Sequence[Sample], images: ImageSource) -> None:
    """Scale the fresh projector by the features of the first images, if there are any."""
    paths = [path for sample in samples for path in sample.images][:_CALIBRATION_IMAGES]
    layouts = [layout for sample in samples for layout in sample.layouts][:_CALIBRATION_IMAGES]
    if not paths:
        log.info("calibrate_projector: no record has an image, the projector is unchanged")
        return
    with torch.no_grad():
        features = model.patch_features(images(paths, layouts)).float()
    match_embedding_scale(model.projector, features, model.embedding_weight)


def _move_to_device(model: Llava, compute: DeviceConfig) -> None:
    """Move the model to the device, with the fastest attention there."""
    model.to(compute.device)
    model.choose_batch_layout(compute.attention)
    model.vision.set_attention(compute.attention)


def _updated_metadata(
    metadata: ModelMetadata, stage: Stage, fingerprint: str, result: TrainingResult
) -> ModelMetadata:
    """Return the metadata of the trained model."""
    loss = result.last_validation_loss
    return metadata.model_copy(
        update={
            "template": stage.template,
            "stage": stage.name,
            "recipe": {**metadata.recipe, stage.name: to_plain_json(asdict(stage))},
            "source_digests": {**metadata.source_digests, "run": fingerprint},
            "metrics": {} if loss is None else {"validation_loss": loss},
        }
    )
