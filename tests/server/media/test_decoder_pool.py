"""Tests of broken, large and foreign image files, and of decoder processes that die."""

import asyncio
import base64
import gzip
import os
import signal
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from caldera.server.media.errors import MediaError
from caldera.server.media.loader import ImageLoader, MediaConfig
from tests.server.png_files import png, png_chunk
from tests.server.server_process import (
    ServerProcess,
    encode_image,
    image_part,
    make_image,
)

PNG = make_image()


def broken_files() -> Iterator[bytes]:
    """Yield files that are not images, or truncated ones."""
    yield b""
    yield bytes(range(256)) * 9
    yield PNG[:16] + bytes(500)
    yield png()
    flipped = bytearray(PNG)
    flipped[45] ^= 255
    yield bytes(flipped)
    complete = make_image(size=(160, 120), image_format="JPEG")
    yield from (complete[: len(complete) * part // 16] for part in range(1, 16))


def test_broken_images_have_one_fixed_message(server: ServerProcess) -> None:
    """Empty, random, truncated and damaged files: one message, which reveals nothing of this machine."""
    texts = set()
    files = list(broken_files())
    assert len(files) == 20
    for content in files:
        answer = server.ask("What?", content)
        assert (answer.status, answer.code) == (400, "image_parse_error"), content[:40]
        texts.add(answer.error["message"])
    [text] = texts
    assert not any(sign in text.lower() for sign in ("0x", "/", "pil", "object", "python"))


def test_decompression_bombs_are_rejected_by_their_headers(server: ServerProcess) -> None:
    """60,000 x 60,000 pixels, sizes just over the limit, and 2 GiB of text in a few KB take almost no memory."""
    before = server.memory("VmHWM")
    for size in ((60_000, 60_000), (8_000, 4_001), (140_000, 2)):
        answer = server.ask("What?", png(png_chunk(b"IDAT", zlib.compress(bytes(999))), size=size))
        assert (answer.status, answer.code) == (400, "image_too_large")
    bomb = zlib.compressobj(9)
    text = b"".join([bomb.compress(bytes(1 << 24)) for _ in range(128)]) + bomb.flush()
    assert len(text) < 3_000_000
    answer = server.ask("What?", png(png_chunk(b"zTXt", b"x\0\0" + text)))
    assert answer.status == 400
    assert server.memory("VmHWM") - before < 64 << 20
    for child in server.children():
        peak = Path(f"/proc/{child}/status").read_text().split("VmHWM:")[1].split()[0]
        assert int(peak) < 300_000, "kB of a process that decodes"


@pytest.mark.parametrize("size", [(8160, 6120), (13_000, 1200)])
def test_large_photos_are_decoded_at_a_reduced_size(
    server: ServerProcess, size: tuple[int, int]
) -> None:
    """A photo of 50 megapixels and a panorama get the answer of the same image in few pixels."""
    small = Image.linear_gradient("L").resize((size[0] // 40, size[1] // 40)).convert("RGB")
    large = encode_image(small.resize(size, Image.Resampling.NEAREST), "JPEG", quality=95)
    expected = server.ask("What is it?", encode_image(small), max_tokens=2)
    assert server.ask("What is it?", large, max_tokens=2).text == expected.text


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (1, 40_000)])
def test_the_smallest_and_the_longest_images_are_answered(
    server: ServerProcess, size: tuple[int, int]
) -> None:
    """One pixel, and a line of pixels, are images."""
    assert server.ask("What is it?", make_image(size=size)).status == 200


def test_an_image_without_pixels_is_rejected(server: ServerProcess) -> None:
    """A width of zero is rejected."""
    answer = server.ask("What?", png(png_chunk(b"IDAT", zlib.compress(b"")), size=(0, 7)))
    assert (answer.status, answer.code) in [(400, "image_too_small"), (400, "image_parse_error")]


@pytest.mark.parametrize(
    "content",
    [
        encode_image(Image.new("RGB", (9, 7)), "TIFF"),
        b"8BPS\0\1" + bytes(99),
        b"SIMPLE  =                    T" + bytes(99),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        encode_image(Image.new("RGB", (16, 16)), "ICO"),
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b'<?xml version="1.0"?><svg/>',
        b"\0\0\0\x18ftypheic" + bytes(99),
        b"%PDF-1.7\n",
        encode_image(Image.new("RGB", (9, 7)), "BMP"),
        encode_image(Image.new("RGB", (9, 7)), "JPEG2000"),
    ],
)
def test_other_formats_are_not_decoded(server: ServerProcess, content: bytes) -> None:
    """Only four formats are decoded, whatever type is declared; the message says what the file is."""
    answer = server.ask("What?", content)
    assert (answer.status, answer.code) == (400, "unsupported_image_media_type")
    assert answer.error["message"].startswith("the file is a")


def test_the_content_decides_the_format(server: ServerProcess) -> None:
    """A GIF that is also a script is rejected; a PNG of any declared type is a PNG."""
    script = b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)"
    assert server.ask("What?", script).code == "image_parse_error"
    expected = server.ask("What is it?", PNG).text
    for kind in ("jpeg", "svg+xml", "x", "*"):
        url = f"data:image/{kind};base64,{base64.b64encode(PNG).decode()}"
        assert server.ask("What is it?", image_part(url)).text == expected


def test_compressed_images_are_rejected(server: ServerProcess) -> None:
    """A gzip file is not an image; the message says what it is."""
    answer = server.ask("What?", gzip.compress(PNG))
    assert answer.code == "unsupported_image_media_type"
    assert answer.error["message"].startswith("the file is a compressed file, but only JPEG")


def test_a_decoder_that_dies_is_replaced(server: ServerProcess) -> None:
    """With all decoder processes killed, the next images are decoded by new ones."""
    expected = server.ask("What is it?", PNG).text
    killed = server.children()
    assert killed
    for child in killed:
        os.kill(child, signal.SIGKILL)
    server.wait_until(lambda: not set(server.children()) & set(killed))
    answers = [server.ask("What is it?", PNG) for _ in range(3)]
    assert all(answer.status in (200, 503) for answer in answers)
    assert answers[-1].text == expected


def test_a_decoder_that_dies_at_work_fails_one_request(uncached_server: ServerProcess) -> None:
    """A process killed at work costs its request a 503; the next request is answered."""
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


def test_the_pool_restarts_lost_processes(photos: Path) -> None:
    """A killed process fails one image; the next is decoded by a new process."""
    content = (photos / "0.png").read_bytes()

    async def go() -> None:
        media = ImageLoader(MediaConfig(decoders=1))
        async with media._decoders.decode(content) as image:
            assert image.size == (19, 5)
        [worker] = media._decoders._idle
        worker.kill()
        with pytest.raises(MediaError) as lost:
            async with media._decoders.decode(content):
                pass
        assert lost.value.kind.status == 503
        async with media._decoders.decode(content) as image:
            assert image.size == (19, 5)
        await media.close()

    asyncio.run(go())


def test_the_limits_of_one_image_are_settings(photos: Path) -> None:
    """An image of 19 x 5 pixels is over a limit of 94 pixels, and is halved by one of 18 for a side."""
    content = (photos / "0.png").read_bytes()

    async def size(config: MediaConfig) -> tuple[int, int]:
        media = ImageLoader(config)
        try:
            return await media._decoders.read_size(content)
        finally:
            await media.close()

    with pytest.raises(MediaError) as too_large:
        asyncio.run(size(MediaConfig(max_image_pixels=94)))
    assert too_large.value.kind.code == "image_too_large"
    assert asyncio.run(size(MediaConfig(max_image_pixels=95, max_image_side=18))) == (10, 3)
