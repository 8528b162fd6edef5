"""A data URL in, the bytes of the image it holds out."""

import base64
import binascii

from caldera.server.media.errors import (
    BAD_BASE64,
    BAD_URL,
    FILE_TOO_LARGE,
    UNDECODABLE,
    UNSUPPORTED,
    MediaError,
)


def read_data_url(url: str, max_bytes: int) -> bytes:
    """Decode `data:image/...;base64,...`; whatever kind of image it says, its content will tell.

    Args:
        url: Begins with `data:`, in any case.
        max_bytes: Longer content is refused before it is decoded.

    Raises:
        MediaError: It is no data URL of an image, or its base64 is wrong or too long.
    """
    head, comma, body = url[5:].partition(",")
    if not comma or len(head) > 200:
        raise MediaError(BAD_URL)
    kind, *parameters = (part.strip().lower() for part in head.split(";"))
    if not kind.startswith("image/"):
        raise MediaError(UNSUPPORTED)
    if "base64" not in parameters:
        raise MediaError(BAD_BASE64)
    if len(body) > _encoded_length(max_bytes):
        raise MediaError(FILE_TOO_LARGE)
    try:
        content = binascii.a2b_base64(body.encode("ascii"), strict_mode=True)
    except ValueError:
        raise MediaError(BAD_BASE64) from None
    if len(content) > max_bytes:
        raise MediaError(FILE_TOO_LARGE)
    if not content:
        raise MediaError(UNDECODABLE)
    return content


def data_url(content: bytes, kind: str) -> str:
    """Write an image's file of a kind such as `png` as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _encoded_length(size: int) -> int:
    """Return how many characters of base64 so many bytes take."""
    return 4 * -(-size // 3)
