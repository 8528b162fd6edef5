"""Images as Python programs hold them: files, bytes, Pillow images, arrays, tensors and URLs."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image
from torch import Tensor

from caldera.conversation.image_values import inline_image_bytes, parse_image
from caldera.errors import ConversationError, ImageError, shorten_value
from caldera.images.decoding import decode_image, open_image, to_upright_rgb

FetchImage = Callable[[str], bytes]
"""Function that returns the content of an image's URL."""

_Array = np.ndarray[Any, Any]

_CHANNELS = (1, 3, 4)
"""Channels of gray, RGB and RGBA."""

_INPUTS = "a path, bytes, an open file, a Pillow image, an array, a tensor or a data: URL"
_MAX_PATH = 1000
"""Characters from which a text is no path, so that no message repeats content."""

_NAME = "the image"
_URL = re.compile(r"https?://", re.IGNORECASE)


@runtime_checkable
class ReadableFile(Protocol):
    """A file that is open for reading bytes."""

    def read(self) -> Any:  # noqa: ANN401 - bytes, or text of a file that was opened as text
        """Return the rest of the content."""
        ...

    def seek(self, position: int, /) -> Any:  # noqa: ANN401
        """Go to a position."""
        ...


ImageInput = (
    str
    | PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | ReadableFile
    | Image.Image
    | np.ndarray[Any, Any]
    | Tensor
    | Mapping[str, Any]
)
"""An image: a path, a data: URL, the bytes of a file, an open file, a Pillow image, an array (height, width, channels),
a tensor (channels, height, width), or a row of a Hugging Face data set with `bytes` or `path`."""


def to_image_list(images: object) -> list[Any]:
    """Return one image, or a list or tuple of images at any depth, as a list."""
    if isinstance(images, list | tuple):
        return [image for item in images for image in to_image_list(item)]
    return [images]


def decode_input(image: object, fetch: FetchImage | None = None) -> Image.Image:
    """Return an image as RGB: upright by its EXIF orientation, on white if transparent.

    Values of an array are 0 to 255, or 0 to 1 if they are floats.

    Args:
        image: Any ImageInput.
        fetch: Returns the content of an http(s) URL; URLs are rejected if it is None.

    Raises:
        ImageError: It is no image, is broken, or has values, a shape or a place that images cannot have.
    """
    match image:
        case str():
            return _decode_text(image, fetch)
        case PathLike():
            return _decode_file_at(str(image))
        case bytes() | bytearray() | memoryview():
            return decode_image(bytes(image), _NAME)
        case Image.Image():
            return _decode_pillow(image)
        case np.ndarray():
            return _decode_array(image, is_tensor=False)
        case Tensor():
            array = image.detach().to_dense().cpu()
            return _decode_array(
                (array.float() if array.is_floating_point() else array).numpy(), is_tensor=True
            )
        case ReadableFile():
            return _decode_file(image)
        case Mapping():
            return _decode_record(image, fetch)
        case _:
            raise ImageError(
                f"an image cannot be {shorten_value(image)} of type {type(image).__name__}; give {_INPUTS}"
            )


def _decode_text(text: str, fetch: FetchImage | None) -> Image.Image:
    """Decode the image of a path or a URL."""
    if not _URL.match(text):
        return _decode_record(text, fetch)
    if fetch is None:
        raise ImageError(
            f"{shorten_value(text)} is a web address, which is not fetched; give the image's bytes, or allow it: "
            "caldera.load(..., fetch_image=FUNCTION), a function from a URL to bytes"
        )
    content = fetch(text)
    if not isinstance(content, bytes):
        raise ImageError(f"fetch_image returned {shorten_value(content)}; it must return bytes")
    return decode_image(content, text)


