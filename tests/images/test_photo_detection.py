"""Photos are told from drawings by their neighboring pixels."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caldera.images.decoding import open_image
from caldera.images.photo_detection import looks_like_photo
from caldera.scenes.coco_folder import encode_jpeg
from tests.instructions.annotated_scenes import sample_scenes


def test_drawn_scenes_are_no_photos() -> None:
    """As they are encoded in their files."""
    for scene in sample_scenes(100, seed=5):
        assert not looks_like_photo(Image.open(BytesIO(encode_jpeg(scene)))), scene.name


@pytest.mark.parametrize(
    ("folder", "pattern", "count"),
    [
        ("coco_mini", "train2017/*.jpg", 80),
        ("flickr8k", "**/*.jpg", 100),
        ("clothing", "**/*.jpg", 100),
    ],
)
def test_photos_are_photos(third_party: Path, folder: str, pattern: str, count: int) -> None:
    """People, streets and products on plain backgrounds; at most one in a hundred is taken for a drawing."""
    paths = sorted((third_party / folder).glob(pattern))[:count]
    assert len(paths) == count
    assert sum(looks_like_photo(open_image(path)) for path in paths) >= 0.99 * count


def test_noise_makes_a_photo_and_one_color_a_drawing() -> None:
    """The criterion is local equality; an image of one pixel is no photo."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (90, 120, 3), dtype=np.uint8))
    assert looks_like_photo(noise)
    assert not looks_like_photo(Image.new("RGB", (300, 200), "red"))
    assert not looks_like_photo(Image.new("RGB", (1, 1)))
