"""A web address in, the bytes that it gives out: resolved once, every address checked, the checked address dialled.

One deadline stands over everything, redirects among it, and reading stops one byte beyond what is allowed.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import h11

from caldera.server.media.errors import (
    DOWNLOAD_REFUSED,
    EMPTY,
    FILE_TOO_LARGE,
    HOST_FAILED,
    REMOTE_DISABLED,
    TOO_MANY_REDIRECTS,
    MediaError,
)
from caldera.server.media.url_policy import HostAllowlist, RemoteUrl, parse_url, resolve_redirect

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""A host and a port to its addresses."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[str, RemoteUrl], Awaitable[Stream]]
"""An address, and the URL whose port and name it is dialled with, to an open connection."""

_MAX_REDIRECTS = 3
"""Redirects that are followed."""

_REDIRECT_CODES = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16
_ADDRESSES = 4
"""Addresses of a host that are tried."""


async def resolve(host: str, port: int) -> list[str]:
    """Ask the system for a host's addresses.

    Raises:
        OSError: It knows none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def connect(address: str, url: RemoteUrl) -> Stream:
    """Connect to an address, by TLS for the URL's name where it says so.

    Raises:
        OSError: Nothing answers there, or its certificate is not the host's.
    """
    context = ssl.create_default_context() if url.scheme == "https" else None
    return await asyncio.open_connection(
        address,
        url.port,
        limit=_CHUNK,
        ssl=context,
        server_hostname=url.host if context else None,
    )


@dataclass(frozen=True, slots=True)
class _Response:
    """What a host answered."""

    status: int
    location: str | None
    content: bytes


class Fetcher:
    """Fetches images from the hosts that are allowed."""

    def __init__(
        self,
        hosts: HostAllowlist,
        *,
        max_bytes: int,
        seconds: float,
        resolve: Resolve = resolve,
        dial: Connect = connect,
    ) -> None:
        """Fetch at most `max_bytes` within `seconds`."""
        self._hosts = hosts
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._resolve = resolve
        self._dial = dial

    async def fetch(self, text: str) -> bytes:
        """Return what a URL gives.

        Raises:
            MediaError: It may not be fetched, cannot be, or is too long or empty.
        """
        if not self._hosts:
            raise MediaError(REMOTE_DISABLED)
        url = parse_url(text)
        try:
            async with asyncio.timeout(self._seconds):
                content = await self._with_one_retry(url)
        except TimeoutError:
            raise MediaError(HOST_FAILED) from None
        if not content:
            raise MediaError(EMPTY)
        return content

    async def _with_one_retry(self, url: RemoteUrl) -> bytes:
        """Try once more where the host failed in passing.

        Raises:
            MediaError: It did again, or there is no use in trying.
        """
        try:
            return await self._follow(url)
        except MediaError as error:
            if error.fault is not HOST_FAILED:
                raise
        return await self._follow(url)

    async def _follow(self, url: RemoteUrl) -> bytes:
        """Follow redirects, each checked like the first.

        Raises:
            MediaError: There are too many, one leads where it may not, or the last cannot be had.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            given = await self._get(url)
            if given.status in _REDIRECT_CODES and given.location:
                url = resolve_redirect(url, given.location)
                continue
            if given.status >= 500 or given.status == 429:
                raise MediaError(HOST_FAILED)
            if given.status != 200:
                raise MediaError(DOWNLOAD_REFUSED)
            return given.content
        raise MediaError(TOO_MANY_REDIRECTS)

    async def _get(self, url: RemoteUrl) -> _Response:
        """Ask one host once.

        Raises:
            MediaError: It may not be asked, or does not answer as it should.
        """
        self._hosts.check_host(url)
        try:
            addresses = await self._resolve(url.host, url.port)
        except socket.gaierror as error:
            passing = error.errno == socket.EAI_AGAIN
            raise MediaError(HOST_FAILED if passing else DOWNLOAD_REFUSED) from None
        except (OSError, UnicodeError):
            raise MediaError(HOST_FAILED) from None
        self._hosts.check_addresses(url, addresses)
        reader, writer = await self._connect(addresses[:_ADDRESSES], url)
        try:
            return await _send_request(reader, writer, url, self._max_bytes)
        except (OSError, h11.RemoteProtocolError):
            raise MediaError(HOST_FAILED) from None
        finally:
            writer.transport.abort()

    async def _connect(self, addresses: list[str], url: RemoteUrl) -> Stream:
        """Connect to the first of the checked addresses that answers.

        Raises:
            MediaError: None does.
        """
        fault = HOST_FAILED
        for address in addresses:
            try:
                return await self._dial(address, url)
            except ssl.SSLCertVerificationError:
                fault = DOWNLOAD_REFUSED
            except OSError:
                continue
        raise MediaError(fault)


async def _send_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, url: RemoteUrl, max_bytes: int
) -> _Response:
    """Send one request and read its answer.

    Raises:
        MediaError: The answer is too long, or in an encoding that was not asked for.
        RemoteProtocolError: It is no HTTP, or breaks off.
        OSError: The connection broke.
    """
    wire = h11.Connection(h11.CLIENT)
    headers = [
        ("Host", url.authority), ("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "caldera"),
        ("Connection", "close"),
    ]  # fmt: skip
    ask = h11.Request(method="GET", target=url.target, headers=headers)
    writer.write(wire.send(ask) + wire.send(h11.EndOfMessage()))
    await writer.drain()
    content = bytearray()
    status, location = 0, None
    while True:
        event = wire.next_event()
        if event is h11.NEED_DATA:
            wire.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Response):
            status = event.status_code
            said = {name: value.decode("latin-1") for name, value in event.headers}
            location = said.get(b"location")
            if status != 200:
                return _Response(status, location, b"")
            if said.get(b"content-encoding", "identity") != "identity":
                raise MediaError(DOWNLOAD_REFUSED)
            if said.get(b"content-length", "0").isdigit():
                _check_length(int(said.get(b"content-length", "0")), max_bytes)
        elif isinstance(event, h11.Data):
            content += event.data
            _check_length(len(content), max_bytes)
        elif isinstance(event, h11.EndOfMessage):
            return _Response(status, location, bytes(content))


def _check_length(length: int, max_bytes: int) -> None:
    """Refuse what is too long.

    Raises:
        MediaError: It is.
    """
    if length > max_bytes:
        raise MediaError(FILE_TOO_LARGE)
