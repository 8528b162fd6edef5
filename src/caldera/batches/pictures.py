"""A picture file in, the vision tower's pixels out."""

import stat
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from caldera.batches.anyres import WHOLE, Layout, Size, choose_pinpoint, fitted, layout_in
from caldera.errors import PictureError

Aspect = Literal["square", "pad", "anyres"]

ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
"""All of them."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""The file formats that are decoded; Pillow's rarer decoders are where the faults are."""

MAX_BYTES = 100_000_000
"""Larger files are not read."""

MAX_PIXELS = 32_000_000
"""Pictures of more pixels are refused from their header, before they are decoded."""

MAX_SIDE = 12_000
"""So are longer ones: padded to a square they would take up to gigabytes."""

MAX_TILES = 100
"""Canvases of more tiles are refused; a model folder could else ask for any amount of memory for each picture."""

LONGEST = 20
"""Of pictures that are more times as long as wide, only the part that will be seen is enlarged: of all of it, the rest
would take up to gigabytes."""

_TURNED = (5, 6, 7, 8)
"""EXIF orientations in which width and height change places."""


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
        _check_file(path)
        return path.read_bytes()
    except FileNotFoundError:
        raise PictureError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error.strerror}") from error


def _check_file(path: Path) -> None:
    """Refuse what is not a plain file, or too large for a picture.

    Raises:
        PictureError: It is one of the two.
        OSError: It is not there, or cannot be looked at.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise PictureError(f"{path} is {what}; give a picture file")
    if found.st_size > MAX_BYTES:
        raise PictureError(
            f"{path} has {found.st_size:,} bytes, over the limit of {MAX_BYTES:,}; shrink it"
        )


def open_picture(path: Path) -> Image.Image:
    """Read and decode a picture file.

    Raises:
        PictureError: It is not there, cannot be read, or cannot be decoded.
    """
    return decode_picture(read_bytes(path), str(path))


def picture_size(path: Path) -> Size:
    """Return a picture's size as it lies upright, from the head of its file.

    Raises:
        PictureError: It is not there, or cannot be used.
    """
    try:
        _check_file(path)
        with Image.open(path, formats=FORMATS) as picture:
            _check_size(picture.size, str(path))
            if picture.format == "PNG":
                picture.load()  # its orientation may stand behind its pixels
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
            return picture.size[::-1] if turned else picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return open_picture(path).size  # it says what is wrong


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureProcessor:
    """Brings a picture into the shape, size and range its vision tower was trained on, as CLIP's processor does."""

    side: int
    """Pixels along each side of what the tower sees."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    aspect: Aspect = "square"
    """`square` crops what lies outside the central square (LLaVA); `pad` shows all of it on a ground of the mean
    colour (LLaVA-1.5); `anyres` shows all of it, pressed into a square, and then in tiles (LLaVA-NeXT)."""

    pinpoints: tuple[Size, ...] = ()
    """Sizes of the canvases that `anyres` chooses from; none for the others."""

    resample: int = Image.Resampling.BICUBIC

    edge: int | None = None
    """Pixels of the shorter edge before the central square is cut, as DINOv2's processor has it; `side` if None."""

    squash: bool = False
    """Whether a picture is pressed into the square instead of cut to it, as SigLIP's processor does."""

    def __post_init__(self) -> None:
        """Check that pinpoints are there where they are needed, and cut into whole tiles, not too many.

        Raises:
            ValueError: They do not.
        """
        if (self.aspect == "anyres") != bool(self.pinpoints):
            raise ValueError(f"aspect {self.aspect} with the pinpoints {self.pinpoints}")
        for pinpoint in self.pinpoints:
            if any(length % self.side or length < self.side for length in pinpoint):
                raise ValueError(
                    f"the pinpoint {pinpoint} does not cut into tiles of {self.side} x {self.side} pixels"
                )
            if (tiles := pinpoint[0] * pinpoint[1] // self.side**2) > MAX_TILES:
                raise ValueError(
                    f"the pinpoint {pinpoint} has {tiles:,} tiles, over the limit of {MAX_TILES}"
                )

    def shown(self, aspect: Aspect, pinpoints: tuple[Size, ...] = ()) -> Self:
        """Return one that shows pictures in another way; views of `anyres` have the tower's size from the start.

        Raises:
            ValueError: The pinpoints do not go with the aspect, or do not cut into whole tiles.
        """
        own = {"edge": None, "squash": False} if aspect == "anyres" else {}
        return replace(self, aspect=aspect, pinpoints=pinpoints, **own)  # type: ignore[arg-type]

    def layout(self, path: Path) -> Layout:
        """Return how the picture at `path` is shown; only `anyres` has to look into the file.

        Raises:
            PictureError: It is not there, or cannot be used.
        """
        if self.aspect != "anyres":
            return WHOLE
        return layout_in(picture_size(path), self.pinpoints, self.side)

    def __call__(self, picture: Image.Image) -> Tensor:
        """Return the pixels of all views of an RGB picture, (views, channels, side, side), normalised."""
        return torch.stack([self._normalised(view) for view in self._views(picture)])

    def _views(self, picture: Image.Image) -> list[Image.Image]:
        """Return the squares that the tower sees."""
        match self.aspect:
            case "square":
                return [self._square(picture)]
            case "pad":
                return [self._square(self._padded(picture))]
            case "anyres":
                base = picture.resize((self.side, self.side), Image.Resampling(self.resample))
                return [base, *self._tiles(picture)]

    def _normalised(self, view: Image.Image) -> Tensor:
        """Return a square as (channels, side, side)."""
        values = np.asarray(view, dtype=np.float32) / 255  # (height, width, channels)
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(values.transpose(2, 0, 1).copy())  # (channels, height, width)

    def _padded(self, picture: Image.Image) -> Image.Image:
        """Paste a picture in the middle of a square of the mean colour (spec 1.8: offsets are floored)."""
        longest = max(picture.size)
        red, green, blue = (int(255 * part) for part in self.mean)
        return _centred(picture, (longest, longest), (red, green, blue))

    def _tiles(self, picture: Image.Image) -> list[Image.Image]:
        """Fit a picture on the canvas that suits it best, on black, and cut that into tiles, row by row."""
        canvas = choose_pinpoint(picture.size, self.pinpoints)
        small = picture.resize(fitted(picture.size, canvas), Image.Resampling(self.resample))
        whole = _centred(small, canvas, (0, 0, 0))
        return [
            whole.crop((left, top, left + self.side, top + self.side))
            for top in range(0, canvas[1], self.side)
            for left in range(0, canvas[0], self.side)
        ]

    def _square(self, picture: Image.Image) -> Image.Image:
        """Resize so that the shorter edge is `edge` long and cut out the central square of `side`; or squash."""
        resample = Image.Resampling(self.resample)
        width, height = picture.size
        if self.squash:
            return picture.resize((self.side, self.side), resample)
        edge = self.side if self.edge is None else self.edge
        length = edge * max(width, height) // min(width, height)
        size = (edge, length) if width <= height else (length, edge)
        left, top = ((long - self.side) // 2 for long in size)
        if length > LONGEST * edge:
            return self._part_of_resized(picture, size, (left, top))
        return picture.resize(size, resample).crop((left, top, left + self.side, top + self.side))

    def _part_of_resized(self, picture: Image.Image, size: Size, corner: Size) -> Image.Image:
        """Return a square of a picture as if it had been resized to `size`, without making all of that."""
        (width, height), (across, down), (left, top) = picture.size, size, corner
        box = (
            left * width / across,
            top * height / down,
            (left + self.side) * width / across,
            (top + self.side) * height / down,
        )
        return picture.resize((self.side, self.side), Image.Resampling(self.resample), box=box)


def _centred(picture: Image.Image, size: Size, colour: tuple[int, int, int]) -> Image.Image:
    """Paste a picture in the middle of a ground of one colour."""
    ground = Image.new("RGB", size, colour)
    ground.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
    return ground
