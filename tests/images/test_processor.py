"""Images of every kind become the pixels the papers' code makes, or are refused in one line."""

import os
import struct
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from transformers import CLIPImageProcessorPil

from caldera.errors import ImageError
from caldera.images.decoding import (
    MAX_BYTES,
    MAX_PIXELS,
    MAX_SIDE,
    decode_image,
    image_size,
    open_image,
)
from caldera.images.processor import ImageProcessor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def processor(side: int = 7, **changes: object) -> ImageProcessor:
    """Return a small processor with CLIP's numbers."""
    return ImageProcessor(side=side, mean=MEAN, std=STD, **changes)  # type: ignore[arg-type]


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """Return an image as the bytes of a file."""
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a random RGB image."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("width", "height"), [(30, 20), (20, 30), (7, 7), (5, 90), (91, 6), (1, 1)]
)
def test_square_is_what_clips_processor_does(width: int, height: int) -> None:
    """Resize of the short edge, center crop and normalization equal transformers' own, value for value."""
    image = noise(width, height)
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 7},
        crop_size={"height": 7, "width": 7},
        image_mean=MEAN,
        image_std=STD,
    )

    expected = torch.as_tensor(np.array(theirs(image)["pixel_values"][0]))

    torch.testing.assert_close(processor()(image)[0], expected, atol=1e-6, rtol=0)


def test_pad_shows_everything_on_the_mean_color() -> None:
    """An image of 3 x 2 stands in rows 0 and 1 of a 3 x 3 square whose last row is (122, 116, 104)."""
    image = Image.new("RGB", (3, 2), (10, 20, 30))

    pixels = processor(side=3, aspect="pad")(image)[0]

    colors = pixels.permute(1, 2, 0).numpy() * STD + MEAN
    assert np.allclose(colors[:2] * 255, (10, 20, 30), atol=0.01)
    assert np.allclose(colors[2] * 255, (122, 116, 104), atol=0.01)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("LA", (50, 255), (50, 50, 50)),
        ("P", 0, (0, 0, 0)),
        ("I;16", 256 * 77, (77, 77, 77)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, color: object, expected: tuple[int, ...]) -> None:
    """Grey, palette, 16-bit and transparent images are converted the same way every time, white under alpha."""
    image = Image.new(mode, (3, 2), color)  # type: ignore[arg-type]
    assert decode_image(encoded(image, "PNG"), "x.png").getpixel((1, 1)) == expected


def test_cmyk_is_read() -> None:
    """JPEGs of printers are images, too."""
    image = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert decode_image(encoded(image, "JPEG"), "x.jpg").getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """An image lies as its camera was held."""
    image = noise(4, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation

    turned = decode_image(encoded(image, "PNG", exif=exif), "x.png")

    assert turned.size == ((2, 4) if orientation >= 5 else (4, 2))
    if orientation == 3:
        assert turned.tobytes() == image.rotate(180).tobytes()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "a.jpg", r"a\.jpg is empty \(0 bytes\)"),
        (b"no image at all", "a.jpg", "is not a JPEG, PNG, WEBP, GIF image"),
        (encoded(noise(9, 9), "TIFF"), "a.jpg", "is not a JPEG"),
        (encoded(noise(9, 9), "JPEG")[:200], "a.jpg", "broken or cut"),
        (encoded(noise(40, 40), "PNG")[:900], "a.png", "broken or cut"),
        (encoded(noise(9, 9), "GIF"), "a.jpg", "is a GIF by content; rename it"),
    ],
)
def test_what_cannot_be_used_is_refused(content: bytes, name: str, message: str) -> None:
    """The message is one line, names the file, and shows nothing of the decoder's insides."""
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(content, name)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_a_bomb_is_refused_from_its_header() -> None:
    """A small file that declares a huge image is never decoded."""
    side = int(MAX_PIXELS**0.5) + 1
    bomb = encoded(Image.new("1", (side, side)), "PNG")
    assert len(bomb) < 10_000_000
    with pytest.raises(ImageError, match="over the limit of 32,000,000"):
        decode_image(bomb, "bomb.png")


def test_a_bomb_over_pillows_own_limit_is_called_too_large_too() -> None:
    """A header alone declares 60,000 x 60,000 pixels."""
    header = struct.pack(">II5B", 60_000, 60_000, 1, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk
    bomb += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT" + bytes(4)
    with pytest.raises(ImageError, match="many times more pixels than the limit"):
        decode_image(bomb, "bomb.png")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "is not a regular file"),
        ("device", "is not a regular file"),
        ("folder", "is a folder"),
        ("huge", "has 100,000,001 bytes, over the limit of 100,000,000"),
    ],
)
def test_only_files_of_a_images_size_are_read(tmp_path: Path, kind: str, message: str) -> None:
    """A pipe would wait for ever, a device never end."""
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(MAX_BYTES + 1)
    with pytest.raises(ImageError, match=message):
        open_image(path)


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (MAX_SIDE + 1, 99, "over the limit of 12,000 for a side"),
        (65500, 1, "over the limit of 12,000 for a side"),
    ],
)
def test_what_would_grow_to_gigabytes_is_refused(width: int, height: int, message: str) -> None:
    """A long image of few pixels becomes huge when it is padded to a square."""
    with pytest.raises(ImageError, match=message):
        decode_image(encoded(Image.new("RGB", (width, height)), "PNG"), "thin.png")


@pytest.mark.parametrize("size", [(1, MAX_SIDE), (MAX_SIDE, 1), (MAX_SIDE, 60), (8000, 4000)])
def test_what_is_taken_stays_small(size: tuple[int, int]) -> None:
    """At the limits an image is read, and the square that is cut out of it comes without enlarging the rest."""
    long = decode_image(encoded(Image.new("1", size), "PNG"), "long.png")
    assert long.size == size
    tracemalloc.start()
    assert processor(side=336)(long).shape == (1, 3, 336, 336)
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (3, 100), (7, 200), (13, 999), (1009, 11)])
def test_a_long_image_is_cut_as_if_all_of_it_had_been_enlarged(size: tuple[int, int]) -> None:
    """The short way to the central square gives the long way's pixels, bit for bit."""
    image = noise(*size)
    edge = 7 * max(size) // min(size)
    large = image.resize((7, edge) if size[0] < size[1] else (edge, 7), Image.Resampling.BICUBIC)
    corner = ((large.width - 7) // 2, (large.height - 7) // 2)
    square = large.crop((*corner, corner[0] + 7, corner[1] + 7))
    assert torch.equal(processor()(image), processor()(square))


def test_a_gif_by_its_own_name_is_read() -> None:
    """The first frame counts."""
    assert decode_image(encoded(noise(9, 5), "GIF"), "a.gif").size == (9, 5)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(ImageError, match=r"nowhere\.png does not exist"):
        open_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize("turned", [False, True])
def test_a_size_is_read_from_a_files_head(tmp_path: Path, turned: bool) -> None:
    """Counting the tokens of a data set's tiles does not read all of its images."""
    file, exif = tmp_path / "a.jpg", Image.Exif()
    exif[ExifTags.Base.Orientation] = 6 if turned else 1
    Image.new("RGB", (7, 5)).save(file, exif=exif)
    with file.open("ab") as opened:
        opened.truncate(50_000_000)  # takes no room on the disk
    tracemalloc.start()
    try:
        assert image_size(file) == ((5, 7) if turned else (7, 5))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
