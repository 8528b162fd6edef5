"""What a user calls an image in, the image out: the one place that opens a user's image.

On a terminal it is a path that was typed in. A client of the server names a URL, and that is never taken for a path:
its scheme alone decides whether it is a data URL, a web address or a file of the server's media folder, and the last
two are off unless the operator switched them on.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from caldera.errors import UsageError
from caldera.images.decoding import MAX_PIXELS
from caldera.server.media.data_urls import read_data_url
from caldera.server.media.decoder_pool import DecoderPool, check_magic_bytes
from caldera.server.media.errors import BAD_URL, TOTAL_TOO_LARGE, MediaError
from caldera.server.media.fetcher import Fetcher
from caldera.server.media.local_files import read_below_root
from caldera.server.media.url_policy import HostAllowlist

_Seen = TypeVar("_Seen")


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaSettings:
    """Which images of clients are taken, and what they may cost."""

    hosts: tuple[str, ...] = ()
    """Hosts that images are fetched from: `images.example`, `images.example:8080`, or `*` for any public one."""

    root: Path | None = None
    """Folder whose files clients may name by `file:` URLs."""

    max_bytes: int = 10 << 20
    """Of one image's file."""

    max_pixels: int = 2 * MAX_PIXELS
    """Of all images of a request together; one may have 32 million, and 12,000 along a side."""

    download_seconds: float = 10.0
    """For one image, redirects and a second try among them."""

    decoders: int = 2
    """Images that are decoded at the same time, each by a process of its own."""

    decode_seconds: float = 20.0
    """For one image."""

    decode_memory: int = 2 << 30
    """Bytes of memory that one such process may take."""

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            UsageError: One is out of its range, a host is not understood, or the folder is not there.
        """
        for name in (
            "max_bytes", "max_pixels", "download_seconds", "decoders", "decode_seconds", "decode_memory",
        ):  # fmt: skip
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be over 0")
        HostAllowlist(self.hosts)
        if self.root is not None and not self.root.is_dir():
            raise UsageError(f"the media folder {self.root} is not there, or no folder")


class ImageLoader:
    """Reads and decodes the images of clients."""

    def __init__(
        self,
        settings: MediaSettings,
        *,
        fetcher: Fetcher | None = None,
        on_decode_time: Callable[[float], object] = lambda seconds: None,
    ) -> None:
        """Take images as `settings` say, and tell `took` how long the decoding of each took, in seconds."""
        self._settings = settings
        self._root = None if settings.root is None else settings.root.resolve()
        self._fetcher = fetcher or Fetcher(
            HostAllowlist(settings.hosts),
            max_bytes=settings.max_bytes,
            seconds=settings.download_seconds,
        )
        self._decoders = DecoderPool(
            settings.decoders, seconds=settings.decode_seconds, memory=settings.decode_memory
        )
        self._took = on_decode_time

    async def load_all(
        self, urls: Sequence[str], process: Callable[[Image.Image], _Seen]
    ) -> list[_Seen]:
        """Return what `see` makes of each image; all are read and measured before the first is decoded.

        Args:
            urls: As clients sent them.
            see: Takes an upright RGB image; called on another thread.

        Raises:
            MediaError: One cannot be used, or they are too large together.
        """
        async with asyncio.TaskGroup() as group:
            reading = [group.create_task(self._fetch_or_error(url)) for url in urls]
        contents = [_unwrap(task.result()) for task in reading]
        sizes = [await self._decoders.size(content) for content in contents]
        if sum(width * height for width, height in sizes) > self._settings.max_pixels:
            raise MediaError(TOTAL_TOO_LARGE)
        return [await self._seen(content, process) for content in contents]

    async def close(self) -> None:
        """Stop the processes that decode."""
        await self._decoders.close()

    async def _fetch_or_error(self, url: str) -> bytes | MediaError:
        """Return what `read` returns or raises, so that the first image's fault is told, not the fastest's."""
        try:
            return await self.fetch(url)
        except MediaError as error:
            return error

    async def fetch(self, url: str) -> bytes:
        """Return the file that a URL holds or names.

        Raises:
            MediaError: It is not understood or not allowed, cannot be had, or is no image's.
        """
        scheme, colon, _ = url[:8].partition(":")
        match scheme.lower() if colon else "":
            case "data":
                content = read_data_url(url, self._settings.max_bytes)
            case "http" | "https":
                content = await self._fetcher.fetch(url)
            case "file":
                content = await asyncio.to_thread(
                    read_below_root, url, self._root, self._settings.max_bytes
                )
            case _:
                raise MediaError(BAD_URL)
        check_magic_bytes(content)
        return content

    async def _seen(self, content: bytes, process: Callable[[Image.Image], _Seen]) -> _Seen:
        """Decode one image and let it be seen.

        Raises:
            MediaError: It cannot be decoded.
        """
        begin = time.perf_counter()
        async with self._decoders.decode(content) as image:
            seen = await asyncio.to_thread(process, image)
        self._took(time.perf_counter() - begin)
        return seen


def _unwrap(outcome: bytes | MediaError) -> bytes:
    """Return a file.

    Raises:
        MediaError: It is a fault instead.
    """
    if isinstance(outcome, MediaError):
        raise outcome
    return outcome
