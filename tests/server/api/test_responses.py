"""Tests of streams against a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.server_process import (
    ServerProcess,
    make_image,
    text_of,
    unreading_client,
)

PNG = make_image()


LONG = {"max_tokens": 1900}


def test_a_stream_has_the_format_of_openai(server: ServerProcess) -> None:
    """Role first, one id and time, an empty last delta, then usage, then [DONE]; and the headers."""
    stream = server.open_stream("What is it?", PNG, n=2, stream_options={"include_usage": True})
    assert stream.response.status == 200
    assert stream.response.headers["Cache-Control"] == "no-cache"
    assert stream.response.headers["X-Accel-Buffering"] == "no"
    assert stream.response.headers["Content-Type"].startswith("text/event-stream")
    *chunks, usage_chunk, done_event = stream.events()
    assert done_event == "[DONE]"
    assert (
        len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in [*chunks, usage_chunk]})
        == 1
    )
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    for index in (0, 1):
        own_choices = [
            chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index
        ]
        assert own_choices[0]["delta"]["role"] == "assistant"
        assert own_choices[-1]["delta"] == {}
        assert [choice["finish_reason"] for choice in own_choices] == [None] * (
            len(own_choices) - 1
        ) + ["length"]
    assert usage_chunk["choices"] == []
    complete = server.ask("What is it?", PNG, n=2).json
    assert usage_chunk["usage"]["completion_tokens"] == complete["usage"]["completion_tokens"] == 24
    assert text_of(chunks) == complete["choices"][0]["message"]["content"]


def test_queued_streams_are_kept_alive(narrow_server: ServerProcess) -> None:
    """A stream in the queue gets comments, which clients ignore."""
    first = narrow_server.open_stream("What is it?", **LONG)
    second = narrow_server.open_stream("What is it?")
    line = second.response.readline()
    assert line.startswith(b":")
    first.close()
    assert second.text() == narrow_server.ask("What is it?").text


@pytest.fixture(scope="module")
def impatient_server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server that waits one second for clients that do not read."""
    with ServerProcess(model_folder, "--set", "limits.send_timeout=1") as server:
        yield server


def test_a_client_that_does_not_read_is_disconnected(
    impatient_server: ServerProcess, loopback: None
) -> None:
    """Other requests are answered meanwhile, memory does not grow, and after the timeout the client is gone."""
    server = impatient_server
    before, size = server.metric("caldera_cancelled_total"), server.memory()
    client = unreading_client(server)
    server.wait_until(lambda: server.metric("caldera_running") > 0)
    assert server.ask("What is it?").status == 200
    server.wait_until(lambda: server.metric("caldera_cancelled_total") == before + 1)
    server.wait_until(lambda: server.metric("caldera_running") == 0)
    assert server.memory() - size < 64 << 20
    client.close()
