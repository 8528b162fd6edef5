"""A picture file in, the vision tower's pixels out."""

import stat
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from caldera.errors import PictureError

Aspect = Literal["square", "pad"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""The file formats that are decoded; Pillow's rarer decoders are where the faults are."""

MAX_BYTES = 100_000_000
"""Larger files are not read."""

MAX_PIXELS = 32_000_000
"""Pictures of more pixels are refused from their header, before they are decoded."""

MAX_SIDE = 12_000
"""So are longer ones: padded to a square they would take up to gigabytes."""

MAX_RATIO = 200
"""And so are ones whose one side is over this many times the other: when the short edge is enlarged to what the tower
sees, the long one grows with it."""


def decode_picture(content: bytes, name: str) -> Image.Image:
    """Decode a picture as RGB: upright by its EXIF orientation, transparency on white, first frame of several.

    Args:
        content: The bytes of a JPEG, PNG, WebP or GIF file.
        name: What messages call it; if it ends in `.jpg` or `.png`, a GIF inside is refused.

    Raises:
        PictureError: It is empty, broken, in another format, too large, or a GIF by another name.
    """
    if not content:
        raise PictureError(f"{name} is empty (0 bytes); replace or remove it")
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            _check_size(picture.size, name)
            if picture.format == "GIF" and Path(name).suffix.lower() not in ("", ".gif"):
                raise PictureError(f"{name} is a GIF by content; rename it to .gif or convert it")
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            return _on_white(upright)
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"{name} is not a {', '.join(FORMATS)} picture; convert it") from None
    except Image.DecompressionBombError:
        raise PictureError(
            f"{name} has many times more pixels than the limit of {MAX_PIXELS:,}; shrink it"
        ) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureError(f"{name} cannot be decoded, it is broken or cut; replace it") from error


def _check_size(size: tuple[int, int], name: str) -> None:
    """Refuse a size that would take too much memory on its way to the tower.

    Raises:
        PictureError: It has too many pixels, or a side that is too long.
    """
    width, height = size
    said = f"{name} has {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise PictureError(f"{said}, over the limit of {MAX_PIXELS:,}; shrink it")
    if max(size) > MAX_SIDE:
        raise PictureError(f"{said}, over the limit of {MAX_SIDE:,} for a side; shrink or cut it")
    if max(size) > MAX_RATIO * min(size):
        raise PictureError(f"{said}, one side over {MAX_RATIO} times the other; cut it")


def _on_white(picture: Image.Image) -> Image.Image:
    """Convert any mode to RGB, with white behind what is transparent."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        coloured = picture.convert("RGBA")
        ground = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(ground, coloured).convert("RGB")
    if picture.mode.startswith("I;16"):
        return picture.point(lambda value: value / 256).convert("L").convert("RGB")
    return picture.convert("RGB")


def read_bytes(path: Path) -> bytes:
    """Read a picture file; what is not a plain file, such as a device or a pipe, is not opened.

    Raises:
        PictureError: It is not there, cannot be read, or is too large to be a picture.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            what = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            raise PictureError(f"{path} is {what}; give a picture file")
        if found.st_size > MAX_BYTES:
            raise PictureError(
                f"{path} has {found.st_size:,} bytes, over the limit of {MAX_BYTES:,}; shrink it"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise PictureError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error.strerror}") from error


def open_picture(path: Path) -> Image.Image:
    """Read and decode a picture file.

    Raises:
        PictureError: It is not there, cannot be read, or cannot be decoded.
    """
    return decode_picture(read_bytes(path), str(path))


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureProcessor:
    """Brings a picture into the shape, size and range its vision tower was trained on, as CLIP's processor does."""

    side: int
    """Pixels along each side of what the tower sees."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    aspect: Aspect = "square"
    """`square` crops what lies outside the central square (LLaVA); `pad` shows all of it on a ground of the mean
    colour (LLaVA-1.5)."""

    resample: int = Image.Resampling.BICUBIC

    edge: int | None = None
    """Pixels of the shorter edge before the central square is cut, as DINOv2's processor has it; `side` if None."""

    squash: bool = False
    """Whether a picture is pressed into the square instead of cut to it, as SigLIP's processor does."""

    def __call__(self, picture: Image.Image) -> Tensor:
        """Return the pixels of an RGB picture, (channels, side, side), normalised."""
        if self.aspect == "pad":
            picture = self._padded(picture)
        small = _centre_crop(self._resized(picture), self.side)
        values = np.asarray(small, dtype=np.float32) / 255  # (height, width, channels)
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(values.transpose(2, 0, 1).copy())  # (channels, height, width)

    def _padded(self, picture: Image.Image) -> Image.Image:
        """Paste a picture in the middle of a square of the mean colour (spec 1.8: offsets are floored)."""
        width, height = picture.size
        longest = max(width, height)
        red, green, blue = (int(255 * part) for part in self.mean)
        ground = Image.new("RGB", (longest, longest), (red, green, blue))
        ground.paste(picture, ((longest - width) // 2, (longest - height) // 2))
        return ground

    def _resized(self, picture: Image.Image) -> Image.Image:
        """Resize so that the shorter edge is `edge` long, the longer in proportion, rounded down; or squash."""
        width, height = picture.size
        edge = self.side if self.edge is None else self.edge
        length = edge if self.squash else int(edge * max(width, height) / min(width, height))
        size = (edge, length) if width <= height else (length, edge)
        return picture.resize(size, Image.Resampling(self.resample))


def _centre_crop(picture: Image.Image, side: int) -> Image.Image:
    """Cut the central square of `side` pixels."""
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))
