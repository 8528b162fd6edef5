"""Rows A1 to A13 of the faults: images that a client names instead of sending, against a real server."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.media_host import MediaHost, drip, redirect, response
from tests.server.server_process import ServerProcess, image, shown

PNG = image()


def always(content: bytes) -> Callable[[str], Iterator[bytes]]:
    """Answer every path with the same."""
    return lambda path: iter([content])


def test_a1_remote_urls_are_disabled_by_default(server: ServerProcess, host: MediaHost) -> None:
    """A1: nothing is fetched unless the operator says so."""
    host.script = always(response(PNG))
    answer = server.ask("What is it?", shown(f"{host.url}/x.png"))
    assert (answer.status, answer.code) == (400, "invalid_image_url")
    assert answer.error["message"].startswith("remote image URLs are disabled")
    assert host.paths == []


def test_an_allowed_host_is_fetched_from(fetching_server: ServerProcess, host: MediaHost) -> None:
    """An image by its URL is answered as the same image sent."""
    host.script = always(response(PNG))
    by_url = fetching_server.ask("What is it?", shown(f"{host.url}/x.png?size=1"))
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
def test_a2_private_addresses_are_refused(
    fetching_server: ServerProcess, host: MediaHost, address: str
) -> None:
    """A2: with any public host allowed, no address within is dialled, on no port."""
    for authority in (address, f"{address}:{host.port + 1}"):
        answer = fetching_server.ask("What?", shown(f"http://{authority}/latest/meta-data"))
        assert (answer.status, answer.code) == (400, "invalid_image_url")
    assert host.paths == []


def test_a2_names_of_private_addresses_are_refused(
    fetching_server: ServerProcess, host: MediaHost
) -> None:
    """A2: a name does not help, and the text does not tell what it stands for."""
    answer = fetching_server.ask("What?", shown("http://inside.test/x.png"))
    assert (answer.status, answer.code) == (400, "invalid_image_url")
    assert "127" not in answer.error["message"]
    assert host.paths == []


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
def test_a3_hosts_in_disguise_are_refused(
    fetching_server: ServerProcess, host: MediaHost, start: str
) -> None:
    """A3: what two readers could take for different hosts is not taken for any."""
    for url in (f"{start}:{host.port}/x.png", f"{start}/x.png"):
        answer = fetching_server.ask("What?", shown(url))
        assert (answer.status, answer.code) == (400, "invalid_image_url")
    assert host.paths == []


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:1/x.png", "http://10.0.0.1/", "http://inside.test/", "file:///etc/passwd", "ftp://a.example/",
        "//127.0.0.1:1/x",
    ],
)  # fmt: skip
def test_a4_redirects_are_checked_like_the_first(
    fetching_server: ServerProcess, host: MediaHost, location: str
) -> None:
    """A4: an allowed host that leads to another host, scheme or port ends there."""
    other = MediaHost(always(response(PNG)))
    host.script = always(redirect(location.replace(":1/", f":{other.port}/")))
    answer = fetching_server.ask("What?", shown(f"{host.url}/x.png"))
    assert (answer.status, answer.code) == (400, "invalid_image_url")
    assert host.paths == ["/x.png"]
    assert other.paths == []
    other.close()


def test_a4_three_redirects_are_followed_and_no_more(
    fetching_server: ServerProcess, host: MediaHost
) -> None:
    """A4: eleven hops, and a loop, end after the third."""

    def hops(path: str) -> Iterator[bytes]:
        left = int(path[1:])
        yield redirect(str(left - 1)) if left else response(PNG)

    host.script = hops
    assert fetching_server.ask("What is it?", shown(f"{host.url}/3")).status == 200
    assert host.paths == ["/3", "/2", "/1", "/0"]
    host.paths.clear()
    assert fetching_server.ask("What?", shown(f"{host.url}/11")).status == 400
    assert host.paths == ["/11", "/10", "/9", "/8"]
    host.paths.clear()
    host.script = always(redirect("/loop"))
    assert fetching_server.ask("What?", shown(f"{host.url}/loop")).status == 400
    assert len(host.paths) == 4


def test_a5_mixed_addresses_are_refused(fetching_server: ServerProcess, host: MediaHost) -> None:
    """A5: a name with a public and a private address is not dialled at all; rebinding: see test_media.py."""
    answer = fetching_server.ask("What?", shown("http://mixed.test/x.png"))
    assert (answer.status, answer.code) == (400, "invalid_image_url")


@pytest.mark.parametrize("length", [10, None, 10**9])
def test_a6_reading_stops_at_the_cap(
    fetching_server: ServerProcess, host: MediaHost, length: int | None
) -> None:
    """A6: a length that lies, is absent or too large: at most the cap is read, and memory stays."""

    def endless(path: str) -> Iterator[bytes]:
        yield (
            b"HTTP/1.1 200 OK\r\n"
            + (b"" if length is None else f"Content-Length: {length}\r\n".encode())
            + b"\r\n"
        )
        yield from (PNG + bytes(1 << 16) for _ in range(1000))

    host.script = endless
    before = fetching_server.memory()
    answer = fetching_server.ask("What?", shown(f"{host.url}/x.png"))
    if length == 10:
        assert (answer.status, answer.code) == (400, "image_parse_error")  # ten bytes of a PNG
    else:
        assert (answer.status, answer.code) == (400, "image_file_too_large")
    assert host.sent < 16_000_000, "what the system's buffers hold, and no more"
    assert fetching_server.memory() - before < 8_000_000


def test_a7_slow_hosts_meet_one_deadline(fetching_server: ServerProcess, host: MediaHost) -> None:
    """A7: a byte at a time, in the head or in the body, and silence: 502, and others are not held up."""

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
        answers.append(fetching_server.ask("What?", shown(f"{host.url}{path}")))

    threads = [threading.Thread(target=ask, args=(path,)) for path in ("/head", "/body", "/hang")]
    for thread in threads:
        thread.start()
    assert fetching_server.ask("What is it?").status == 200
    for thread in threads:
        thread.join()
    told = [(answer.status, answer.code) for answer in answers]
    assert told == [(502, "failed_to_download_image")] * 3


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
def test_a8_what_is_no_image_is_told_apart(
    fetching_server: ServerProcess, host: MediaHost, content: bytes, expected: tuple[int, str]
) -> None:
    """A8: refused, a web page and nothing at all: each by its own word, never an answer without words."""
    host.script = always(content)
    answer = fetching_server.ask("What?", shown(f"{host.url}/x.png"))
    assert (answer.status, answer.code) == expected
    assert len(host.paths) == 1


@pytest.mark.parametrize(
    "content",
    [response(b"", "500 Oops"), response(b"", "503 Busy"), b"", PNG, response(PNG, length=len(PNG) + 9)],
)  # fmt: skip
def test_a9_hosts_that_fail_are_tried_once_more(
    fetching_server: ServerProcess, host: MediaHost, content: bytes
) -> None:
    """A9: an error, a reset, no HTTP and half a body: 502 after two tries."""
    host.script = always(content)
    answer = fetching_server.ask("What?", shown(f"{host.url}/x.png"))
    assert (answer.status, answer.code) == (502, "failed_to_download_image")
    assert len(host.paths) == 2


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "file:///etc/no-such", "/etc/passwd", "/etc/no-such", "C:\\x", "\\\\host\\share", "x.png",
        "",
    ],
)  # fmt: skip
def test_a10_files_are_not_read(server: ServerProcess, url: str) -> None:
    """A10: a path is no image, and the text is the same whether there is such a file or not."""
    answer = server.ask("What?", shown(url))
    assert (answer.status, answer.code) == (400, "invalid_image_url")
    other = server.ask("What?", shown(url.replace("passwd", "other")))
    assert answer.error == other.error


def test_a11_the_media_folder_is_left_by_no_way(
    fetching_server: ServerProcess, media_folder: Path
) -> None:
    """A11: dots, links, twins, pipes, devices and folders: 400, with one text for all."""
    outside = media_folder.parent / "database"
    outside.mkdir(exist_ok=True)
    (media_folder / "within").mkdir(exist_ok=True)
    for folder in (media_folder, media_folder / "within", outside, media_folder.parent):
        (folder / "x y.png").write_bytes(PNG)
    (media_folder / "long.png").write_bytes(PNG + bytes(300_000))
    if not (media_folder / "pipe").exists():
        os.mkfifo(media_folder / "pipe")
        (media_folder / "link.png").symlink_to(outside / "x y.png")
        (media_folder / "away").symlink_to(outside)
    for good in ("x%20y.png", "within/x%20y.png"):
        named = fetching_server.ask("What is it?", shown(f"file://{media_folder}/{good}"))
        assert named.text == fetching_server.ask("What is it?", PNG).text
    texts = set()
    for bad in (
        "/../x%20y.png", "/%2e%2e/x%20y.png", "/within/../x%20y.png", "/link.png", "/away/x%20y.png", "base/x%20y.png",
        "/pipe", "/within", "", "/", "//x%20y.png", "/no.png", "/x%20y.png%00", "/within%2f..%2f..%2fx%20y.png",
    ):  # fmt: skip
        answer = fetching_server.ask("What?", shown(f"file://{media_folder}{bad}"))
        assert (answer.status, answer.code) == (400, "image_file_not_found"), bad
        texts.add(answer.error["message"])
    for url in (
        "file:///dev/zero",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "file:etc",
    ):
        answer = fetching_server.ask("What?", shown(url))
        assert (answer.status, answer.code) == (400, "image_file_not_found"), url
        texts.add(answer.error["message"])
    assert len(texts) == 1
    long = fetching_server.ask("What?", shown(f"file://{media_folder}/long.png"))
    assert (long.status, long.code) == (400, "image_file_too_large")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ftp://a.example/x.png", "invalid_image_url"),
        ("gopher://a.example/x", "invalid_image_url"),
        ("javascript:alert(1)", "invalid_image_url"),
        ("data:image/png;base64", "invalid_image_url"),
        ("data:", "invalid_image_url"),
        ("data:text/html;base64,PGI+", "unsupported_image_media_type"),
        ("data:video/jpeg;base64,AAAA", "unsupported_image_media_type"),
        ("data:,x", "unsupported_image_media_type"),
        ("data:image/png,%89PNG", "invalid_base64_image"),
        ("data:image/png;base64,AAA", "invalid_base64_image"),
        ("data:image/png;base64,AA=A", "invalid_base64_image"),
        ("data:image/png;base64,AA AA", "invalid_base64_image"),
        ("data:image/png;base64,AA\nAA", "invalid_base64_image"),
        ("data:image/png;base64,ÄÄÄÄ", "invalid_base64_image"),
        ("data:image/png;base64,AA-_", "invalid_base64_image"),
    ],
)
def test_a12_other_schemes_and_broken_data_urls(server: ServerProcess, url: str, code: str) -> None:
    """A12: each by its own word."""
    answer = server.ask("What?", shown(url))
    assert (answer.status, answer.code) == (400, code)


def test_a12_long_data_urls_are_refused_before_they_are_decoded(server: ServerProcess) -> None:
    """A12: 20 MiB of A is over the limit of a body, 15 MiB over that of an image."""
    start = "data:image/png;base64,"
    longest = server.ask("What?", shown(start + "A" * (20 << 20)))
    assert (longest.status, longest.code) == (413, "request_too_large")
    long = server.ask("What?", shown(start + "A" * (15 << 20)))
    assert (long.status, long.code) == (400, "image_file_too_large")


def test_a13_nothing_is_fetched_from_words(fetching_server: ServerProcess, host: MediaHost) -> None:
    """A13: a Markdown image or a URL in a text stays text."""
    host.script = always(response(PNG))
    for text in (f"![]({host.url}/x.png)", f"{host.url}/x.png", f"<img src={host.url}/x.png>"):
        assert fetching_server.ask(text).status == 200
    assert host.paths == []
