"""Image downloads: the host is resolved once, every address is checked, and a checked address is connected to.

One deadline covers everything, redirects included, and reading stops one byte beyond the limit.
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
"""An address, and the URL with its port and host name, to an open connection."""

_MAX_REDIRECTS = 3
_REDIRECT_CODES = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 1 << 16
_MAX_ADDRESSES = 4
"""Addresses of a host that are tried."""


async def resolve(host: str, port: int) -> list[str]:
    """Resolve a host by the system's resolver; raise OSError if it has no address."""
    loop = asyncio.get_running_loop()
    entries = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in entries))


async def connect(address: str, url: RemoteUrl) -> Stream:
    """Connect to an address, for https by TLS with a certificate of the URL's host; raise OSError if that fails."""
    context = ssl.create_default_context() if url.scheme == "https" else None
    return await asyncio.open_connection(
        address,
        url.port,
        limit=_CHUNK_BYTES,
        ssl=context,
        server_hostname=url.host if context else None,
    )


@dataclass(frozen=True, slots=True)
class _Response:
    """Response of a host."""

    status: int
    location: str | None
    content: bytes


class Fetcher:
    """Client that downloads images from allowed hosts."""

    def __init__(
        self,
        hosts: HostAllowlist,
        *,
        max_bytes: int,
        timeout: float,
        resolve: Resolve = resolve,
        connect: Connect = connect,
    ) -> None:
        """Fetch at most `max_bytes` within `timeout` seconds."""
        self._hosts = hosts
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._resolve = resolve
        self._open_connection = connect

    async def fetch(self, text: str) -> bytes:
        """Return the content of a URL; raise MediaError if it may not or cannot be fetched."""
        if not self._hosts:
            raise MediaError(REMOTE_DISABLED)
        url = parse_url(text)
        try:
            async with asyncio.timeout(self._timeout):
                content = await self._with_one_retry(url)
        except TimeoutError:
            raise MediaError(HOST_FAILED) from None
        if not content:
            raise MediaError(EMPTY)
        return content

    async def _with_one_retry(self, url: RemoteUrl) -> bytes:
        """Follow the URL, once more if its host failed in a way that may be temporary."""
        try:
            return await self._follow(url)
        except MediaError as error:
            if error.kind is not HOST_FAILED:
                raise
        return await self._follow(url)

    async def _follow(self, url: RemoteUrl) -> bytes:
        """Return the content after redirects, each of which is checked like the first URL."""
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._get(url)
            if response.status in _REDIRECT_CODES and response.location:
                url = resolve_redirect(url, response.location)
                continue
            if response.status >= 500 or response.status == 429:
                raise MediaError(HOST_FAILED)
            if response.status != 200:
                raise MediaError(DOWNLOAD_REFUSED)
            return response.content
        raise MediaError(TOO_MANY_REDIRECTS)

    async def _get(self, url: RemoteUrl) -> _Response:
        """Send one request to one host, after the host and its addresses were checked."""
        self._hosts.check_host(url)
        try:
            addresses = await self._resolve(url.host, url.port)
        except socket.gaierror as error:
            is_temporary = error.errno == socket.EAI_AGAIN
            raise MediaError(HOST_FAILED if is_temporary else DOWNLOAD_REFUSED) from None
        except (OSError, UnicodeError):
            raise MediaError(HOST_FAILED) from None
        self._hosts.check_addresses(url, addresses)
        reader, writer = await self._connect(addresses[:_MAX_ADDRESSES], url)
        try:
            return await _send_request(reader, writer, url, self._max_bytes)
        except (OSError, h11.RemoteProtocolError):
            raise MediaError(HOST_FAILED) from None
        finally:
            writer.transport.abort()

    async def _connect(self, addresses: list[str], url: RemoteUrl) -> Stream:
        """Connect to the first checked address that accepts."""
        kind = HOST_FAILED
        for address in addresses:
            try:
                return await self._open_connection(address, url)
            except ssl.SSLCertVerificationError:
                kind = DOWNLOAD_REFUSED
            except OSError:
                continue
        raise MediaError(kind)


async def _send_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, url: RemoteUrl, max_bytes: int
) -> _Response:
    """Send one request and read its response."""
    connection = h11.Connection(h11.CLIENT)
    headers = {
        "Host": url.authority,
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "User-Agent": "caldera",
        "Connection": "close",
    }
    request = h11.Request(method="GET", target=url.target, headers=list(headers.items()))
    writer.write(connection.send(request) + connection.send(h11.EndOfMessage()))
    await writer.drain()
    content = bytearray()
    status, location = 0, None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
            received = {name: value.decode("latin-1") for name, value in event.headers}
            location = received.get(b"location")
            if status != 200:
                return _Response(status, location, b"")
            if received.get(b"content-encoding", "identity") != "identity":
                raise MediaError(DOWNLOAD_REFUSED)
            length = received.get(b"content-length", "0")
            _check_length(int(length) if length.isdigit() else 0, max_bytes)
        elif isinstance(event, h11.Data):
            content += event.data
            _check_length(len(content), max_bytes)
        elif isinstance(event, h11.EndOfMessage):
            return _Response(status, location, bytes(content))


def _check_length(length: int, max_bytes: int) -> None:
    if length > max_bytes:
        raise MediaError(FILE_TOO_LARGE)
