"""LLaVA-OneVision's anyres: the tiles, token counts and pixels are those of transformers and of LLaVA-NeXT's code."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaOnevisionImageProcessorPil, LlavaOnevisionProcessor

from caldera.images.anyres import (
    ASPECTS,
    NEWLINE_INDEX,
    ONE_OF_SEVERAL,
    ONEVISION_GRIDS,
    SINGLE_VIEW,
    Size,
    TileLayout,
    choose_layout,
    count_tokens,
    grid_pinpoints,
    image_token_order,
    parse_anyres_max,
)
from caldera.images.processor import ImageProcessor
from caldera.model.llava import order_image_tokens

SIDE, PATCHES_PER_SIDE = 384, 27
PINPOINTS = grid_pinpoints(ONEVISION_GRIDS, SIDE)
SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))


@pytest.mark.parametrize(
    ("size", "tiles", "tokens"),
    [
        # 27 x 27 patches are 729.
        ((384, 384), (1, 1), 729 + 27 * 28),
        ((20, 23), (1, 1), 729 + 27 * 24),
        ((640, 480), (2, 2), 729 + 40 * 55),
        # Nine tiles are the limit: 81 rows of 81 patches and a newline.
        ((1152, 1152), (3, 3), 729 + 81 * 82),
        # Ten and more are scaled down, if by a factor over 1.1: 2304 x 2304 by two, to 81 x 81.
        ((2304, 2304), (6, 6), 729 + 81 * 82),
        ((1920, 1080), (5, 3), 729 + 60 * 109),
        # A panorama has one row of tiles, which are few.
        ((4000, 40), (6, 1), 729 + 1 * 163),
    ],
)
def test_token_counts_of_the_released_models(size: Size, tiles: Size, tokens: int) -> None:
    """Worked examples for SigLIP so400m/14 with 384 pixels and `anyres_max_9`."""
    layout = choose_layout(size, PINPOINTS, SIDE, 9)
    assert (layout.columns, layout.rows) == tiles
    assert count_tokens(layout, PATCHES_PER_SIDE) == tokens
    assert len(image_token_order(layout, PATCHES_PER_SIDE)) == tokens


def reference_count(size: Size, limit: int) -> int:
    """Return the number of tokens of transformers' processor."""
    grid = [[height, width] for width, height in PINPOINTS]
    processor: Any = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=grid),
        num_image_tokens=PATCHES_PER_SIDE**2,
        vision_aspect_ratio=f"anyres_max_{limit}",
    )
    unpadded = LlavaOnevisionProcessor._get_unpadded_features
    processor._get_unpadded_features = unpadded.__get__(processor)
    width, height = size
    count: int = LlavaOnevisionProcessor._get_number_of_features(
        processor, height, width, SIDE, SIDE
    )
    return count


@pytest.mark.parametrize("limit", [1, 4, 9, 15])
def test_counts_are_those_of_transformers(limit: int) -> None:
    """For 300 random sizes: small, large, and panoramas."""
    rng = random.Random(5)
    sizes = [(rng.randint(1, 400), rng.randint(1, 400)) for _ in range(100)]
    sizes += [(rng.randint(1, 5000), rng.randint(1, 5000)) for _ in range(100)]
    sizes += [(rng.randint(2000, 9000), rng.randint(1, 800)) for _ in range(50)]
    sizes += [(height, width) for width, height in sizes[-50:]]
    num_scaled = 0
    for size in sizes:
        layout = choose_layout(size, PINPOINTS, SIDE, limit)
        assert count_tokens(layout, PATCHES_PER_SIDE) == reference_count(size, limit)
        num_scaled += layout.grid(PATCHES_PER_SIDE) != layout.raster(PATCHES_PER_SIDE)
    assert len(sizes) == 300
    assert num_scaled > 50


@given(SIZES, st.sampled_from([2, 3, 27]), st.sampled_from([1, 2, 9]))
def test_tokens_are_never_many_more_than_the_limit(
    size: Size, patches_per_side: int, limit: int
) -> None:
    """Each row ends with a newline, the order has each cell of the grid once, and the limit holds."""
    layout = choose_layout(size, grid_pinpoints(ONEVISION_GRIDS, 14), 14, limit)
    columns, rows = layout.grid(patches_per_side)
    order = image_token_order(layout, patches_per_side)
    base = patches_per_side**2
    assert columns * rows <= max(1.21 * limit * base, columns, rows)
    assert len(order) == count_tokens(layout, patches_per_side) == base + rows * (columns + 1)
    tiles = order[base:].view(rows, columns + 1)
    assert tiles[:, -1].tolist() == [NEWLINE_INDEX] * rows
    assert len(set(tiles[:, :-1].flatten().tolist())) == rows * columns


