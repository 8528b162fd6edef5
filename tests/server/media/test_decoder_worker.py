"""Tests of decoded images: frames, modes, orientation, and images that differ in one property only."""

import os
import threading
import zlib
from collections.abc import Iterator
from io import BytesIO

import pytest
from PIL import ExifTags, Image, ImageCms

from tests.server.png_files import png, png_chunk
from tests.server.server_process import (
    ServerProcess,
    encode_image,
    make_image,
)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_the_first_of_many_frames_is_used(server: ServerProcess, form: str) -> None:
    """10,000 frames (300 in WebP, which is slow to write) get the answer of the first alone."""
    first = Image.new("RGB", (4, 4), (200, 30, 30))
    count = 300 if form == "WEBP" else 10_000
    others = [Image.new("RGB", (4, 4), (0, number % 256, number // 256)) for number in range(count)]
    options = {"lossless": True} if form == "WEBP" else {}
    many = encode_image(first, form, save_all=True, append_images=others, **options)
    assert (
        server.ask("What is it?", many).text == server.ask("What is it?", encode_image(first)).text
    )


def images_by_mode() -> Iterator[tuple[str, bytes, Image.Image]]:
    """Yield files of all images_by_mode, and the RGB image of each."""
    grey = Image.linear_gradient("L").resize((8, 8))
    color = Image.merge("RGB", (grey, grey.rotate(90), grey.rotate(180)))
    half = color.convert("RGBA")
    half.putalpha(grey)
    white = Image.new("RGBA", half.size, "white")
    on_white = Image.alpha_composite(white, half).convert("RGB")
    yield "1", encode_image(grey.convert("1")), grey.convert("1").convert("RGB")
    yield "L", encode_image(grey), grey.convert("RGB")
    yield "P", encode_image(color.convert("P")), color.convert("P").convert("RGB")
    yield "RGBA", encode_image(half), on_white
    pale = half.convert("LA")
    yield (
        "LA",
        encode_image(pale),
        Image.alpha_composite(white, pale.convert("RGBA")).convert("RGB"),
    )
    deep = grey.convert("I").point(lambda value: value * 257).convert("I;16")
    yield "I;16", encode_image(deep), grey.convert("RGB")
    cmyk = encode_image(color.convert("CMYK"), "JPEG", quality=95)
    yield "CMYK", cmyk, Image.open(BytesIO(cmyk)).convert("RGB")
    ycbcr = encode_image(color.convert("YCbCr"), "JPEG", quality=95)
    yield "YCbCr", ycbcr, Image.open(BytesIO(ycbcr)).convert("RGB")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "bad ICC", encode_image(color, icc_profile=profile[:40] + bytes(99)), color
    wide = b"".join(b"\0" + bytes([value, 0] * 3 * 8) for value in range(0, 256, 32))
    values = Image.frombytes(
        "RGB", (8, 8), bytes(value for row in range(0, 256, 32) for value in [row] * 24)
    )
    yield "16-bit RGB", png(png_chunk(b"IDAT", zlib.compress(wide)), size=(8, 8), depth=16), values


@pytest.mark.parametrize("mode", [name for name, *_ in images_by_mode()])
def test_every_mode_is_converted_to_rgb(server: ServerProcess, mode: str) -> None:
    """Each mode gets the answer of its RGB image, with transparency on white."""
    [(content, expected)] = [(file, rgb) for name, file, rgb in images_by_mode() if name == mode]
    assert are_close(
        answer_logprobs(server, content), answer_logprobs(server, encode_image(expected))
    )


def answer_logprobs(server: ServerProcess, content: bytes) -> list[float]:
    """Return the log probabilities of an answer, which distinguish images that get the same text."""
    answer = server.ask("What is it?", content, logprobs=True)
    return [token["logprob"] for token in answer.json["choices"][0]["logprobs"]["content"]]


def are_close(first: list[float], second: list[float]) -> bool:
    """Return whether log probabilities are equal up to the rounding of different chunk sizes."""
    return first == pytest.approx(second, abs=1e-4)


def test_exif_orientation_is_applied_once(server: ServerProcess) -> None:
    """All eight orientations get the answer of the upright image; malformed EXIF data is ignored."""
    upright = Image.open(BytesIO(make_image(1, (9, 5)))).convert("RGB")
    expected = answer_logprobs(server, encode_image(upright))
    stored = {
        1: upright, 2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180), 4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE), 6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE), 8: upright.transpose(Image.Transpose.ROTATE_270),
    }  # fmt: skip
    for orientation, stored_image in stored.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        assert are_close(
            answer_logprobs(server, encode_image(stored_image, exif=exif)), expected
        ), orientation
    for malformed in (b"Exif\0\0MM\0*" + bytes(3), b"Exif\0\0" + os.urandom(60_000), b"no exif"):
        assert are_close(answer_logprobs(server, encode_image(upright, exif=malformed)), expected)


def test_images_that_differ_in_one_property_are_distinct(server: ServerProcess) -> None:
    """Another palette, shape or transparency gives another answer; the same image again is a cache hit."""
    indices = Image.frombytes("P", (6, 6), bytes(range(36)))
    first, second = indices.copy(), indices.copy()
    first.putpalette([value for index in range(36) for value in (index * 7, 0, 0)])
    second.putpalette([value for index in range(36) for value in (0, index * 7, 255)])
    wide = Image.frombytes("L", (150, 30), bytes(number % 251 for number in range(4500)))
    tall = Image.frombytes("L", (30, 150), wide.tobytes())
    clear = Image.new("RGBA", (6, 6), (90, 20, 10, 40))
    dense = Image.new("RGBA", (6, 6), (90, 20, 10, 200))
    for left, right in ((first, second), (wide, tall), (clear, dense)):
        assert not are_close(
            answer_logprobs(server, encode_image(left)),
            answer_logprobs(server, encode_image(right)),
        )
    hits = server.metric("caldera_cached_tokens_total")
    expected = answer_logprobs(server, encode_image(first))
    assert are_close(answer_logprobs(server, encode_image(first)), expected)
    assert server.metric("caldera_cached_tokens_total") > hits


def test_image_ids_in_exif_are_ignored(server: ServerProcess) -> None:
    """Two images with the same id are distinct."""
    exif = Image.Exif()
    exif[0xA420] = "0123456789abcdef"  # ImageUniqueID
    left, right = (
        encode_image(Image.open(BytesIO(make_image(seed))), exif=exif) for seed in (1, 2)
    )
    assert are_close(answer_logprobs(server, left), answer_logprobs(server, make_image(1)))
    assert not are_close(answer_logprobs(server, left), answer_logprobs(server, right))


def test_concurrent_cached_images_are_answered_as_alone(
    server: ServerProcess, uncached_server: ServerProcess
) -> None:
    """Many concurrent images with a cache get the tokens of a server without one."""
    images = [make_image(seed % 8) for seed in range(24)]
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = server.ask("What is it?", images[number], max_tokens=20).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = [uncached_server.ask("What is it?", image, max_tokens=20).text for image in images[:8]]
    assert [answers[number] for number in range(24)] == alone * 3
    assert len(set(alone)) > 1
    assert uncached_server.metric("caldera_cache_hits_total") == 0
