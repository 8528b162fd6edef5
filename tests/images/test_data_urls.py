"""Tests of data URLs of images."""

import base64
import io

from PIL import Image

from caldera.images.data_urls import encode_data_url, image_to_data_url


def test_bytes_are_encoded_unchanged() -> None:
    """Decoding the URL returns the content."""
    assert encode_data_url(b"abc", "png") == "data:image/png;base64,YWJj"


def test_an_image_is_encoded_in_the_format_of_its_url() -> None:
    """A lossless format returns the pixels."""
    image = Image.new("RGB", (3, 2), (10, 20, 30))
    head, _, body = image_to_data_url(image, "png", optimize=True).partition(",")
    decoded = Image.open(io.BytesIO(base64.b64decode(body)))
    assert head == "data:image/png;base64"
    assert decoded.format == "PNG"
    assert decoded.tobytes() == image.tobytes()
