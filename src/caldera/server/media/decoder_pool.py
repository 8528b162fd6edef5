"""Pool of worker processes that decode image files, which are first identified by their magic bytes."""

import asyncio
import json
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from PIL import Image

from caldera.images.decoding import DecodingConfig
from caldera.images.file_types import (
    HTML_PAGE,
    WEB_FORMATS,
    identify_image_format,
    identify_other_file,
)
from caldera.server.media.errors import (
    DECODER_UNAVAILABLE,
    NOT_AN_IMAGE,
    TOO_LARGE,
    TOO_SMALL,
    UNDECODABLE,
    MediaError,
    unsupported,
)

_BUFFER_BYTES = 1 << 20
"""Read-ahead buffer of a worker's output."""

_FAULTS = {"too large": TOO_LARGE, "broken": UNDECODABLE, "memory": DECODER_UNAVAILABLE}


def check_magic_bytes(content: bytes) -> None:
    """Raise MediaError unless a file begins as a JPEG, PNG, WebP or GIF; its declared type does not count."""
    image_format = identify_image_format(content)
    if image_format in WEB_FORMATS:
        return
    if image_format is not None:
        raise MediaError(unsupported(f"a {image_format} image"))
    other = identify_other_file(content)
    if other is None:
        raise MediaError(UNDECODABLE)
    raise MediaError(NOT_AN_IMAGE if other.name == HTML_PAGE else unsupported(other.name))


class DecoderPool:
    """Decoder processes, started on demand and replaced when they die or hang."""

    def __init__(
        self, num_workers: int, *, timeout: float, max_memory: int, limits: DecodingConfig
    ) -> None:
        """Create an empty pool.

        Args:
            num_workers: Images that are decoded at the same time.
            timeout: Seconds per image.
            max_memory: Bytes of memory per process.
            limits: Pixels and side of an image.
        """
        self._free = asyncio.Semaphore(num_workers)
        self._idle: list[Process] = []
        self._timeout = timeout
        self._limits = [str(max_memory), str(limits.max_pixels), str(limits.max_side)]

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
            *self._limits,
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
