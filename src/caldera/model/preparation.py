"""An image processor's file in, a PictureProcessor out: how a tower's or an assistant's pictures are prepared."""

import json
from pathlib import Path
from typing import Any

from caldera.batches.pictures import Aspect, PictureProcessor
from caldera.errors import ModelFolderError
from caldera.model.card import Card
from caldera.model.transformers_files import pinpoints_from_disk


def _geometry(content: dict[str, Any]) -> dict[str, Any]:
    """Read out of an image processor's settings how a picture comes to its square.

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


def _aspect(content: dict[str, Any]) -> dict[str, Any]:
    """Read out of an image processor's settings how a picture that is not square is shown."""
    if "image_grid_pinpoints" in content:
        pinpoints = pinpoints_from_disk(content["image_grid_pinpoints"])
        return {"aspect": "anyres", "pinpoints": pinpoints}
    aspect: Aspect = "pad" if content.get("do_pad") else "square"
    return {"aspect": aspect}


def load_processor(folder: Path, card: Card | None = None) -> PictureProcessor:
    """Read how pictures are prepared from `processor_config.json` or `preprocessor_config.json`.

    Args:
        folder: A model folder or a vision tower's.
        card: Says how a picture that is not square is shown; without one, the file does.

    Raises:
        ModelFolderError: Neither is there, or it lacks a setting.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            continue
        try:
            content = json.loads((folder / name).read_bytes())
            content = content.get("image_processor", content)
            return PictureProcessor(
                **_geometry(content),
                mean=tuple(content["image_mean"]),
                std=tuple(content["image_std"]),
                **(
                    {"aspect": card.aspect, "pinpoints": card.pinpoints}
                    if card
                    else _aspect(content)
                ),
                resample=content.get("resample", 3),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFolderError(
                f"{folder / name} does not say how pictures are prepared: {error}"
            ) from None
    raise ModelFolderError(f"{folder} has no preprocessor_config.json")
