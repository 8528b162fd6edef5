"""Tests of the anyres geometry: tiles and token counts are those of LLaVA-NeXT."""

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
def test_token_counts_of_the_released_models(size: Size, pinpoint: Size, tokens: int) -> None:
    """Worked examples for a tower of 336 pixels and 24 x 24 patches."""
    assert choose_pinpoint(size, RELEASED) == pinpoint
    assert count_tokens(choose_layout(size, RELEASED, 336), 24) == tokens


def test_padding_is_computed_in_integers() -> None:
    """In floating point, 11 x 55 on 24 columns would have 119 of 120 rows."""
    assert TileLayout(1, 5, (11, 55)).padding(24) == (0, 0)


def reference_count(
    size: Size, pinpoints: tuple[Size, ...], side: int, patches_per_side: int
) -> int:
    """Return the number of tokens of transformers' processor, which takes pinpoints as (height, width)."""
    grid = [[height, width] for width, height in pinpoints]
    processor: Any = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=grid),
        patch_size=side // patches_per_side,
        num_additional_image_tokens=0,
        _get_unpadded_features=None,
    )
    processor._get_unpadded_features = LlavaNextProcessor._get_unpadded_features.__get__(processor)
    width, height = size
    return LlavaNextProcessor._get_number_of_features(processor, height, width, side, side)


def test_counts_are_those_of_transformers() -> None:
    """For 200 random sizes, small, large and long, with the pinpoints of the released models."""
    rng = random.Random(5)
    sizes = [(rng.randint(1, 400), rng.randint(1, 400)) for _ in range(100)]
    sizes += [(rng.randint(1, 4000), rng.randint(1, 4000)) for _ in range(100)]
    for size in sizes:
        assert count_tokens(choose_layout(size, RELEASED, 336), 24) == reference_count(
            size, RELEASED, 336, 24
        )
    assert len(sizes) == 200


@given(SIZES, st.sampled_from([1, 2, 3, 7]))
def test_every_patch_of_the_image_occurs_once_and_rows_end_with_a_newline(
    size: Size, patches_per_side: int
) -> None:
    """The order has as many tokens as counted, and each row of tiles ends with the newline."""
    layout = choose_layout(size, grid_pinpoints(RELEASED_GRIDS, 14), 14)
    order = image_token_order(layout, patches_per_side)
    patches = order[order != NEWLINE_INDEX]
    left, top = layout.padding(patches_per_side)
    assert len(order) == count_tokens(layout, patches_per_side)
    assert len(set(patches.tolist())) == len(patches)
    num_base = patches_per_side**2
    rows = layout.rows * patches_per_side - 2 * top
    columns = layout.columns * patches_per_side - 2 * left
    assert order[:num_base].tolist() == list(range(num_base))
    assert int((order == NEWLINE_INDEX).sum()) == rows
    assert len(patches) == num_base + columns * rows


def test_tiles_are_ordered_as_one_raster() -> None:
    """Two adjacent tiles of 2 x 2 patches are read line by line across both."""
    order = image_token_order(TileLayout(columns=2, rows=1, size=(2, 1)), 2)
    assert order.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, NEWLINE_INDEX, 6, 7, 10, 11, NEWLINE_INDEX]


@pytest.mark.parametrize(
    "size", [(30, 17), (11, 23), (14, 14), (3, 100), (100, 3), (61, 60), (1, 1), (29, 87)]
)
def test_views_are_those_of_transformers(tmp_path: Path, size: Size) -> None:
    """Base view and tiles have the pixels and the order of transformers' LLaVA-NeXT processor."""
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    mean, std, pinpoints = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), grid_pinpoints(RELEASED_GRIDS, 14)
    processor = ImageProcessor(side=14, mean=mean, std=std, aspect="anyres", pinpoints=pinpoints)
    reference = LlavaNextImageProcessorPil(
        size={"shortest_edge": 14},
        crop_size={"height": 14, "width": 14},
        image_mean=list(mean),
        image_std=list(std),
        image_grid_pinpoints=[[height, width] for width, height in pinpoints],
    )
    image.save(tmp_path / "p.png")

    views = processor(image)

    expected = torch.as_tensor(np.array(reference(image)["pixel_values"][0]))
    assert len(views) == processor.layouts([tmp_path / "p.png"])[0].views
    torch.testing.assert_close(views, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_layout_is_that_of_the_upright_image(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    """The size in the header is rotated by the EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(tmp_path / f"p.{suffix}", exif=exif)
    processor = ImageProcessor(
        side=14,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        aspect="anyres",
        pinpoints=grid_pinpoints(("2x1", "1x2"), 14),
    )
    [layout] = processor.layouts([tmp_path / f"p.{suffix}"])
    assert (layout.columns, layout.rows) == ((1, 2) if orientation >= 5 else (2, 1))


@pytest.mark.parametrize("grids", [(), ("2",), ("2x0",), ("x2",), ("2x1", "two")])
def test_an_invalid_grid_is_a_usage_error(grids: tuple[str, ...]) -> None:
    """The message shows the format of grids."""
    with pytest.raises(UsageError, match="columns x rows, such as 2x1"):
        grid_pinpoints(grids, 14)


@pytest.mark.parametrize("pinpoint", [(14, 20), (0, 14), (7, 14)])
def test_pinpoints_must_divide_into_tiles(pinpoint: Size) -> None:
    """A canvas whose sides are not multiples of the tower's is an error."""
    with pytest.raises(ValueError, match="does not divide into tiles of 14 x 14"):
        ImageProcessor(
            side=14, mean=(0.5,) * 3, std=(0.5,) * 3, aspect="anyres", pinpoints=(pinpoint,)
        )
