"""Files of images in, RGB images out: told apart by their first bytes, measured and decoded by other processes."""

import asyncio
import json
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from PIL import Image

from caldera.server.media.errors import (
    DECODER_UNAVAILABLE,
    NOT_AN_IMAGE,
    TOO_LARGE,
    TOO_SMALL,
    UNDECODABLE,
    UNSUPPORTED,
    MediaError,
)

_SUPPORTED_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
_OTHER_MAGIC = (
    b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"8BPS", b"SIMPLE  =", b"%!PS", b"\xc5\xd0\xd3\xc6", b"\0\0\1\0",
    b"\0\0\2\0", b"%PDF", b"BM", b"\0\0\0\x0cjP  ", b"\xffO\xffQ", b"<svg", b"<?xml", b"qoif", b"DDS ",
    b"RIFF", b"\x1aE\xdf\xa3",
)  # fmt: skip
"""How files of other kinds begin: TIFF, PSD, FITS, EPS, ICO, PDF, BMP, JPEG 2000, SVG, and some of films."""

_CHUNK = 1 << 20
"""Bytes that are read from a process before they are asked for."""

_FAULTS = {"too large": TOO_LARGE, "broken": UNDECODABLE, "memory": DECODER_UNAVAILABLE}


def check_magic_bytes(content: bytes) -> None:
    """Refuse what does not begin as a JPEG, PNG, WebP or GIF file; what a client calls it does not count.

    Raises:
        MediaError: It begins as another kind of file, as a web page, or as none.
    """
    if content.startswith(_SUPPORTED_MAGIC) or (
        content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    ):
        return
    begin = content[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if begin.startswith((b"<!doctype html", b"<html")):
        raise MediaError(NOT_AN_IMAGE)
    if begin.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        raise MediaError(UNSUPPORTED)
    if content.startswith(_OTHER_MAGIC) or content[4:8] == b"ftyp":  # the last: HEIC, AVIF, MP4
        raise MediaError(UNSUPPORTED)
    raise MediaError(UNDECODABLE)


class DecoderPool:
    """Some processes that decode, started when they are needed, and anew where one was lost."""

    def __init__(self, count: int, *, seconds: float, memory: int) -> None:
        """Decode so many images at a time, each within some seconds and bytes of memory."""
        self._free = asyncio.Semaphore(count)
        self._idle: list[Process] = []
        self._seconds = seconds
        self._memory = memory

    async def size(self, content: bytes) -> tuple[int, int]:
        """Return an image's width and height from the head of its file.

        Raises:
            MediaError: It is no image that is taken, or none can be looked at.
        """
        check_magic_bytes(content)
        async with self._free, self._worker() as worker:
            size, _ = await self._ask(worker, b"h", content)
        return size

    @asynccontextmanager
    async def decode(self, content: bytes) -> AsyncIterator[Image.Image]:
        """Decode an image; no more at a time are held than there are processes.

        Raises:
            MediaError: It is broken or too large, or it took too long or too much memory.
        """
        async with self._free:
            async with self._worker() as worker:
                size, pixels = await self._ask(worker, b"d", content)
            yield Image.frombytes("RGB", size, pixels)

    async def close(self) -> None:
        """Stop the processes."""
        for worker in self._idle:
            _stop(worker)
            await worker.wait()
        self._idle.clear()

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[Process]:
        """Lend a process; it is stopped where it may be in the middle of something."""
        while self._idle and self._idle[-1].returncode is not None:
            self._idle.pop()
        worker = self._idle.pop() if self._idle else await _start(self._memory)
        sound = False
        try:
            yield worker
            sound = True
        except MediaError as error:
            sound = error.fault is not DECODER_UNAVAILABLE
            raise
        finally:
            if sound:
                self._idle.append(worker)
            else:
                _stop(worker)

    async def _ask(
        self, worker: Process, operation: bytes, content: bytes
    ) -> tuple[tuple[int, int], bytes]:
        """Send a file and return its size and, if it is to be decoded, its pixels.

        Raises:
            MediaError: The file is refused, or the process is lost or late.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await _send_file(worker, operation, content)
        except (TimeoutError, OSError, EOFError, json.JSONDecodeError):
            raise MediaError(DECODER_UNAVAILABLE) from None


async def _send_file(
    worker: Process, operation: bytes, content: bytes
) -> tuple[tuple[int, int], bytes]:
    """Send a file to a process and read what it answers.

    Raises:
        MediaError: The file is refused.
        OSError: The process is lost; so do EOFError and JSONDecodeError say.
    """
    asked, answered = worker.stdin, worker.stdout
    assert asked is not None
    assert answered is not None
    asked.write(operation + len(content).to_bytes(8) + content)
    await asked.drain()
    said = json.loads(await answered.readline())
    if "fault" in said:
        raise MediaError(_FAULTS[said["fault"]])
    width, height = said["size"]
    pixels = await answered.readexactly(3 * width * height) if operation == b"d" else b""
    if min(width, height) < 1:
        raise MediaError(TOO_SMALL)
    return (width, height), pixels


async def _start(memory: int) -> Process:
    """Start a process in a session of its own, which Ctrl-C on the server's terminal does not reach."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "caldera.server.media.decoder_worker",
        str(memory),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_CHUNK,
        start_new_session=True,
    )


def _stop(worker: Process) -> None:
    """Stop a process, if it still runs."""
    if worker.returncode is None:
        with suppress(ProcessLookupError):
            worker.kill()
