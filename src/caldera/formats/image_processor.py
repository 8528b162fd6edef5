"""Reader of transformers' image processor files."""

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from caldera.errors import ModelFormatError
from caldera.formats.transformers_config import pinpoints_from_disk
from caldera.images.anyres import ImageAspect
from caldera.images.processor import ImageProcessor
from caldera.model.bundle import ModelMetadata

_RESCALE_FACTOR = 1 / 255
_CHANNELS = 3


def load_processor(folder: Path, metadata: ModelMetadata | None = None) -> ImageProcessor:
    """Read the image processor from `processor_config.json` or `preprocessor_config.json`.

    Args:
        folder: A model folder or a vision tower's.
        metadata: Decides how images that are not square are prepared; without it, the file does.

    Raises:
        ModelFormatError: Neither file is there, or it lacks a setting.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            continue
        try:
            content = json.loads((folder / name).read_bytes())
            content = content.get("image_processor", content)
            aspect = (
                {
                    "aspect": metadata.image_aspect,
                    "pinpoints": metadata.pinpoints,
                    "anyres_max": metadata.anyres_max,
                }
                if metadata
                else _read_aspect(content)
            )
            processor = ImageProcessor(**_read_resize(content), **_read_normalization(content))
            return processor.with_aspect(**aspect)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFormatError(
                f"{folder / name} has no usable image processor: {error}"
            ) from None
    raise ModelFormatError(f"{folder} has no preprocessor_config.json")


def _read_resize(content: dict[str, Any]) -> dict[str, Any]:
    """Return how an image is resized and cropped to a square."""
    size, crop = content["size"], content.get("crop_size")
    if isinstance(size, int):
        size = {"shortest_edge": size}
    crops = bool(content.get("do_center_crop", crop is not None))
    if "shortest_edge" not in size:
        if size["height"] != size["width"] or crops:
            raise ValueError(f"size {size} with crop_size {crop} is not a plain resize to a square")
        return {"side": size["height"], "resize_without_crop": True}
    edge = size["shortest_edge"]
    crop = {"height": crop or edge, "width": crop or edge} if not isinstance(crop, dict) else crop
    if not crops or not crop["height"] == crop["width"] <= edge:
        raise ValueError(f"size {size} with crop_size {crop} does not give a square")
    side = crop["height"]
    return {"side": side, "resize_shortest_edge": None if side == edge else edge}


def _read_normalization(content: dict[str, Any]) -> dict[str, Any]:
    """Return how pixels are resampled, scaled and normalized."""
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if content.get(step) is False:
            raise ValueError(f"{step} is false, which is not supported")
    factor = content.get("rescale_factor") or _RESCALE_FACTOR
    if not math.isclose(factor, _RESCALE_FACTOR, rel_tol=1e-4):
        raise ValueError(f"rescale_factor is {factor}; only 1 / 255 is supported")
    mean, std = tuple(map(float, content["image_mean"])), tuple(map(float, content["image_std"]))
    valid = all(map(math.isfinite, (*mean, *std))) and min(std, default=0) > 0
    if not (len(mean) == len(std) == _CHANNELS and valid):
        raise ValueError(
            f"image_mean {mean} and image_std {std} must hold three finite numbers each, std over 0"
        )
    return {"mean": mean, "std": std, "resample": Image.Resampling(content.get("resample", 3))}


def _read_aspect(content: dict[str, Any]) -> dict[str, Any]:
    """Return how an image that is not square is prepared."""
    if "image_grid_pinpoints" in content:
        pinpoints = pinpoints_from_disk(content["image_grid_pinpoints"])
        return {"aspect": "anyres", "pinpoints": pinpoints}
    aspect: ImageAspect = "pad" if content.get("do_pad") else "square"
    return {"aspect": aspect}
