"""Tests of request bodies against a real server."""

import gzip
import json
from collections.abc import Iterator

import pytest

from tests.server.server_process import (
    ServerProcess,
    chat_body,
)

JSON = {"Content-Type": "application/json"}


def body_with_text(text: str) -> bytes:
    """Return a body that contains `text` without escaping."""
    return json.dumps(chat_body("TEXT")).replace("TEXT", text).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"text"', b"{'model': 1}", json.dumps(chat_body("What?")).encode("utf-16"),
        json.dumps(chat_body("What?")).encode("utf-8-sig"), body_with_text("\\ud83d"), body_with_text("\ud83d"),
        body_with_text("\\u0000"),
        body_with_text("\x00"), body_with_text("\xff").replace(b"\xc3", b""), b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"model": "tiny", "model": "other"}', b"[" * 100_000, b'{"a":' * 100_000, b'{"n": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_invalid_json_is_rejected(server: ServerProcess, body: bytes) -> None:
    """Broken JSON, other encodings, NaN, duplicate keys, half characters, and 100,000 levels of nesting."""
    answer = server.post(body)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


def body_chunks(size: int) -> Iterator[bytes]:
    """Yield a body of `size` bytes in chunks."""
    for _ in range(size >> 20):
        yield b"x" * (1 << 20)


def test_body_length_is_limited_while_reading(server: ServerProcess) -> None:
    """21 MiB with and without a length: status 413, and memory for no more than the limit."""
    before = server.memory("VmHWM")
    assert server.post(b"x" * (21 << 20)).status == 413
    answer = server.send("POST", "/v1/chat/completions", body_chunks(64 << 20), JSON)
    assert (answer.status, answer.code) == (413, "request_too_large")
    assert server.memory("VmHWM") - before < 64 << 20


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br", "deflate"])
def test_compressed_bodies_are_rejected(server: ServerProcess, encoding: str) -> None:
    """Status 415 for every encoding."""
    answer = server.post(gzip.compress(bytes(1 << 24)), {"Content-Encoding": encoding})
    assert answer.status == 415


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/json; charset=utf-16"],
)  # fmt: skip
def test_other_content_types_are_rejected(server: ServerProcess, kind: str) -> None:
    """A web page could send these types without a CORS preflight."""
    assert server.post(chat_body("What?"), {"Content-Type": kind}).status == 415


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "utf8", '"utf-8"'])
def test_json_in_utf8_is_accepted_however_it_is_declared(
    server: ServerProcess, charset: str
) -> None:
    """Clients write the name of the encoding in several ways."""
    kind = {"Content-Type": f"application/json; charset={charset}"}
    assert server.post(chat_body("What?", max_tokens=1), kind).status == 200
