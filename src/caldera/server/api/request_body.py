"""Request bodies: read with limits on length, time and total memory, and decoded as strict JSON."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from caldera.server.api.config import Limits
from caldera.server.api.errors import ApiError, bad_request, service_unavailable

_DRAIN_FACTOR = 8
"""Multiple of the limit that is read and dropped of a body that is too long, so that its sender reads the response."""


class BodyReader:
    """Reader of request bodies that counts the bytes of all bodies in memory."""

    def __init__(self, limits: Limits) -> None:
        """Read within `limits`."""
        self._limits = limits
        self._bytes_in_memory = 0

    @asynccontextmanager
    async def json(self, request: Request) -> AsyncIterator[Any]:
        """Read a request's body; it counts as in memory until the block ends.

        Raises:
            ApiError: It is not JSON, is too long or too slow, or too many bodies are in memory.
        """
        _check_content_type(request)
        body = bytearray()
        try:
            await self._read(request, body)
            yield decode_json(bytes(body))
        finally:
            self._bytes_in_memory -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        """Append the request's body to `body`."""
        chunks = request.stream()
        limits = self._limits
        try:
            async with asyncio.timeout(limits.body_timeout):
                async for chunk in chunks:
                    if len(body) + len(chunk) > limits.body_bytes:
                        await self._drain(chunks)
                        raise ApiError(
                            413,
                            f"the body is over the limit of {limits.body_bytes:,} bytes; shrink its images",
                            code="request_too_large",
                        )
                    if self._bytes_in_memory + len(chunk) > limits.bodies_bytes:
                        raise service_unavailable(
                            "too many large requests at once; try again", "busy"
                        )
                    body += chunk
                    self._bytes_in_memory += len(chunk)
        except TimeoutError:
            raise ApiError(
                400, "the body did not arrive in time; send it again", code="request_timeout"
            ) from None

    async def _drain(self, chunks: AsyncIterator[bytes]) -> None:
        """Drop the rest of a body, up to a limit."""
        num_dropped = 0
        try:
            async for chunk in chunks:
                num_dropped += len(chunk)
                if num_dropped > _DRAIN_FACTOR * self._limits.body_bytes:
                    return
        except ClientDisconnect:
            return


def _check_content_type(request: Request) -> None:
    """Raise if the headers declare anything but uncompressed JSON in UTF-8."""
    media_type, *parameters = request.headers.get("content-type", "").lower().split(";")
    parameters = [text.strip() for text in parameters]
    charsets = [
        text.removeprefix("charset=").strip('"')
        for text in parameters
        if text.startswith("charset=")
    ]
    if media_type.strip() != "application/json" or {*charsets} - {"utf-8", "utf8"}:
        raise ApiError(415, "the Content-Type must be application/json, in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not supported; send it uncompressed")


def decode_json(body: bytes) -> Any:  # noqa: ANN401 - any JSON
    """Decode JSON in UTF-8 without NaN and duplicate keys; raise ApiError if it is not valid."""
    try:
        return json.loads(
            body.decode(), parse_constant=_reject_constant, object_pairs_hook=_reject_duplicate_keys
        )
    except UnicodeDecodeError:
        raise bad_request("the body is not UTF-8") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply") from None
    except _DuplicateKeyError:
        raise bad_request("the body has a duplicate field") from None
    except ValueError:
        raise bad_request("the body is not valid JSON") from None


class _DuplicateKeyError(ValueError):
    """Duplicate key in a JSON object."""


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _DuplicateKeyError
    return fields
