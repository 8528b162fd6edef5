"""URL policy: a strict parser of client URLs, and the hosts and addresses that may be fetched from.

A URL is parsed once, by one strict rule, and from then on only its parts are used: two parsers that disagree on a URL
are how such guards are bypassed. A URL that is not plainly a web address is rejected, never repaired.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from caldera.errors import UsageError
from caldera.server.media.errors import BAD_URL, NOT_ALLOWED, MediaError

_MAX_LENGTH = 4096
_PARTS = re.compile(
    r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::([0-9]{1,5}))?([/?][!$%&'()*+,./0-9:;=?@A-Z_a-z~\[\]-]*)?",
    re.IGNORECASE | re.ASCII,
)
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.ASCII)
_PORTS = {"http": 80, "https": 443}
_ANY = "*"

_UNICAST = IPv6Network("2000::/3")
_TUNNELS = tuple(map(IPv6Network, ("2001::/32", "2002::/16", "64:ff9b::/96", "64:ff9b:1::/48")))
"""Teredo, 6to4, NAT64: IPv6 addresses that embed an IPv4 address, which may be private."""


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """Parts of a web address."""

    scheme: str
    host: str
    """A name or an address in lower case, without brackets."""
    port: int
    target: str
    """Path and query, as they are sent."""

    @property
    def is_default_port(self) -> bool:
        """True if the port is the default of the scheme."""
        return self.port == _PORTS[self.scheme]

    @property
    def authority(self) -> str:
        """Host and port in the form of the Host header."""
        return self._bracketed_host if self.is_default_port else self.host_and_port

    @property
    def host_and_port(self) -> str:
        """Host and port, the default port included."""
        return f"{self._bracketed_host}:{self.port}"

    @property
    def _bracketed_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse_url(url: str) -> RemoteUrl:
    """Parse a URL; raise MediaError for user names, fragments, backslashes, spaces, non-ASCII and numeric hosts."""
    match = _PARTS.fullmatch(url) if len(url) <= _MAX_LENGTH else None
    if match is None:
        raise MediaError(BAD_URL)
    scheme, host = match[1].lower(), _normalize_host(match[2].lower())
    port = int(match[3]) if match[3] else _PORTS[scheme]
    if not 0 < port < 1 << 16:
        raise MediaError(BAD_URL)
    target = match[4] or "/"
    return RemoteUrl(scheme, host, port, target if target.startswith("/") else f"/{target}")


def _normalize_host(text: str) -> str:
    """Return a host as a name, or as an address in its canonical spelling; raise MediaError if it is neither.

    Names that end in a number are rejected: systems parse them as addresses in several ways.
    """
    try:
        if text.startswith("["):
            return str(IPv6Address(text[1:-1]))
        if text.rpartition(".")[2][:1].isdigit():
            return str(IPv4Address(text))
    except ValueError:
        raise MediaError(BAD_URL) from None
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in text.split(".")):
        raise MediaError(BAD_URL)
    return text


def resolve_redirect(url: RemoteUrl, location: str) -> RemoteUrl:
    """Return the URL of a redirect; raise MediaError if it is not valid, or leads from https to http."""
    if location.startswith("//"):
        location = f"{url.scheme}:{location}"
    elif location.startswith("/"):
        location = f"{url.scheme}://{url.host_and_port}{location}"
    elif not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", location):
        folder = url.target.partition("?")[0].rpartition("/")[0]
        location = f"{url.scheme}://{url.host_and_port}{folder}/{location}"
    destination = parse_url(location)
    if url.scheme == "https" and destination.scheme == "http":
        raise MediaError(NOT_ALLOWED)
    return destination


def is_public(address: str) -> bool:
    """Return whether an address, as the resolver gives it, is on the public internet."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address) and (
        ip not in _UNICAST or any(ip in tunnel for tunnel in _TUNNELS)
    ):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class HostAllowlist:
    """Hosts that the operator allows the server to fetch from."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Parse the entries: `host`, `host:port`, or `*` for any public host; raise UsageError for any other."""
        self._entries = [_parse_entry(entry) for entry in entries]

    def __bool__(self) -> bool:
        """Return whether any host is allowed."""
        return bool(self._entries)

    def check_host(self, url: RemoteUrl) -> None:
        """Raise MediaError unless the URL's host and port are allowed by name."""
        if not any(host in (_ANY, url.host) for host in self._matching_entries(url)):
            raise MediaError(NOT_ALLOWED)

    def check_addresses(self, url: RemoteUrl, addresses: Iterable[str]) -> None:
        """Raise MediaError unless each address is public, or is named by an entry together with its port."""
        is_listed = url.host in self._matching_entries(url)
        if not all(
            is_public(address) or (is_listed and address == url.host) for address in addresses
        ):
            raise MediaError(NOT_ALLOWED)

    def _matching_entries(self, url: RemoteUrl) -> list[str]:
        """Return the hosts of the entries for the port of a URL."""
        return [
            host
            for host, port in self._entries
            if (url.is_default_port if port is None else url.port == port)
        ]


def _parse_entry(text: str) -> tuple[str, int | None]:
    """Return the host and the port of an allowlist entry; None for the default ports."""
    if text == _ANY:
        return _ANY, None
    try:
        url = parse_url(f"http://{text}")
    except MediaError:
        url = None
    if url is None or url.target != "/" or text.endswith("/"):
        raise UsageError(
            f"the host {text!r} is not valid; write images.example, images.example:8080, or * for any public host"
        )
    return url.host, url.port if re.search(r":[0-9]+$", text) and not text.endswith("]") else None