def _decode_record(value: object, fetch: FetchImage | None) -> Image.Image:
    """Decode the image of a path, a data: URL, or a row of a data set."""
    if isinstance(value, Mapping):
        url = next((value[key] for key in ("url", "image_url", "path") if value.get(key)), None)
        if isinstance(url, str) and _URL.match(url) and not value.get("bytes"):
            return _decode_text(url, fetch)
        value = dict(value)
    try:
        source = parse_image(value)
        if source.content is not None:
            return decode_image(inline_image_bytes(source.content), _NAME)
    except ConversationError as error:
        raise ImageError(str(error)) from None
    return _decode_file_at(source.path)


def _decode_file_at(path: str) -> Image.Image:
    """Decode the image file at a path."""
    if len(path) > _MAX_PATH or "\0" in path:
        raise ImageError(f"{shorten_value(path)} is no path of an image; give {_INPUTS}")
    # RuntimeError: there is no such user.
    with suppress(RuntimeError):
        return open_image(Path(path).expanduser())
    return open_image(Path(path))


def _decode_file(file: ReadableFile) -> Image.Image:
    """Decode the image in an open file, from its beginning if it can be rewound."""
    try:
        # Files that cannot be rewound, such as downloads, are read from where they are.
        with suppress(OSError, ValueError):
            file.seek(0)
        content = file.read()
    except (OSError, ValueError) as error:
        raise ImageError(f"the open file of {_NAME} cannot be read: {error}") from None
    if not isinstance(content, bytes):
        raise ImageError(
            f"the open file of {_NAME} gives {type(content).__name__} instead of bytes; open it with mode 'rb'"
        )
    return decode_image(content, _NAME)


def _decode_pillow(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"{_NAME} has {image.width} x {image.height} pixels; give one with pixels")
    try:
        return to_upright_rgb(image, _NAME)
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{_NAME} cannot be decoded by Pillow: {error}") from None


def _decode_array(array: _Array, *, is_tensor: bool) -> Image.Image:
    """Decode the pixels of an array, or of a tensor whose channels come first."""
    pixels = _to_channels_last(array, is_tensor=is_tensor)
    pixels = _to_bytes(pixels)  # (height, width, channels)
    channels = pixels.shape[-1]
    return to_upright_rgb(Image.fromarray(pixels[..., 0] if channels == 1 else pixels), _NAME)


def _to_channels_last(array: _Array, *, is_tensor: bool) -> _Array:
    """Return pixels as (height, width, channels)."""
    kind = "a tensor" if is_tensor else "an array"
    shape = array.shape
    if array.ndim == 4:
        raise ImageError(f"{kind} of shape {shape} is a batch; give a list of its images")
    if array.ndim == 2 and 0 not in shape:
        return array[..., np.newaxis]
    if array.ndim == 3 and 0 not in shape:
        first, last = shape[0] in _CHANNELS, shape[-1] in _CHANNELS
        if first and last and is_tensor:
            raise ImageError(
                f"a tensor of shape {shape} could have its channels first or last; give an array, with channels last"
            )
        if first or last:
            return array if last else np.moveaxis(array, 0, -1)
    raise ImageError(
        f"{kind} of shape {shape} is no image; give (height, width), (height, width, channels) or (channels, height, "
        "width) with 1, 3 or 4 channels"
    )


def _to_bytes(pixels: _Array) -> _Array:
    """Return pixels as 0 to 255: whole numbers of that range, or floats from 0 to 1."""
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    is_float = np.issubdtype(pixels.dtype, np.floating)
    highest = 1 if is_float else 255
    is_whole = np.issubdtype(pixels.dtype, np.integer) and pixels.dtype != np.uint16
    low, high = pixels.min(), pixels.max()
    if not (is_float or is_whole) or not 0 <= low <= high <= highest:
        raise ImageError(
            f"pixels of {pixels.dtype} from {low} to {high} are ambiguous; give uint8 (0 to 255) or floats from 0 to 1"
        )
    scaled = np.rint(pixels * 255.0) if is_float else pixels
    return np.ascontiguousarray(scaled.astype(np.uint8))
