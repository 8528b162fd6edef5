"""A request's body in, decoded JSON out: counted while it comes, and read as JSON to the letter."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from caldera.server.api.config import Limits
from caldera.server.api.errors import ApiError, bad_request, service_unavailable

_DRAIN_FACTOR = 8
"""Times the limit that is read and dropped of a body that is too long, so that its sender reads the answer."""


class BodyReader:
    """All bodies that are held at a time, by their bytes."""

    def __init__(self, limits: Limits) -> None:
        """Hold as much as `limits` allow."""
        self._limits = limits
        self._held = 0

    @asynccontextmanager
    async def json(self, request: Request) -> AsyncIterator[Any]:
        """Read a request's body; it counts as held until the block ends.

        Raises:
            ApiError: It is no JSON, too long or too slow, or too much is held already.
        """
        _check_head(request)
        body = bytearray()
        try:
            await self._read(request, body)
            yield decode_json(bytes(body))
        finally:
            self._held -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        """Read into `body`.

        Raises:
            ApiError: It is too long or too slow, or too much is held already.
        """
        chunks = request.stream()
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                async for chunk in chunks:
                    if len(body) + len(chunk) > self._limits.body_bytes:
                        await self._drain(chunks)
                        raise ApiError(
                            413,
                            f"the body is over the limit of {self._limits.body_bytes:,} bytes; shrink its images",
                            code="request_too_large",
                        )
                    if self._held + len(chunk) > self._limits.bodies_bytes:
                        raise service_unavailable(
                            "too many large requests at once; try again", "busy"
                        )
                    body += chunk
                    self._held += len(chunk)
        except TimeoutError:
            raise ApiError(
                400, "the body did not come in time; send it again", code="request_timeout"
            ) from None

    async def _drain(self, chunks: AsyncIterator[bytes]) -> None:
        """Drop the rest of a body, up to an end."""
        dropped = 0
        try:
            async for chunk in chunks:
                dropped += len(chunk)
                if dropped > _DRAIN_FACTOR * self._limits.body_bytes:
                    return
        except ClientDisconnect:
            return


def _check_head(request: Request) -> None:
    """Refuse what is not plain JSON by its head.

    Raises:
        ApiError: It is of another type, or compressed.
    """
    kind, *parameters = request.headers.get("content-type", "").lower().split(";")
    charsets = [one.strip() for one in parameters if one.strip().startswith("charset=")]
    if kind.strip() != "application/json" or any(
        one.strip('"') not in ("charset=utf-8", 'charset="utf-8') for one in charsets
    ):
        raise ApiError(415, "the Content-Type should be application/json, in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not taken; send it as it is")


def decode_json(body: bytes) -> Any:  # noqa: ANN401 - any JSON
    """Decode JSON; no NaN, no names that stand twice, nothing but UTF-8.

    Raises:
        ApiError: It is not that.
    """
    try:
        return json.loads(
            body.decode(), parse_constant=_no_number, object_pairs_hook=_reject_duplicate_keys
        )
    except UnicodeDecodeError:
        raise bad_request("the body is not UTF-8") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply") from None
    except _DuplicateKeyError:
        raise bad_request("the body names a field twice") from None
    except ValueError:
        raise bad_request("the body is not valid JSON") from None


class _DuplicateKeyError(ValueError):
    """A name stands twice in an object."""


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKeyError
    return found
