"""Tests of file types by their first bytes."""

import io
import pickle
import tarfile
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from caldera.images.decoding import _PLUGINS
from caldera.images.file_types import identify_image_format, identify_other_file


def file_of(image_format: str) -> bytes:
    """Return an image file of a format."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, image_format)
    return buffer.getvalue()


def archive(kind: str) -> bytes:
    """Return a zip or a tar archive of one file."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("a.jpg", b"x")
    else:
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    return buffer.getvalue()


def array() -> bytes:
    """Return the file of a NumPy array."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", _PLUGINS)
def test_every_supported_format_is_identified(image_format: str) -> None:
    """By the file that Pillow writes, and never as another file."""
    assert identify_image_format(file_of(image_format)) == image_format


@pytest.mark.parametrize(
    ("content", "name", "is_image"),
    [
        (file_of("AVIF"), "an AVIF image", True),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image", True),
        (file_of("JPEG2000"), "a JPEG 2000 image", True),
        (file_of("ICO"), "an icon", True),
        (file_of("EPS"), "a PostScript image", True),
        (file_of("PPM"), "an image of a rare format", True),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(20), "a camera raw image", True),
        (bytes(128) + b"DICM" + bytes(9), "a DICOM image", True),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG image", True),
        (b'<?xml version="1.0"?>\n<!-- by hand -->\n<svg/>', "an SVG image", True),
        (b"\xef\xbb\xbf <!DOCTYPE html>\n<html>", "an HTML page", False),
        (b"<!-- cached -->\n<HTML><body>", "an HTML page", False),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML document", False),
        (file_of("PDF"), "a PDF document", False),
        (b'{"error": "not found"}', "JSON text", False),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer", False),
        (b"../../.git/annex/objects/8F/x.jpg", "a git-annex pointer", False),
        (archive("zip"), "a zip archive", False),
        (archive("tar"), "a tar archive", False),
        (b"\x1f\x8b\x08" + bytes(99), "a compressed file", False),
        (b"\0\0\0\x18ftypmp42" + bytes(20), "a video", False),
        (b"\0\x05\x16\x07\0\2\0\0Mac OS X", "a macOS resource file", False),
        (array(), "a NumPy array", False),
        (pickle.dumps(b"x" * 40), "a Python pickle", False),
        (b"data:image/png;base64,iVBORw0KGgo=", "the text of a data URL", False),
        (b"https://example.org/a.jpg\n", "the text of a web address", False),
        (b"/9j/4AAQSkZJRgABAQ", "the base64 text of an image", False),
        (bytes(4096), "filled with zero bytes", False),
        (b"BMW, and other cars", "a text file", False),
        ("café".encode()[:-1], "a text file", False),
    ],
)
def test_other_files_are_named(content: bytes, name: str, is_image: bool) -> None:
    """A message can say what the file is instead of an image."""
    assert identify_image_format(content) is None
    other = identify_other_file(content)
    assert other is not None
    assert other.name.startswith(name)
    assert other.is_image == is_image


@pytest.mark.parametrize("content", [b"", b"\1\2\3\xff", bytes(range(256)), b"\xe9t\xe9"])
def test_unknown_bytes_have_no_name(content: bytes) -> None:
    """Rather no name than a wrong one."""
    assert identify_other_file(content) is None


@pytest.mark.parametrize("content", [b"<!---->" * 99, b"<!--" * 199, b" " * 600, b"../" * 300])
def test_identifying_a_file_takes_no_time(content: bytes) -> None:
    """No pattern backtracks, as clients of a server choose the bytes."""
    start = time.perf_counter()
    identify_other_file(content)
    assert time.perf_counter() - start < 0.1
