"""Errors of client images, each with an HTTP status, OpenAI's error code and a fixed message.

The messages are fixed because the text of a decoder, a resolver or the system would reveal details of this machine.
"""

from dataclasses import dataclass

from caldera.errors import ImageError


@dataclass(frozen=True, slots=True)
class MediaErrorKind:
    """One reason to reject an image."""

    status: int
    """HTTP status: 400 rejected, 422 not downloadable, 502 its host failed, 503 a resource is short here."""

    code: str
    """OpenAI's error code."""

    message: str


class MediaError(ImageError):
    """A client's image cannot be used."""

    def __init__(self, kind: MediaErrorKind) -> None:
        super().__init__(kind.message)
        self.kind = kind


_SEND_DATA_URL = "send the image as a data URL (data:image/png;base64,...)"

BAD_URL = MediaErrorKind(400, "invalid_image_url", f"the image URL is not valid; {_SEND_DATA_URL}")
REMOTE_DISABLED = MediaErrorKind(
    400, "invalid_image_url", f"remote image URLs are disabled; {_SEND_DATA_URL}"
)
FILES_DISABLED = MediaErrorKind(
    400, "invalid_image_url", f"image files on the server are disabled; {_SEND_DATA_URL}"
)
NOT_ALLOWED = MediaErrorKind(
    400, "invalid_image_url", "this server may not fetch from this image URL"
)
TOO_MANY_REDIRECTS = MediaErrorKind(
    400, "invalid_image_url", "too many redirects; use the image's final URL"
)
NOT_UNDER_ROOT = MediaErrorKind(
    400, "image_file_not_found", "there is no such image file under the server's media folder"
)
DOWNLOAD_REFUSED = MediaErrorKind(
    422, "failed_to_download_image", "the image cannot be downloaded; check its URL"
)
HOST_FAILED = MediaErrorKind(
    502, "failed_to_download_image", "the host of the image did not deliver it; try again"
)
FILE_TOO_LARGE = MediaErrorKind(
    400, "image_file_too_large", "the image file has more bytes than allowed; shrink it"
)
EMPTY = MediaErrorKind(400, "empty_image_file", "the image file is empty")
BAD_BASE64 = MediaErrorKind(
    400, "invalid_base64_image", "the image is not valid base64; encode it again, without line ends"
)
UNSUPPORTED = MediaErrorKind(
    400,
    "unsupported_image_media_type",
    "only JPEG, PNG, WebP and GIF images are supported; convert it",
)
NOT_AN_IMAGE = MediaErrorKind(
    400, "invalid_image_format", "the image URL gives an HTML page, not an image"
)
UNDECODABLE = MediaErrorKind(
    400, "image_parse_error", "the image cannot be decoded; it is broken or truncated"
)
TOO_LARGE = MediaErrorKind(
    400, "image_too_large", "the image has more pixels than allowed; shrink it"
)
TOTAL_TOO_LARGE = MediaErrorKind(
    400, "image_too_large", "the images have more pixels together than allowed; shrink them"
)
TOO_SMALL = MediaErrorKind(400, "image_too_small", "the image has no pixels")
DECODER_UNAVAILABLE = MediaErrorKind(
    503, "image_decoder_unavailable", "the image could not be decoded just now; try again"
)


def unsupported(file_type: str) -> MediaErrorKind:
    """Return the kind for a file of another type, such as `a TIFF image`, from a fixed table."""
    message = f"the file is {file_type}, but {UNSUPPORTED.message}"
    return MediaErrorKind(UNSUPPORTED.status, UNSUPPORTED.code, message)
