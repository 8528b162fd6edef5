"""Image tokens lie in an image where the processor took their pixels from."""

import numpy as np
import pytest
import torch
from PIL import Image

from caldera.images.anyres import grid_pinpoints
from caldera.images.processor import ImageAspect, ImageProcessor
from caldera.inference.attention_maps import rasterize, token_boxes, view_boxes
from caldera.inference.prompts import process_image
from caldera.model.assistant import LlavaBundle

SIDE, CELLS = 84, 3


def processor(aspect: ImageAspect, **more: object) -> ImageProcessor:
    """Return one that changes no values, with views of 84 pixels."""
    plain = ImageProcessor(side=SIDE, mean=(0, 0, 0), std=(1, 1, 1), **more)  # type: ignore[arg-type]
    return plain.with_aspect(
        aspect, grid_pinpoints(["1x2", "2x1", "2x2"], SIDE) if aspect == "anyres" else ()
    )


def slopes(size: tuple[int, int]) -> Image.Image:
    """Return an image whose red tells how far right a pixel is, its green how far down, its blue that it is one."""
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
def test_a_patch_lies_where_its_pixels_are_from(
    aspect: ImageAspect, more: dict[str, object], size: tuple[int, int]
) -> None:
    """The colors in the middle of each patch tell its place in the image; it is the middle of its rectangle."""
    shown = processor(aspect, **more)
    prepared = process_image(slopes(size), shown)
    views = view_boxes(size, prepared.layout, shown)
    assert len(views) == len(prepared.views)
    checked = 0
    for (left, top, right, bottom), pixels in zip(views, prepared.views, strict=True):
        for row in range(CELLS):
            for column in range(CELLS):
                x, y = (int((at + 0.5) * SIDE / CELLS) for at in (column, row))
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


def test_boxes_are_in_the_order_of_the_tokens(assistant: LlavaBundle) -> None:
    """The base view row by row, then the rows of all tiles, a newline without a place behind each."""
    tower = assistant.model.vision
    shown = assistant.processor.with_aspect(
        "anyres", grid_pinpoints(["2x1"], assistant.processor.side)
    )
    prepared = process_image(slopes((120, 60)), shown)
    boxes = token_boxes((120, 60), prepared.layout, shown, tower)
    assert len(boxes) == assistant.model.count_tokens(prepared.layout)
    cells = tower.patches_per_side
    base, rest = boxes[: cells**2], boxes[cells**2 :].view(cells, 2 * cells + 1, 4)
    assert base[1].tolist() == pytest.approx([1 / cells, 0, 2 / cells, 1 / cells])
    assert rest[:, -1].eq(0).all()
    lefts = torch.arange(2 * cells) / (2 * cells)
    torch.testing.assert_close(rest[1, :-1, 0], lefts)
    torch.testing.assert_close(rest[1, :-1, 1], torch.full((2 * cells,), 1 / cells))


def test_what_stands_before_the_patches_has_no_place(assistant: LlavaBundle) -> None:
    """A tower that also gives its class token has one box more, of zeros."""
    tower = assistant.model.vision
    size = (60, 60)
    layout = process_image(slopes(size), assistant.processor).layout
    without = token_boxes(size, layout, assistant.processor, tower)
    usual, tower.select = tower.select, "cls_patch"
    try:
        boxes = token_boxes(size, layout, assistant.processor, tower)
    finally:
        tower.select = usual
    assert boxes[: tower.num_prefix_tokens].eq(0).all()
    torch.testing.assert_close(boxes[tower.num_prefix_tokens :], without)


def test_heat_keeps_all_weight_within_the_image() -> None:
    """A box gives each cell its share by area; what lies beyond the edge, and tokens without a place, give nothing."""
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.5, 1.5, 1.0], [0.0, 0.0, 0.0, 0.0]])
    found = rasterize(torch.tensor([[6.0, 8.0, 5.0], [0.0, 2.0, 1.0]]), boxes, (2, 2))
    assert found.tolist() == [[[3.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 1.0]]]
