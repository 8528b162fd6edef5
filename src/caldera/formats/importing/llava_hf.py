"""Reader of llava-hf folders: LLaVA's, LLaVA-NeXT's and LLaVA-OneVision's."""

import shlex
from pathlib import Path
from typing import Any

from transformers import LlavaConfig, LlavaNextConfig, LlavaOnevisionConfig, PretrainedConfig

from caldera.errors import ModelFormatError, shorten_value
from caldera.formats import weight_names
from caldera.formats.chat_template import require_known_template
from caldera.formats.config import CONFIG_ERRORS, accept_old_keys, error_line, read_config
from caldera.formats.hub_models import shown_name
from caldera.formats.image_processor import load_processor
from caldera.formats.importing.sources import SourceModel, build_metadata, resolve_aspect
from caldera.formats.model_folder import build_on_meta
from caldera.formats.original.config import parse_pinpoints
from caldera.formats.tokenizer import load_tokenizer
from caldera.formats.transformers_config import pinpoints_from_disk
from caldera.formats.weight_files import read_folder
from caldera.images.anyres import parse_anyres_max
from caldera.model.vision_tower import FeatureSelect


def read_llava_hf(folder: Path, template: str | None, aspect: str | None) -> SourceModel:
    """Read a llava-hf folder: LLaVA's, LLaVA-NeXT's or LLaVA-OneVision's, with any release's names of weights.

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
    tiled = settings["model_type"] != "llava"
    tokenizer = load_tokenizer(folder)
    template = template or require_known_template(folder, tokenizer)
    tokenizer.chat_template = None  # a program in the folder; caldera writes its own
    source = read_folder(folder)
    metadata = build_metadata(
        folder,
        projector="mlp2x_gelu",
        template=template,
        aspect=resolve_aspect(folder, _stored_aspect(folder, config), aspect),
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
    if metadata.image_aspect == "square" and aspect is None and not processor.resize_without_crop:
        command = f"caldera import {shlex.quote(shown_name(folder))} --template {template}"
        notes = (
            f"LLaVA-1.5 was trained on padded images; to pad them: {command} --aspect pad --out FOLDER",
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
    config_class = _CONFIG_CLASSES[settings["model_type"]]
    public = _without_private(settings)
    for part in ("vision_config", "text_config"):
        if isinstance(public.get(part), dict):
            public[part] = _without_private(public[part])
    try:
        with accept_old_keys():
            return config_class.from_dict(public)
    except CONFIG_ERRORS as error:
        raise ModelFormatError(f"{file}: {error_line(error)}") from None


_CONFIG_CLASSES: dict[str, Any] = {
    "llava": LlavaConfig,
    "llava_next": LlavaNextConfig,
    "llava_onevision": LlavaOnevisionConfig,
}
"""Classes of configs by `model_type`."""


def _stored_aspect(folder: Path, config: PretrainedConfig) -> str:
    """Return the image aspect of a llava-hf folder, as `build_metadata` takes it."""
    if isinstance(config, LlavaNextConfig):
        return "anyres"
    if not isinstance(config, LlavaOnevisionConfig):
        return load_processor(folder).aspect
    if parse_anyres_max(config.vision_aspect_ratio) is None:
        value = shorten_value(config.vision_aspect_ratio)
        raise ModelFormatError(
            f"{folder / 'config.json'} has vision_aspect_ratio {value}; supported: anyres_max_N"
        )
    return config.vision_aspect_ratio


def _without_private(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not name.startswith("_")}
