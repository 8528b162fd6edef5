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

from caldera.errors import ImageError, UsageError
from caldera.images.decoding import (
    DEFAULT_DECODING,
    DecodingConfig,
    ImageTooLargeError,
    TruncatedImageError,
    decode_image,
    image_size,
    is_truncated,
    open_image,
    read_image_header,
)

SIDE = DEFAULT_DECODING.max_side


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
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (bytes(range(200, 256)), "is of no known image format"),
        (b"no image at all", "is a text file, not an image"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "is an HTML page, not an image"),
        (b"\0\0\0\x1cftypavif" + bytes(20), "is an AVIF image, which is not supported; convert"),
        (encoded(noise(9, 9), "PNG")[:16] + bytes(99), "is a truncated PNG image"),
        (encoded(noise(9, 9), "JPEG")[:200], "is a truncated JPEG image"),
        (encoded(noise(99, 99), "JPEG")[:-2], "is a truncated JPEG image"),
        (encoded(noise(40, 40), "PNG")[:900], "is a truncated PNG image"),
        (encoded(noise(40, 40), "PNG")[:900] + b"IEND\xaeB`\x82", "is a broken PNG image"),
        (encoded(Image.new("F", (3, 3)), "TIFF"), "has 32-bit pixels"),
        (encoded(Image.new("I", (3, 3)), "TIFF"), "has 32-bit pixels"),
        (encoded(noise(3, 3), "TIFF", tiffinfo={254: 1}), "is a camera raw image"),
    ],
)
def test_an_invalid_file_is_an_image_error(content: bytes, message: str) -> None:
    """The message is one line, names the file and what it is, and contains no internals of the decoder."""
    with pytest.raises(ImageError, match=rf"^a\.jpg {message}") as caught:
        decode_image(content, "a.jpg")
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("image_format", ["GIF", "BMP", "TIFF", "PNG", "WEBP"])
def test_the_content_decides_the_format(image_format: str) -> None:
    """Files of data sets often have the suffix of another format."""
    content = encoded(noise(9, 5), image_format)
    expected = Image.open(BytesIO(content)).convert("RGB")
    assert decode_image(content, "x.jpg").tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_a_tiff_of_16_bits_keeps_its_high_bytes(mode: str) -> None:
    """As for a PNG of 16 bits, of either byte order."""
    image = Image.frombytes(mode, (3, 2), b"\x01\x4d" * 6)
    expected = 0x01 if mode == "I;16B" else 0x4D
    assert decode_image(encoded(image, "TIFF"), "x.tif").getpixel((1, 1)) == (expected,) * 3


def header_of_png(width: int, height: int) -> bytes:
    """Return a PNG that ends after its header."""
    header = struct.pack(">II5B", width, height, 1, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk
    return start + struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT" + bytes(4)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((5657, 5657), r"over the limit \(max_pixels, 32,000,000\)"),
        ((60_000, 60_000), r"over the limit \(max_pixels, 32,000,000\)"),
        ((140_000, 1), r"over 8 times the limit for a side \(max_side, 16,384\)"),
    ],
)
def test_a_decompression_bomb_is_rejected_by_its_header(
    size: tuple[int, int], message: str
) -> None:
    """A small file that declares a huge image is never decoded."""
    with pytest.raises(ImageTooLargeError, match=message):
        decode_image(header_of_png(*size), "bomb.png")


def test_the_limits_are_settings(tmp_path: Path) -> None:
    """Each can be lowered and raised, for the size and the pixels alike."""
    path = tmp_path / "x.png"
    path.write_bytes(encoded(noise(40, 30), "PNG"))
    for limits in (DecodingConfig(max_pixels=1199), DecodingConfig(max_side=4)):
        for read in (open_image, image_size):
            with pytest.raises(ImageTooLargeError):
                read(path, limits)
    with pytest.raises(ImageError, match=r"over the limit \(max_bytes, 99\)"):
        open_image(path, DecodingConfig(max_bytes=99))
    assert open_image(path, DecodingConfig(max_pixels=1200)).size == (40, 30)
    with pytest.raises(UsageError, match="max_side is 0"):
        DecodingConfig(max_side=0)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((81, 61), DecodingConfig(max_pixels=81 * 61), (81, 61)),
        ((81, 61), DecodingConfig(max_pixels=81 * 61 - 1), (41, 31)),
        ((81, 61), DecodingConfig(max_pixels=1000), (21, 16)),
        ((81, 2), DecodingConfig(max_side=40), (21, 1)),
        ((81, 1), DecodingConfig(max_side=11), (11, 1)),
    ],
)
def test_a_large_jpeg_is_decoded_at_a_reduced_size(
    tmp_path: Path,
    orientation: int,
    size: tuple[int, int],
    limits: DecodingConfig,
    expected: tuple[int, int],
) -> None:
    """The divisor is the smallest that fits the limits; the size from the header is that of the pixels."""
    exif, path = Image.Exif(), tmp_path / "photo.jpg"
    exif[ExifTags.Base.Orientation] = orientation
    gradient = Image.linear_gradient("L").resize(size).convert("RGB")
    path.write_bytes(encoded(gradient, "JPEG", quality=95, exif=exif))

    image = open_image(path, limits)

    assert (
        image.size == image_size(path, limits) == (expected[::-1] if orientation == 6 else expected)
    )
    full = open_image(path)
    if image.size == full.size:
        assert image.tobytes() == full.tobytes()
    difference = np.abs(np.asarray(image, float) - np.asarray(full.resize(image.size), float))
    assert difference.mean() < 12


