"""Rows B1 to B14 of the faults: images' bytes, against a real server."""

import base64
import gzip
import os
import signal
import struct
import threading
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import ExifTags, Image, ImageCms

from tests.server.server_process import ServerProcess, encoded, image, shown

PNG = image()


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(*chunks: bytes, size: tuple[int, int] = (9, 7), depth: int = 8, colors: int = 2) -> bytes:
    """Return a PNG file of a size that may be a lie, with some chunks."""
    head = struct.pack(">IIBBBBB", *size, depth, colors, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


def broken() -> Iterator[bytes]:
    """Yield files that are no images, or only parts of one."""
    yield b""
    yield bytes(range(256)) * 9
    yield PNG[:16] + bytes(500)
    yield png()
    flipped = bytearray(PNG)
    flipped[45] ^= 255
    yield bytes(flipped)
    whole = image(size=(160, 120), form="JPEG")
    yield from (whole[: len(whole) * part // 16] for part in range(1, 16))


def test_b1_broken_images_are_told_by_a_fixed_text(server: ServerProcess) -> None:
    """B1: empty, random, cut and damaged files: one text, which says nothing of this machine."""
    texts = set()
    files = list(broken())
    assert len(files) == 20
    for content in files:
        answer = server.ask("What?", content)
        assert (answer.status, answer.code) == (400, "image_parse_error"), content[:40]
        texts.add(answer.error["message"])
    [text] = texts
    assert not any(sign in text.lower() for sign in ("0x", "/", "pil", "object", "python"))


def test_b2_bombs_are_refused_by_their_heads(server: ServerProcess) -> None:
    """B2: 60,000 x 60,000 pixels, just over the limit, and 2 GiB of text in a few KB: next to no memory is taken."""
    before = server.memory("VmHWM")
    for size in ((60_000, 60_000), (8_000, 4_001), (12_001, 2)):
        answer = server.ask("What?", png(chunk(b"IDAT", zlib.compress(bytes(999))), size=size))
        assert (answer.status, answer.code) == (400, "image_too_large")
    bomb = zlib.compressobj(9)
    text = b"".join([bomb.compress(bytes(1 << 24)) for _ in range(128)]) + bomb.flush()
    assert len(text) < 3_000_000
    answer = server.ask("What?", png(chunk(b"zTXt", b"x\0\0" + text)))
    assert answer.status == 400
    assert server.memory("VmHWM") - before < 64 << 20
    for child in server.children():
        peak = Path(f"/proc/{child}/status").read_text().split("VmHWM:")[1].split()[0]
        assert int(peak) < 300_000, "kB of a process that decodes"


def test_b3_images_are_counted_together_before_any_is_decoded(server: ServerProcess) -> None:
    """B3: three images, each under the limit of 32 Mpx, are over that of 64 Mpx together; forty are too many."""
    large = encoded(Image.new("1", (6_000, 5_000)))
    assert len(large) < 20_000
    decoded = server.metric("caldera_image_decode_seconds_count")
    answer = server.ask("What?", large, large, large)
    assert (answer.status, answer.code) == (400, "image_too_large")
    assert server.ask("What?", *[large] * 40).status == 400
    assert server.metric("caldera_image_decode_seconds_count") == decoded


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (1, 12_000)])
def test_b4_the_smallest_and_the_longest_are_answered(
    server: ServerProcess, size: tuple[int, int]
) -> None:
    """B4: one pixel, and a line of pixels, are images."""
    assert server.ask("What is it?", image(size=size)).status == 200


def test_b4_no_pixels_are_no_image(server: ServerProcess) -> None:
    """B4: a width of nothing is refused."""
    answer = server.ask("What?", png(chunk(b"IDAT", zlib.compress(b"")), size=(0, 7)))
    assert (answer.status, answer.code) in [(400, "image_too_small"), (400, "image_parse_error")]


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.new("RGB", (9, 7)), "TIFF"),
        b"8BPS\0\1" + bytes(99),
        b"SIMPLE  =                    T" + bytes(99),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        encoded(Image.new("RGB", (16, 16)), "ICO"),
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b'<?xml version="1.0"?><svg/>',
        b"\0\0\0\x18ftypheic" + bytes(99),
        b"%PDF-1.7\n",
        encoded(Image.new("RGB", (9, 7)), "BMP"),
        encoded(Image.new("RGB", (9, 7)), "JPEG2000"),
    ],
)
def test_b5_other_formats_are_not_opened(server: ServerProcess, content: bytes) -> None:
    """B5: whatever they are called, only four formats are decoded."""
    answer = server.ask("What?", content)
    assert (answer.status, answer.code) == (400, "unsupported_image_media_type")