def random_image(size: Size) -> Image.Image:
    """Return an image of noise."""
    rng = np.random.default_rng(size)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def processors(side: int) -> tuple[ImageProcessor, LlavaOnevisionImageProcessorPil]:
    """Return caldera's and transformers' image processor with the same settings."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    pinpoints = grid_pinpoints(ONEVISION_GRIDS, side)
    processor = ImageProcessor(
        side=side, mean=mean, std=std, aspect="anyres", pinpoints=pinpoints, anyres_max=9
    )
    reference = LlavaOnevisionImageProcessorPil(
        size={"height": side, "width": side},
        image_mean=list(mean),
        image_std=list(std),
        image_grid_pinpoints=[[height, width] for width, height in pinpoints],
    )
    return processor, reference


@given(st.tuples(st.integers(1, 120), st.integers(1, 120)))
def test_pixels_are_those_of_transformers(size: Size) -> None:
    """Of an image alone, the base view and tiles; of one among several, a square padded with the mean color."""
    processor, reference = processors(14)
    image = random_image(size)

    alone = torch.as_tensor(np.array(reference(image)["pixel_values"][0]))
    images: Any = [[image, image.resize((3, 5))]]
    several = reference(images)["pixel_values"][0]

    assert torch.equal(processor(image), alone)
    layout = processor.layout(size, several=True)
    assert torch.equal(processor(image, layout), torch.as_tensor(np.array(several)))


def test_pixels_at_the_released_size() -> None:
    """Of a large image, with tiles of 384 pixels."""
    processor, reference = processors(SIDE)
    image = random_image((1500, 700))
    expected = torch.as_tensor(np.array(reference(image)["pixel_values"][0]))
    assert len(expected) == 1 + 4 * 2
    assert torch.equal(processor(image), expected)


def test_layouts_depend_on_the_number_of_images() -> None:
    """Only with a limit: LLaVA-NeXT's anyres gives tiles to each of several images."""
    processor, _ = processors(14)
    unlimited = processor.with_aspect("anyres", processor.pinpoints)
    assert processor.layout((30, 20), several=True) == ONE_OF_SEVERAL
    assert processor.layout((30, 20)).views == unlimited.layout((30, 20), several=True).views == 7
    assert unlimited.layout((30, 20), several=True).anyres_max is None
    assert processor.with_aspect("pad").layout((30, 20), several=True) == SINGLE_VIEW
    assert count_tokens(ONE_OF_SEVERAL, 3) == 10


def test_scaled_tokens_are_means_of_their_neighbors() -> None:
    """Twice as many columns and rows as allowed: bilinear sampling takes the mean of 2 x 2 patches."""
    layout = TileLayout(columns=2, rows=2, size=(8, 8), anyres_max=1)
    patches = torch.arange(5 * 4, dtype=torch.float32).view(5, 4, 1)
    newline = torch.tensor([-1.0])
    tokens = order_image_tokens(
        torch.cat([patches, patches[:1] + 100]), [layout, ONE_OF_SEVERAL], newline
    )
    averages = patches[1:].mean(dim=(1, 2)).tolist()
    expected = [0, 1, 2, 3, *averages[:2], -1, *averages[2:], -1, 100, 101, 102, 103, -1]
    assert tokens.flatten().tolist() == expected


def test_layouts_of_inference_serve_training() -> None:
    """What inference has cached of a layout is no tensor of inference mode, which autograd rejects."""
    layout = TileLayout(2, 2, (31, 31), anyres_max=1)
    patches, newline = torch.rand(5, 9, 7, requires_grad=True), torch.rand(7)
    with torch.inference_mode():
        expected = order_image_tokens(patches, [layout], newline)
    tokens = order_image_tokens(patches, [layout], newline)
    assert torch.equal(tokens, expected)
    [gradient] = torch.autograd.grad(tokens.sum(), [patches])
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("aspect", "limit"),
    [("anyres_max_9", 9), ("anyres_max_15", 15), *dict.fromkeys(ASPECTS).items()],
)
def test_the_limit_is_read_from_the_aspect(aspect: str, limit: int | None) -> None:
    """Other aspects, and numbers that cannot be, have none."""
    assert parse_anyres_max(aspect) == limit
    for wrong in ("anyres_max_", "anyres_max_0", "anyres_max_9 ", "anyres_max_-1"):
        assert parse_anyres_max(wrong) is None


@pytest.mark.parametrize(("aspect", "limit"), [("pad", 9), ("anyres", 0)])
def test_a_limit_needs_tiles(aspect: Any, limit: int) -> None:  # noqa: ANN401
    """A processor with another aspect, or with a limit of none, is an error."""
    processor, _ = processors(14)
    pinpoints = processor.pinpoints if aspect == "anyres" else ()
    with pytest.raises(ValueError, match="with anyres_max"):
        processor.with_aspect(aspect, pinpoints, limit)
