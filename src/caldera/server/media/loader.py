"""Image loader: fetches, measures and decodes the images that clients send or name by URL.

The scheme of a URL alone decides whether it is a data URL, a web address or a file below the media folder, and the
last two are off unless the operator enables them. A URL is never interpreted as a path.
"""

import asyncio
import binascii
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from PIL import Image

from caldera.errors import UsageError, check_ranges
from caldera.images.decoding import DEFAULT_DECODING, DecodingConfig
from caldera.server.media.decoder_pool import DecoderPool, check_magic_bytes
from caldera.server.media.errors import (
    BAD_BASE64,
    BAD_URL,
    FILE_TOO_LARGE,
    TOTAL_TOO_LARGE,
    UNDECODABLE,
    UNSUPPORTED,
    MediaError,
)
from caldera.server.media.fetcher import Fetcher
from caldera.server.media.local_files import read_below_root
from caldera.server.media.url_policy import HostAllowlist

_Result = TypeVar("_Result")

_UNTYPED = ("", "application/octet-stream", "binary/octet-stream")
"""Media types of data URLs that leave the type to the content."""

_URL_SAFE = str.maketrans("-_", "+/")
"""URL-safe alphabet of base64 to the standard one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaConfig:
    """Sources and limits of client images."""

    allowed_domains: tuple[str, ...] = ()
    """Hosts that images are fetched from: `images.example`, `images.example:8080`, or `*` for any public host."""

    root: Path | None = None
    """Folder whose files clients may name by `file:` URLs."""

    max_bytes: int = 10 << 20
    """Length of one image file."""

    max_image_pixels: int = DEFAULT_DECODING.max_pixels
    """Pixels of one image; a JPEG may have 8 times as many, as it can be decoded at a reduced size."""

    max_image_side: int = DEFAULT_DECODING.max_side
    """Width or height of one image; a longer image is decoded at a reduced size."""

    max_pixels: int = 2 * DEFAULT_DECODING.max_pixels
    """Pixels of all images of a request, as they are decoded."""

    download_timeout: float = 10.0
    """Seconds per image, including redirects and one retry."""

    decoders: int = 2
    """Images that are decoded at the same time, each in its own process."""

    decode_timeout: float = 20.0
    """Seconds per image."""

    decode_memory: int = 2 << 30
    """Bytes of memory per decoder process."""

    def __post_init__(self) -> None:
        """Raise UsageError if a number is not positive, a host is not valid, or the folder does not exist."""
        names = [setting.name for setting in fields(self)]
        numbers = [name for name in names if name not in ("allowed_domains", "root")]
        check_ranges(self, dict.fromkeys(numbers, "(0, inf]"))
        HostAllowlist(self.allowed_domains)
        if self.root is not None and not self.root.is_dir():
            raise UsageError(f"the media folder {self.root} does not exist or is not a folder")


class ImageLoader:
    """Loader of client images."""

    def __init__(
        self,
        config: MediaConfig,
        *,
        on_decode_time: Callable[[float], object] = lambda seconds: None,
    ) -> None:
        """Load images within the limits of `config`.

        Args:
            config: Sources and limits.
            on_decode_time: Called with the seconds that decoding and processing one image took.
        """
        self._config = config
        self._root = None if config.root is None else config.root.resolve()
        self._fetcher = Fetcher(
            HostAllowlist(config.allowed_domains),
            max_bytes=config.max_bytes,
            timeout=config.download_timeout,
        )
        self._decoders = DecoderPool(
            config.decoders,
            timeout=config.decode_timeout,
            max_memory=config.decode_memory,
            limits=DecodingConfig(
                max_pixels=config.max_image_pixels, max_side=config.max_image_side
            ),
        )
        self._on_decode_time = on_decode_time

    async def load_all(
        self, urls: Sequence[str], process: Callable[[Image.Image], _Result]
    ) -> list[_Result]:
        """Return the result of `process` for each image; all are fetched and measured before any is decoded.

        Args:
            urls: URLs as clients sent them.
            process: Function of an upright RGB image, called on another thread.

        Raises:
            MediaError: An image cannot be used, or the images are too large together.
        """
        # Collected, not raised at once: the error reported is the first image's, not the fastest one's.
        results = await asyncio.gather(*map(self.fetch, urls), return_exceptions=True)
        contents: list[bytes] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            contents.append(result)
        sizes = [await self._decoders.read_size(content) for content in contents]
        if sum(width * height for width, height in sizes) > self._config.max_pixels:
            raise MediaError(TOTAL_TOO_LARGE)
        return [await self.load_one(content, process) for content in contents]

    async def load_one(self, content: bytes, process: Callable[[Image.Image], _Result]) -> _Result:
        """Decode one image file and return the result of `process`; raise MediaError if it cannot be decoded."""
        start = time.perf_counter()
        async with self._decoders.decode(content) as image:
            result = await asyncio.to_thread(process, image)
        self._on_decode_time(time.perf_counter() - start)
        return result

    async def fetch(self, url: str) -> bytes:
        """Return the file that a URL contains or names.

        Raises:
            MediaError: The URL is not valid or not allowed, or does not give a supported image file.
        """
        scheme, colon, _ = url[:8].partition(":")
        match scheme.lower() if colon else "":
            case "data":
                content = read_data_url(url, self._config.max_bytes)
            case "http" | "https":
                content = await self._fetcher.fetch(url)
            case "file":
                content = await asyncio.to_thread(
                    read_below_root, url, self._root, self._config.max_bytes
                )
            case _:
                raise MediaError(BAD_URL)
        check_magic_bytes(content)
        return content

    async def close(self) -> None:
        """Stop the decoder processes."""
        await self._decoders.close()


def read_data_url(url: str, max_bytes: int) -> bytes:
    """Decode `data:image/...;base64,...`; the declared image type is not compared with the content.

    The base64 may be URL-safe or percent-encoded, and may lack its padding.

    Args:
        url: Begins with `data:`, in any case.
        max_bytes: Longer content is rejected before it is decoded.

    Raises:
        MediaError: It is not a data URL of an image, or its base64 is not valid or too long.
    """
    header, comma, body = url[5:].partition(",")
    if not comma or len(header) > 200:
        raise MediaError(BAD_URL)
    media_type, *parameters = (part.strip().lower() for part in header.split(";"))
    if not media_type.startswith("image/") and media_type not in _UNTYPED:
        raise MediaError(UNSUPPORTED)
    if "base64" not in parameters:
        raise MediaError(BAD_BASE64)
    body = unquote(body).translate(_URL_SAFE)
    # base64 encodes 3 bytes as 4 characters
    if len(body) > 4 * -(-max_bytes // 3):
        raise MediaError(FILE_TOO_LARGE)
    padding = "" if "=" in body else "=" * (-len(body) % 4)
    try:
        content = binascii.a2b_base64((body + padding).encode("ascii"), strict_mode=True)
    except ValueError:
        raise MediaError(BAD_BASE64) from None
    if len(content) > max_bytes:
        raise MediaError(FILE_TOO_LARGE)
    if not content:
        raise MediaError(UNDECODABLE)
    return content
