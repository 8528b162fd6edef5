"""An RGB image in, the vision tower's pixels out."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from caldera.images.anyres import (
    SINGLE_VIEW,
    Size,
    TileLayout,
    choose_layout,
    choose_pinpoint,
    fit_within,
)
from caldera.images.decoding import image_size

ImageAspect = Literal["square", "pad", "anyres"]

ASPECTS: tuple[ImageAspect, ...] = get_args(ImageAspect)
"""All of them."""

MAX_TILES = 100
"""Canvases of more tiles are refused; a model folder could else ask for any amount of memory for each image."""

MAX_ASPECT_RATIO = 20
"""Of images that are more times as long as wide, only the part that will be seen is enlarged: of all of it, the rest
would take up to gigabytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageProcessor:
    """Brings an image into the shape, size and range its vision tower was trained on, as CLIP's processor does."""

    side: int
    """Pixels along each side of what the tower sees."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    aspect: ImageAspect = "square"
    """`square` crops what lies outside the central square (LLaVA); `pad` shows all of it on a ground of the mean
    color (LLaVA-1.5); `anyres` shows all of it, pressed into a square, and then in tiles (LLaVA-NeXT)."""

    pinpoints: tuple[Size, ...] = ()
    """Sizes of the canvases that `anyres` chooses from; none for the others."""

    resample: int = Image.Resampling.BICUBIC

    resize_shortest_edge: int | None = None
    """Pixels of the shorter edge before the central square is cut, as DINOv2's processor has it; `side` if None."""

    resize_without_crop: bool = False
    """Whether an image is pressed into the square instead of cut to it, as SigLIP's processor does."""

    def __post_init__(self) -> None:
        """Check that pinpoints are there where they are needed, and cut into whole tiles, not too many.

        Raises:
            ValueError: They do not.
        """
        if (self.aspect == "anyres") != bool(self.pinpoints):
            raise ValueError(f"aspect {self.aspect} with the pinpoints {self.pinpoints}")
        for pinpoint in self.pinpoints:
            if any(length % self.side or length < self.side for length in pinpoint):
                raise ValueError(
                    f"the pinpoint {pinpoint} does not cut into tiles of {self.side} x {self.side} pixels"
                )
            if (tiles := pinpoint[0] * pinpoint[1] // self.side**2) > MAX_TILES:
                raise ValueError(
                    f"the pinpoint {pinpoint} has {tiles:,} tiles, over the limit of {MAX_TILES}"
                )

    def with_aspect(self, aspect: ImageAspect, pinpoints: tuple[Size, ...] = ()) -> Self:
        """Return one that shows images in another way; views of `anyres` have the tower's size from the start.

        Raises:
            ValueError: The pinpoints do not go with the aspect, or do not cut into whole tiles.
        """
        own = {"edge": None, "squash": False} if aspect == "anyres" else {}
        return replace(self, aspect=aspect, pinpoints=pinpoints, **own)  # type: ignore[arg-type]

    def layout(self, path: Path) -> TileLayout:
        """Return how the image at `path` is shown; only `anyres` has to look into the file.

        Raises:
            ImageError: It is not there, or cannot be used.
        """
        if self.aspect != "anyres":
            return SINGLE_VIEW
        return choose_layout(image_size(path), self.pinpoints, self.side)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the pixels of all views of an RGB image, (views, channels, side, side), normalized."""
        return torch.stack([self._normalized(view) for view in self._crop_views(image)])

    def _crop_views(self, image: Image.Image) -> list[Image.Image]:
        """Return the squares that the tower sees."""
        match self.aspect:
            case "square":
                return [self._square(image)]
            case "pad":
                return [self._square(self._padded(image))]
            case "anyres":
                base = image.resize((self.side, self.side), Image.Resampling(self.resample))
                return [base, *self._tiles(image)]

    def _normalized(self, view: Image.Image) -> Tensor:
        """Return a square as (channels, side, side)."""
        values = np.asarray(view, dtype=np.float32) / 255  # (height, width, channels)
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(values.transpose(2, 0, 1).copy())  # (channels, height, width)

    def _padded(self, image: Image.Image) -> Image.Image:
        """Paste an image in the middle of a square of the mean color (spec 1.8: offsets are floored)."""
        longest = max(image.size)
        red, green, blue = (int(255 * part) for part in self.mean)
        return _centerd(image, (longest, longest), (red, green, blue))

    def _tiles(self, image: Image.Image) -> list[Image.Image]:
        """Fit an image on the canvas that suits it best, on black, and cut that into tiles, row by row."""
        canvas = choose_pinpoint(image.size, self.pinpoints)
        small = image.resize(fit_within(image.size, canvas), Image.Resampling(self.resample))
        whole = _centerd(small, canvas, (0, 0, 0))
        return [
            whole.crop((left, top, left + self.side, top + self.side))
            for top in range(0, canvas[1], self.side)
            for left in range(0, canvas[0], self.side)
        ]

    def _square(self, image: Image.Image) -> Image.Image:
        """Resize so that the shorter edge is `edge` long and cut out the central square of `side`; or squash."""
        resample = Image.Resampling(self.resample)
        width, height = image.size
        if self.resize_without_crop:
            return image.resize((self.side, self.side), resample)
        edge = self.side if self.resize_shortest_edge is None else self.resize_shortest_edge
        length = edge * max(width, height) // min(width, height)
        size = (edge, length) if width <= height else (length, edge)
        left, top = ((long - self.side) // 2 for long in size)
        if length > MAX_ASPECT_RATIO * edge:
            return self._resize_crop_only(image, size, (left, top))
        return image.resize(size, resample).crop((left, top, left + self.side, top + self.side))

    def _resize_crop_only(self, image: Image.Image, size: Size, corner: Size) -> Image.Image:
        """Return a square of an image as if it had been resized to `size`, without making all of that."""
        (width, height), (across, down), (left, top) = image.size, size, corner
        box = (
            left * width / across,
            top * height / down,
            (left + self.side) * width / across,
            (top + self.side) * height / down,
        )
        return image.resize((self.side, self.side), Image.Resampling(self.resample), box=box)


def _centerd(image: Image.Image, size: Size, color: tuple[int, int, int]) -> Image.Image:
    """Paste an image in the middle of a ground of one color."""
    ground = Image.new("RGB", size, color)
    ground.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return ground
