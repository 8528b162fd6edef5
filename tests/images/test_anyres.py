"""Tiles and their tokens are LLaVA-NeXT's, counted alike before, in and behind the model."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

from caldera.errors import UsageError
from caldera.images.anyres import (
    NEWLINE_INDEX,
    RELEASED_GRIDS,
    Size,
    TileLayout,
    choose_layout,
    choose_pinpoint,
    count_tokens,
    grid_pinpoints,
    image_token_order,
)
from caldera.images.processor import ImageProcessor

RELEASED = grid_pinpoints(RELEASED_GRIDS, 336)
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


@pytest.mark.parametrize(
    ("size", "pinpoint", "tokens"),
    [
        ((336, 336), (336, 672), 1176),
        ((640, 480), (672, 672), 2340),
        ((480, 640), (672, 672), 2352),
        ((1000, 300), (1008, 336), 2182),
        ((1024, 899), (672, 672), 2634),
        ((1920, 1080), (672, 672), 1948),
        ((672, 672), (672, 672), 2928),
        ((20, 23), (336, 672), 1276),
        ((1, 1000), (336, 1008), 648),
        ((1000, 1), (1008, 336), 576),
    ],
)
def test_counts_are_those_of_the_released_models(size: Size, pinpoint: Size, tokens: int) -> None:
    """Worked examples for a tower of 336 pixels in 24 x 24 patches (spec 1.7)."""
    assert choose_pinpoint(size, RELEASED) == pinpoint
    assert count_tokens(choose_layout(size, RELEASED, 336), 24) == tokens


def test_padding_is_counted_in_whole_numbers() -> None:
    """For 11 x 55 on 24 columns the float form would keep 119 rows of 120 (spec 1.7)."""
    assert TileLayout(1, 5, (11, 55)).padding(24) == (0, 0)


def their_count(size: Size, pinpoints: tuple[Size, ...], side: int, cells: int) -> int:
    """Return how many tokens transformers' processor reserves, told pinpoints as (height, width)."""
    grid = [[height, width] for width, height in pinpoints]
    held: Any = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=grid),
        patch_size=side // cells,
        num_additional_image_tokens=0,
        _get_unpadded_features=None,
    )
    held._get_unpadded_features = LlavaNextProcessor._get_unpadded_features.__get__(held)
    width, height = size
    return LlavaNextProcessor._get_number_of_features(held, height, width, side, side)


def test_counts_are_transformers_own() -> None:
    """For 200 random sizes, small, large and long, with the pinpoints of the released models."""
    rng = random.Random(5)
    sizes = [(rng.randint(1, 400), rng.randint(1, 400)) for _ in range(100)]
    sizes += [(rng.randint(1, 4000), rng.randint(1, 4000)) for _ in range(100)]
    for size in sizes:
        assert count_tokens(choose_layout(size, RELEASED, 336), 24) == their_count(
            size, RELEASED, 336, 24
        )
    assert len(sizes) == 200


@given(SIZES, st.sampled_from([1, 2, 3, 7]))
def test_every_patch_of_the_image_stands_once_and_rows_end(size: Size, cells: int) -> None:
    """The order is as long as the count; no patch comes twice; each row of tiles ends with the newline."""
    layout = choose_layout(size, grid_pinpoints(RELEASED_GRIDS, 14), 14)
    order = image_token_order(layout, cells)
    patches = order[order != NEWLINE_INDEX]
    left, above = layout.padding(cells)
    assert len(order) == count_tokens(layout, cells)
    assert len(set(patches.tolist())) == len(patches)
    assert order[: cells * cells].tolist() == list(range(cells * cells))
    assert int((order == NEWLINE_INDEX).sum()) == layout.rows * cells - 2 * above
    assert len(patches) == cells * cells + (layout.columns * cells - 2 * left) * (
        layout.rows * cells - 2 * above
    )


def test_tiles_are_laid_as_one_raster() -> None:
    """Two tiles of 2 x 2 patches beside each other are read line by line across both."""
    order = image_token_order(TileLayout(columns=2, rows=1, size=(2, 1)), 2)
    assert order.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, NEWLINE_INDEX, 6, 7, 10, 11, NEWLINE_INDEX]


@pytest.mark.parametrize(
    "size", [(30, 17), (11, 23), (14, 14), (3, 100), (100, 3), (61, 60), (1, 1), (29, 87)]
)
def test_views_are_transformers_own(tmp_path: Path, size: Size) -> None:
    """Base view and tiles have the pixels of transformers' LLaVA-NeXT processor, in its order."""
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    mean, std, pinpoints = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), grid_pinpoints(RELEASED_GRIDS, 14)
    ours = ImageProcessor(side=14, mean=mean, std=std, aspect="anyres", pinpoints=pinpoints)
    theirs = LlavaNextImageProcessorPil(
        size={"shortest_edge": 14},
        crop_size={"height": 14, "width": 14},
        image_mean=list(mean),
        image_std=list(std),
        image_grid_pinpoints=[[height, width] for width, height in pinpoints],
    )
    image.save(tmp_path / "p.png")

    views = ours(image)

    expected = torch.as_tensor(np.array(theirs(image)["pixel_values"][0]))
    assert len(views) == ours.layout(tmp_path / "p.png").views
    torch.testing.assert_close(views, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("form", ["jpg", "png", "webp"])
def test_a_turned_image_is_laid_out_upright(tmp_path: Path, form: str, orientation: int) -> None:
    """The size in the file's head is turned as its pixels will be."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(tmp_path / f"p.{form}", exif=exif)
    shape = ImageProcessor(
        side=14,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        aspect="anyres",
        pinpoints=grid_pinpoints(("2x1", "1x2"), 14),
    )
    layout = shape.layout(tmp_path / f"p.{form}")
    assert (layout.columns, layout.rows) == ((1, 2) if orientation >= 5 else (2, 1))


@pytest.mark.parametrize("grids", [(), ("2",), ("2x0",), ("x2",), ("2x1", "two")])
def test_a_grid_that_is_none_is_refused(grids: tuple[str, ...]) -> None:
    """The message shows how grids are written."""
    with pytest.raises(UsageError, match="columns x rows, such as 2x1"):
        grid_pinpoints(grids, 14)


@pytest.mark.parametrize("pinpoint", [(14, 20), (0, 14), (7, 14)])
def test_tiles_must_be_whole(pinpoint: Size) -> None:
    """A canvas that the tower's side does not divide is refused."""
    with pytest.raises(ValueError, match="does not cut into tiles of 14 x 14"):
        ImageProcessor(
            side=14, mean=(0.5,) * 3, std=(0.5,) * 3, aspect="anyres", pinpoints=(pinpoint,)
        )
