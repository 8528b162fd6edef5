"""Source folders of other projects: configs, weights by name, and notes for the user."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from transformers import (
    LlavaConfig,
    LlavaNextConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from caldera.errors import (
    ModelFormatError,
    UsageError,
    describe_validation_error,
    shorten_value,
)
from caldera.formats import weight_names
from caldera.formats.assemble import CONTRASTIVE_MODELS
from caldera.formats.chat_template import require_known_template
from caldera.formats.config import (
    CONFIG_ERRORS,
    accept_old_keys,
    error_line,
    read_config,
    sub_config,
)
from caldera.formats.image_processor import load_processor
from caldera.formats.model_folder import build_on_meta
from caldera.formats.original.config import (
    OriginalSettings,
    known_tower,
    parse_pinpoints,
    tower_difference,
)
from caldera.formats.safetensors_files import LazyWeight
from caldera.formats.tokenizer import load_tokenizer
from caldera.formats.transformers_config import pinpoints_from_disk
from caldera.formats.weight_files import Source, read_folder
from caldera.formats.weight_merging import grow_embeddings
from caldera.formats.weight_names import PROJECTOR, VISION
from caldera.images.anyres import ImageAspect
from caldera.images.processor import ImageProcessor
from caldera.model.bundle import ModelMetadata
from caldera.model.vision_tower import FeatureSelect


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
        aspect: How images that are not square are prepared.
        vision_feature_layer: Hidden state of the vision tower that is projected.
        feature_select: Whether the features include the class token.
        pinpoints: (width, height) of the canvases of tiles, for `anyres`.

    Raises:
        ModelFormatError: caldera does not support a value.
    """
    if aspect not in get_args(ImageAspect):
        supported = ", ".join(get_args(ImageAspect))
        raise ModelFormatError(f"{source} has the image aspect {aspect!r}; known: {supported}")
    settings: dict[str, Any] = {"pinpoints": pinpoints} if aspect == "anyres" else {}
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
    if "anyres" in (stored, requested):
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
        return processor.with_aspect(metadata.image_aspect, metadata.pinpoints)
    except ValueError as error:
        raise ModelFormatError(f"{source}: {error}") from None


