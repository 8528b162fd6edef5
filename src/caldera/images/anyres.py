"""An image's size in, how it is cut into views and which tokens they become out: LLaVA-NeXT's geometry.

Sizes are (width, height). Preparation, counting and model take every number from here, so they cannot differ by a
rounding. Where the original and transformers scale in floating point, so does this, as the same pixels are wanted.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from caldera.errors import UsageError

Size = tuple[int, int]
"""Width and height."""

RELEASED_GRIDS = ("1x2", "2x1", "2x2", "3x1", "1x3")
"""Columns x rows of tiles that the released LLaVA-NeXT models know, in their order."""

NEWLINE_INDEX = -1
"""Stands in an order of tokens for the learned vector that ends each row of tiles."""


@dataclass(frozen=True, slots=True)
class TileLayout:
    """How the views of one image lie: the base view of all of it, then tiles, row by row."""

    columns: int = 0
    rows: int = 0
    """Of tiles; no tile where there is only the base view."""

    size: Size = (1, 1)
    """Of the image; its proportion tells which rows or columns of the tiles are padding."""

    @property
    def views(self) -> int:
        """Squares that the vision tower looks at."""
        return 1 + self.columns * self.rows

    def padding(self, patches_per_side: int) -> Size:
        """Return the columns left and the rows above that are padding; as many are cut on the other side.

        In whole numbers: the float form is one too small for some sizes (spec 1.7).

        Args:
            cells: Patches along each side of a view.
        """
        width, height = self.size
        across, down = self.columns * patches_per_side, self.rows * patches_per_side
        if width * down > height * across:
            return 0, (down - height * across // width) // 2
        return (across - width * down // height) // 2, 0


SINGLE_VIEW = TileLayout()
"""An image that is shown as one view."""


def grid_pinpoints(grids: Sequence[str], side: int) -> tuple[Size, ...]:
    """Return the sizes in pixels of grids such as `2x1`, two columns and one row, for a tower that sees `side` pixels.

    Raises:
        UsageError: There are none, or one is not written so.
    """
    found = [re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", grid) for grid in grids]
    if not grids or not all(found):
        raise UsageError(
            f"the grids of tiles are {', '.join(grids) or 'none'}; give columns x rows, such as 2x1,2x2"
        )
    return tuple((int(match[1]) * side, int(match[2]) * side) for match in found if match)


def choose_pinpoint(size: Size, pinpoints: Sequence[Size]) -> Size:
    """Return the canvas that keeps most of an image's pixels, of these the one with the least waste (spec 1.7)."""
    width, height = size

    def worth(pinpoint: Size) -> tuple[int, int]:
        scale = min(pinpoint[0] / width, pinpoint[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - pinpoint[0] * pinpoint[1]

    return max(pinpoints, key=worth)  # the first of equals


def fit_within(size: Size, pinpoint: Size) -> Size:
    """Return the size of an image that is scaled to fit a canvas."""
    (width, height), (across, down) = size, pinpoint
    if across / width < down / height:
        return across, min(math.ceil(height * (across / width)), down)
    return min(math.ceil(width * (down / height)), across), down


def choose_layout(size: Size, pinpoints: Sequence[Size], side: int) -> TileLayout:
    """Return how an image is tiled on the canvas that suits it best, in tiles of `side` pixels."""
    across, down = choose_pinpoint(size, pinpoints)
    return TileLayout(across // side, down // side, size)


def count_tokens(layout: TileLayout, patches_per_side: int) -> int:
    """Return how many tokens an image becomes, for towers with `cells` patches along each side of a view."""
    left, above = layout.padding(patches_per_side)
    across, down = (
        layout.columns * patches_per_side - 2 * left,
        layout.rows * patches_per_side - 2 * above,
    )
    return patches_per_side * patches_per_side + down * (across + 1)


@lru_cache(maxsize=4096)
def image_token_order(layout: TileLayout, patches_per_side: int) -> Tensor:
    """Return which patch each token of an image is, (image tokens,), as LLaVA-NeXT's `spatial_unpad` lays them.

    The base view's patches come first; then the tiles' as one large raster without the rows or columns that are
    padding, NEWLINE after each of its rows. Patches count on through the views.

    Args:
        layout: Of an image with tiles.
        cells: Patches along each side of a view.
    """
    base = torch.arange(patches_per_side * patches_per_side)  # (patches,)
    tiles = (
        torch.arange(layout.rows * layout.columns * patches_per_side * patches_per_side)
        + patches_per_side * patches_per_side
    )
    grid = tiles.view(layout.rows, layout.columns, patches_per_side, patches_per_side)
    raster = grid.transpose(1, 2).reshape(
        layout.rows * patches_per_side, layout.columns * patches_per_side
    )
    left, above = layout.padding(patches_per_side)
    kept = raster[above : len(raster) - above, left : raster.shape[1] - left]
    ends = torch.full((len(kept), 1), NEWLINE_INDEX)
    return torch.cat([base, torch.cat([kept, ends], dim=1).flatten()])  # (image tokens,)
