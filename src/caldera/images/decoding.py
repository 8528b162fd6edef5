"""Decoding of image files to upright RGB images, for training, evaluation and servers.

It does not import torch, so that a decoding process starts fast.
"""

import re
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from caldera.errors import ImageError, check_ranges
from caldera.files.atomic import file_exists
from caldera.images.file_types import (
    START_BYTES,
    identify_image_format,
    identify_other_file,
    lacks_end,
)

_PLUGINS: Mapping[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}
"""Pillow's reader of each supported format. `Image.open` would add its own limit on the pixels to those of here."""

_SCALES = (1, 2, 4, 8)
"""Divisors of width and height that JPEGs can be decoded at."""

_JPEG_FACTOR = 8
"""Factor of the limit on the pixels that a JPEG may have before it is reduced."""

_PNG_EXIF_KEYWORDS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""Keywords of texts in PNGs that hold EXIF data."""

_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, LookupError, TypeError, struct.error)
"""Exceptions of Pillow for a broken file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingConfig:
    """Limits on image files, and whether truncated ones are used."""

    max_bytes: int = 100_000_000
    """Length of a file."""

    max_pixels: int = 32_000_000
    """Pixels of a decoded image, checked in the header. A JPEG may have 8 times as many: it is decoded at 1/2, 1/4 or
    1/8 of its width and height."""

    max_side: int = 16_384
    """Width or height of a decoded image; a longer image is decoded at 1/2, 1/4 or 1/8 of its width and height."""

    allow_truncated: bool = False
    """Whether an image is used whose file lacks its end; the missing rows are grey or black."""

    def __post_init__(self) -> None:
        """Raise UsageError if a limit is not positive."""
        check_ranges(self, dict.fromkeys(("max_bytes", "max_pixels", "max_side"), "[1, inf]"))


DEFAULT_DECODING = DecodingConfig()

TRUNCATED_NOTE = "the image is truncated; what there is of it is used"
"""Reason that a truncated image is listed for where such images are allowed."""


class ImageTooLargeError(ImageError):
    """An image has too many pixels to be decoded."""


