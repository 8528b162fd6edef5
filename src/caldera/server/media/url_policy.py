"""A URL from a client in, its checked parts out, and which hosts and addresses may be fetched from.

A URL is taken apart once, by one strict rule, and from then on only its parts are used: two readers that disagree on
a URL are how guards are got around. What is not plainly a web address is refused rather than mended.
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
"""Teredo, 6to4, NAT64: IPv6 addresses that stand for an IPv4 address, which may be anywhere."""


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """The parts of a web address."""

    scheme: str
    host: str
    """A name or an address in small letters, without brackets."""
    port: int
    target: str
    """Path and query, as they are sent."""

    @property
    def is_default_port(self) -> bool:
        """Whether it is the usual port of its scheme."""
        return self.port == _PORTS[self.scheme]

    @property
    def authority(self) -> str:
        """Host and port, as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.is_default_port else f"{host}:{self.port}"


def parse_url(url: str) -> RemoteUrl:
    """Take a URL apart; no user names, fragments, backslashes, spaces, letters beyond ASCII, or numbers for a host.

    Raises:
        MediaError: It is not plainly a web address.
    """
    found = _PARTS.fullmatch(url) if len(url) <= _MAX_LENGTH else None
    if found is None:
        raise MediaError(BAD_URL)
    scheme, host = found[1].lower(), _host(found[2].lower())
    port = int(found[3]) if found[3] else _PORTS[scheme]
    if not 0 < port < 1 << 16:
        raise MediaError(BAD_URL)
    target = found[4] or "/"
    return RemoteUrl(scheme, host, port, target if target.startswith("/") else f"/{target}")


def _host(text: str) -> str:
    """Return a host as a name, or as an address in its one spelling.

    Raises:
        MediaError: It is neither; names that end in a number are what systems read as addresses in ways of their own.
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
    """Return where a redirect leads.

    Raises:
        MediaError: It is not plainly a web address, or leads from https back to http.
    """
    if location.startswith("//"):
        location = f"{url.scheme}:{location}"
    elif location.startswith("/"):
        location = f"{url.scheme}://{_authority(url)}{location}"
    elif not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", location):
        folder = url.target.partition("?")[0].rpartition("/")[0]
        location = f"{url.scheme}://{_authority(url)}{folder}/{location}"
    led = parse_url(location)
    if url.scheme == "https" and led.scheme == "http":
        raise MediaError(NOT_ALLOWED)
    return led


def _authority(url: RemoteUrl) -> str:
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{host}:{url.port}"


def is_public(address: str) -> bool:
    """Tell whether an address, as the resolver gives it, is one of the open internet."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv6Address) and (
        found not in _UNICAST or any(found in tunnel for tunnel in _TUNNELS)
    ):
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved


class HostAllowlist:
    """Which hosts an operator lets the server fetch from."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Take `host`, `host:port` or `*` for any public host.

        Raises:
            UsageError: An entry is neither.
        """
        self._entries = {entry: _parse_entry(entry) for entry in entries}

    def __bool__(self) -> bool:
        """Tell whether anything may be fetched."""
        return bool(self._entries)

    def check_host(self, url: RemoteUrl) -> None:
        """Let a URL pass whose host and port are allowed by name.

        Raises:
            MediaError: They are not.
        """
        if not any(host in (_ANY, url.host) for host in self._matching_entries(url)):
            raise MediaError(NOT_ALLOWED)

    def check_addresses(self, url: RemoteUrl, addresses: Iterable[str]) -> None:
        """Let a URL pass all of whose addresses are public, or whose address and port the operator wrote down.

        Raises:
            MediaError: One is neither.
        """
        written = url.host in self._matching_entries(
            url
        )  # and so, if it is an address, is what it stands for
        if not all(is_public(each) or (written and each == url.host) for each in addresses):
            raise MediaError(NOT_ALLOWED)

    def _matching_entries(self, url: RemoteUrl) -> list[str]:
        """Return the hosts of the entries that hold for the port of a URL."""
        return [
            host
            for host, port in self._entries.values()
            if (url.is_default_port if port is None else url.port == port)
        ]


def _parse_entry(text: str) -> tuple[str, int | None]:
    """Return the host and the port of an allowed entry.

    Raises:
        UsageError: It is none.
    """
    if text == _ANY:
        return _ANY, None
    try:
        url = parse_url(f"http://{text}")
    except MediaError:
        url = None
    if url is None or url.target != "/" or text.endswith("/"):
        raise UsageError(
            f"the host {text!r} is not understood; write images.example, images.example:8080, or * for any "
            "public host"
        )
    return url.host, url.port if re.search(r":[0-9]+$", text) and not text.endswith("]") else None
