"""The guard before images that clients name: one reading of a URL, and only checked addresses are dialled."""

import ast
import asyncio
import ipaddress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caldera.errors import UsageError
from caldera.server.media.errors import HOST_FAILED, NOT_ALLOWED, MediaError
from caldera.server.media.fetcher import Fetcher, Stream
from caldera.server.media.loader import ImageLoader, MediaSettings
from caldera.server.media.url_policy import (
    HostAllowlist,
    RemoteUrl,
    is_public,
    parse_url,
    resolve_redirect,
)

ROOT = Path(__file__).parents[2] / "src" / "caldera"
PUBLIC = "93.184.216.34"


class Recorder:
    """A resolver with prepared answers, and a dialler that only writes down where it was sent."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.dialled: list[str] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        """Give the next answer; the last one again and again."""
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def dial(self, address: str, url: RemoteUrl) -> Stream:
        """Write it down, and find nobody there."""
        self.dialled.append(address)
        raise ConnectionRefusedError

    def fetch(self, url: str, *hosts: str) -> MediaError:
        """Fetch and return how it failed, as it must."""
        fetcher = Fetcher(
            HostAllowlist(hosts), max_bytes=9, seconds=5, resolve=self.resolve, dial=self.dial
        )
        with pytest.raises(MediaError) as caught:
            asyncio.run(fetcher.fetch(url))
        return caught.value


PIECES = st.sampled_from(
    ["http://", "https://", "a.example", "127.0.0.1", "10.0.0.1", "[::1]", "0x7f.1", "2130706433", "localhost", "@",
     ":", "80", "443", "22", "\\", "/", "?", "#", "%", ".", "..", "\t", " ", "é", "。", "[", "]", "xn--a", "-", "_"]
)  # fmt: skip
URLS = st.lists(PIECES, max_size=8).map("".join)
ADDRESSES = st.one_of(
    st.ip_addresses().map(str), st.just(PUBLIC), st.just("127.0.0.1"), st.just("fe80::1%eth0")
)


@given(url=URLS, addresses=st.lists(ADDRESSES, min_size=1, max_size=4))
@example(url="http://a.example", addresses=[PUBLIC])
@example(url="http://a.example", addresses=[PUBLIC, "127.0.0.1"])
def test_a3_what_is_dialled_is_what_was_checked(url: str, addresses: list[str]) -> None:
    """A3, A5: whatever the URL and the resolver say, each address dialled is one that was resolved, and public."""
    recorder = Recorder(addresses)
    error = recorder.fetch(url, "*")
    assert set(recorder.dialled) <= set(addresses)
    assert all(ipaddress.ip_address(each).is_global for each in recorder.dialled)
    if recorder.dialled:
        assert error.fault is HOST_FAILED
        assert all(map(is_public, addresses)), "one that is private among them refuses them all"


def test_a3_the_property_meets_urls_that_are_dialled() -> None:
    """The property above is no empty one."""
    recorder = Recorder([PUBLIC])
    recorder.fetch("http://a.example", "*")
    assert recorder.dialled == [PUBLIC, PUBLIC], "it is tried twice"


def test_a5_each_try_resolves_once_and_dials_what_it_checked() -> None:
    """A5: a resolver that says public first and loopback afterwards is believed once, and then refused."""
    recorder = Recorder([PUBLIC], ["127.0.0.1"])
    error = recorder.fetch("http://a.example/x", "a.example")
    assert error.fault is NOT_ALLOWED
    assert recorder.asked == ["a.example", "a.example"]
    assert recorder.dialled == [PUBLIC]


@given(
    host=st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z]{1,5}){0,2}", fullmatch=True),
    port=st.integers(1, 65535),
)
def test_plain_urls_are_rebuilt_as_they_were(host: str, port: int) -> None:
    """A plain URL keeps its parts."""
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
def test_redirects_lead_where_they_say(location: str, expected: str) -> None:
    """Each form of a Location is read against where it was given."""
    url = resolve_redirect(parse_url("http://a.example/d/x"), location)
    assert f"{url.scheme}://{url.host}:{url.port}{url.target}" == expected


def test_a4_https_is_not_left_for_http() -> None:
    """A4: the scheme may get safer, never less safe."""
    with pytest.raises(MediaError):
        resolve_redirect(parse_url("https://a.example/"), "http://a.example/")


def test_hosts_hold_for_their_ports() -> None:
    """An entry without a port is for the usual ones; an address that is written down is for its own port alone."""
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
        with pytest.raises(UsageError, match="is not understood"):
            HostAllowlist([wrong])


def test_b12_decoders_that_are_lost_are_started_again(photos: Path) -> None:
    """B12: a process that is killed, or finds no memory, fails one image; the next is decoded by a new one."""
    content = (photos / "0.png").read_bytes()

    async def go() -> None:
        media = ImageLoader(MediaSettings(decoders=1))
        async with media._decoders.decode(content) as image:
            assert image.size == (19, 5)
        [worker] = media._decoders._idle
        worker.kill()
        with pytest.raises(MediaError) as lost:
            async with media._decoders.decode(content):
                pass
        assert lost.value.fault.status == 503
        async with media._decoders.decode(content) as image:
            assert image.size == (19, 5)
        await media.close()

    asyncio.run(go())


def opened_in(path: Path) -> set[str]:
    """Name what a file calls or imports that opens images or web addresses."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_images_and_web_addresses_are_opened_in_one_place() -> None:
    """No other module opens images or fetches; drawn scenes that a recipe has just encoded are its own."""
    opens = ("Image.open", "PIL.Image.open")
    fetches = (
        "urllib.request",
        "urllib.request.urlopen",
        "requests",
        "httpx",
        "aiohttp",
        "asyncio.open_connection",
    )
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 100
    opening = [path.relative_to(ROOT).as_posix() for path in files if opened_in(path) & {*opens}]
    fetching = [path.relative_to(ROOT).as_posix() for path in files if opened_in(path) & {*fetches}]
    assert opening == ["batches/image_files.py", "scenes/vision_pretraining.py"]
    assert fetching == ["chat/remote_media.py"]


def test_nothing_that_runs_code_is_read_from_clients() -> None:
    """The server imports nothing that unpickles."""
    files = sorted((ROOT / "chat").rglob("*.py"))
    assert len(files) > 15
    banned = {"pickle", "dill", "marshal", "shelve", "multiprocessing", "torch.load", "jinja2"}
    assert [path.name for path in files if opened_in(path) & banned] == []
