"""Image processor: from an RGB image to the input pixels of the vision tower."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from caldera.images.anyres import (
    ONE_OF_SEVERAL,
    SINGLE_VIEW,
    ImageAspect,
    Size,
    TileLayout,
    choose_layout,
    choose_pinpoint,
    fit_within,
)
from caldera.images.decoding import DEFAULT_DECODING, DecodingConfig, image_size

MAX_TILES = 100
"""Maximal number of tiles of a canvas, so that no model folder can require any amount of memory for an image."""

_BAND_ROWS = 256
"""Rows of an image that are padded and resized together; a long image padded as a whole would take a gigabyte."""

MAX_ASPECT_RATIO = 20
"""Aspect ratio above which only the center crop of an image is enlarged; all of it would take up to gigabytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageProcessor:
    """Resizes, crops and normalizes images as the vision tower was trained, like CLIP's image processor."""

    side: int
    """Width and height of the tower's input, in pixels."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    aspect: ImageAspect = "square"
    """`square` takes the center crop (LLaVA); `pad` pads to a square with the mean color (LLaVA-1.5); `anyres` resizes
    the full image to a square and adds tiles (LLaVA-NeXT)."""

    pinpoints: tuple[Size, ...] = ()
    """Sizes of the canvases of `anyres`; empty for other aspects."""

    anyres_max: int | None = None
    """LLaVA-OneVision's limit of `anyres`, 9 in `anyres_max_9`: the tokens of more tiles are scaled down to those of as
    many. Each of several images in a conversation then is one view, padded to a square with the mean color. None is
    LLaVA-NeXT's anyres: no image is scaled down, and each of several has tiles."""

    resample: int = Image.Resampling.BICUBIC

    resize_shortest_edge: int | None = None
    """Length of the shorter edge before the center crop, as in DINOv2's processor; `side` if None."""

    resize_without_crop: bool = False
    """Whether the image is resized to the square instead of cropped, as in SigLIP's processor."""

    def __post_init__(self) -> None:
        """Check the pinpoints."""
        if (self.aspect == "anyres") != bool(self.pinpoints):
            raise ValueError(f"aspect {self.aspect} with the pinpoints {self.pinpoints}")
        if self.anyres_max is not None and (self.aspect != "anyres" or self.anyres_max < 1):
            raise ValueError(f"aspect {self.aspect} with anyres_max {self.anyres_max}")
        for pinpoint in self.pinpoints:
            if any(length % self.side or length < self.side for length in pinpoint):
                raise ValueError(
                    f"the pinpoint {pinpoint} does not divide into tiles of {self.side} x {self.side} pixels"
                )
            if (tiles := pinpoint[0] * pinpoint[1] // self.side**2) > MAX_TILES:
                raise ValueError(
                    f"the pinpoint {pinpoint} has {tiles:,} tiles, over the limit of {MAX_TILES}"
                )

    def with_aspect(
        self, aspect: ImageAspect, pinpoints: tuple[Size, ...] = (), anyres_max: int | None = None
    ) -> Self:
        """Return a processor with another aspect; the views of `anyres` have the tower's size without a crop."""
        changed = replace(self, aspect=aspect, pinpoints=pinpoints, anyres_max=anyres_max)
        if aspect != "anyres":
            return changed
        return replace(changed, resize_shortest_edge=None, resize_without_crop=False)

    def layout(self, size: Size, *, several: bool = False) -> TileLayout:
        """Return the layout of an image, which may be one of several in its conversation."""
        if not self.uses_tiles(several=several):
            return ONE_OF_SEVERAL if self.aspect == "anyres" else SINGLE_VIEW
        return choose_layout(size, self.pinpoints, self.side, self.anyres_max)

    def layouts(
        self, paths: Sequence[Path], decoding: DecodingConfig = DEFAULT_DECODING
    ) -> tuple[TileLayout, ...]:
        """Return the layouts of all images of a conversation; the files are read only if their sizes count.

        Raises:
            ImageError: The size of an image counts, but cannot be read.
        """
        several = len(paths) > 1
        if not self.uses_tiles(several=several):
            return (self.layout((1, 1), several=several),) * len(paths)
        return tuple(self.layout(image_size(path, decoding), several=several) for path in paths)

    def uses_tiles(self, *, several: bool) -> bool:
        """Return whether images have tiles, in a conversation with one image or with several."""
        return self.aspect == "anyres" and (self.anyres_max is None or not several)

    @property
    def _edge(self) -> int:
        """Length of the shorter edge of a resized image."""
        if self.resize_without_crop or self.resize_shortest_edge is None:
            return self.side
        return self.resize_shortest_edge

    def __call__(self, image: Image.Image, layout: TileLayout | None = None) -> Tensor:
        """Return the normalized pixels of all views of an RGB image, (views, channels, side, side).

        Args:
            image: The image.
            layout: Its layout; None for the only image of a conversation.
        """
        layout = layout or self.layout(image.size)
        return torch.stack([self._normalize(view) for view in self._crop_views(image, layout)])

    def _crop_views(self, image: Image.Image, layout: TileLayout) -> list[Image.Image]:
        """Return the square views of an image."""
        if layout.views > 1:
            base = image.resize((self.side, self.side), Image.Resampling(self.resample))
            return [base, *self._tiles(image)]
        if self.aspect == "square":
            return [self._resize_and_crop(image)]
        return [self._resize_and_crop(self._pad_and_resize(image))]

    def _normalize(self, view: Image.Image) -> Tensor:
        """Return the normalized pixels of a view, (channels, side, side)."""
        values = np.asarray(view, dtype=np.float32) / 255  # (height, width, channels)
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(values.transpose(2, 0, 1).copy())  # (channels, height, width)

    def _pad_and_resize(self, image: Image.Image) -> Image.Image:
        """Pad an image to a square with the mean color (offsets are rounded down, as in LLaVA), and resize the square.

        The result is that of padding and resizing the image as a whole: Pillow resizes rows first, then columns.
        """
        red, green, blue = (int(255 * part) for part in self.mean)
        length, edge = max(image.size), self._edge
        narrow = Image.new("RGB", (edge, length), (red, green, blue))
        for top in range(0, image.height, _BAND_ROWS):
            rows = image.crop((0, top, image.width, min(top + _BAND_ROWS, image.height)))
            band = _center(rows, (length, rows.height), (red, green, blue))
            resized = band.resize((edge, rows.height), Image.Resampling(self.resample))
            narrow.paste(resized, (0, (length - image.height) // 2 + top))
        return narrow.resize((edge, edge), Image.Resampling(self.resample))

    def _tiles(self, image: Image.Image) -> list[Image.Image]:
        """Fit an image on its best canvas, on black, and return the tiles of the canvas, row by row."""
        size = choose_pinpoint(image.size, self.pinpoints)
        resized = image.resize(fit_within(image.size, size), Image.Resampling(self.resample))
        canvas = _center(resized, size, (0, 0, 0))
        return [
            canvas.crop((left, top, left + self.side, top + self.side))
            for top in range(0, size[1], self.side)
            for left in range(0, size[0], self.side)
        ]

    def _resize_and_crop(self, image: Image.Image) -> Image.Image:
        """Resize the shorter edge and take the center crop, or resize without a crop."""
        resample = Image.Resampling(self.resample)
        width, height = image.size
        if self.resize_without_crop:
            return image.resize((self.side, self.side), resample)
        edge = self._edge
        length = edge * max(width, height) // min(width, height)
        size = (edge, length) if width <= height else (length, edge)
        left, top = ((long - self.side) // 2 for long in size)
        if length > MAX_ASPECT_RATIO * edge:
            return self._resize_crop_only(image, size, (left, top))
        return image.resize(size, resample).crop((left, top, left + self.side, top + self.side))

    def _resize_crop_only(self, image: Image.Image, size: Size, corner: Size) -> Image.Image:
        """Return the crop at `corner` of an image resized to `size`, without resizing the rest of it."""
        (width, height), (across, down), (left, top) = image.size, size, corner
        box = (
            left * width / across,
            top * height / down,
            (left + self.side) * width / across,
            (top + self.side) * height / down,
        )
        return image.resize((self.side, self.side), Image.Resampling(self.resample), box=box)


def _center(image: Image.Image, size: Size, color: tuple[int, int, int]) -> Image.Image:
    """Return a canvas of one color with an image pasted in its center."""
    canvas = Image.new("RGB", size, color)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas
