"""Tests of the page's guard against a real server: reachable paths, uploads, other sites and keys."""

import base64
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.server_process import ServerProcess


@pytest.fixture
def server(web_server: ServerProcess, loopback: None) -> Iterator[ServerProcess]:
    """A server with the page, which must be available after the test."""
    yield web_server
    assert web_server.get("/").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/gradio_api/file=..%2f..%2fetc/passwd",
        "/gradio_api/file=http://evil.test/x",
        "/gradio_api/file//etc/passwd", "/gradio_api/proxy=http://evil.test/x", "/file=/etc/passwd",
        "/assets/../../config",
        "/assets/..%2f..%2f..%2fetc%2fpasswd", "/static/%2e%2e/%2e%2e/app.py", "/monitoring", "/monitoring/summary",
        "/gradio_api/runs", "/gradio_api/vibe-code/", "/gradio_api/openapi.json",
        "/gradio_api/stream/a/b/1/playlist.m3u8",
        "/gradio_api/custom_component/1/client/component/x.js", "/docs", "/v1/nothing", "//evil.test/",
    ],
)  # fmt: skip
def test_gradio_routes_for_files_and_proxies_are_closed(server: ServerProcess, path: str) -> None:
    """Status 404 in the one shape of errors, and no redirect to another site."""
    answer = server.get(path)
    assert answer.status in (403, 404), answer.content
    assert "location" not in answer.headers
    assert b"root:" not in answer.content
    if answer.status == 404 and not path.startswith(("/assets", "/static")):
        assert answer.code == "unknown_url"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_uploads_are_not_possible(server: ServerProcess, method: str) -> None:
    """There is no route for uploads, so there is no file of another user either."""
    assert server.send(method, "/gradio_api/upload", b"x").status == 404
    assert server.send(method, "/", b"x").status == 404


def test_a_body_of_200_mb_is_rejected_before_it_is_read(server: ServerProcess) -> None:
    """Its declared length is enough."""
    announced = server.send(
        "POST", "/gradio_api/queue/join", b"", {"Content-Length": str(200 << 20)}
    )
    assert announced.status == 413
    assert announced.code == "too_large"


def test_the_page_does_not_change_the_api(server: ServerProcess) -> None:
    """Errors on the routes of the API have OpenAI's shape, including wrong methods."""
    assert server.get("/v1/chat/completions").status == 405
    assert server.get("/v1/models/other").code == "model_not_found"
    assert server.ask("what is it").text


def test_requests_of_other_sites_are_rejected(server: ServerProcess) -> None:
    """The page of another site can neither use this page through the browser nor embed it."""
    body = json.dumps({"fn_index": 0, "data": [], "session_hash": "x"}).encode()
    headers = {"Content-Type": "application/json", "Origin": "http://evil.test"}
    answer = server.send("POST", "/gradio_api/queue/join", body, headers)
    assert (answer.status, answer.code) == (403, "other_site")
    own = {**headers, "Origin": f"http://127.0.0.1:{server.port}"}
    assert server.send("POST", "/gradio_api/queue/join", body, own).status != 403
    page = server.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'self'" in policy
    assert page.headers["referrer-policy"] == "no-referrer"


def test_a_key_is_needed_for_the_page_too(model_folder: Path, loopback: None) -> None:
    """The browser asks its user for a password, which is the key; no route of the page is public."""
    with ServerProcess(model_folder, "--web", key="secret-key") as server:
        for path in ("/", "/config", "/assets/x.js", "/gradio_api/queue/data?session_hash=x"):
            closed = server.send("GET", path, headers={"Authorization": ""})
            assert closed.status == 401
            assert closed.headers["www-authenticate"].startswith("Basic realm=")
        for password, status in (("secret-key", 200), ("secret-ke", 401), ("", 401)):
            basic = base64.b64encode(f"anyone:{password}".encode()).decode()
            answer = server.send("GET", "/", headers={"Authorization": f"Basic {basic}"})
            assert answer.status == status
        assert server.send("GET", "/", headers={"Authorization": "Basic ???"}).status == 401


def test_an_open_page_does_not_delay_the_shutdown(model_folder: Path, loopback: None) -> None:
    """A browser holds a connection while the page is open; the server still ends at once, not after 600 seconds."""
    with ServerProcess(model_folder, "--web", "--set", "limits.drain_timeout=600") as server:
        connection = server.connect()
        connection.request("GET", "/gradio_api/heartbeat/abc")
        assert connection.getresponse().status == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.end(60) == 0
        connection.close()
