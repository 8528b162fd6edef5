"""Geometry of LLaVA-NeXT's anyres: the tiles of an image and the order of their tokens.

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

NEWLINE_INDEX = -1
"""Index of the learned newline embedding, which ends each row of tiles, in an order of tokens."""


@dataclass(frozen=True, slots=True)
class TileLayout:
    """The views of an image: a base view of the full image, then tiles, row by row."""

    columns: int = 0
    rows: int = 0
    """Columns and rows of tiles; 0 for the base view alone."""

    size: Size = (1, 1)
    """Size of the image; its aspect ratio decides which rows or columns of the tiles are padding."""

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


SINGLE_VIEW = TileLayout()
"""Layout of an image with one view."""


def grid_pinpoints(grids: Sequence[str], side: int) -> tuple[Size, ...]:
    """Return the sizes in pixels of grids such as `2x1`, two columns and one row, with tiles of `side` pixels."""
    matches = [re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", grid) for grid in grids]
    if not grids or not all(matches):
        raise UsageError(
            f"the grids of tiles are {', '.join(grids) or 'none'}; give columns x rows, such as 2x1,2x2"
        )
    return tuple((int(match[1]) * side, int(match[2]) * side) for match in matches if match)


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


def choose_layout(size: Size, pinpoints: Sequence[Size], side: int) -> TileLayout:
    """Return the layout of an image on its best canvas, in tiles of `side` pixels."""
    across, down = choose_pinpoint(size, pinpoints)
    return TileLayout(across // side, down // side, size)


def count_tokens(layout: TileLayout, patches_per_side: int) -> int:
    """Return the number of tokens of an image."""
    left, top = layout.padding(patches_per_side)
    across = layout.columns * patches_per_side - 2 * left
    down = layout.rows * patches_per_side - 2 * top
    return patches_per_side * patches_per_side + down * (across + 1)


@lru_cache(maxsize=4096)
def image_token_order(layout: TileLayout, patches_per_side: int) -> "Tensor":
    """Return the patch index of each token of an image with tiles, (image tokens,), as LLaVA-NeXT's `spatial_unpad`.

    The patches of the base view come first; then those of the tiles as one raster without padding, with NEWLINE_INDEX
    after each row. Patches are numbered consecutively over all views.
    """
    # Settings that name an aspect are read without torch, which takes seconds to import.
    import torch

    side, rows, columns = patches_per_side, layout.rows, layout.columns
    base = torch.arange(side * side)  # (patches,)
    tiles = side * side + torch.arange(rows * columns * side * side).view(rows, columns, side, side)
    raster = tiles.transpose(1, 2).reshape(rows * side, columns * side)
    left, top = layout.padding(side)
    unpadded = raster[top : len(raster) - top, left : raster.shape[1] - left]
    newlines = torch.full((len(unpadded), 1), NEWLINE_INDEX)
    return torch.cat([base, torch.cat([unpadded, newlines], dim=1).flatten()])  # (image tokens,)
