"""Tests of context lengths, stop strings and incomplete characters against a real server."""

import pytest

from tests.server.server_process import (
    ServerProcess,
    make_image,
    text_of,
)

PNG = make_image()


def test_a_request_over_the_context_length_is_rejected(server: ServerProcess) -> None:
    """The message has all three numbers; neither text nor image tokens are truncated."""
    answer = server.ask("dog " * 3000, PNG)
    assert (answer.status, answer.code) == (400, "context_length_exceeded")
    assert "maximum context length is 2048 tokens" in answer.error["message"]
    room = server.ask("What is it?", PNG, max_tokens=1).json["usage"]["prompt_tokens"]
    long = server.ask("What is it?", PNG, max_tokens=2048 - room + 1)
    assert (
        f"{2049} tokens ({room} in the messages, {2049 - room} in the completion)"
        in long.error["message"]
    )
    assert server.ask("dog " * 500_000).code == "string_above_max_length"


def test_stop_strings_cut_exactly(server: ServerProcess) -> None:
    """Stops within, across and longer than tokens, and of several bytes; streamed and complete answers agree."""
    text = server.ask("What is it?", max_tokens=60).text
    assert len(text) > 40
    stops = [text[start : start + length] for start in range(0, 40, 3) for length in (1, 2, 5, 17)]
    stops += [text[:64], text[-5:], "never there"]
    num_stopped = 0
    for stop in {stop for stop in stops if stop.strip()}:
        cut = text.split(stop)[0].rstrip()
        answer = server.ask("What is it?", max_tokens=60, stop=stop)
        streamed = server.open_stream("What is it?", max_tokens=60, stop=[stop])
        assert answer.text == cut
        assert streamed.text() == cut
        num_stopped += answer.json["choices"][0]["finish_reason"] == "stop"
    assert num_stopped > 20


@pytest.mark.parametrize("seed", range(6))
def test_incomplete_characters_are_held_back(server: ServerProcess, seed: int) -> None:
    """For a model that generates random bytes, the streamed text is always a prefix of the complete text."""
    sampling = {"temperature": 2, "seed": seed, "max_tokens": 80}
    complete = server.ask("What is it?", **sampling).text
    streamed = ""
    for event in server.open_stream("What is it?", **sampling).events():
        streamed += text_of([event])
        assert complete.startswith(streamed)
    assert streamed == complete