def test_b5_the_content_counts_and_not_what_it_is_called(server: ServerProcess) -> None:
    """B5: a GIF that is also a script is a GIF or nothing; a PNG by any name is a PNG."""
    script = b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)"
    assert server.ask("What?", script).code == "image_parse_error"
    expected = server.ask("What is it?", PNG).text
    for kind in ("jpeg", "svg+xml", "x", "*"):
        url = f"data:image/{kind};base64,{base64.b64encode(PNG).decode()}"
        assert server.ask("What is it?", shown(url)).text == expected


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_b6_of_many_frames_the_first_is_shown(server: ServerProcess, form: str) -> None:
    """B6: 10,000 frames (300 in WebP, which is slow to write) answer as their first alone."""
    first = Image.new("RGB", (4, 4), (200, 30, 30))
    count = 300 if form == "WEBP" else 10_000
    others = [Image.new("RGB", (4, 4), (0, number % 256, number // 256)) for number in range(count)]
    options = {"lossless": True} if form == "WEBP" else {}
    many = encoded(first, form, save_all=True, append_images=others, **options)
    assert server.ask("What is it?", many).text == server.ask("What is it?", encoded(first)).text


def modes() -> Iterator[tuple[str, bytes, Image.Image]]:
    """Yield files of all modes and what they show, in RGB."""
    grey = Image.linear_gradient("L").resize((8, 8))
    color = Image.merge("RGB", (grey, grey.rotate(90), grey.rotate(180)))
    half = color.convert("RGBA")
    half.putalpha(grey)
    white = Image.new("RGBA", half.size, "white")
    on_white = Image.alpha_composite(white, half).convert("RGB")
    yield "1", encoded(grey.convert("1")), grey.convert("1").convert("RGB")
    yield "L", encoded(grey), grey.convert("RGB")
    yield "P", encoded(color.convert("P")), color.convert("P").convert("RGB")
    yield "RGBA", encoded(half), on_white
    pale = half.convert("LA")
    yield "LA", encoded(pale), Image.alpha_composite(white, pale.convert("RGBA")).convert("RGB")
    deep = grey.convert("I").point(lambda value: value * 257).convert("I;16")
    yield "I;16", encoded(deep), grey.convert("RGB")
    cmyk = encoded(color.convert("CMYK"), "JPEG", quality=95)
    yield "CMYK", cmyk, Image.open(BytesIO(cmyk)).convert("RGB")
    ycbcr = encoded(color.convert("YCbCr"), "JPEG", quality=95)
    yield "YCbCr", ycbcr, Image.open(BytesIO(ycbcr)).convert("RGB")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "bad ICC", encoded(color, icc_profile=profile[:40] + bytes(99)), color
    wide = b"".join(b"\0" + bytes([value, 0] * 3 * 8) for value in range(0, 256, 32))
    values = Image.frombytes(
        "RGB", (8, 8), bytes(value for row in range(0, 256, 32) for value in [row] * 24)
    )
    yield "16-bit RGB", png(chunk(b"IDAT", zlib.compress(wide)), size=(8, 8), depth=16), values


@pytest.mark.parametrize("mode", [name for name, *_ in modes()])
def test_b7_every_mode_is_shown_as_its_colors(server: ServerProcess, mode: str) -> None:
    """B7: each mode answers as the RGB image it shows does, white behind what is transparent."""
    [(content, expected)] = [(file, rgb) for name, file, rgb in modes() if name == mode]
    assert same(likely(server, content), likely(server, encoded(expected)))


def likely(server: ServerProcess, content: bytes) -> list[float]:
    """Return how likely the tokens of an answer are, which tells images apart that get the same words."""
    answer = server.ask("What is it?", content, logprobs=True)
    return [token["logprob"] for token in answer.json["choices"][0]["logprobs"]["content"]]


def same(one: list[float], other: list[float]) -> bool:
    """Tell whether they are equal but for what it makes how much of a prompt was computed at once."""
    return one == pytest.approx(other, abs=1e-4)


def test_b8_orientation_is_applied_once(server: ServerProcess) -> None:
    """B8: all eight orientations answer as the upright image; what is malformed or long is passed over."""
    upright = Image.open(BytesIO(image(1, (9, 5)))).convert("RGB")
    expected = likely(server, encoded(upright))
    stored = {
        1: upright, 2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180), 4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE), 6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE), 8: upright.transpose(Image.Transpose.ROTATE_270),
    }  # fmt: skip
    for orientation, stored_image in stored.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        assert same(likely(server, encoded(stored_image, exif=exif)), expected), orientation
    for odd in (b"Exif\0\0MM\0*" + bytes(3), b"Exif\0\0" + os.urandom(60_000), b"no exif"):
        assert same(likely(server, encoded(upright, exif=odd)), expected)


