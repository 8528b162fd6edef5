"""Data URLs of images."""

import base64
import io
from pathlib import Path

from PIL import Image

from caldera.images.decoding import DEFAULT_DECODING, DecodingConfig, open_image


def encode_data_url(content: bytes, image_format: str) -> str:
    """Return the bytes of an image file as a data URL; the format is such as "png"."""
    return f"data:image/{image_format};base64,{base64.b64encode(content).decode()}"


def image_to_data_url(image: Image.Image, image_format: str, **save_options: int) -> str:
    """Encode an image as "png" or "jpeg", with Pillow's options for saving, and return it as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, image_format.upper(), **save_options)
    return encode_data_url(buffer.getvalue(), image_format)


def thumbnail_to_data_url(
    path: Path, side: int, decoding: DecodingConfig = DEFAULT_DECODING
) -> str:
    """Return an image file as the data URL of a JPEG with at most `side` pixels along each side.

    Raises:
        ImageError: The file cannot be read or decoded.
    """
    image = open_image(path, decoding)
    image.thumbnail((side, side))
    return image_to_data_url(image, "jpeg", quality=88)
