"""A folder of somebody's model in, what caldera needs of it out: configs, weights by name, and what to say of them."""

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

from caldera.errors import ModelFormatError, UsageError, describe_validation_error
from caldera.formats import weight_names
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
    read_original,
    tower_difference,
)
from caldera.formats.safetensors_files import LazyWeight
from caldera.formats.tokenizer import load_tokenizer
from caldera.formats.transformers_config import pinpoints_from_disk
from caldera.formats.weight_files import Source, read_folder
from caldera.formats.weight_merging import grow_embeddings
from caldera.formats.weight_names import PROJECTOR, VISION
from caldera.images.processor import ImageAspect, ImageProcessor
from caldera.model.assistant import ModelMetadata

_TWO_TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""Folders that hold an image and a text tower, and the kind of the image tower in them."""


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A model on its way in; nothing of its numbers has been read."""

    vision: PretrainedConfig
    language: PretrainedConfig
    tokenizer: PreTrainedTokenizerFast
    processor: ImageProcessor
    card: ModelMetadata
    weights: Mapping[str, LazyWeight]
    """By llava-hf's names."""

    files: Mapping[str, tuple[Path, ...]]
    """Weight files by what they are, for their digests."""

    notes: tuple[str, ...] = ()
    """What the user should know."""


@dataclass(frozen=True, slots=True)
class SourceTower:
    """A vision tower on its way in."""

    config: PretrainedConfig
    processor: ImageProcessor
    weights: Mapping[str, LazyWeight]
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def make_card(
    source: Path,
    *,
    projector: str,
    template: str,
    aspect: str,
    select_layer: int = -2,
    select: str = "patch",
    pinpoints: tuple[tuple[int, int], ...] = (),
) -> ModelMetadata:
    """Return the card of a model that comes in.

    Args:
        source: What messages call it.
        projector: Its kind.
        template: How conversations are written.
        aspect: How images are shown.
        select_layer: Hidden state of the vision tower that is projected.
        select: Which of its positions are.
        pinpoints: (width, height) of the grids of tiles, for `anyres`.

    Raises:
        ModelFolderError: It means what caldera cannot do.
    """
    if aspect not in get_args(ImageAspect):
        known = ", ".join(get_args(ImageAspect))
        raise ModelFormatError(f"{source} shows images as {aspect!r}; known: {known}")
    settings: dict[str, Any] = {"pinpoints": pinpoints} if aspect == "anyres" else {}
    try:
        return ModelMetadata(
            projector=projector,
            template=template,
            image_aspect=aspect,  # type: ignore[arg-type] # checked above, as the next two are by pydantic
            vision_feature_layer=select_layer,
            feature_select=select,  # type: ignore[arg-type]
            **settings,
        )
    except ValidationError as error:
        raise ModelFormatError(f"{source}: {describe_validation_error(error, 'model')}") from None


def resolve_aspect(source: Path, said: str, wanted: str | None) -> str:
    """Return how a model that comes in shows images: as its folder says, or as the user wants it.

    Raises:
        UsageError: The user wants tiles of a model without the weights for them, or none of one that was made for them.
    """
    if wanted in (None, said):
        return said
    if "anyres" in (said, wanted):
        raise UsageError(
            f"{source} shows images as {said!r}, and --aspect can only choose between square and pad; a stage of "
            f"training with --set aspect={wanted} makes such a model of it"
        )
    return wanted


def with_metadata_aspect(
    processor: ImageProcessor, card: ModelMetadata, source: Path
) -> ImageProcessor:
    """Return a vision tower's processor as the card of a model from `source` wants it.

    Raises:
        ModelFolderError: The model's canvases do not cut into the tower's tiles.
    """
    try:
        return processor.with_aspect(card.image_aspect, card.pinpoints)
    except ValueError as error:
        raise ModelFormatError(f"{source}: {error}") from None


