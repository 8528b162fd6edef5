"""Every way in which Python programs hold an image gives the same pixels, and anything else one short line."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from caldera.chat.image_inputs import decode_input, to_image_list
from caldera.errors import ImageError


@pytest.fixture
def pixels() -> "np.ndarray[Any, Any]":
    """Random pixels of an image of 7 x 5."""
    return np.random.default_rng(7).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture
def file(tmp_path: Path, pixels: "np.ndarray[Any, Any]") -> Path:
    """The same pixels in a file."""
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def written(content: bytes) -> io.BytesIO:
    """Return a file in memory as it is after writing, with its position at the end."""
    buffer = io.BytesIO()
    buffer.write(content)
    return buffer


FORMS: dict[str, Callable[[Path, Any], Any]] = {
    "path": lambda file, pixels: file,
    "text": lambda file, pixels: str(file),
    "file: URL": lambda file, pixels: file.as_uri(),
    "data: URL": lambda file, pixels: (
        "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    ),
    "bytes": lambda file, pixels: file.read_bytes(),
    "bytearray": lambda file, pixels: bytearray(file.read_bytes()),
    "file in memory": lambda file, pixels: written(file.read_bytes()),
    "Pillow image": lambda file, pixels: Image.fromarray(pixels),
    "Pillow image of a file": lambda file, pixels: Image.open(file),
    "array": lambda file, pixels: pixels,
    "array of int64": lambda file, pixels: pixels.astype(np.int64),
    "array of floats": lambda file, pixels: pixels / 255,
    "array, not contiguous": lambda file, pixels: pixels[:, ::-1][:, ::-1],
    "array, opaque": lambda file, pixels: np.dstack([pixels, np.full((5, 7), 255, np.uint8)]),
    "array, channels first": lambda file, pixels: pixels.transpose(2, 0, 1),
    "tensor": lambda file, pixels: torch.from_numpy(pixels).permute(2, 0, 1),
    "tensor of floats": lambda file, pixels: (
        (torch.from_numpy(pixels).permute(2, 0, 1) / 255).requires_grad_()
    ),
    "tensor, channels last": lambda file, pixels: torch.from_numpy(pixels),
    "row of a data set": lambda file, pixels: {"bytes": file.read_bytes(), "path": None},
    "path of a data set": lambda file, pixels: {"path": str(file)},
}  # fmt: skip
"""Functions that return an image in one form, given its file and its pixels."""


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels(
    form: str, file: Path, pixels: "np.ndarray[Any, Any]"
) -> None:
    """Paths, bytes, files, Pillow images, arrays and tensors are one image."""
    image = decode_input(FORMS[form](file, pixels))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)


def test_open_files_are_read(file: Path, pixels: "np.ndarray[Any, Any]") -> None:
    """A file opened for bytes, and one that cannot be rewound, are read and left open."""
    with file.open("rb") as opened, file.open("rb", buffering=0) as raw:
        for stream in (opened, opened, io.BufferedReader(raw)):
            assert np.array_equal(np.asarray(decode_input(stream)), pixels)


def test_gray_and_transparent_pixels_are_converted() -> None:
    """Gray becomes RGB with two or three axes, and transparent pixels become white."""
    gray = np.arange(35, dtype=np.uint8).reshape(5, 7)
    for image in (gray, gray[..., None], torch.from_numpy(gray), torch.from_numpy(gray)[None]):
        assert np.array_equal(np.asarray(decode_input(image)), np.dstack([gray] * 3))
    clear = np.zeros((5, 7, 4), np.uint8)
    assert np.asarray(decode_input(clear)).min() == 255


def test_a_pillow_image_is_made_upright(tmp_path: Path) -> None:
    """A photo gives the same pixels by its path and opened by Pillow, whatever its EXIF orientation."""
    photo = Image.fromarray(np.arange(105, dtype=np.uint8).reshape(5, 7, 3))
    exif = Image.Exif()
    exif[274] = 6
    photo.save(tmp_path / "a.png", exif=exif)
    opened = decode_input(Image.open(tmp_path / "a.png"))
    assert opened.size == (5, 7)
    assert opened.tobytes() == decode_input(tmp_path / "a.png").tobytes()


def test_urls_are_fetched_only_where_that_is_allowed(file: Path) -> None:
    """Without a function that downloads, a web address is an error that says how to allow it."""
    url = "https://x.org/a.png"
    with pytest.raises(ImageError, match=r"is a web address.*fetch_image=FUNCTION"):
        decode_input(url)
    urls: list[str] = []

    def fetch(text: str) -> bytes:
        urls.append(text)
        return file.read_bytes()

    for form in (url, {"url": url}, {"path": url, "bytes": None}):
        assert decode_input(form, fetch).size == (7, 5)
    assert urls == [url] * 3
    with pytest.raises(ImageError, match="fetch_image returned 'text'; it must return bytes"):
        decode_input(url, lambda _: "text")  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "an image cannot be None of type NoneType"),
        (5, "an image cannot be 5 of type int"),
        (b"", r"is empty \(0 bytes\)"),
        (b"x" * 200_000, "is a text file, not an image"),
        (io.StringIO("text"), "gives str instead of bytes; open it with mode 'rb'"),
        ("no.png", r"no\.png does not exist"),
        ("", "should be a path"),
        ("x" * 99_999, "'xxx.* is no path of an image; give a path, bytes"),
        ("a\0b", "is no path of an image"),
        (Path("x" * 999), "cannot be read: File name too long"),
        ("~nobody-of-this-name/a.png", "does not exist"),
        ("s3://bucket/a.png", "s3: URL, which is not fetched"),
        ("data:image/png;base64,@@@@", "is broken base64"),
        ({"a": 1}, "should be a path"),
        (np.zeros((2, 5, 7, 3), np.uint8), "is a batch; give a list of its images"),
        (np.zeros((5, 7, 2), np.uint8), r"an array of shape \(5, 7, 2\) is no image"),
        (np.zeros((0, 7, 3), np.uint8), "is no image"),
        (np.zeros(9, np.uint8), "is no image"),
        (np.full((5, 7), 255.0), "pixels of float64 from 255.0 to 255.0 are ambiguous"),
        (np.full((5, 7), -0.5), "are ambiguous"),
        (np.full((5, 7), np.nan), "are ambiguous"),
        (np.full((5, 7), 900, np.uint16), "pixels of uint16 from 900 to 900"),
        (np.zeros((5, 7), bool), "pixels of bool"),
        (torch.zeros(3, 7, 3), "could have its channels first or last"),
        (torch.zeros(2, 3, 5, 7), r"a tensor of shape \(2, 3, 5, 7\) is a batch"),
        (torch.full((3, 5, 7), 2.0), "are ambiguous"),
        (Image.new("F", (3, 3)), "has 32-bit pixels"),
    ],
)  # fmt: skip
def test_anything_else_is_one_short_line(image: object, message: str) -> None:
    """The message says what was got and what is taken, without repeating long values."""
    with pytest.raises(ImageError, match=message) as caught:
        decode_input(image)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250 or isinstance(image, Path)


def test_lists_of_images_are_flattened() -> None:
    """One image, a list, and lists in tuples are a list of images; an array is one image."""
    array = np.zeros((5, 7))
    assert to_image_list("a") == ["a"]
    assert to_image_list((["a", b"b"], ("c",), [])) == ["a", b"b", "c"]
    assert to_image_list(array)[0] is array
