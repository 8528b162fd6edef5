"""Tests of headers and hosts against a real server."""

import socket
from contextlib import suppress

from tests.server.server_process import (
    NAME,
    ServerProcess,
)


def send_raw(server: ServerProcess, request: bytes) -> int:
    """Send bytes; return the status."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        with suppress(OSError):  # it answers before it has read all of a request that is too long
            connection.sendall(request)
        answer = connection.makefile("rb").readline()
    return int(answer.split()[1])


def test_large_headers_are_rejected(server: ServerProcess) -> None:
    """A header of 1 MB, and 10,000 headers."""
    start = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
    assert 400 <= send_raw(server, start + b"X: " + b"x" * (1 << 20) + b"\r\n\r\n") < 500
    assert 400 <= send_raw(server, start + b"X: y\r\n" * 10_000 + b"\r\n") < 500
    assert 400 <= send_raw(server, start + b"X: y\r\n" * 200 + b"\r\n") < 500


def test_no_host_or_path_bypasses_the_key(keyed_server: ServerProcess) -> None:
    """On every route of the schema except the two public ones, crafted hosts and paths get no access."""
    schema = keyed_server.get("/openapi.json").json
    routes = [
        (method.upper(), path) for path, methods in schema["paths"].items() for method in methods
    ]
    routes_with_key = [route for route in routes if route[1] not in ("/health", "/ready")] + [
        ("GET", "/openapi.json")
    ]
    assert len(routes_with_key) == 5
    for method, path in routes_with_key:
        for target in (
            path,
            f"//{path}",
            f"{path}?/health",
            f"/health/..{path}",
            f"http://x/health{path}",
        ):
            for host in (
                "localhost",
                "a/b",
                "a?x",
                "a#x",
                "/health?",
                "localhost/health",
                "a@b",
                "",
            ):
                request_line = (
                    f"{method} {target.replace('{name}', NAME)} HTTP/1.1\r\nHost: {host}\r\n"
                )
                request = f"{request_line}Content-Length: 0\r\n\r\n"
                assert 400 <= send_raw(keyed_server, request.encode()) < 500
        assert (
            send_raw(keyed_server, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            == 401
        )
    two_hosts = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n"
    assert 400 <= send_raw(keyed_server, two_hosts) < 500


def test_dns_rebinding_by_web_pages_is_rejected(server: ServerProcess) -> None:
    """Without a key, a host name that is not allowed is rejected, and there are no CORS headers."""
    assert send_raw(server, b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n") == 403
    assert send_raw(server, b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n") == 200
    answer = server.send("OPTIONS", "/v1/chat/completions", None, {"Origin": "http://evil.example"})
    assert answer.status == 405
    assert not any(name.startswith("access-control") for name in answer.headers)
