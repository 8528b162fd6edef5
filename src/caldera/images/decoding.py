"""An image file in, an upright RGB image out: the one place that opens images, for training, answers and servers.

It needs no tensors, so that a process that only decodes starts at once.
"""

import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from caldera.errors import ImageError
from caldera.files.atomic import file_exists

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""The file formats that are decoded; Pillow's rarer decoders are where the faults are."""

MAX_BYTES = 100_000_000
"""Larger files are not read."""

MAX_PIXELS = 32_000_000
"""Images of more pixels are refused from their header, before they are decoded."""

MAX_SIDE = 12_000
"""So are longer ones: padded to a square they would take up to gigabytes."""


class ImageTooLargeError(ImageError):
    """An image has more pixels than are decoded."""


_EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets an image upright, by its EXIF orientation."""

_EXIF_ROTATED = (5, 6, 7, 8)
"""Orientations in which width and height change places."""


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode an image as RGB: upright by its EXIF orientation, transparency on white, first frame of several.

    Args:
        content: The bytes of a JPEG, PNG, WebP or GIF file.
        name: What messages call it; if it ends in `.jpg` or `.png`, a GIF inside is refused.

    Raises:
        ImageError: It is empty, broken, in another format, too large, or a GIF by another name.
    """
    if not content:
        raise ImageError(f"{name} is empty (0 bytes); replace or remove it")
    with _open_checked(content, name) as image:
        if image.format == "GIF" and Path(name).suffix.lower() not in ("", ".gif"):
            raise ImageError(f"{name} is a GIF by content; rename it to .gif or convert it")
        image.load()
        turn = _EXIF_TRANSPOSE.get(_orientation(image))
        return _flatten_to_rgb(image if turn is None else image.transpose(turn))


@contextmanager
def _open_checked(content: bytes, name: str) -> Iterator[Image.Image]:
    """Give an image whose head was read and is within the limits; what Pillow raises in the block is told in words.

    Raises:
        ImageError: It is in another format, broken, or too large.
    """
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            _check_size(image.size, name)
            yield image
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a {', '.join(FORMATS)} image; convert it") from None
    except Image.DecompressionBombError:
        raise _too_many_pixels(name) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{name} cannot be decoded, it is broken or cut; replace it") from error


def _orientation(image: Image.Image) -> int:
    """Return how an image lies by its EXIF data; upright, where that is malformed."""
    try:
        said = image.getexif().get(ExifTags.Base.Orientation)
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, struct.error):
        return 1  # many cameras and editors write it wrong; the pixels are there all the same
    return said if isinstance(said, int) else 1


def read_image_header(content: bytes, name: str) -> tuple[str, tuple[int, int]]:
    """Return an image's format and its size as stored, from the head of its file, without decoding it.

    Args:
        content: The bytes of a JPEG, PNG, WebP or GIF file.
        name: What messages call it.

    Raises:
        ImageError: It is in another format, its head is broken, or it is too large.
    """
    with _open_checked(content, name) as image:
        return str(image.format), image.size


def _too_many_pixels(name: str) -> ImageTooLargeError:
    """Say that an image has so many pixels that they are not even counted."""
    return ImageTooLargeError(
        f"{name} has many times more pixels than the limit of {MAX_PIXELS:,}; shrink it"
    )


def _check_size(size: tuple[int, int], name: str) -> None:
    """Refuse a size that would take too much memory on its way to the tower.

    Raises:
        ImageError: It has too many pixels, or a side that is too long.
    """
    width, height = size
    said = f"{name} has {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise ImageTooLargeError(f"{said}, over the limit of {MAX_PIXELS:,}; shrink it")
    if max(size) > MAX_SIDE:
        raise ImageTooLargeError(
            f"{said}, over the limit of {MAX_SIDE:,} for a side; shrink or cut it"
        )


def _flatten_to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, with white behind what is transparent."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        colored = image.convert("RGBA")
        ground = Image.new("RGBA", colored.size, "white")
        return Image.alpha_composite(ground, colored).convert("RGB")
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    return image.convert("RGB")


def read_bytes(path: Path) -> bytes:
    """Read an image file; what is not a plain file, such as a device or a pipe, is not opened.

    Raises:
        ImageError: It is not there, cannot be read, or is too large to be an image.
    """
    try:
        _check_file(path)
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error


def _check_file(path: Path) -> None:
    """Refuse what is not a plain file, or too large for an image.

    Raises:
        ImageError: It is one of the two.
        OSError: It is not there, or cannot be looked at.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise ImageError(f"{path} is {what}; give an image file")
    if found.st_size > MAX_BYTES:
        raise ImageError(
            f"{path} has {found.st_size:,} bytes, over the limit of {MAX_BYTES:,}; shrink it"
        )


def open_image(path: Path) -> Image.Image:
    """Read and decode an image file.

    Raises:
        ImageError: It is not there, cannot be read, or cannot be decoded.
    """
    return decode_image(read_bytes(path), str(path))


def image_size(path: Path) -> tuple[int, int]:
    """Return an image's size as it lies upright, from the head of its file.

    Raises:
        ImageError: It is not there, or cannot be used.
    """
    try:
        _check_file(path)
        with Image.open(path, formats=FORMATS) as image:
            _check_size(image.size, str(path))
            if image.format == "PNG":
                image.load()  # its orientation may stand behind its pixels
            turned = _orientation(image) in _EXIF_ROTATED
            return image.size[::-1] if turned else image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return open_image(path).size  # it says what is wrong


def resolve_image_path(text: str) -> Path:
    """Return the file that a user means, after opening it once.

    Args:
        text: A path as typed or dropped on a terminal: quotes around it, backslashes in it and `~` are understood.

    Raises:
        ImageError: It is a web address, a folder, not there, or not an image.
    """
    text = text.strip().strip("'\"")
    if "://" in text:
        raise ImageError(f"{text} is a web address; download the image and give its file")
    path = Path(text).expanduser()
    if "\\" in text and not file_exists(path):
        path = Path(re.sub(r"\\(.)", r"\1", text)).expanduser()
    open_image(path)
    return path.resolve()
