"""Reader of transformers' image processor files."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import (
    BitImageProcessorPil,
    BlipImageProcessorPil,
    ChineseCLIPImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    MobileNetV1ImageProcessorPil,
    MobileNetV2ImageProcessorPil,
    PoolFormerImageProcessorPil,
    PvtImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from caldera.errors import ModelFormatError, shorten_value
from caldera.formats.config import CONFIG_ERRORS, read_json
from caldera.formats.transformers_config import pinpoints_from_disk
from caldera.images.anyres import ImageAspect
from caldera.images.processor import ImageProcessor
from caldera.model.bundle import ModelMetadata

PROCESSOR_CLASSES: dict[str, Any] = {
    "BitImageProcessor": BitImageProcessorPil,
    "BlipImageProcessor": BlipImageProcessorPil,
    "ChineseCLIPImageProcessor": ChineseCLIPImageProcessorPil,
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "ConvNextImageProcessor": ConvNextImageProcessorPil,
    "EfficientNetImageProcessor": EfficientNetImageProcessorPil,
    "LlavaImageProcessor": LlavaImageProcessorPil,
    "LlavaNextImageProcessor": LlavaNextImageProcessorPil,
    "LlavaOnevisionImageProcessor": LlavaOnevisionImageProcessorPil,
    "MobileNetV1ImageProcessor": MobileNetV1ImageProcessorPil,
    "MobileNetV2ImageProcessor": MobileNetV2ImageProcessorPil,
    "PoolFormerImageProcessor": PoolFormerImageProcessorPil,
    "PvtImageProcessor": PvtImageProcessorPil,
    "SiglipImageProcessor": SiglipImageProcessorPil,
    "ViTImageProcessor": ViTImageProcessorPil,
}
"""Transformers' classes whose pixels caldera makes; they give the settings that a file omits."""

CLASS_OF_TOWER = {
    "bit": "BitImageProcessor",
    "clip": "CLIPImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
    "convnext": "ConvNextImageProcessor",
    "convnextv2": "ConvNextImageProcessor",
    "cvt": "ConvNextImageProcessor",
    "dinov2": "BitImageProcessor",
    "efficientnet": "EfficientNetImageProcessor",
    "focalnet": "BitImageProcessor",
    "hiera": "BitImageProcessor",
    "mobilenet_v1": "MobileNetV1ImageProcessor",
    "mobilenet_v2": "MobileNetV2ImageProcessor",
    "poolformer": "PoolFormerImageProcessor",
    "pvt_v2": "PvtImageProcessor",
    "regnet": "ConvNextImageProcessor",
    "resnet": "ConvNextImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    "swiftformer": "ViTImageProcessor",
    "swin": "ViTImageProcessor",
    "swinv2": "ViTImageProcessor",
    "vit": "ViTImageProcessor",
}
"""Class by `model_type`, for files that do not name it."""

_CONVNEXT_WHOLE_SIDE = 384
"""Side from which on ConvNeXt's class resizes an image to a square instead of cropping it."""

_RESCALE_FACTOR = 1 / 255
_CHANNELS = 3

_MAX_LENGTH = 2**14
"""Largest side of an image before or after the crop, as of `image_size` in configs."""


def load_processor(folder: Path, metadata: ModelMetadata | None = None) -> ImageProcessor:
    """Read the image processor from `processor_config.json`, `preprocessor_config.json`, or timm's `config.json`.

    Args:
        folder: A model folder or a vision tower's.
        metadata: Decides how images that are not square are prepared; without it, the file does.

    Raises:
        ModelFormatError: Neither file is there, or caldera does not make the pixels that it describes.
    """
    file, content = _read_file(folder)
    try:
        content = _with_defaults(content, folder)
        aspect = _read_aspect(content)
        resize = _read_resize(content, aspect["aspect"])
        processor = ImageProcessor(**resize, **_read_normalization(content))
        if metadata:
            aspect = {
                "aspect": metadata.image_aspect,
                "pinpoints": metadata.pinpoints,
                "anyres_max": metadata.anyres_max,
            }
        return processor.with_aspect(**aspect)
    except KeyError as error:
        raise ModelFormatError(
            f"{file} has no usable image processor: {error} is missing; copy the file again"
        ) from None
    except (*CONFIG_ERRORS, ArithmeticError) as error:
        raise ModelFormatError(f"{file} has no usable image processor: {error}") from None


