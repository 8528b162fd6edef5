"""Why an image that a client sent or named is not used: a status, OpenAI's word for it, and a text that never changes.

The texts are fixed: what a decoder, a resolver or the system said would tell a client about this machine.
"""

from dataclasses import dataclass

from caldera.errors import ImageError


@dataclass(frozen=True, slots=True)
class MediaErrorKind:
    """One reason."""

    status: int
    """Of HTTP: 400 refused, 422 cannot be had, 502 its host failed, 503 this machine is short of something."""

    code: str
    """OpenAI's word for it."""

    text: str
    """What the client is told."""


class MediaError(ImageError):
    """An image from outside is not used."""

    def __init__(self, fault: MediaErrorKind) -> None:
        super().__init__(fault.text)
        self.fault = fault


BAD_URL = MediaErrorKind(
    400,
    "invalid_image_url",
    "the image URL is not understood; send a data URL (data:image/png;base64,...)",
)
REMOTE_DISABLED = MediaErrorKind(
    400,
    "invalid_image_url",
    "remote image URLs are disabled; send the image as a data URL (data:image/png;base64,...)",
)
FILES_DISABLED = MediaErrorKind(
    400,
    "invalid_image_url",
    "image files on the server are disabled; send the image as a data URL (data:image/png;base64,...)",
)
NOT_ALLOWED = MediaErrorKind(
    400, "invalid_image_url", "this server may not fetch from this image URL"
)
TOO_MANY_REDIRECTS = MediaErrorKind(
    400, "invalid_image_url", "the image URL leads on and on; name where the image is"
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
    400, "invalid_base64_image", "the image is not valid base64; encode it anew, without line ends"
)
UNSUPPORTED = MediaErrorKind(
    400,
    "unsupported_image_media_type",
    "only JPEG, PNG, WebP and GIF images are taken; convert it",
)
NOT_AN_IMAGE = MediaErrorKind(400, "invalid_image_format", "what the image URL gives is no image")
UNDECODABLE = MediaErrorKind(
    400, "image_parse_error", "the image cannot be decoded; it is broken or cut"
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
