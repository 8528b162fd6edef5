"""Pool of worker processes that decode image files, which are first identified by their magic bytes."""

import asyncio
import json
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

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
"""First bytes of unsupported formats: TIFF, PSD, FITS, EPS, ICO, PDF, BMP, JPEG 2000, SVG and some video formats."""

_BUFFER_BYTES = 1 << 20
"""Read-ahead buffer of a worker's output."""

_FAULTS = {"too large": TOO_LARGE, "broken": UNDECODABLE, "memory": DECODER_UNAVAILABLE}


def check_magic_bytes(content: bytes) -> None:
    """Raise MediaError unless a file begins as a JPEG, PNG, WebP or GIF; its declared type does not count."""
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    if is_webp or content.startswith(_SUPPORTED_MAGIC):
        return
    start = content[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise MediaError(NOT_AN_IMAGE)
    if start.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        raise MediaError(UNSUPPORTED)
    # "ftyp": HEIC, AVIF, MP4
    if content.startswith(_OTHER_MAGIC) or content[4:8] == b"ftyp":
        raise MediaError(UNSUPPORTED)
    raise MediaError(UNDECODABLE)


class DecoderPool:
    """Decoder processes, started on demand and replaced when they die or hang."""

    def __init__(self, num_workers: int, *, timeout: float, max_memory: int) -> None:
        """Create an empty pool.

        Args:
            num_workers: Images that are decoded at the same time.
            timeout: Seconds per image.
            max_memory: Bytes of memory per process.
        """
        self._free = asyncio.Semaphore(num_workers)
        self._idle: list[Process] = []
        self._timeout = timeout
        self._max_memory = max_memory

    async def read_size(self, content: bytes) -> tuple[int, int]:
        """Return an image's width and height from its header; raise MediaError if it is not supported."""
        check_magic_bytes(content)
        async with self._free:
            size, _ = await self._run(b"h", content)
        return size

    @asynccontextmanager
    async def decode(self, content: bytes) -> AsyncIterator[Image.Image]:
        """Decode an image; at most `num_workers` decoded images exist at a time.

        Raises:
            MediaError: It is broken or too large, or takes too much time or memory.
        """
        async with self._free:
            size, pixels = await self._run(b"d", content)
            yield Image.frombytes("RGB", size, pixels)

    async def close(self) -> None:
        """Stop the processes."""
        for worker in self._idle:
            _stop(worker)
            await worker.wait()
        self._idle.clear()

    async def _run(self, operation: bytes, content: bytes) -> tuple[tuple[int, int], bytes]:
        """Return the size and, for `d`, the pixels of a file that a worker reads."""
        while self._idle and self._idle[-1].returncode is not None:
            self._idle.pop()
        worker = self._idle.pop() if self._idle else await self._start_worker()
        is_reusable = False
        try:
            async with asyncio.timeout(self._timeout):
                reply, pixels = await _exchange(worker, operation, content)
            is_reusable = reply.get("fault") != "memory"
        except (TimeoutError, OSError, EOFError, json.JSONDecodeError):
            raise MediaError(DECODER_UNAVAILABLE) from None
        finally:
            # A worker that was interrupted within a request cannot serve the next one.
            if is_reusable:
                self._idle.append(worker)
            else:
                _stop(worker)
        if "fault" in reply:
            raise MediaError(_FAULTS[reply["fault"]])
        width, height = reply["size"]
        if min(width, height) < 1:
            raise MediaError(TOO_SMALL)
        return (width, height), pixels

    async def _start_worker(self) -> Process:
        """Start a process in its own session, which Ctrl-C in the server's terminal does not reach."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "caldera.server.media.decoder_worker",
            str(self._max_memory),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_BUFFER_BYTES,
            start_new_session=True,
        )


async def _exchange(
    worker: Process, operation: bytes, content: bytes
) -> tuple[dict[str, Any], bytes]:
    """Send a file to a worker; return its reply and the pixels."""
    stdin, stdout = worker.stdin, worker.stdout
    assert stdin is not None
    assert stdout is not None
    stdin.write(operation + len(content).to_bytes(8) + content)
    await stdin.drain()
    reply: dict[str, Any] = json.loads(await stdout.readline())
    if operation != b"d" or "fault" in reply:
        return reply, b""
    width, height = reply["size"]
    return reply, await stdout.readexactly(3 * width * height)


def _stop(worker: Process) -> None:
    if worker.returncode is None:
        with suppress(ProcessLookupError):
            worker.kill()