def test_a_jpeg_of_too_many_pixels_is_rejected() -> None:
    """Its coefficients alone may take gigabytes."""
    content = encoded(noise(80, 60), "JPEG")
    assert decode_image(content, "x", DecodingConfig(max_pixels=600)).size == (20, 15)
    with pytest.raises(ImageTooLargeError, match="599 x 8 for a JPEG"):
        decode_image(content, "x", DecodingConfig(max_pixels=599))


def test_a_long_image_of_any_format_is_reduced() -> None:
    """A panorama in PNG has few pixels, but a side over the limit."""
    image = decode_image(encoded(noise(100, 3), "PNG"), "x.png", DecodingConfig(max_side=50))
    assert image.size == (50, 2)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP"])
def test_a_truncated_image_is_used_only_if_allowed(tmp_path: Path, image_format: str) -> None:
    """The rows that there are keep their pixels."""
    content = encoded(Image.linear_gradient("L").convert("RGB"), image_format)
    path, complete = tmp_path / "cut", tmp_path / "complete"
    path.write_bytes(content[: len(content) * 3 // 4])
    complete.write_bytes(content)

    with pytest.raises(TruncatedImageError, match="--allow-truncated"):
        open_image(path)
    partial = open_image(path, DecodingConfig(allow_truncated=True))

    assert is_truncated(path)
    assert not is_truncated(complete)
    rows = slice(-64, None) if image_format == "BMP" else slice(0, 64)  # a BMP begins at the bottom
    assert np.array_equal(np.asarray(partial)[rows], np.asarray(open_image(complete))[rows])
    assert (
        open_image(complete).tobytes()
        == open_image(complete, DecodingConfig(allow_truncated=True)).tobytes()
    )


def test_a_jpeg_without_its_last_two_bytes_loses_no_pixel() -> None:
    """The marker of the end is missing, all pixels are there."""
    content = encoded(noise(50, 40), "JPEG")
    partial = decode_image(content[:-2], "x", DecodingConfig(allow_truncated=True))
    assert partial.tobytes() == decode_image(content, "x").tobytes()


def test_allowing_truncated_images_allows_nothing_else() -> None:
    """A page, and an image without any of its pixels, are errors all the same."""
    allow = DecodingConfig(allow_truncated=True)
    for content in (b"<html>", b"", b"\xff\xd8\xff", encoded(noise(40, 40), "PNG")[:20]):
        with pytest.raises(ImageError):
            decode_image(content, "x.jpg", allow)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "is not a regular file"),
        ("device", "is not a regular file"),
        ("folder", "is a folder"),
        ("huge", r"has 100,000,001 bytes, over the limit \(max_bytes, 100,000,000\)"),
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
            file.truncate(DEFAULT_DECODING.max_bytes + 1)
    with pytest.raises(ImageError, match=message):
        open_image(path)


@pytest.mark.parametrize("size", [(1, SIDE), (SIDE, 1), (SIDE, 60), (8000, 4000)])
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
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
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


def test_reading_a_header_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations need the size of every image of a data set."""
    for image_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        (tmp_path / image_format).write_bytes(encoded(noise(40, 30), image_format))
    png = (tmp_path / "PNG").read_bytes()
    # ImageMagick writes texts after the pixels.
    (tmp_path / "PNG").write_bytes(
        png[:-12] + struct.pack(">I", 9) + b"tEXtdate\0long" + bytes(4) + png[-12:]
    )
    monkeypatch.setattr(Image, "_getdecoder", lambda *_: pytest.fail("it was decoded"))
    for path in tmp_path.iterdir():
        header = read_image_header(path)
        assert (header.format, header.upright_size) == (path.name, (40, 30))


def test_damaged_pixels_are_an_error() -> None:
    """A PNG with one flipped byte is not decoded to the rows before it."""
    damaged = bytearray(encoded(noise(9, 7), "PNG"))
    damaged[45] ^= 255
    with pytest.raises(ImageError, match="is a broken PNG image"):
        decode_image(bytes(damaged), "x.png")
