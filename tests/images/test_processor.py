"""Tests of the image processor against the papers' code."""

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from caldera.images import processor as processor_module
from caldera.images.anyres import ImageAspect
from caldera.images.decoding import DEFAULT_DECODING
from caldera.images.processor import ImageProcessor

MAX_SIDE = DEFAULT_DECODING.max_side
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def processor(side: int = 7, **changes: object) -> ImageProcessor:
    """Return a small processor with CLIP's mean and standard deviation."""
    return ImageProcessor(side=side, mean=MEAN, std=STD, **changes)  # type: ignore[arg-type]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a random RGB image."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("width", "height"), [(30, 20), (20, 30), (7, 7), (5, 90), (91, 6), (1, 1)]
)
def test_square_equals_clips_processor(width: int, height: int) -> None:
    """Resizing, center crop and normalization equal those of transformers."""
    image = noise(width, height)
    reference = CLIPImageProcessorPil(
        size={"shortest_edge": 7},
        crop_size={"height": 7, "width": 7},
        image_mean=MEAN,
        image_std=STD,
    )

    expected = torch.as_tensor(np.array(reference(image)["pixel_values"][0]))

    torch.testing.assert_close(processor()(image)[0], expected, atol=1e-6, rtol=0)


def test_pad_adds_the_mean_color() -> None:
    """An image of 3 x 2 is in rows 0 and 1 of a 3 x 3 square whose last row is (122, 116, 104)."""
    image = Image.new("RGB", (3, 2), (10, 20, 30))

    pixels = processor(side=3, aspect="pad")(image)[0]

    colors = pixels.permute(1, 2, 0).numpy() * STD + MEAN
    assert np.allclose(colors[:2] * 255, (10, 20, 30), atol=0.01)
    assert np.allclose(colors[2] * 255, (122, 116, 104), atol=0.01)


@pytest.mark.parametrize("aspect", ["square", "pad"])
def test_only_anyres_resets_the_resizing_of_the_tower(aspect: ImageAspect) -> None:
    """Its views have the tower's size, so there is no crop; other aspects keep the resizing."""
    dino = processor(resize_shortest_edge=9)
    assert dino.with_aspect(aspect).resize_shortest_edge == 9
    siglip = processor(resize_without_crop=True)
    anyres = siglip.with_aspect("anyres", ((7, 14),))
    assert (anyres.resize_shortest_edge, anyres.resize_without_crop) == (None, False)
    assert anyres.aspect == "anyres"


@pytest.mark.parametrize("size", [(1, MAX_SIDE), (MAX_SIDE, 1), (MAX_SIDE, 60), (8000, 4000)])
def test_long_images_take_little_memory(size: tuple[int, int]) -> None:
    """At the size limits, the center crop is computed without enlarging the rest of the image."""
    image = Image.new("RGB", size)
    tracemalloc.start()
    assert processor(side=336)(image).shape == (1, 3, 336, 336)
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("size", [(23, 9), (9, 23), (8, 8), (1, 40), (40, 1), (31, 30)])
@pytest.mark.parametrize(
    "resizing", [{}, {"resize_shortest_edge": 9}, {"resize_without_crop": True}]
)
def test_padding_in_bands_equals_padding_the_whole_image(
    size: tuple[int, int], resizing: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A panorama is padded without a canvas of its square, and gets the same pixels, bit for bit."""
    image, length = noise(*size), max(size)
    color = tuple(int(255 * part) for part in MEAN)
    square = Image.new("RGB", (length, length), color)
    square.paste(image, ((length - size[0]) // 2, (length - size[1]) // 2))
    monkeypatch.setattr(processor_module, "_BAND_ROWS", 4)
    expected = processor(**resizing)(square)
    assert torch.equal(processor(aspect="pad", **resizing)(image), expected)


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (3, 100), (7, 200), (13, 999), (1009, 11)])
def test_a_long_image_is_cropped_as_if_all_of_it_were_enlarged(size: tuple[int, int]) -> None:
    """Resizing only the crop gives the same pixels, bit for bit."""
    image = noise(*size)
    edge = 7 * max(size) // min(size)
    large = image.resize((7, edge) if size[0] < size[1] else (edge, 7), Image.Resampling.BICUBIC)
    corner = ((large.width - 7) // 2, (large.height - 7) // 2)
    square = large.crop((*corner, corner[0] + 7, corner[1] + 7))
    assert torch.equal(processor()(image), processor()(square))
