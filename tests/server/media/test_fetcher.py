"""Tests of image downloads, against a real server and with a scripted resolver."""

import asyncio
import ipaddress
import threading
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caldera.server.media.errors import HOST_FAILED, NOT_ALLOWED, MediaError
from caldera.server.media.fetcher import Fetcher, Stream
from caldera.server.media.url_policy import (
    HostAllowlist,
    RemoteUrl,
    is_public,
)
from tests.server.media_host import MediaHost, always, drip, redirect, response
from tests.server.server_process import (
    ServerProcess,
    image_part,
    make_image,
)

PNG = make_image()


def test_remote_urls_are_disabled_by_default(server: ServerProcess, host: MediaHost) -> None:
    """Nothing is fetched unless the operator allows it."""
    host.script = always(response(PNG))
    answer = server.ask("What is it?", image_part(f"{host.url}/x.png"))
    assert (answer.status, answer.code) == (400, "invalid_image_url")
    assert answer.error["message"].startswith("remote image URLs are disabled")
    assert host.paths == []


def test_an_allowed_host_is_fetched_from(fetching_server: ServerProcess, host: MediaHost) -> None:
    """An image by its URL gets the same answer as the same image sent."""
    host.script = always(response(PNG))
    by_url = fetching_server.ask("What is it?", image_part(f"{host.url}/x.png?size=1"))
    assert by_url.text == fetching_server.ask("What is it?", PNG).text
    assert host.paths == ["/x.png?size=1"]


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "127.0.0.1", "[::1]",
        "[fe80::1]", "[fc00::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::]", "224.0.0.1",
        "255.255.255.255", "[::127.0.0.1]", "[2001:0:7f00:1::]",
    ],
)  # fmt: skip
def test_private_addresses_are_rejected(
    fetching_server: ServerProcess, host: MediaHost, address: str
) -> None:
    """With any public host allowed, no private address is connected to, on any port."""
    for authority in (address, f"{address}:{host.port + 1}"):
        answer = fetching_server.ask("What?", image_part(f"http://{authority}/latest/meta-data"))
        assert (answer.status, answer.code) == (400, "invalid_image_url")
    assert host.paths == []


def test_names_of_private_addresses_are_rejected(
    fetching_server: ServerProcess, host: MediaHost
) -> None:
    """A host name does not help, and the message does not reveal its address."""
    answer = fetching_server.ask("What?", image_part("http://inside.test/x.png"))
    assert (answer.status, answer.code) == (400, "invalid_image_url")
    assert "127" not in answer.error["message"]
    assert host.paths == []


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:1/x.png", "http://10.0.0.1/", "http://inside.test/", "file:///etc/passwd", "ftp://a.example/",
        "//127.0.0.1:1/x",
    ],
)  # fmt: skip
def test_redirects_are_checked_like_the_first_url(
    fetching_server: ServerProcess, host: MediaHost, location: str
) -> None:
    """A redirect from an allowed host to another host, scheme or port is rejected."""
    other = MediaHost(always(response(PNG)))
    host.script = always(redirect(location.replace(":1/", f":{other.port}/")))
    answer = fetching_server.ask("What?", image_part(f"{host.url}/x.png"))
    assert (answer.status, answer.code) == (400, "invalid_image_url")
    assert host.paths == ["/x.png"]
    assert other.paths == []
    other.close()


def test_three_redirects_are_followed_and_no_more(
    fetching_server: ServerProcess, host: MediaHost
) -> None:
    """Eleven redirects, and a loop, end after the third."""

    def hops(path: str) -> Iterator[bytes]:
        left = int(path[1:])
        yield redirect(str(left - 1)) if left else response(PNG)

    host.script = hops
    assert fetching_server.ask("What is it?", image_part(f"{host.url}/3")).status == 200
    assert host.paths == ["/3", "/2", "/1", "/0"]
    host.paths.clear()
    assert fetching_server.ask("What?", image_part(f"{host.url}/11")).status == 400
    assert host.paths == ["/11", "/10", "/9", "/8"]
    host.paths.clear()
    host.script = always(redirect("/loop"))
    assert fetching_server.ask("What?", image_part(f"{host.url}/loop")).status == 400
    assert len(host.paths) == 4


def test_a_host_with_public_and_private_addresses_is_rejected(
    fetching_server: ServerProcess, host: MediaHost
) -> None:
    """A host with a public and a private address is not connected to at all."""
    answer = fetching_server.ask("What?", image_part("http://mixed.test/x.png"))
    assert (answer.status, answer.code) == (400, "invalid_image_url")


@pytest.mark.parametrize("length", [10, None, 10**9])
def test_reading_stops_at_the_limit(
    fetching_server: ServerProcess, host: MediaHost, length: int | None
) -> None:
    """With a wrong, missing or large Content-Length, at most the limit is read, and memory does not grow."""

    def endless(path: str) -> Iterator[bytes]:
        yield (
            b"HTTP/1.1 200 OK\r\n"
            + (b"" if length is None else f"Content-Length: {length}\r\n".encode())
            + b"\r\n"
        )
        yield from (PNG + bytes(1 << 16) for _ in range(1000))

    host.script = endless
    before = fetching_server.memory()
    answer = fetching_server.ask("What?", image_part(f"{host.url}/x.png"))
    if length == 10:
        assert (answer.status, answer.code) == (400, "image_parse_error")  # ten bytes of a PNG
    else:
        assert (answer.status, answer.code) == (400, "image_file_too_large")
    assert host.sent_bytes < 16_000_000, "no more than the buffers of the system"
    assert fetching_server.memory() - before < 8_000_000


