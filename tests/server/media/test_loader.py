"""Tests of the image loader: data URLs, limits over all images, and the one place that opens images."""

import ast
import base64
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from caldera.server.media.loader import read_data_url
from tests.server.server_process import (
    ROOT,
    ServerProcess,
    encode_image,
    image_part,
    make_image,
)

PNG = make_image()


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
        ("data:text/plain,x", "unsupported_image_media_type"),
        ("data:application/json;base64,e30=", "unsupported_image_media_type"),
        ("data:,x", "invalid_base64_image"),
        ("data:image/png,%89PNG", "invalid_base64_image"),
        ("data:image/png;base64,A", "invalid_base64_image"),
        ("data:image/png;base64,AA=A", "invalid_base64_image"),
        ("data:image/png;base64,AA AA", "invalid_base64_image"),
        ("data:image/png;base64,AA\nAA", "invalid_base64_image"),
        ("data:image/png;base64,ÄÄÄÄ", "invalid_base64_image"),
        ("data:image/png;base64,AA==AA", "invalid_base64_image"),
        ("data:image/png;base64,AAA==", "invalid_base64_image"),
        ("data:image/png;base64,AA%0AAA", "invalid_base64_image"),
    ],
)
def test_other_schemes_and_broken_data_urls_are_rejected(
    server: ServerProcess, url: str, code: str
) -> None:
    """Each kind has its own code."""
    answer = server.ask("What?", image_part(url))
    assert (answer.status, answer.code) == (400, code)


def test_data_urls_of_every_client_are_decoded() -> None:
    """Without padding or media type, in the URL-safe alphabet, or percent-encoded; the content decides the format."""
    content = bytes(range(251, 256)) * 5 + b"\x3e\x3f"
    standard = base64.b64encode(content).decode()
    safe = base64.urlsafe_b64encode(content).decode()
    assert "+" in standard
    assert "/" in standard
    assert standard.count("=") == 0
    for text in (standard, safe, quote(standard)):
        for header in (
            "data:image/png;base64", "DATA:image/JPEG;base64", "data:;base64",
            "data:application/octet-stream;base64", "data:image/png;charset=utf-8;base64",
        ):  # fmt: skip
            assert read_data_url(f"{header},{text}", 99) == content
    for length in range(1, 9):
        unpadded = base64.b64encode(content[:length]).decode().rstrip("=")
        assert read_data_url(f"data:image/png;base64,{unpadded}", 99) == content[:length]


def test_long_data_urls_are_rejected_before_decoding(server: ServerProcess) -> None:
    """20 MiB of base64 is over the limit of a body, 15 MiB over that of an image."""
    start = "data:image/png;base64,"
    over_body = server.ask("What?", image_part(start + "A" * (20 << 20)))
    assert (over_body.status, over_body.code) == (413, "request_too_large")
    over_image = server.ask("What?", image_part(start + "A" * (15 << 20)))
    assert (over_image.status, over_image.code) == (400, "image_file_too_large")


def test_total_pixels_are_checked_before_decoding(server: ServerProcess) -> None:
    """Three images, each under the limit of 32 Mpx, are over that of 64 Mpx together; forty images are too many."""
    large = encode_image(Image.new("1", (6_000, 5_000)))
    assert len(large) < 20_000
    decoded = server.metric("caldera_image_decode_seconds_count")
    answer = server.ask("What?", large, large, large)
    assert (answer.status, answer.code) == (400, "image_too_large")
    assert server.ask("What?", *[large] * 40).status == 400
    assert server.metric("caldera_image_decode_seconds_count") == decoded


PACKAGE = ROOT / "src" / "caldera"


def names_used_in(path: Path) -> set[str]:
    """Return the names that a file imports or calls as attributes of a module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add(f"{node.value.id}.{node.attr}")
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def test_images_and_web_addresses_are_opened_in_one_place() -> None:
    """No other module opens images or fetches URLs, except on checked files for a comparison, and to find the Hub."""
    opens = re.compile(r"(PIL\.)?Image\.open|PIL\.\w+ImagePlugin.*")
    fetches = (
        "urllib.request",
        "urllib.request.urlopen",
        "requests",
        "httpx",
        "aiohttp",
        "asyncio.open_connection",
    )
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    opening = [
        path.relative_to(PACKAGE).as_posix()
        for path in files
        if any(map(opens.fullmatch, names_used_in(path)))
    ]
    fetching = [
        path.relative_to(PACKAGE).as_posix() for path in files if names_used_in(path) & {*fetches}
    ]
    compared = [f"export/parity/original_{part}.py" for part in ("side", "worker")]
    assert opening == [*compared, "images/decoding.py"]
    assert fetching == ["installation.py", "server/media/fetcher.py"]


def test_the_server_does_not_unpickle() -> None:
    """The server imports nothing that runs code from its input."""
    files = sorted((PACKAGE / "server").rglob("*.py"))
    assert len(files) > 15
    banned = {"pickle", "dill", "marshal", "shelve", "multiprocessing", "torch.load", "jinja2"}
    assert [path.name for path in files if names_used_in(path) & banned] == []