def vision_config(folder: Path) -> PretrainedConfig:
    """Read the config of a folder's vision tower.

    Raises:
        ModelFolderError: There is none, or it cannot be used.
    """
    config = read_config(folder)
    kind = config.get("model_type")
    if kind in _TWO_TOWERS:
        inner = config.get("vision_config")
        config = {"model_type": _TWO_TOWERS[kind], **(inner if isinstance(inner, dict) else {})}
    return sub_config({"vision_config": config}, "vision_config", folder / "config.json")


def read_tower(folder: Path) -> SourceTower:
    """Read a vision tower's folder in transformers' format.

    Raises:
        ModelFolderError: It is missing or broken.
    """
    config, source = vision_config(folder), read_folder(folder)
    weights = weight_names.from_vision_folder(
        weight_names.rename_weights(source.weights, str, folder)
    )
    return SourceTower(config, load_processor(folder), weights, source.files)


def read_llava_hf(folder: Path, template: str, aspect: str | None) -> SourceModel:
    """Read a llava-hf folder, LLaVA's or LLaVA-NeXT's, with classic names or those of transformers 5.

    Raises:
        ModelFolderError: It is broken, or of a kind that caldera does not express.
    """
    file = folder / "config.json"
    said = read_config(folder)
    config = _llava_hf_config(said, file)
    tiled = said["model_type"] == "llava_next"
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = None  # a program in the folder; caldera writes its own
    source = read_folder(folder)
    card = make_card(
        folder,
        projector="mlp2x_gelu",
        template=template,
        aspect=resolve_aspect(folder, "anyres" if tiled else load_processor(folder).aspect, aspect),
        select_layer=config.vision_feature_layer,
        pinpoints=pinpoints_from_disk(parse_pinpoints(config.image_grid_pinpoints, file))
        if tiled
        else (),
    )
    processor = load_processor(folder, card)
    found = build_on_meta(
        config.vision_config, config.text_config, tokenizer, processor, card
    ).model
    if found.image_token_id != config.image_token_index:
        raise ModelFormatError(
            f"{file} puts images at token {config.image_token_index}, its tokenizer at {found.image_token_id}"
        )
    strategy, leading = config.vision_feature_select_strategy, found.vision.num_prefix_tokens
    if strategy == "default" and not leading:
        raise ModelFormatError(
            f"{file} has vision_feature_select_strategy 'default', which drops the first patch of a tower without a "
            "class token; not supported"
        )
    keeps_all = strategy == "full" and leading
    if keeps_all and tiled:
        raise ModelFormatError(
            f"{file} has vision_feature_select_strategy 'full', which keeps the class token of every tile; not "
            "supported"
        )
    card = card.model_copy(update={"select": "cls_patch" if keeps_all else "patch"})
    notes: tuple[str, ...] = ()
    if card.image_aspect == "square" and aspect is None:
        notes = (
            "its processor crops images to a square; LLaVA-1.5 was trained on padded ones, which --aspect pad makes",
        )
    weights = weight_names.rename_weights(source.weights, weight_names.from_llava_hf, folder)
    parts = (config.vision_config, config.text_config, tokenizer, processor, card)
    return SourceModel(*parts, weights, {"source": source.files}, notes)


def _llava_hf_config(said: dict[str, Any], file: Path) -> Any:  # noqa: ANN401 - its parts' types are unions
    """Parse a llava-hf config, with transformers' own defaults.

    Raises:
        ModelFolderError: It is broken, or means what caldera does not do.
    """
    allowed: dict[str, tuple[object, ...]] = {
        "projector_hidden_act": (None, "gelu"),
        "multimodal_projector_bias": (None, True),
        "vision_feature_select_strategy": (None, "default", "full"),
        "quantization_config": (None,),
    }
    for name, values in allowed.items():
        if said.get(name) not in values:
            raise ModelFormatError(f"{file} has {name} {said[name]!r}, which is not supported")
    if type(said.get("vision_feature_layer", -2)) is not int:
        raise ModelFormatError(
            f"{file} has vision_feature_layer {said['vision_feature_layer']!r}; only a single layer is supported"
        )
    kind = LlavaNextConfig if said["model_type"] == "llava_next" else LlavaConfig
    plain = {name: value for name, value in said.items() if not name.startswith("_")}
    for part in ("vision_config", "text_config"):
        if isinstance(plain.get(part), dict):
            settings = plain[part].items()
            plain[part] = {name: value for name, value in settings if not name.startswith("_")}
    try:
        with accept_old_keys():
            return kind.from_dict(plain)
    except CONFIG_ERRORS as error:
        raise ModelFormatError(f"{file}: {error_line(error)}") from None