def test_slow_hosts_meet_one_deadline(fetching_server: ServerProcess, host: MediaHost) -> None:
    """One byte at a time, in the header or the body, and silence: status 502, while other requests are answered."""

    def slow(path: str) -> Iterator[bytes]:
        if path == "/head":
            yield from drip(b"HTTP/1.1 200 OK\r\nX: y"[:1], 0.3)
        elif path == "/body":
            yield b"HTTP/1.1 200 OK\r\n\r\n"
            yield from drip(b"x", 0.3)
        else:
            yield from drip(b"", 0.3)

    host.script = slow
    answers = []

    def ask(path: str) -> None:
        answers.append(fetching_server.ask("What?", image_part(f"{host.url}{path}")))

    threads = [threading.Thread(target=ask, args=(path,)) for path in ("/head", "/body", "/hang")]
    for thread in threads:
        thread.start()
    assert fetching_server.ask("What is it?").status == 200
    for thread in threads:
        thread.join()
    errors = [(answer.status, answer.code) for answer in answers]
    assert errors == [(502, "failed_to_download_image")] * 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (response(b"gone", "404 Not Found"), (422, "failed_to_download_image")),
        (response(b"no", "403 Forbidden"), (422, "failed_to_download_image")),
        (response(b"<!DOCTYPE html><p>Log in"), (400, "invalid_image_format")),
        (response(b""), (400, "empty_image_file")),
        (response(PNG, "200 OK", "Content-Encoding: gzip"), (422, "failed_to_download_image")),
    ],
)
def test_each_failed_download_has_its_own_error(
    fetching_server: ServerProcess, host: MediaHost, content: bytes, expected: tuple[int, str]
) -> None:
    """HTTP errors, a web page and an empty file each have their own code, without a second try."""
    host.script = always(content)
    answer = fetching_server.ask("What?", image_part(f"{host.url}/x.png"))
    assert (answer.status, answer.code) == expected
    assert len(host.paths) == 1


@pytest.mark.parametrize(
    "content",
    [response(b"", "500 Oops"), response(b"", "503 Busy"), b"", PNG, response(PNG, length=len(PNG) + 9)],
)  # fmt: skip
def test_failing_hosts_are_tried_twice(
    fetching_server: ServerProcess, host: MediaHost, content: bytes
) -> None:
    """A server error, a closed connection, invalid HTTP and a truncated body: status 502 after two tries."""
    host.script = always(content)
    answer = fetching_server.ask("What?", image_part(f"{host.url}/x.png"))
    assert (answer.status, answer.code) == (502, "failed_to_download_image")
    assert len(host.paths) == 2


def test_urls_in_text_are_not_fetched(fetching_server: ServerProcess, host: MediaHost) -> None:
    """A Markdown image, a URL or an HTML tag in a text stays text."""
    host.script = always(response(PNG))
    for text in (f"![]({host.url}/x.png)", f"{host.url}/x.png", f"<img src={host.url}/x.png>"):
        assert fetching_server.ask(text).status == 200
    assert host.paths == []


PUBLIC = "93.184.216.34"


class Recorder:
    """Resolver with scripted answers, and a connector that only records the addresses."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.hosts: list[str] = []
        self.connected: list[str] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the next answer, and the last one from then on."""
        self.hosts.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def connect(self, address: str, url: RemoteUrl) -> Stream:
        """Record the address and fail."""
        self.connected.append(address)
        raise ConnectionRefusedError

    def fetch(self, url: str, *allowed: str) -> MediaError:
        """Fetch a URL, which must fail, and return the error."""
        fetcher = Fetcher(
            HostAllowlist(allowed),
            max_bytes=9,
            timeout=5,
            resolve=self.resolve,
            connect=self.connect,
        )
        with pytest.raises(MediaError) as caught:
            asyncio.run(fetcher.fetch(url))
        return caught.value


URL_PARTS = st.sampled_from(
    ["http://", "https://", "a.example", "127.0.0.1", "10.0.0.1", "[::1]", "0x7f.1", "2130706433", "localhost", "@",
     ":", "80", "443", "22", "\\", "/", "?", "#", "%", ".", "..", "\t", " ", "é", "。", "[", "]", "xn--a", "-", "_"]
)  # fmt: skip


URLS = st.lists(URL_PARTS, max_size=8).map("".join)


ADDRESSES = st.one_of(
    st.ip_addresses().map(str), st.just(PUBLIC), st.just("127.0.0.1"), st.just("fe80::1%eth0")
)


@given(url=URLS, addresses=st.lists(ADDRESSES, min_size=1, max_size=4))
@example(url="http://a.example", addresses=[PUBLIC])
@example(url="http://a.example", addresses=[PUBLIC, "127.0.0.1"])
def test_only_checked_addresses_are_connected_to(url: str, addresses: list[str]) -> None:
    """For any URL and resolver, each connected address was resolved and is public."""
    recorder = Recorder(addresses)
    error = recorder.fetch(url, "*")
    assert set(recorder.connected) <= set(addresses)
    assert all(ipaddress.ip_address(address).is_global for address in recorder.connected)
    if recorder.connected:
        assert error.kind is HOST_FAILED
        assert all(map(is_public, addresses)), "one private address rejects them all"


def test_the_property_covers_urls_that_are_connected_to() -> None:
    """The property above is not vacuous."""
    recorder = Recorder([PUBLIC])
    recorder.fetch("http://a.example", "*")
    assert recorder.connected == [PUBLIC, PUBLIC], "the first try and the retry"


def test_dns_rebinding_is_rejected() -> None:
    """A resolver that returns a public address first and loopback at the retry: the second is rejected."""
    recorder = Recorder([PUBLIC], ["127.0.0.1"])
    error = recorder.fetch("http://a.example/x", "a.example")
    assert error.kind is NOT_ALLOWED
    assert recorder.hosts == ["a.example", "a.example"]
    assert recorder.connected == [PUBLIC]
