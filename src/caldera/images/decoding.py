"""Decoding of image files to upright RGB images, for training, evaluation and servers.

It does not import torch, so that a decoding process starts fast.
"""

import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

from caldera.errors import ImageError
from caldera.files.atomic import file_exists

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""The supported file formats; most of Pillow's vulnerabilities are in its rarer decoders."""

MAX_BYTES = 100_000_000
"""Maximal size of a file."""

MAX_PIXELS = 32_000_000
"""Maximal number of pixels, checked in the header before decoding."""

MAX_SIDE = 12_000
"""Maximal width or height: padded to a square, a longer image would take up to gigabytes."""


class ImageTooLargeError(ImageError):
    """An image has too many pixels to be decoded."""


_EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transformation to the upright image, by EXIF orientation."""

_EXIF_ROTATED = (5, 6, 7, 8)
"""EXIF orientations with swapped width and height."""


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode an image as RGB: upright by its EXIF orientation, on white if transparent, the first frame if animated.

    `name` is for messages; a GIF whose name has the suffix of another format is an error.
    """
    if not content:
        raise ImageError(f"{name} is empty (0 bytes); replace or remove it")
    with _open_checked(BytesIO(content), name) as image:
        check_size(image.size, name)
        if image.format == "GIF" and Path(name).suffix.lower() not in ("", ".gif"):
            raise ImageError(f"{name} is a GIF by content; rename it to .gif or convert it")
        image.load()
        transpose = _EXIF_TRANSPOSE.get(_orientation(image))
        return _flatten_to_rgb(image if transpose is None else image.transpose(transpose))


@contextmanager
def _open_checked(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """Yield an image of a supported format; Pillow's exceptions in the block become ImageErrors."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            yield image
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a {', '.join(FORMATS)} image; convert it") from None
    except Image.DecompressionBombError:
        raise ImageTooLargeError(
            f"{name} has many times more pixels than the limit of {MAX_PIXELS:,}; shrink it"
        ) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(
            f"{name} cannot be decoded, it is broken or truncated; replace it"
        ) from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image; 1 (upright) if it is malformed."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, struct.error):
        # Many cameras and editors write broken EXIF data; the pixels are usable all the same.
        return 1
    return orientation if isinstance(orientation, int) else 1


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Facts about an image file that do not need its pixels."""

    format: str
    """Format by content, such as `JPEG`."""

    width: int
    """Width as stored, before the EXIF orientation is applied."""

    height: int
    """Height as stored."""

    orientation: int
    """EXIF orientation, 1 to 8; 1 is upright."""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        is_rotated = self.orientation in _EXIF_ROTATED
        return (self.height, self.width) if is_rotated else (self.width, self.height)


def read_image_header(path: Path) -> ImageHeader:
    """Read the header of an image file without decoding it; raise ImageError if the file is no image."""
    with _opened(path) as file:
        return _parse_header(file, str(path))


def parse_image_header(content: bytes, name: str) -> ImageHeader:
    """Return the header of the image in `content`; `name` is for messages."""
    return _parse_header(BytesIO(content), name)


def _parse_header(file: BinaryIO, name: str) -> ImageHeader:
    with _open_checked(file, name) as image:
        if image.format == "PNG" and _png_ends_with_metadata(file):
            image.load()
        return ImageHeader(str(image.format), *image.size, _orientation(image))


def _png_ends_with_metadata(file: BinaryIO) -> bool:
    """Return whether a PNG has chunks after its pixels, which may have its orientation."""
    position, has_pixels = 8, False
    while True:
        file.seek(position)
        start = file.read(8)
        if has_pixels and start[4:] not in (b"IDAT", b"IEND"):
            return len(start) == 8
        if len(start) < 8 or start[4:] == b"IEND":
            return False
        has_pixels = has_pixels or start[4:] == b"IDAT"
        position += 12 + int.from_bytes(start[:4])


def check_size(size: tuple[int, int], name: str) -> None:
    """Raise ImageTooLargeError if an image of this size would take too much memory."""
    width, height = size
    subject = f"{name} has {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise ImageTooLargeError(f"{subject}, over the limit of {MAX_PIXELS:,}; shrink it")
    if max(size) > MAX_SIDE:
        raise ImageTooLargeError(
            f"{subject}, over the limit of {MAX_SIDE:,} for a side; shrink or cut it"
        )


def _flatten_to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, with a white background."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        colored = image.convert("RGBA")
        background = Image.new("RGBA", colored.size, "white")
        return Image.alpha_composite(background, colored).convert("RGB")
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    return image.convert("RGB")


def read_bytes(path: Path) -> bytes:
    """Read an image file; devices and pipes are not opened."""
    with _opened(path) as file:
        return file.read()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file of limited length; errors of the system in the block become ImageErrors."""
    try:
        _check_file(path)
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error


def _check_file(path: Path) -> None:
    """Raise ImageError if a path is not a regular file or too large; raise OSError if it is not accessible."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        description = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise ImageError(f"{path} is {description}; give an image file")
    if status.st_size > MAX_BYTES:
        raise ImageError(
            f"{path} has {status.st_size:,} bytes, over the limit of {MAX_BYTES:,}; shrink it"
        )


def open_image(path: Path) -> Image.Image:
    """Read and decode an image file."""
    return decode_image(read_bytes(path), str(path))


def image_size(path: Path) -> tuple[int, int]:
    """Return the size of the upright image from the header of its file."""
    header = read_image_header(path)
    check_size((header.width, header.height), str(path))
    return header.upright_size


def resolve_image_path(text: str) -> Path:
    """Return the image file of a path entered by a user, after decoding it once.

    The path is as typed or dropped on a terminal, with optional quotes, backslash escapes and `~`.
    """
    text = text.strip().strip("'\"")
    if "://" in text:
        raise ImageError(f"{text} is a web address; download the image and give its file")
    path = Path(text).expanduser()
    if "\\" in text and not file_exists(path):
        path = Path(re.sub(r"\\(.)", r"\1", text)).expanduser()
    open_image(path)
    return path.resolve()
