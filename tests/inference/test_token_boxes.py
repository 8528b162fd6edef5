"""Boxes of image tokens are where the processor took their pixels from."""

import numpy as np
import pytest
import torch
from PIL import Image

from caldera.images.anyres import ImageAspect, grid_pinpoints
from caldera.images.processor import ImageProcessor
from caldera.inference.attention_maps import rasterize, token_boxes, view_boxes
from caldera.inference.prompts import process_image
from caldera.model.bundle import LlavaBundle

SIDE, CELLS = 84, 3


def processor(aspect: ImageAspect, **more: object) -> ImageProcessor:
    """Return a processor that keeps pixel values, with views of 84 pixels."""
    plain = ImageProcessor(side=SIDE, mean=(0, 0, 0), std=(1, 1, 1), **more)  # type: ignore[arg-type]
    return plain.with_aspect(
        aspect, grid_pinpoints(["1x2", "2x1", "2x2"], SIDE) if aspect == "anyres" else ()
    )


def gradients(size: tuple[int, int]) -> Image.Image:
    """Return an image whose red is a pixel's position from the left, green from the top, and blue 1."""
    width, height = size
    across = np.tile((np.arange(width) + 0.5) / width, (height, 1))
    down = np.tile(((np.arange(height) + 0.5) / height)[:, None], (1, width))
    values = np.stack([across, down, np.ones_like(across)], axis=-1)
    return Image.fromarray((values * 255).round().astype(np.uint8))


@pytest.mark.parametrize("size", [(210, 210), (330, 170), (150, 290), (997, 120)])
@pytest.mark.parametrize(
    ("aspect", "more"),
    [
        ("square", {}),
        ("square", {"resize_shortest_edge": 102}),
        ("square", {"resize_without_crop": True}),
        ("pad", {}),
        ("anyres", {}),
    ],
)
def test_a_box_is_where_the_pixels_are_from(
    aspect: ImageAspect, more: dict[str, object], size: tuple[int, int]
) -> None:
    """The color in the center of each patch is the position of the center of its box."""
    image_processor = processor(aspect, **more)
    prepared = process_image(gradients(size), image_processor)
    views = view_boxes(size, prepared.layout, image_processor)
    assert len(views) == len(prepared.views)
    checked = 0
    for (left, top, right, bottom), pixels in zip(views, prepared.views, strict=True):
        for row in range(CELLS):
            for column in range(CELLS):
                x, y = (int((cell + 0.5) * SIDE / CELLS) for cell in (column, row))
                red, green, blue = pixels[:, y - 1 : y + 1, x - 1 : x + 1].mean(dim=(1, 2)).tolist()
                across = left + (column + 0.5) / CELLS * (right - left)
                down = top + (row + 0.5) / CELLS * (bottom - top)
                inside = 0.03 < across < 0.97 and 0.03 < down < 0.97
                if inside:
                    checked += 1
                    assert blue > 0.98
                    assert red == pytest.approx(across, abs=0.03)
                    assert green == pytest.approx(down, abs=0.03)
                elif not (-0.03 < across < 1.03 and -0.03 < down < 1.03):
                    assert blue < 0.02
    assert checked >= CELLS


def test_boxes_are_in_token_order(assistant: LlavaBundle) -> None:
    """The base view row by row, then the rows of all tiles, each with a newline without a box."""
    tower = assistant.model.vision
    image_processor = assistant.processor.with_aspect(
        "anyres", grid_pinpoints(["2x1"], assistant.processor.side)
    )
    prepared = process_image(gradients((120, 60)), image_processor)
    boxes = token_boxes((120, 60), prepared.layout, image_processor, tower)
    assert len(boxes) == assistant.model.count_tokens(prepared.layout)
    cells = tower.patches_per_side
    base, rest = boxes[: cells**2], boxes[cells**2 :].view(cells, 2 * cells + 1, 4)
    assert base[1].tolist() == pytest.approx([1 / cells, 0, 2 / cells, 1 / cells])
    assert rest[:, -1].eq(0).all()
    lefts = torch.arange(2 * cells) / (2 * cells)
    torch.testing.assert_close(rest[1, :-1, 0], lefts)
    torch.testing.assert_close(rest[1, :-1, 1], torch.full((2 * cells,), 1 / cells))


def test_tokens_before_the_patches_have_no_box(assistant: LlavaBundle) -> None:
    """A tower with its class token has one more box, of zeros."""
    tower = assistant.model.vision
    size = (60, 60)
    layout = process_image(gradients(size), assistant.processor).layout
    without = token_boxes(size, layout, assistant.processor, tower)
    original, tower.select = tower.select, "cls_patch"
    try:
        boxes = token_boxes(size, layout, assistant.processor, tower)
    finally:
        tower.select = original
    assert boxes[: tower.num_prefix_tokens].eq(0).all()
    torch.testing.assert_close(boxes[tower.num_prefix_tokens :], without)


def test_rasterizing_keeps_the_weight_inside_the_image() -> None:
    """A box adds to each cell in proportion to area; parts beyond the edge and tokens without a box add nothing."""
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.5, 1.5, 1.0], [0.0, 0.0, 0.0, 0.0]])
    grid = rasterize(torch.tensor([[6.0, 8.0, 5.0], [0.0, 2.0, 1.0]]), boxes, (2, 2))
    assert grid.tolist() == [[[3.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 1.0]]]