class TruncatedImageError(ImageError):
    """The end of an image file is missing."""


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


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Facts about an image file that do not need its pixels."""

    format: str
    """Pillow's name of the format by content, such as `JPEG`."""

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

    def scale(self, name: str, config: DecodingConfig) -> int:
        """Return the divisor of width and height, mostly 1, that the image is decoded at.

        Raises:
            ImageTooLargeError: The image is over a limit; the message names it by `name`.
        """
        pixels, subject = (
            self.width * self.height,
            f"{name} has {self.width} x {self.height} pixels",
        )
        factor = _JPEG_FACTOR if self.format == "JPEG" else 1
        if pixels > factor * config.max_pixels:
            limit = f"max_pixels, {config.max_pixels:,}" + (
                f" x {factor} for a JPEG" * (factor > 1)
            )
            raise ImageTooLargeError(
                f"{subject}, over the limit ({limit}); shrink it or raise the limit"
            )
        for scale in _SCALES:
            width, height = -(-self.width // scale), -(-self.height // scale)
            if width * height <= config.max_pixels and max(width, height) <= config.max_side:
                return scale
        raise ImageTooLargeError(
            f"{subject}, over {_SCALES[-1]} times the limit for a side (max_side, {config.max_side:,}); "
            "shrink or cut it"
        )

    def decoded_size(self, name: str, config: DecodingConfig) -> tuple[int, int]:
        """Return the width and height of the decoded, upright image; raise ImageTooLargeError as `scale` does."""
        scale = self.scale(name, config)
        width, height = self.upright_size
        return -(-width // scale), -(-height // scale)


def read_image_header(path: Path) -> ImageHeader:
    """Read the header of an image file without decoding it; raise ImageError if the file is no image."""
    with _opened(path) as file:
        return _parse_header(file, str(path))


def parse_image_header(content: bytes, name: str) -> ImageHeader:
    """Return the header of the image in `content`; `name` is for messages."""
    return _parse_header(BytesIO(content), name)


def image_size(path: Path, config: DecodingConfig = DEFAULT_DECODING) -> tuple[int, int]:
    """Return the size of the decoded, upright image from the header of its file."""
    return read_image_header(path).decoded_size(str(path), config)


def open_image(path: Path, config: DecodingConfig = DEFAULT_DECODING) -> Image.Image:
    """Read and decode an image file."""
    return decode_image(read_bytes(path, config), str(path), config)


def decode_image(
    content: bytes, name: str, config: DecodingConfig = DEFAULT_DECODING
) -> Image.Image:
    """Decode an image as RGB: upright by its EXIF orientation, on white if transparent, the first frame if animated.

    Args:
        content: The file; its format is that of its content, whatever its name.
        name: Name of the image for messages.
        config: Limits; an image over one is reduced where that is possible.

    Raises:
        ImageError: It is no image of a supported format, is broken or truncated, or is over a limit.
    """
    try:
        return _decode(content, name, config, lambda image: image.load())
    except TruncatedImageError:
        if not config.allow_truncated:
            raise
    # libjpeg decodes all rows if the marker of the end follows the data that there is.
    return _decode(content + b"\xff\xd9", name, config, _load_partially)


def is_truncated(path: Path) -> bool:
    """Return whether an image can be decoded only in part, as the end of its file is missing."""
    content = read_bytes(path, DecodingConfig(max_bytes=1 << 62))
    try:
        if lacks_end(content, identify_image_format(content)):
            decode_image(content, str(path))
    except ImageError as error:
        return isinstance(error, TruncatedImageError)
    return False


def _decode(
    content: bytes, name: str, config: DecodingConfig, load: Callable[[ImageFile.ImageFile], object]
) -> Image.Image:
    with _opened_image(BytesIO(content), name) as image:
        width, height = _stored_size(image, name)
        scale = ImageHeader(str(image.format), width, height, 1).scale(name, config)
        if isinstance(image, JpegImageFile) and scale > 1:
            image.draft(None, (max(1, width // scale), max(1, height // scale)))
        load(image)
        decoded = to_upright_rgb(image, name)
    reduced_by = -(-max(width, height) // max(decoded.size))
    return decoded if reduced_by == scale else decoded.reduce(scale // reduced_by)


def to_upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return an image of Pillow as RGB: upright by its EXIF orientation, on white if transparent."""
    transpose = _EXIF_TRANSPOSE.get(_orientation(image))
    return _flatten_to_rgb(image if transpose is None else image.transpose(transpose), name)


def _load_partially(image: ImageFile.ImageFile) -> None:
    """Decode what there is of a truncated image."""
    try:
        image.load()
    except OSError:
        # Without tiles left to decode, the image keeps the rows that were decoded before the error.
        image.tile = []
        image.load()


def _parse_header(file: BinaryIO, name: str) -> ImageHeader:
    with _opened_image(file, name) as image:
        width, height = _stored_size(image, name)
        if isinstance(image, TiffImageFile):
            orientation = image.tag_v2.get(ExifTags.Base.Orientation)
            return ImageHeader("TIFF", width, height, _valid_orientation(orientation))
        if image.format == "PNG" and _png_ends_with_exif(file):
            image.load()
        return ImageHeader(str(image.format), width, height, _orientation(image))


def _stored_size(image: ImageFile.ImageFile, name: str) -> tuple[int, int]:
    """Return the width and height of an opened image before its EXIF orientation is applied."""
    if not isinstance(image, TiffImageFile):
        return image.size
    # Pillow rotates TIFFs itself: their `size` is that of the upright image.
    tags = image.tag_v2
    if int(tags.get(ExifTags.Base.NewSubfileType, 0)) & 1 or ExifTags.Base.DNGVersion in tags:
        raise ImageError(f"{name} is a camera raw image; convert it to JPEG or PNG")
    return int(tags[ExifTags.Base.ImageWidth]), int(tags[ExifTags.Base.ImageLength])


def _png_ends_with_exif(file: BinaryIO) -> bool:
    """Return whether a PNG has EXIF data, which may have its orientation, after its pixels."""
    position, has_pixels = 8, False
    while True:
        file.seek(position)
        start = file.read(40)
        kind = start[4:8]
        if len(start) < 8 or kind == b"IEND":
            return False
        if has_pixels and (kind == b"eXIf" or start[8:].startswith(_PNG_EXIF_KEYWORDS)):
            return True
        has_pixels = has_pixels or kind == b"IDAT"
        position += 12 + int.from_bytes(start[:4])


@contextmanager
def _opened_image(file: BinaryIO, name: str) -> Iterator[ImageFile.ImageFile]:
    """Yield an image of a supported format; Pillow's exceptions in the block become ImageErrors."""
    start = file.read(START_BYTES)
    image_format = identify_image_format(start)
    if image_format is None:
        raise ImageError(_describe_other_file(start, name))
    file.seek(0)
    try:
        with _PLUGINS[image_format](file) as image:
            yield image
    except Image.DecompressionBombError:
        raise ImageTooLargeError(f"{name} has too many pixels to be decoded; shrink it") from None
    except ImageError:
        raise
    except _PILLOW_ERRORS as error:
        file.seek(0)
        if lacks_end(file.read(), image_format):
            raise TruncatedImageError(
                f"{name} is a truncated {image_format} image, the end of the file is missing; replace it, "
                "or train with --allow-truncated"
            ) from error
        raise ImageError(f"{name} is a broken {image_format} image; replace it") from error


def _describe_other_file(start: bytes, name: str) -> str:
    """Return the message for a file that is no supported image."""
    if not start:
        return f"{name} is empty (0 bytes); replace or remove it"
    other = identify_other_file(start)
    if other is None:
        return f"{name} is of no known image format; convert it to JPEG or PNG, or replace it"
    if other.is_image:
        return f"{name} is {other.name}, which is not supported; convert it to JPEG or PNG"
    return f"{name} is {other.name}, not an image; replace or remove it"


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image; 1 (upright) if it is malformed."""
    try:
        # The method that PNGs have instead decodes the image, and hides its errors here.
        exif = Image.Image.getexif(image)
        return _valid_orientation(exif.get(ExifTags.Base.Orientation))
    except _PILLOW_ERRORS:
        # Many cameras and editors write broken EXIF data; the pixels are usable all the same.
        return 1


def _valid_orientation(value: object) -> int:
    return value if isinstance(value, int) and value in _EXIF_TRANSPOSE else 1


def _flatten_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any mode to RGB, with a white background."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        colored = image.convert("RGBA")
        background = Image.new("RGBA", colored.size, "white")
        return Image.alpha_composite(background, colored).convert("RGB")
    if image.mode.startswith("I;16"):
        if image.mode != "I;16":
            image = image.convert("I").convert("I;16")
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        # Which of their values is white is not known.
        kind = "CIELAB" if image.mode == "LAB" else "32-bit"
        raise ImageError(f"{name} has {kind} pixels; convert it to 8 or 16 bits RGB")
    return image.convert("RGB")


def read_bytes(path: Path, config: DecodingConfig = DEFAULT_DECODING) -> bytes:
    """Read an image file; devices and pipes are not opened."""
    with _opened(path) as file:
        if (size := path.stat().st_size) > config.max_bytes:
            raise ImageError(
                f"{path} has {size:,} bytes, over the limit (max_bytes, {config.max_bytes:,}); shrink it or raise the "
                "limit"
            )
        return file.read()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file; errors of the system in the block become ImageErrors."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            description = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError(f"{path} is {description}; give an image file")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error


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