def read_tower(folder: Path) -> SourceTower:
    """Read a vision tower's folder in transformers' format.

    Raises:
        ModelFormatError: It is missing or broken.
    """
    config, source = vision_config(folder), read_folder(folder)
    weights = weight_names.from_vision_folder(
        weight_names.rename_weights(source.weights, str, folder)
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


def read_llava_hf(folder: Path, template: str | None, aspect: str | None) -> SourceModel:
    """Read a llava-hf folder, LLaVA's or LLaVA-NeXT's, with classic names or those of transformers 5.

    Args:
        folder: The folder.
        template: Name of the chat template; the one that the folder's own equals if None.
        aspect: How images that are not square are prepared; as in the folder if None.

    Raises:
        ModelFormatError: It is broken or not supported, or its chat template equals no known one.
    """
    file = folder / "config.json"
    settings = read_config(folder)
    config = _llava_hf_config(settings, file)
    tiled = settings["model_type"] == "llava_next"
    tokenizer = load_tokenizer(folder)
    template = template or require_known_template(folder, tokenizer)
    tokenizer.chat_template = None  # a program in the folder; caldera writes its own
    source = read_folder(folder)
    metadata = build_metadata(
        folder,
        projector="mlp2x_gelu",
        template=template,
        aspect=resolve_aspect(folder, "anyres" if tiled else load_processor(folder).aspect, aspect),
        vision_feature_layer=config.vision_feature_layer,
        pinpoints=pinpoints_from_disk(parse_pinpoints(config.image_grid_pinpoints, file))
        if tiled
        else (),
    )
    processor = load_processor(folder, metadata)
    model = build_on_meta(
        config.vision_config, config.text_config, tokenizer, processor, metadata
    ).model
    if model.image_token_id != config.image_token_index:
        raise ModelFormatError(
            f"{file} has image token {config.image_token_index}, its tokenizer {model.image_token_id}; they must agree"
        )
    feature_select = _feature_selection(
        config.vision_feature_select_strategy, model.vision.num_prefix_tokens, file, tiled=tiled
    )
    metadata = metadata.model_copy(update={"feature_select": feature_select})
    notes: tuple[str, ...] = ()
    if metadata.image_aspect == "square" and aspect is None:
        notes = (
            "its processor crops images to a square; LLaVA-1.5 was trained on padded ones, which caldera import "
            "--aspect pad sets",
        )
    weights = weight_names.rename_weights(source.weights, weight_names.from_llava_hf, folder)
    towers = (config.vision_config, config.text_config)
    files = {"source": source.files}
    return SourceModel(*towers, tokenizer, processor, metadata, weights, files, notes)


def _feature_selection(
    strategy: str, num_prefix_tokens: int, file: Path, *, tiled: bool
) -> FeatureSelect:
    """Return which features of a tower transformers projects; raise ModelFormatError if caldera cannot."""
    if strategy == "default" and not num_prefix_tokens:
        raise ModelFormatError(
            f"{file} has vision_feature_select_strategy 'default', which drops the first patch of a tower without a "
            "class token; not supported"
        )
    keeps_class_token = strategy == "full" and num_prefix_tokens > 0
    if keeps_class_token and tiled:
        raise ModelFormatError(
            f"{file} has vision_feature_select_strategy 'full', which keeps the class token of every tile; not "
            "supported"
        )
    return "cls_patch" if keeps_class_token else "patch"


def _llava_hf_config(settings: dict[str, Any], file: Path) -> Any:  # noqa: ANN401 - its parts' types are unions
    """Parse a llava-hf config, with transformers' own defaults."""
    supported: dict[str, tuple[object, ...]] = {
        "projector_hidden_act": (None, "gelu"),
        "multimodal_projector_bias": (None, True),
        "vision_feature_select_strategy": (None, "default", "full"),
        "quantization_config": (None,),
    }
    for name, values in supported.items():
        if settings.get(name) not in values:
            value = shorten_value(settings[name])
            raise ModelFormatError(f"{file} has {name} {value}, which is not supported")
    if type(settings.get("vision_feature_layer", -2)) is not int:
        raise ModelFormatError(
            f"{file} has vision_feature_layer {settings['vision_feature_layer']!r}; only a single layer is supported"
        )
    config_class = LlavaNextConfig if settings["model_type"] == "llava_next" else LlavaConfig
    public = _without_private(settings)
    for part in ("vision_config", "text_config"):
        if isinstance(public.get(part), dict):
            public[part] = _without_private(public[part])
    try:
        with accept_old_keys():
            return config_class.from_dict(public)
    except CONFIG_ERRORS as error:
        raise ModelFormatError(f"{file}: {error_line(error)}") from None


def _without_private(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not name.startswith("_")}


def join_original(
    folder: Path,
    settings: OriginalSettings,
    source: Source,
    tokenizer: PreTrainedTokenizerFast,
    tower: SourceTower,
    metadata: ModelMetadata,
) -> SourceModel:
    """Join the content of an original folder with its vision tower.

    Args:
        folder: Path for messages.
        settings: Settings of its config.
        source: Weights of language model and projector, by llava-hf's names.
        tokenizer: A tokenizer without the image token.
        tower: The tower from `resolve_vision_tower`.
        metadata: Metadata of the model.

    Raises:
        ModelFormatError: The tokenizer has more tokens than the model.
    """
    without_tower = {
        name: weight for name, weight in source.weights.items() if not name.startswith(VISION)
    }
    weights, language = grow_embeddings(without_tower, settings.language, tokenizer, folder)
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
        folder: Path for messages.
        settings: Settings of its config.
        weights: Weights of the folder, by llava-hf's names.
        vision: A folder of the tower that the config names by its hub name.

    Raises:
        ModelFormatError: `vision` holds another tower.
        UsageError: `vision` is needed but not given.
    """
    own = {name: weight for name, weight in weights.items() if name.startswith(VISION)}
    hub_tower = known_tower(settings.tower)
    trained = settings.tower_trained and bool(own)
    if vision is None:
        if trained and hub_tower:
            return SourceTower(*hub_tower, own)
        lacks = "does not hold its weights"
        if own:
            lacks = "does not describe it" if trained else "has not trained its weights"
        raise UsageError(
            f"{folder} names the vision tower {settings.tower!r} but {lacks}; give --vision, the folder "
            "of that tower in transformers' format (config.json, preprocessor_config.json, weights)"
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
