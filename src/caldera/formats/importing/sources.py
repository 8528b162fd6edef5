"""Source folders of other projects: configs, weights by name, and notes for the user."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from transformers import (
    AutoModel,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from caldera.errors import (
    ModelFormatError,
    UsageError,
    describe_validation_error,
)
from caldera.files.hub import hub_source
from caldera.formats import weight_names
from caldera.formats.assemble import CONTRASTIVE_MODELS
from caldera.formats.config import (
    build_on_meta_device,
    read_config,
    sub_config,
)
from caldera.formats.hub_models import local_folder
from caldera.formats.image_processor import load_processor
from caldera.formats.original.config import (
    TOWER_FOLDER,
    OriginalSettings,
    known_tower,
    tower_difference,
    without_last_layer,
)
from caldera.formats.safetensors_files import LazyWeight
from caldera.formats.weight_files import Source, read_folder
from caldera.formats.weight_merging import grow_embeddings
from caldera.formats.weight_names import PROJECTOR, VISION
from caldera.images.anyres import ImageAspect, parse_anyres_max
from caldera.images.processor import ImageProcessor
from caldera.model.bundle import ModelMetadata


@dataclass(frozen=True, slots=True)
class SourceModel:
    """Model to import; the numbers of its weights are not read yet."""

    vision: PretrainedConfig
    language: PretrainedConfig
    tokenizer: PreTrainedTokenizerFast
    processor: ImageProcessor
    metadata: ModelMetadata
    weights: Mapping[str, LazyWeight]
    """Weights by llava-hf's names."""

    files: Mapping[str, tuple[Path, ...]]
    """Weight files by role, for their digests."""

    notes: tuple[str, ...] = ()
    """Notes for the user."""


@dataclass(frozen=True, slots=True)
class SourceTower:
    """Vision tower to import."""

    config: PretrainedConfig
    processor: ImageProcessor
    weights: Mapping[str, LazyWeight]
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    feature_layer: int | None = None
    """Hidden state that is projected, where LLaVA's own code ignores the setting of it."""


def build_metadata(
    source: Path,
    *,
    projector: str,
    template: str,
    aspect: str,
    vision_feature_layer: int = -2,
    feature_select: str = "patch",
    pinpoints: tuple[tuple[int, int], ...] = (),
) -> ModelMetadata:
    """Return the metadata of an imported model.

    Args:
        source: Path for messages.
        projector: Name of the projector's kind.
        template: Name of the chat template.
        aspect: How images that are not square are prepared: an aspect, or `anyres_max_N` with its limit.
        vision_feature_layer: Hidden state of the vision tower that is projected.
        feature_select: Whether the features include the class token.
        pinpoints: (width, height) of the canvases of tiles, for `anyres`.

    Raises:
        ModelFormatError: caldera does not support a value.
    """
    anyres_max = parse_anyres_max(aspect)
    aspect = "anyres" if anyres_max else aspect
    if aspect not in get_args(ImageAspect):
        supported = ", ".join((*get_args(ImageAspect), "anyres_max_N"))
        raise ModelFormatError(f"{source} has the image aspect {aspect!r}; known: {supported}")
    tiles = {"pinpoints": pinpoints, "anyres_max": anyres_max}
    settings: dict[str, Any] = tiles if aspect == "anyres" else {}
    try:
        return ModelMetadata(
            projector=projector,
            template=template,
            image_aspect=aspect,  # type: ignore[arg-type] # checked above, as the next two are by pydantic
            vision_feature_layer=vision_feature_layer,
            feature_select=feature_select,  # type: ignore[arg-type]
            **settings,
        )
    except ValidationError as error:
        raise ModelFormatError(f"{source}: {describe_validation_error(error, 'model')}") from None


def resolve_aspect(source: Path, stored: str, requested: str | None) -> str:
    """Return the image aspect of an imported model: the requested one, or its folder's.

    Raises:
        UsageError: Tiles are requested of a model without weights for them, or none of a model that was made for them.
    """
    if requested in (None, stored):
        return stored
    if stored.startswith("anyres") or requested == "anyres":
        raise UsageError(
            f"{source} has the image aspect {stored!r}, and --aspect can only choose between square and pad; to train "
            f"such a model, run a stage with --set aspect={requested}"
        )
    return requested


def with_metadata_aspect(
    processor: ImageProcessor, metadata: ModelMetadata, source: Path
) -> ImageProcessor:
    """Return a vision tower's processor with the image aspect of a model from `source`.

    Raises:
        ModelFormatError: The model's canvases do not divide into the tower's tiles.
    """
    try:
        return processor.with_aspect(metadata.image_aspect, metadata.pinpoints, metadata.anyres_max)
    except ValueError as error:
        raise ModelFormatError(f"{source}: {error}") from None


def read_tower(folder: Path) -> SourceTower:
    """Read a vision tower's folder in transformers' format.

    Raises:
        ModelFormatError: It is missing or broken.
    """
    config, source = vision_config(folder), read_folder(folder)
    prefix = build_on_meta_device(AutoModel, config).base_model_prefix
    weights = weight_names.from_vision_folder(
        weight_names.rename_weights(source.weights, str, folder), prefix
    )
    return SourceTower(config, load_processor(folder), weights, source.files)


def vision_config(folder: Path) -> PretrainedConfig:
    """Read the config of a folder's vision tower.

    Raises:
        ModelFormatError: There is none, or it cannot be used.
    """
    config = read_config(folder)
    model_class = CONTRASTIVE_MODELS.get(config.get("model_type", ""))
    if model_class is not None:
        inner = config.get("vision_config")
        tower = {"model_type": getattr(model_class.config_class, "model_type", "")}
        config = tower | (inner if isinstance(inner, dict) else {})
    return sub_config({"vision_config": config}, "vision_config", folder / "config.json")


def join_original(
    folder: Path,
    settings: OriginalSettings,
    source: Source,
    tokenizer: PreTrainedTokenizerFast,
    tower: SourceTower,
    metadata: ModelMetadata,
    vocab_multiple: int,
) -> SourceModel:
    """Join the content of an original folder with its vision tower.

    Args:
        folder: Path for messages.
        settings: Settings of its config.
        source: Weights of language model and projector, by llava-hf's names.
        tokenizer: A tokenizer without the image token.
        tower: The tower from `resolve_vision_tower`.
        metadata: Metadata of the model.
        vocab_multiple: Multiple that the rows of the grown embedding tables are filled up to.

    Raises:
        ModelFormatError: The tokenizer has more tokens than the model.
    """
    without_tower = {
        name: weight for name, weight in source.weights.items() if not name.startswith(VISION)
    }
    weights, language = grow_embeddings(
        without_tower, settings.language, tokenizer, folder, vocab_multiple
    )
    return SourceModel(
        tower.config,
        language,
        tokenizer,
        with_metadata_aspect(tower.processor, metadata, folder),
        metadata,
        weights={**tower.weights, **weights},
        files={"source": source.files, "vision": tower.files},
        notes=tower.notes,
    )


def resolve_vision_tower(
    folder: Path, settings: OriginalSettings, weights: Mapping[str, LazyWeight], vision: Path | None
) -> SourceTower:
    """Return the vision tower of an original folder: its own if it was trained, else the one in `vision`.

    LLaVA's own code uses a folder's tower only if its config has the mark of a trained one.

    Args:
        folder: The original folder; the tower of an export of caldera is in it.
        settings: Settings of its config.
        weights: Weights of the folder, by llava-hf's names.
        vision: A folder of the tower that the config names by its hub name.

    Raises:
        ModelFormatError: `vision` holds another tower.
        UsageError: `vision` is needed but not given.
    """
    inner = folder / TOWER_FOLDER
    if vision is None and Path(settings.tower).name == TOWER_FOLDER and inner.is_dir():
        vision = inner
    tower = _find_tower(folder, settings, weights, vision)
    if tower.config.model_type != "siglip_vision_model":
        return tower
    # Its code takes the hidden state before SigLIP's last layer, whatever the setting, and saves a tower without it.
    if tower.files:
        return replace(tower, feature_layer=-2)
    return replace(tower, config=without_last_layer(tower.config), feature_layer=-1)


def _find_tower(
    folder: Path, settings: OriginalSettings, weights: Mapping[str, LazyWeight], vision: Path | None
) -> SourceTower:
    """Return the vision tower of an original folder as it was before training; its own weights have no files."""
    own = {name: weight for name, weight in weights.items() if name.startswith(VISION)}
    hub_tower = known_tower(settings.tower)
    trained = settings.tower_trained and bool(own)
    if vision is None and not (trained and hub_tower) and hub_source(folder):
        # A name in a local folder is not sent to the Hub; in a repository, it is part of what the user named.
        vision = local_folder(settings.tower)
    if vision is None:
        if trained and hub_tower:
            return SourceTower(*hub_tower, own)
        lacks = "does not hold its weights"
        if own:
            lacks = "does not describe it" if trained else "has not trained its weights"
        raise UsageError(
            f"{folder} names the vision tower {settings.tower!r} but {lacks}; give --vision, the name of that tower "
            "on the Hub or its folder in transformers' format (config.json, preprocessor_config.json, weights)"
        )
    tower = read_tower(vision)
    difference = tower_difference(hub_tower[0], tower.config) if hub_tower else None
    if difference:
        raise ModelFormatError(f"{vision} is not {settings.tower}: it differs in {difference}")
    if trained:
        notes = ("the vision tower's weights are the folder's own, which were trained",)
        return replace(tower, weights=own, files=(), notes=notes)
    if own:
        notes = (
            f"the vision tower's weights are those of {vision}; the folder's own are not used, as its config does not "
            "have unfreeze_mm_vision_tower (LLaVA's own code does the same)",
        )
        return replace(tower, notes=notes)
    return tower


def detect_projector(weights: Mapping[str, LazyWeight], source: Path) -> str:
    """Return a projector's kind by its weights' names.

    Raises:
        ModelFormatError: The names fit no projector of caldera.
    """
    names = {name.removeprefix(PROJECTOR) for name in weights}
    for kind, layers in {"mlp2x_gelu": ("linear_1.", "linear_2."), "linear": ("",)}.items():
        if names == {f"{layer}{suffix}" for layer in layers for suffix in ("weight", "bias")}:
            return kind
    raise ModelFormatError(
        f"the projector in {source} has the weights {sorted(names)[:4]}; caldera has no such projector"
    )