def test_b9_images_that_differ_anywhere_are_not_mistaken(server: ServerProcess) -> None:
    """B9: another palette, another shape, another ground: other answers; the same image again is a hit."""
    indices = Image.frombytes("P", (6, 6), bytes(range(36)))
    first, second = indices.copy(), indices.copy()
    first.putpalette([value for index in range(36) for value in (index * 7, 0, 0)])
    second.putpalette([value for index in range(36) for value in (0, index * 7, 255)])
    wide = Image.frombytes("L", (150, 30), bytes(number % 251 for number in range(4500)))
    tall = Image.frombytes("L", (30, 150), wide.tobytes())
    clear = Image.new("RGBA", (6, 6), (90, 20, 10, 40))
    dense = Image.new("RGBA", (6, 6), (90, 20, 10, 200))
    for one, other in ((first, second), (wide, tall), (clear, dense)):
        assert not same(likely(server, encoded(one)), likely(server, encoded(other)))
    hits = server.metric("caldera_cached_tokens_total")
    expected = likely(server, encoded(first))
    assert same(likely(server, encoded(first)), expected)
    assert server.metric("caldera_cached_tokens_total") > hits


def test_b10_an_image_id_says_nothing(server: ServerProcess) -> None:
    """B10: two images that carry the same id are two images."""
    exif = Image.Exif()
    exif[0xA420] = "0123456789abcdef"  # ImageUniqueID
    one, other = (encoded(Image.open(BytesIO(image(seed))), exif=exif) for seed in (1, 2))
    assert same(likely(server, one), likely(server, image(1)))
    assert not same(likely(server, one), likely(server, other))


def test_b11_images_side_by_side_answer_as_alone(
    server: ServerProcess, uncached_server: ServerProcess
) -> None:
    """B11: one question about many images at a time, from the cache: the tokens of a server without one."""
    images = [image(seed % 8) for seed in range(24)]
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = server.ask("What is it?", images[number], max_tokens=20).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = [uncached_server.ask("What is it?", one, max_tokens=20).text for one in images[:8]]
    assert [answers[number] for number in range(24)] == alone * 3
    assert len(set(alone)) > 1
    assert uncached_server.metric("caldera_cache_hits_total") == 0


def test_b12_a_decoder_that_dies_is_replaced(server: ServerProcess) -> None:
    """B12: with every process that decodes killed, the next images are decoded by new ones."""
    expected = server.ask("What is it?", PNG).text
    killed = server.children()
    assert killed
    for child in killed:
        os.kill(child, signal.SIGKILL)
    server.wait_until(lambda: not set(server.children()) & set(killed))
    answers = [server.ask("What is it?", PNG) for _ in range(3)]
    assert all(answer.status in (200, 503) for answer in answers)
    assert answers[-1].text == expected


def test_b12_a_decoder_that_dies_at_work_fails_one_request(uncached_server: ServerProcess) -> None:
    """B12: a process that is stopped and then killed at work costs its request a 503; the next is answered."""
    expected = uncached_server.ask("What is it?", PNG).text
    for child in uncached_server.children():
        os.kill(child, signal.SIGSTOP)
    answers = []
    asking_now = threading.Thread(target=lambda: answers.append(uncached_server.ask("What?", PNG)))
    asking_now.start()
    uncached_server.wait_until(lambda: uncached_server.metric("caldera_running") == 0)
    for child in uncached_server.children():
        os.kill(child, signal.SIGKILL)
    asking_now.join()
    assert [(answer.status, answer.headers.get("retry-after")) for answer in answers] == [
        (503, "2")
    ]
    assert uncached_server.ask("What is it?", PNG).text == expected


def test_b13_nine_images_are_one_too_many(server: ServerProcess) -> None:
    """B13: in the words that OpenAI's clients know; eight are answered."""
    answer = server.ask("What?", *[PNG] * 9)
    assert answer.status == 400
    assert answer.error["message"] == "At most 8 image(s) may be provided in one prompt."
    assert answer.error["param"] == "messages"
    assert server.ask("What is it?", *[PNG] * 8).status == 200


@pytest.mark.parametrize("count", [0, 1, 2])
def test_b14_a_written_mark_is_no_image(server: ServerProcess, count: int) -> None:
    """B14: `<image>` in words stays words, with any number of real images: only those take image tokens."""
    plain = server.ask("What is it?", *[PNG] * count).json["usage"]["prompt_tokens"]
    spelt = server.ask("What is it? <image>", *[PNG] * count).json["usage"]["prompt_tokens"]
    twice = server.ask("What is it? <image> <image>", *[PNG] * count).json["usage"]["prompt_tokens"]
    assert spelt > plain + 1, "a mark of words takes several tokens"
    assert twice - spelt == spelt - plain
    shown_once = server.ask("What is it?", *[PNG] * (count + 1)).json["usage"]["prompt_tokens"]
    assert shown_once >= plain + 8, (
        "an image takes nine, and the first a line's end more than others"
    )


def test_images_by_gzip_are_nothing(server: ServerProcess) -> None:
    """A compressed image is no image."""
    assert server.ask("What?", gzip.compress(PNG)).code == "image_parse_error"
