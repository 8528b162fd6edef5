"""Geometry of anyres, LLaVA-NeXT's and LLaVA-OneVision's: the tiles of an image and the order of their tokens.

Sizes are (width, height). Image processor, token counts and model use these functions only, so they never differ by a
rounding. Scaling is in floating point as in the original code and transformers, which gives the same pixels.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

from caldera.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

ImageAspect = Literal["square", "pad", "anyres"]

ASPECTS: tuple[ImageAspect, ...] = get_args(ImageAspect)

Size = tuple[int, int]
"""Width and height."""

RELEASED_GRIDS = ("1x2", "2x1", "2x2", "3x1", "1x3")
"""Columns x rows of tiles of the released LLaVA-NeXT models, in their order."""

ONEVISION_GRIDS = tuple(f"{columns}x{rows}" for columns in range(1, 7) for rows in range(1, 7))
"""Columns x rows of tiles of the released LLaVA-OneVision models, `(1x1),...,(6x6)` in their configs."""

_MIN_DOWNSCALE = 1.1
"""Factor up to which an image keeps more tokens than `anyres_max` allows, as in LLaVA-OneVision."""

NEWLINE_INDEX = -1
"""Index of the learned newline embedding in an order of tokens."""


@dataclass(frozen=True, slots=True)
class TileLayout:
    """The views of an image: a base view of the full image, then tiles, row by row."""

    columns: int = 0
    rows: int = 0
    """Columns and rows of tiles; 0 for the base view alone."""

    size: Size = (1, 1)
    """Size of the image; its aspect ratio decides which rows or columns of the tiles are padding."""

    anyres_max: int | None = None
    """Tiles whose number of patches the tokens of all tiles are scaled down to; None does not scale."""

    newline: bool = False
    """Whether the newline embedding ends a base view without tiles."""

    @property
    def views(self) -> int:
        """Number of square views that the vision tower encodes."""
        return 1 + self.columns * self.rows

    def padding(self, patches_per_side: int) -> Size:
        """Return the columns on the left and the rows at the top that are padding; the other side has as many.

        Computed in integers: in floating point the result is one too small for some sizes.
        """
        width, height = self.size
        across, down = self.columns * patches_per_side, self.rows * patches_per_side
        if width * down > height * across:
            return 0, (down - height * across // width) // 2
        return (across - width * down // height) // 2, 0

    def raster(self, patches_per_side: int) -> Size:
        """Return the columns and rows of patches of all tiles without their padding."""
        left, top = self.padding(patches_per_side)
        across, down = self.columns * patches_per_side, self.rows * patches_per_side
        return across - 2 * left, down - 2 * top

    def grid(self, patches_per_side: int) -> Size:
        """Return the columns and rows of tokens of all tiles: the raster, scaled down where `anyres_max` limits it."""
        columns, rows = self.raster(patches_per_side)
        if self.anyres_max is None:
            return columns, rows
        ratio = math.sqrt(columns * rows / (self.anyres_max * patches_per_side**2))
        if ratio <= _MIN_DOWNSCALE:
            return columns, rows
        return max(1, int(columns // ratio)), max(1, int(rows // ratio))


SINGLE_VIEW = TileLayout()
"""Layout of an image with one view."""

ONE_OF_SEVERAL = TileLayout(newline=True)
"""Layout of an image in a conversation with several, in LLaVA-OneVision."""


def grid_pinpoints(grids: Sequence[str], side: int) -> tuple[Size, ...]:
    """Return the sizes in pixels of grids such as `2x1`, two columns and one row, with tiles of `side` pixels."""
    matches = [re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", grid) for grid in grids]
    if not grids or not all(matches):
        raise UsageError(
            f"the grids of tiles are {', '.join(grids) or 'none'}; give columns x rows, such as 2x1,2x2"
        )
    return tuple((int(match[1]) * side, int(match[2]) * side) for match in matches if match)


def parse_anyres_max(aspect: str) -> int | None:
    """Return the number of an aspect such as `anyres_max_9`; None for other aspects."""
    match = re.fullmatch(r"anyres_max_([1-9]\d?)", aspect)
    return int(match[1]) if match else None


def choose_pinpoint(size: Size, pinpoints: Sequence[Size]) -> Size:
    """Return the canvas with the most pixels of the image, and of several the one with the least waste."""
    width, height = size

    def score(pinpoint: Size) -> tuple[int, int]:
        scale = min(pinpoint[0] / width, pinpoint[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - pinpoint[0] * pinpoint[1]

    # max returns the first of several equal ones.
    return max(pinpoints, key=score)


def fit_within(size: Size, pinpoint: Size) -> Size:
    """Return the size of an image scaled to fit a canvas."""
    (width, height), (across, down) = size, pinpoint
    if across / width < down / height:
        return across, min(math.ceil(height * (across / width)), down)
    return min(math.ceil(width * (down / height)), across), down


def choose_layout(
    size: Size, pinpoints: Sequence[Size], side: int, anyres_max: int | None = None
) -> TileLayout:
    """Return the layout of an image on its best canvas, in tiles of `side` pixels."""
    across, down = choose_pinpoint(size, pinpoints)
    return TileLayout(across // side, down // side, size, anyres_max)


def count_tokens(layout: TileLayout, patches_per_side: int) -> int:
    """Return the number of tokens of an image whose views consist of patches alone."""
    base = patches_per_side * patches_per_side
    if layout.views == 1:
        return base + layout.newline
    columns, rows = layout.grid(patches_per_side)
    return base + rows * (columns + 1)


@lru_cache(maxsize=4096)
def raster_patches(layout: TileLayout, patches_per_side: int) -> "Tensor":
    """Return the indices of the tiles' patches without padding, (raster rows, raster columns).

    Patches are numbered consecutively over all views, those of the base view first.
    """
    # Settings that name an aspect are read without torch, which takes seconds to import.
    import torch

    side, rows, columns = patches_per_side, layout.rows, layout.columns
    # A cached tensor of inference mode could not be used in training.
    with torch.inference_mode(mode=False):
        tiles = side * side + torch.arange(rows * columns * side * side)
        tiles = tiles.view(rows, columns, side, side)
        raster = tiles.transpose(1, 2).reshape(rows * side, columns * side)
        left, top = layout.padding(side)
        return raster[top : len(raster) - top, left : raster.shape[1] - left]


@lru_cache(maxsize=4096)
def image_token_order(layout: TileLayout, patches_per_side: int) -> "Tensor":
    """Return the patch index of each token of an image with tiles, (image tokens,), as LLaVA-NeXT's `spatial_unpad`.

    The patches of the base view come first; then those of the tiles as one raster without padding, with NEWLINE_INDEX
    after each row. Where the raster is scaled down, the patches of the scaled one are numbered after the base view's.
    """
    import torch

    base = torch.arange(patches_per_side * patches_per_side)  # (patches,)
    columns, rows = layout.grid(patches_per_side)
    if (columns, rows) == layout.raster(patches_per_side):
        cells = raster_patches(layout, patches_per_side)  # (rows, columns)
    else:
        cells = len(base) + torch.arange(rows * columns).view(rows, columns)
    newlines = torch.full((rows, 1), NEWLINE_INDEX)
    return torch.cat([base, torch.cat([cells, newlines], dim=1).flatten()])  # (image tokens,)
