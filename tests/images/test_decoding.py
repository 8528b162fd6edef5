"""Tests of decoding image files: formats, orientation, limits and errors."""

import os
import struct
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from caldera.errors import ImageError
from caldera.images.decoding import (
    MAX_BYTES,
    MAX_PIXELS,
    MAX_SIDE,
    decode_image,
    image_size,
    open_image,
    read_image_header,
)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    """Return the bytes of an image file."""
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a random RGB image."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


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
    """Grey, palette, 16-bit and transparent images are converted; transparency becomes white."""
    image = Image.new(mode, (3, 2), color)  # type: ignore[arg-type]
    assert decode_image(encoded(image, "PNG"), "x.png").getpixel((1, 1)) == expected


def test_cmyk_is_decoded() -> None:
    """JPEGs from printing software."""
    image = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert decode_image(encoded(image, "JPEG"), "x.jpg").getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """The image is upright as its camera was held."""
    image = noise(4, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation

    upright = decode_image(encoded(image, "PNG", exif=exif), "x.png")

    assert upright.size == ((2, 4) if orientation >= 5 else (4, 2))
    if orientation == 3:
        assert upright.tobytes() == image.rotate(180).tobytes()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "a.jpg", r"a\.jpg is empty \(0 bytes\)"),
        (b"no image at all", "a.jpg", "is not a JPEG, PNG, WEBP, GIF image"),
        (encoded(noise(9, 9), "TIFF"), "a.jpg", "is not a JPEG"),
        (encoded(noise(9, 9), "JPEG")[:200], "a.jpg", "broken or truncated"),
        (encoded(noise(40, 40), "PNG")[:900], "a.png", "broken or truncated"),
        (encoded(noise(9, 9), "GIF"), "a.jpg", "is a GIF by content; rename it"),
    ],
)
def test_an_invalid_file_is_an_image_error(content: bytes, name: str, message: str) -> None:
    """The message is one line, names the file, and contains no internals of the decoder."""
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(content, name)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_a_decompression_bomb_is_rejected_by_its_header() -> None:
    """A small file that declares a huge image is never decoded."""
    side = int(MAX_PIXELS**0.5) + 1
    bomb = encoded(Image.new("1", (side, side)), "PNG")
    assert len(bomb) < 10_000_000
    with pytest.raises(ImageError, match="over the limit of 32,000,000"):
        decode_image(bomb, "bomb.png")


def test_an_image_over_pillows_own_limit_is_too_large() -> None:
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
def test_only_regular_files_of_limited_size_are_read(
    tmp_path: Path, kind: str, message: str
) -> None:
    """A pipe would block forever, a device would never end."""
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
def test_an_image_with_a_long_side_is_too_large(width: int, height: int, message: str) -> None:
    """A long image of few pixels would become huge when padded to a square."""
    with pytest.raises(ImageError, match=message):
        decode_image(encoded(Image.new("RGB", (width, height)), "PNG"), "thin.png")


@pytest.mark.parametrize("size", [(1, MAX_SIDE), (MAX_SIDE, 1), (MAX_SIDE, 60), (8000, 4000)])
def test_images_at_the_limits_are_decoded(size: tuple[int, int]) -> None:
    """The limits themselves are allowed."""
    assert decode_image(encoded(Image.new("1", size), "PNG"), "long.png").size == size


def test_a_gif_is_decoded() -> None:
    """Its first frame."""
    assert decode_image(encoded(noise(9, 5), "GIF"), "a.gif").size == (9, 5)


def test_the_error_of_a_missing_file_names_it(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(ImageError, match=r"nowhere\.png does not exist"):
        open_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize("is_rotated", [False, True])
def test_the_size_is_read_from_the_header(tmp_path: Path, is_rotated: bool) -> None:
    """Counting the image tokens of a data set does not read whole files."""
    file, exif = tmp_path / "a.jpg", Image.Exif()
    exif[ExifTags.Base.Orientation] = 6 if is_rotated else 1
    Image.new("RGB", (7, 5)).save(file, exif=exif)
    with file.open("ab") as opened:
        opened.truncate(50_000_000)
    tracemalloc.start()
    try:
        assert image_size(file) == ((5, 7) if is_rotated else (7, 5))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_header_has_the_stored_size_and_the_orientation(
    tmp_path: Path, image_format: str, orientation: int
) -> None:
    """Annotations may be of the stored or of the upright image; the upright size is that of the decoded image."""
    exif, path = Image.Exif(), tmp_path / "image"
    exif[ExifTags.Base.Orientation] = orientation
    path.write_bytes(encoded(noise(7, 5), image_format, exif=exif))

    header = read_image_header(path)

    assert (header.format, header.width, header.height) == (image_format, 7, 5)
    assert header.orientation == orientation
    assert header.upright_size == image_size(path) == open_image(path).size


def test_the_orientation_of_a_png_may_follow_its_pixels(tmp_path: Path) -> None:
    """The PNG specification allows it anywhere before the end."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encoded(noise(7, 5), "PNG", exif=exif)
    start = content.index(b"eXIf") - 4
    length = 12 + int.from_bytes(content[start : start + 4])
    chunk, without = content[start : start + length], content[:start] + content[start + length :]
    (tmp_path / "x.png").write_bytes(without[:-12] + chunk + without[-12:])

    assert read_image_header(tmp_path / "x.png").orientation == 6
    assert open_image(tmp_path / "x.png").size == (5, 7)
