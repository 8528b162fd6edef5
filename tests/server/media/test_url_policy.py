"""Tests of the URL parser and the host allowlist."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.errors import UsageError
from caldera.server.media.errors import MediaError
from caldera.server.media.url_policy import (
    HostAllowlist,
    RemoteUrl,
    parse_url,
    resolve_redirect,
)
from tests.server.media_host import MediaHost
from tests.server.server_process import (
    ServerProcess,
    image_part,
    make_image,
)

PNG = make_image()


@pytest.mark.parametrize(
    "start",
    [
        "http://2130706433", "http://0x7f.1", "http://0177.0.0.1", "http://127.1", "http://127.0.0.1.",
        "http://good@127.0.0.1", "http://good.example:80@127.0.0.1", "http://127.0.0.1\\@good.example",
        "http://good.example\\.127.0.0.1", "http://127.0.0.1\t", "http:// 127.0.0.1", "http://good.example#@127.0.0.1",
        "http://ⓛocalhost", "http://\uff11\uff12\uff17.0.0.1", "http://127。0。0。1", "http:///127.0.0.1",
        "http:127.0.0.1", "http://[::1%25lo]", "http://%6cocalhost", "http://localhost",
    ],
)  # fmt: skip
def test_ambiguous_hosts_are_rejected(
    fetching_server: ServerProcess, host: MediaHost, start: str
) -> None:
    """A URL that two parsers could read as different hosts is rejected."""
    for url in (f"{start}:{host.port}/x.png", f"{start}/x.png"):
        answer = fetching_server.ask("What?", image_part(url))
        assert (answer.status, answer.code) == (400, "invalid_image_url")
    assert host.paths == []


@given(
    host=st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z]{1,5}){0,2}", fullmatch=True),
    port=st.integers(1, 65535),
)
def test_plain_urls_keep_their_parts(host: str, port: int) -> None:
    """A plain URL can be rebuilt from its parts."""
    url = parse_url(f"HTTP://{host.upper()}:{port}/a/b?c=d")
    assert url == RemoteUrl("http", host, port, "/a/b?c=d")
    assert parse_url(f"http://{url.authority}{url.target}") == url


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/y", "http://a.example:80/y"),
        ("y?z", "http://a.example:80/d/y?z"),
        ("//b.example/y", "http://b.example:80/y"),
        ("https://b.example", "https://b.example:443/"),
    ],
)
def test_each_form_of_a_location_is_resolved(location: str, expected: str) -> None:
    """Absolute and relative locations are resolved against the URL of the redirect."""
    url = resolve_redirect(parse_url("http://a.example/d/x"), location)
    assert f"{url.scheme}://{url.host}:{url.port}{url.target}" == expected


def test_https_does_not_redirect_to_http() -> None:
    """A redirect from https to http is rejected."""
    with pytest.raises(MediaError):
        resolve_redirect(parse_url("https://a.example/"), "http://a.example/")


def test_allowlist_entries_apply_to_their_ports() -> None:
    """An entry without a port allows the default ports; an address is allowed with its own port only."""
    hosts = HostAllowlist(["a.example", "b.example:8080", "127.0.0.1:9000", "*"])
    hosts.check_host(parse_url("https://a.example/"))
    hosts.check_host(parse_url("http://b.example:8080/"))
    hosts.check_addresses(parse_url("http://127.0.0.1:9000/"), ["127.0.0.1"])
    for refused in ("http://a.example:8080/", "http://c.example:9000/"):
        with pytest.raises(MediaError):
            hosts.check_host(parse_url(refused))
    with pytest.raises(MediaError):
        hosts.check_addresses(parse_url("http://127.0.0.1/"), ["127.0.0.1"])
    for wrong in ("http://a.example", "a.example/x", "a b", ""):
        with pytest.raises(UsageError, match="is not valid"):
            HostAllowlist([wrong])