def read_original_settings(folder: Path) -> OriginalSettings:
    """Read the config of an original folder.

    Raises:
        ModelFolderError: It is broken, or means what caldera does not do.
    """
    return read_original(read_config(folder), folder / "config.json")


def join_original(
    folder: Path,
    settings: OriginalSettings,
    source: Source,
    tokenizer: PreTrainedTokenizerFast,
    tower: SourceTower,
    card: ModelMetadata,
) -> SourceModel:
    """Join what an original folder holds with its vision tower.

    Args:
        folder: What messages call it.
        settings: From its config.
        source: Weights of language model and projector, by llava-hf's names.
        tokenizer: Without a token for images.
        tower: From `original_tower`.
        card: Of the model.

    Raises:
        ModelFolderError: The tokenizer has more words than the model.
    """
    own = {name: each for name, each in source.weights.items() if not name.startswith(VISION)}
    weights, language = grow_embeddings(own, settings.language, tokenizer, folder)
    processor = with_metadata_aspect(tower.processor, card, folder)
    parts = (tower.config, language, tokenizer, processor, card)
    files = {"source": source.files, "vision": tower.files}
    return SourceModel(*parts, {**tower.weights, **weights}, files, tower.notes)


def resolve_vision_tower(
    folder: Path, settings: OriginalSettings, own: Mapping[str, LazyWeight], vision: Path | None
) -> SourceTower:
    """Return the vision tower of an original folder: its own where it was trained, else the one in `vision`.

    LLaVA's own code takes a folder's tower only if its config says that it was trained (spec 9.10).

    Args:
        folder: What messages call it.
        settings: From its config.
        own: Weights of the folder, by llava-hf's names.
        vision: A folder of the tower that the config names by its hub name.

    Raises:
        ModelFolderError: `vision` holds another tower.
        UsageError: It is needed.
    """
    inside = {name: each for name, each in own.items() if name.startswith(VISION)}
    known = known_tower(settings.tower)
    trained = settings.tower_trained and bool(inside)
    if vision is None:
        if trained and known:
            return SourceTower(*known, inside)
        lacks = (
            "its config does not describe" if trained else "it says were not trained, so they are not"
            if inside else "it does not hold"
        )  # fmt: skip
        raise UsageError(
            f"{folder} names its vision tower {settings.tower!r}, whose weights {lacks}; give --vision, the folder "
            "of that tower in transformers' format (config.json, preprocessor_config.json, weights)"
        )
    tower = read_tower(vision)
    differs = tower_difference(known[0], tower.config) if known else None
    if differs:
        raise ModelFormatError(f"{vision} is not {settings.tower}: it differs in {differs}")
    if trained:
        notes = ("the vision tower's weights are the folder's own, which were trained",)
        return replace(tower, weights=inside, files=(), notes=notes)
    if inside:
        notes = (
            f"the vision tower's weights are those of {vision}; the folder's own are not used, as its config does not "
            "have unfreeze_mm_vision_tower (LLaVA's own code does the same)",
        )
        return replace(tower, notes=notes)
    return tower


def detect_projector(weights: Mapping[str, LazyWeight], source: Path) -> str:
    """Tell a projector's kind from its weights' names.

    Raises:
        ModelFolderError: They are of no kind that is known.
    """
    found = {name.removeprefix(PROJECTOR) for name in weights}
    for kind, layers in {"mlp2x_gelu": ("linear_1.", "linear_2."), "linear": ("",)}.items():
        if found == {f"{layer}{what}" for layer in layers for what in ("weight", "bias")}:
            return kind
    raise ModelFormatError(
        f"the projector in {source} has the weights {sorted(found)[:4]}; unknown"
    )
