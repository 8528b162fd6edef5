"""File types by their first bytes: the image formats that can be read, and what other files are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

START_BYTES = 512
"""Bytes that decide the type of a file."""

WEB_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""Formats that browsers and servers take; rarer decoders have more vulnerabilities."""

HTML_PAGE = "an HTML page"
"""What a URL or a failed download gives most often instead of an image."""

_SUPPORTED: Sequence[tuple[bytes, str]] = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"GIF8[79]a", "GIF"),
    # The length of the header that follows distinguishes a bitmap from a text that begins with "BM".
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
    (rb"II\*\0(?!....CR)|MM\0\*|II\+\0|MM\0\+", "TIFF"),
)
"""Pattern of the first bytes of each supported format, and Pillow's name of it."""

_COMMENTS = rb"(<!--((?!-->).)*-->\s*)*"

_OTHER_IMAGES: Sequence[tuple[bytes, str]] = (
    (rb"....ftyp(avif|avis)", "an AVIF image"),
    (rb"....ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)", "a HEIC image"),
    (rb"....ftypcrx |II\*\0....CR|FUJIFILMCCD-RAW|IIR[OS]|IIU\0", "a camera raw image"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image"),
    (rb"\0\0\0\x0cjP  |\xffO\xffQ", "a JPEG 2000 image"),
    (rb"8BPS", "a Photoshop image"),
    (rb"\0\0[\1\2]\0", "an icon"),
    (rb"SIMPLE  =", "a FITS image"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript image"),
    (rb".{128}DICM", "a DICOM image"),
    (rb"DDS |qoif|gimp xcf|#\?RADIANCE|v/1\x01|P[1-6][ \n#]", "an image of a rare format"),
    (
        rb"(?i)\s*(<\?xml.*?\?>\s*)?" + _COMMENTS + rb"(<!doctype svg[^>]*>\s*)?<svg\b",
        "an SVG image",
    ),
)
"""Pattern of the first bytes of image formats that are not supported, and what to call a file of each."""

_NO_IMAGES: Sequence[tuple[bytes, str]] = (
    (rb"(?i)\s*" + _COMMENTS + rb"<(!doctype html|html|head|body)\b", HTML_PAGE),
    (rb"%PDF", "a PDF document"),
    (rb"\0\x05\x16\x07", "a macOS resource file"),
    (rb"PK\x03\x04|PK\x05\x06", "a zip archive"),
    (rb".{257}ustar", "a tar archive"),
    (rb"7z\xbc\xaf|Rar!", "an archive"),
    (rb"\x1f\x8b|BZh[1-9]1AY|\xfd7zXZ\0|\x28\xb5\x2f\xfd", "a compressed file"),
    (rb"....ftyp|RIFF....AVI |\x1aE\xdf\xa3|\0\0\x01[\xb3\xba]|FLV\x01", "a video"),
    (rb"RIFF....WAVE|ID3|OggS|fLaC", "an audio file"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x89HDF\r\n", "an HDF5 file"),
    (rb"PAR1", "a parquet file"),
    (rb"\x80[\2-\5]", "a Python pickle"),
    (rb"version https://git-lfs", "a Git LFS pointer (git lfs pull gets the image)"),
    (rb"(\.\./)*\.?(git)?/annex/objects", "a git-annex pointer (git annex get gets the image)"),
    (rb"\s*<(\?xml|!DOCTYPE|[A-Za-z]+[ >])", "an XML document"),
    (rb'\s*(\{\s*["}]|\[\s*[\[\]{"\d-])', "JSON text"),
    (rb"data:\w+/[\w.+-]+[;,]", "the text of a data URL"),
    (rb"https?://\S+\s*$", "the text of a web address"),
    (rb"iVBORw0KGgo|/9j/|R0lGOD|UklGR", "the base64 text of an image"),
    (rb"\0+$", "filled with zero bytes"),
)
"""Pattern of the first bytes of other files that are found where an image should be, and what to call them."""

_COMPILED = [
    (re.compile(pattern, re.DOTALL), name, is_image)
    for table, is_image in ((_OTHER_IMAGES, True), (_NO_IMAGES, False))
    for pattern, name in table
]
_SUPPORTED_COMPILED = [(re.compile(pattern, re.DOTALL), name) for pattern, name in _SUPPORTED]


@dataclass(frozen=True, slots=True)
class FileType:
    """Type of a file that is no supported image."""

    name: str
    """What the file is, with an article, such as `an HTML page`."""

    is_image: bool
    """Whether it is an image all the same, which could be converted."""


def identify_image_format(start: bytes) -> str | None:
    """Return Pillow's name of a file's image format from its first bytes; None if it is not supported."""
    return next((name for pattern, name in _SUPPORTED_COMPILED if pattern.match(start)), None)


def identify_other_file(start: bytes) -> FileType | None:
    """Return what a file that is no supported image is by its first bytes; None if that is unknown."""
    start = start[:START_BYTES].removeprefix(b"\xef\xbb\xbf")
    for pattern, name, is_image in _COMPILED:
        if pattern.match(start):
            return FileType(name, is_image)
    return FileType("a text file", is_image=False) if _is_text(start) else None


def lacks_end(content: bytes, image_format: str | None) -> bool:
    """Return whether a file ends before its image does, as far as its format has that."""
    match image_format:
        case "JPEG":
            return content.rfind(b"\xff\xd9") <= content.rfind(b"\xff\xda")
        case "PNG":
            return b"IEND" not in content[-1024:]
        case "GIF":
            return not content.rstrip(b"\0").endswith(b";")
        case "WEBP":
            return int.from_bytes(content[4:8], "little") + 8 > len(content)
        case "BMP":
            return int.from_bytes(content[2:6], "little") > len(content)
        case _:
            return False


def _is_text(start: bytes) -> bool:
    """Return whether bytes are text in UTF-8, which may be cut within a character."""
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        text = start[: error.start].decode()
        if error.start < len(start) - 3:
            return False
    return bool(text) and all(character.isprintable() or character.isspace() for character in text)
