"""An image processor's file in, a ImageProcessor out: how a tower's or an assistant's images are prepared."""

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from caldera.errors import ModelFormatError
from caldera.formats.transformers_config import pinpoints_from_disk
from caldera.images.processor import ImageAspect, ImageProcessor
from caldera.model.assistant import ModelMetadata

_OF_BYTES = 1 / 255
"""What bytes of an image are multiplied by."""

_CHANNELS = 3


def _read_resize(content: dict[str, Any]) -> dict[str, Any]:
    """Read out of an image processor's settings how an image comes to its square.

    Raises:
        ValueError: It does not end as a square, or a square is cut out of what is smaller.
        KeyError: A size is missing.
    """
    size, crop = content["size"], content.get("crop_size")
    if isinstance(size, int):
        size = {"shortest_edge": size}
    cropped = bool(content.get("do_center_crop", crop is not None))
    if "shortest_edge" not in size:
        if size["height"] != size["width"] or cropped:
            raise ValueError(f"size {size} with crop_size {crop} is no square that is only resized")
        return {"side": size["height"], "squash": True}
    edge = size["shortest_edge"]
    crop = {"height": crop or edge, "width": crop or edge} if not isinstance(crop, dict) else crop
    if not cropped or not crop["height"] == crop["width"] <= edge:
        raise ValueError(f"size {size} with crop_size {crop} does not end as a square")
    return {"side": crop["height"], "edge": None if crop["height"] == edge else edge}


def _read_normalization(content: dict[str, Any]) -> dict[str, Any]:
    """Read out of an image processor's settings how its pixels are sampled, scaled and normalized.

    Raises:
        ValueError: It does so in another way than ImageProcessor, or with numbers that cannot be.
        KeyError: A mean or deviation is missing.
    """
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if content.get(step) is False:
            raise ValueError(f"{step} is false, so its pixels are others; not supported")
    factor = content.get("rescale_factor") or _OF_BYTES
    if not math.isclose(factor, _OF_BYTES, rel_tol=1e-4):
        raise ValueError(f"rescale_factor is {factor}; only 1 / 255 is supported")
    mean, std = tuple(map(float, content["image_mean"])), tuple(map(float, content["image_std"]))
    numbers = all(map(math.isfinite, (*mean, *std))) and min(std, default=0) > 0
    if not (len(mean) == len(std) == _CHANNELS and numbers):
        raise ValueError(
            f"image_mean {mean} and image_std {std} are not three numbers each, std over 0"
        )
    return {"mean": mean, "std": std, "resample": Image.Resampling(content.get("resample", 3))}


def _read_aspect(content: dict[str, Any]) -> dict[str, Any]:
    """Read out of an image processor's settings how an image that is not square is shown."""
    if "image_grid_pinpoints" in content:
        pinpoints = pinpoints_from_disk(content["image_grid_pinpoints"])
        return {"aspect": "anyres", "pinpoints": pinpoints}
    aspect: ImageAspect = "pad" if content.get("do_pad") else "square"
    return {"aspect": aspect}


def load_processor(folder: Path, card: ModelMetadata | None = None) -> ImageProcessor:
    """Read how images are prepared from `processor_config.json` or `preprocessor_config.json`.

    Args:
        folder: A model folder or a vision tower's.
        card: Says how an image that is not square is shown; without one, the file does.

    Raises:
        ModelFolderError: Neither is there, or it lacks a setting.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            continue
        try:
            content = json.loads((folder / name).read_bytes())
            content = content.get("image_processor", content)
            return ImageProcessor(
                **_read_resize(content),
                **_read_normalization(content),
                **(
                    {"aspect": card.image_aspect, "pinpoints": card.pinpoints}
                    if card
                    else _read_aspect(content)
                ),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFormatError(
                f"{folder / name} does not say how images are prepared: {error}"
            ) from None
    raise ModelFormatError(f"{folder} has no preprocessor_config.json")