def describe_pixels(processor: ImageProcessor) -> str:
    """Describe how an image becomes the views of the vision tower."""
    side = f"{processor.side} x {processor.side}"
    edge = processor.resize_shortest_edge or processor.side
    crop = "" if processor.side == edge else f", of which the center of {side} remains"
    match processor.aspect:
        case "anyres":
            sizes = ", ".join(f"{width} x {height}" for width, height in processor.pinpoints[:5])
            more = f" and {len(processor.pinpoints) - 5} more" if processor.pinpoints[5:] else ""
            limit = processor.anyres_max
            several = "; of several images, each is padded to one square" if limit else ""
            return (
                f"resized to {side}, and tiles of that size on the best of {sizes}{more}{several}"
            )
        case "pad":
            square = side if processor.resize_without_crop else f"{edge} x {edge}{crop}"
            return f"padded to a square with the mean color, resized to {square}"
        case "square" if processor.resize_without_crop:
            return f"resized to {side} without keeping their proportions"
        case "square":
            return f"resized to {edge} along the shorter side, cropped to the center of {side}"


def _read_file(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return a folder's file of the image processor, and its settings."""
    file = folder / "processor_config.json"
    nested = read_json(file, required=False).get("image_processor")
    if isinstance(nested, dict):
        return file, nested
    file = folder / "preprocessor_config.json"
    timm = read_json(folder / "config.json", required=False).get("pretrained_cfg")
    if not file.is_file() and isinstance(timm, dict):
        return folder / "config.json", timm
    if not file.is_file():
        raise ModelFormatError(f"{folder} has no preprocessor_config.json")
    return file, read_json(file)


def _timm_settings(content: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of timm's evaluation as those of CLIP's class; what timm would fill in has to be there."""
    _, height, width = content["input_size"]
    fraction, mode = content["crop_pct"], content.get("crop_mode", "center")
    squeezes = mode == "squash" and fraction == 1
    if not (squeezes or mode == "center") or height != width:
        raise ValueError(
            f"crop_mode {mode!r} with crop_pct {fraction} and input_size {content['input_size']} is not supported"
        )
    square = {"height": height, "width": width}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": square if squeezes else {"shortest_edge": math.floor(height / fraction)},
        "crop_size": square,
        "do_center_crop": not squeezes,
        "image_mean": content["mean"],
        "image_std": content["std"],
        "resample": Image.Resampling[content["interpolation"].upper()],
    }


def _with_defaults(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings with those that a file omits, as the class that it names has them."""
    if "input_size" in content:
        content = _timm_settings(content)
    tower = read_json(folder / "config.json", required=False).get("model_type")
    class_name = content.get("image_processor_type") or content.get("feature_extractor_type")
    name = class_name or CLASS_OF_TOWER.get(str(tower))
    if name is None:
        return content
    name = str(name).removesuffix("Fast").removesuffix("Pil")
    name = name.replace("FeatureExtractor", "ImageProcessor")
    if name not in PROCESSOR_CLASSES:
        raise ValueError(f"{class_name} is not one of {', '.join(PROCESSOR_CLASSES)}")
    explicit = {key: value for key, value in content.items() if value is not None}
    settings: dict[str, Any] = PROCESSOR_CLASSES[name](**explicit).to_dict()
    settings.setdefault("do_center_crop", False)
    settings["do_pad"] = name == "LlavaImageProcessor" and content.get("do_pad")
    match name:
        case "ConvNextImageProcessor":
            return settings | _convnext_resize(settings)
        case "EfficientNetImageProcessor":
            return settings | _efficientnet_normalization(settings)
        case "PoolFormerImageProcessor":
            return settings | _poolformer_resize(settings)
        case _:
            return settings


def _convnext_resize(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the resize of ConvNeXt's class, which takes the center of a larger image, as size and crop."""
    side, fraction = settings["size"]["shortest_edge"], settings["crop_pct"]
    square = {"height": side, "width": side}
    if settings["do_center_crop"]:
        raise ValueError(
            "do_center_crop is true, which ConvNextImageProcessor would do after its own crop"
        )
    if side >= _CONVNEXT_WHOLE_SIDE:
        return {"size": square, "crop_size": None}
    resized = {"shortest_edge": int(side / fraction)}
    return {"size": resized, "crop_size": square, "do_center_crop": True}


def _poolformer_resize(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the resize of PoolFormer's class, which enlarges `size` by `crop_pct`, as size and crop."""
    size, fraction = settings["size"], settings["crop_pct"]
    if fraction is None:
        return {}
    lengths = set(size.values())
    if len(lengths) != 1:
        raise ValueError(f"size {shorten_value(size)} does not give a square")
    return {"size": {"shortest_edge": int(lengths.pop() / fraction)}}


def _efficientnet_normalization(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the normalization of EfficientNet's class as one mean and standard deviation of fractions of 255.

    The class may subtract 1 from the scaled pixels, and may divide them by the standard deviation twice.
    """
    factor = settings["rescale_factor"] / _RESCALE_FACTOR
    offset = 1 if settings["rescale_offset"] else 0
    power = 2 if settings["include_top"] else 1
    return {
        "rescale_factor": _RESCALE_FACTOR,
        "image_mean": [(mean + offset) / factor for mean in settings["image_mean"]],
        "image_std": [std**power / factor for std in settings["image_std"]],
    }


def _read_resize(content: dict[str, Any], aspect: ImageAspect) -> dict[str, Any]:
    """Return how an image is resized and cropped to a square."""
    size, crop = content["size"], content.get("crop_size")
    if isinstance(size, int):
        size = {"shortest_edge": size}
    crops = bool(content.get("do_center_crop", crop is not None))
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    described = f"size {shorten_value(size)} with crop_size {shorten_value(crop)}"
    if size.keys() == {"height", "width"}:
        if size["height"] != size["width"] or (crops and crop != size):
            raise ValueError(f"{described} is not a plain resize to a square")
        _check_lengths(size["height"])
        return {"side": size["height"], "resize_without_crop": True}
    if size.keys() != {"shortest_edge"}:
        raise ValueError(f"{described} does not give a square")
    edge = size["shortest_edge"]
    if crop is None or (aspect == "pad" and not crops):  # a padded image is square without a crop
        crop = {"height": edge, "width": edge}
    if not (crops or aspect == "pad") or not crop["height"] == crop["width"] <= edge:
        raise ValueError(f"{described} does not give a square")
    side = crop["height"]
    _check_lengths(side, edge)
    if aspect == "anyres" and side != edge:
        raise ValueError(f"{described} crops every tile, which is not supported")
    return {"side": side, "resize_shortest_edge": None if side == edge else edge}


def _check_lengths(*lengths: object) -> None:
    """Raise ValueError if lengths in pixels are not whole numbers in range."""
    for length in lengths:
        if type(length) is not int or not 1 <= length <= _MAX_LENGTH:
            raise ValueError(
                f"{length} pixels; a length must be a whole number from 1 to {_MAX_LENGTH:,}"
            )


def _read_normalization(content: dict[str, Any]) -> dict[str, Any]:
    """Return how pixels are resampled, scaled and normalized."""
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if content.get(step) not in (None, True):
            raise ValueError(f"{step} is {json.dumps(content[step])}, which is not supported")
    factor = content.get("rescale_factor")
    if factor is not None and not math.isclose(factor, _RESCALE_FACTOR, rel_tol=1e-4):
        raise ValueError(f"rescale_factor is {factor}; only 1 / 255 is supported")
    mean, std = tuple(map(float, content["image_mean"])), tuple(map(float, content["image_std"]))
    valid = all(map(math.isfinite, (*mean, *std))) and min(std, default=0) > 0
    if not (len(mean) == len(std) == _CHANNELS and valid):
        raise ValueError(
            f"image_mean {mean} and image_std {std} must hold three finite numbers each, std over 0"
        )
    return {
        "mean": mean,
        "std": std,
        "resample": Image.Resampling(content.get("resample", Image.Resampling.BICUBIC)),
    }


def _read_aspect(content: dict[str, Any]) -> dict[str, Any]:
    """Return how an image that is not square is prepared."""
    if pinpoints := content.get("image_grid_pinpoints"):
        sizes = pinpoints_from_disk(pinpoints)
        _check_lengths(*itertools.chain.from_iterable(sizes))
        return {"aspect": "anyres", "pinpoints": sizes}
    aspect: ImageAspect = "pad" if content.get("do_pad") else "square"
    return {"aspect": aspect}
