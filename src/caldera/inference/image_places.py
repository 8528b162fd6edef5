"""An image's size and how it was shown in, where in the image each of its image tokens looked out.

Places are shares of the image: 0 is its left or upper edge, 1 its right or lower one. What was shown beyond the
image, as the ground around a padded one, lies below 0 or above 1.
"""

import torch
from torch import Tensor

from caldera.batches.anyres import (
    NEWLINE_INDEX,
    Size,
    TileLayout,
    choose_pinpoint,
    fit_within,
    image_token_order,
)
from caldera.batches.images import ImageProcessor
from caldera.model.vision import VisionTower

Rectangle = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of the image."""

_WHOLE: Rectangle = (0.0, 0.0, 1.0, 1.0)


def token_boxes(
    size: Size, layout: TileLayout, processor: ImageProcessor, tower: VisionTower
) -> Tensor:
    """Return the place of each image token, (image tokens, 4): left, top, right, bottom as shares of the image.

    Tokens that stand for no place, as those which end a row of tiles, have a box of all zeros.
    """
    views = view_boxes(size, layout, processor)
    patches = torch.cat(
        [_patches(view, tower.patches_per_side) for view in views]
    )  # (views * patches, 4)
    nowhere = torch.zeros(1, 4)
    if layout.views == 1:
        return torch.cat([nowhere.expand(tower.tokens_per_view - tower.patches, 4), patches])
    order = image_token_order(layout, tower.patches_per_side)  # (image tokens,)
    return torch.cat([patches, nowhere])[torch.where(order == NEWLINE_INDEX, len(patches), order)]


def view_boxes(size: Size, layout: TileLayout, processor: ImageProcessor) -> list[Rectangle]:
    """Return which part of an image each view shows: the base view, then the tiles, row by row."""
    match processor.aspect:
        case "square":
            return [_square(size, processor)]
        case "pad":
            return [_padded(size, processor)]
        case "anyres":
            return [_WHOLE, *_tiles(size, layout, processor)]


def rasterize(weights: Tensor, boxes: Tensor, grid: Size) -> Tensor:
    """Spread weights of image tokens over an image, each evenly over its box; what lies beyond the edge is left out.

    Args:
        weights: Of image tokens, (rows, image tokens).
        boxes: Their places, (image tokens, 4).
        grid: Columns and rows of the result.

    Returns:
        Weight in each cell, (rows, grid rows, grid columns).
    """
    across = _overlap(boxes[:, 0], boxes[:, 2], grid[0])  # (image tokens, grid columns)
    down = _overlap(boxes[:, 1], boxes[:, 3], grid[1])  # (image tokens, grid rows)
    return torch.einsum("wt,td,ta->wda", weights, down, across)


def _overlap(begin: Tensor, end: Tensor, cells: int) -> Tensor:
    """Return the share of each stretch that lies in each of `cells` equal parts of 0 to 1, (stretches, cells)."""
    edges = torch.arange(cells + 1) / cells  # (cells + 1,)
    inside = torch.minimum(end[:, None], edges[1:]) - torch.maximum(begin[:, None], edges[:-1])
    return inside.clamp(min=0) / (end - begin).clamp(min=1e-12)[:, None]


def _patches(view: Rectangle, cells: int) -> Tensor:
    """Cut a view into its patches, row by row, (patches, 4)."""
    left, top, right, bottom = view
    steps = torch.arange(cells) / cells
    across, down = left + steps * (right - left), top + steps * (bottom - top)
    width, height = (right - left) / cells, (bottom - top) / cells
    tops, lefts = torch.meshgrid(down, across, indexing="ij")
    boxes = torch.stack([lefts, tops, lefts + width, tops + height], dim=-1)
    return boxes.flatten(0, 1)


def _square(size: Size, processor: ImageProcessor) -> Rectangle:
    """Return the central square, or everything if the processor squashes."""
    if processor.resize_without_crop:
        return _WHOLE
    width, height = size
    edge = (
        processor.side if processor.resize_shortest_edge is None else processor.resize_shortest_edge
    )
    length = edge * max(size) // min(size)
    resized = (edge, length) if width <= height else (length, edge)
    left, top = ((long - processor.side) // 2 for long in resized)
    return _normalize_box((left, top), (processor.side, processor.side), resized)


def _padded(size: Size, processor: ImageProcessor) -> Rectangle:
    """Return the square around an image."""
    longest = max(size)
    seen = _square((longest, longest), processor)
    offsets = [(longest - length) // 2 for length in size]
    left, right = ((share * longest - offsets[0]) / size[0] for share in (seen[0], seen[2]))
    top, bottom = ((share * longest - offsets[1]) / size[1] for share in (seen[1], seen[3]))
    return left, top, right, bottom


def _tiles(size: Size, layout: TileLayout, processor: ImageProcessor) -> list[Rectangle]:
    """Return the tiles of the canvas on which an image lies in the middle."""
    canvas = choose_pinpoint(size, processor.pinpoints)
    small = fit_within(size, canvas)
    left, top = ((long - short) // 2 for long, short in zip(canvas, small, strict=True))
    side = processor.side
    return [
        _normalize_box((column * side - left, row * side - top), (side, side), small)
        for row in range(layout.rows)
        for column in range(layout.columns)
    ]


def _normalize_box(corner: Size, extent: Size, whole: Size) -> Rectangle:
    """Return a rectangle in pixels as shares of a whole."""
    (left, top), (width, height), (across, down) = corner, extent, whole
    return left / across, top / down, (left + width) / across, (top + height) / down
