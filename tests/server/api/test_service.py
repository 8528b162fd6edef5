"""Tests of the life cycle of a server: starting, ready, draining, closed."""

import json
import re
import signal
import socket
from pathlib import Path

import pytest

from tests.server.server_process import (
    ServerProcess,
    unreading_client,
)


def test_a_starting_server_is_healthy_but_not_ready(
    model_folder: Path, tmp_path: Path, loopback: None
) -> None:
    """/health gives 200, /ready and requests give 503 with Retry-After, until the model is loaded."""
    weights = tmp_path / "weights"
    with ServerProcess(model_folder, faults=[f"loading:{weights}"], await_ready=False) as server:
        assert server.get("/health").status == 200
        for answer in (server.get("/ready"), server.ask("What?")):
            assert (answer.status, answer.code, answer.headers["retry-after"]) == (
                503,
                "loading",
                "2",
            )
        weights.touch()
        server.wait_until(lambda: server.get("/ready").status == 200)
        assert server.ask("What is it?").status == 200


def wait_until_running(server: ServerProcess) -> None:
    """Wait until it runs a request."""
    server.wait_until(lambda: server.metric("caldera_running") > 0)


def wait_until_draining(server: ServerProcess) -> None:
    """Wait until it accepts no new request."""
    server.wait_until(lambda: server.get("/ready").status == 503)


def read_rest(client: socket.socket) -> bytes:
    """Read all that a server still sends; return the last part, without chunk lengths."""
    text = b""
    while read := client.recv(1 << 20):
        text = (text + read)[-1000:]
    return re.sub(rb"\r\n[0-9a-f]*\r\n", b"", text)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_running_answers_finish_on_shutdown(
    model_folder: Path, loopback: None, number: signal.Signals
) -> None:
    """On a signal it rejects new requests, finishes the running ones, and exits with 0 and no process left."""
    with ServerProcess(model_folder) as server:
        server.ask("What is it?", b"")
        client = unreading_client(server)
        wait_until_running(server)
        children = server.children()
        server.process.send_signal(number)
        wait_until_draining(server)
        answer = server.ask("What?")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (
            503,
            "shutting_down",
            "2",
        )
        assert server.get("/health").status == 200
        text = read_rest(client)
        assert b"data: [DONE]" in text
        assert b"error" not in text
        assert server.end() == 0
        assert not any(Path(f"/proc/{child}").exists() for child in children)
        client.close()


@pytest.mark.parametrize("again", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_answers_that_do_not_finish_end_with_an_error(
    model_folder: Path, loopback: None, again: bool
) -> None:
    """At a second SIGTERM, or after the drain timeout, streams end with an error and [DONE]; the exit code is 0."""
    with ServerProcess(
        model_folder, "--set", f"limits.drain_timeout={300 if again else 0.3}"
    ) as server:
        clients = [unreading_client(server) for _ in range(2)]
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200", "the stream has started"
        server.process.send_signal(signal.SIGTERM)
        wait_until_draining(server)
        if again:
            server.process.send_signal(signal.SIGTERM)
        for client in clients:
            *_, error, last = read_rest(client).split(b"data: ")
            assert json.loads(error)["error"]["code"] == "shutting_down"
            assert last.startswith(b"[DONE]")
            client.close()
        assert server.end() == 0
