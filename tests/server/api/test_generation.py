"""Tests of clients that disconnect, and of engine errors, against a real server."""

import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from caldera.conversation import Conversation, Turn
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import save_model_folder
from caldera.inference.engine import Engine, EngineConfig, Request, SamplingParams
from tests.server.server_process import (
    ServerProcess,
    chat_body,
    make_image,
    stream_or_leave,
)

PNG = make_image()


LONG = {"max_tokens": 1900}


def num_cancelled(server: ServerProcess) -> float:
    """Return the number of clients that disconnected."""
    return server.metric("caldera_cancelled_total")


def test_a_disconnected_client_frees_its_slot(narrow_server: ServerProcess) -> None:
    """In a stream, in the queue, and before a complete response: its slot or its place is free."""
    before = num_cancelled(narrow_server)
    first = narrow_server.open_stream("What is it?", **LONG)
    assert next(first.events())
    waiting = narrow_server.connect()
    body = json.dumps(chat_body("What?", **LONG))
    waiting.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    narrow_server.wait_until(lambda: narrow_server.metric("caldera_waiting") == 1)
    waiting.close()
    narrow_server.wait_until(lambda: narrow_server.metric("caldera_waiting") == 0)
    assert narrow_server.metric("caldera_running") == 1, "the first still runs"
    first.close()
    narrow_server.wait_until(lambda: narrow_server.metric("caldera_running") == 0)
    not_streamed = narrow_server.connect()
    not_streamed.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    narrow_server.wait_until(lambda: narrow_server.metric("caldera_running") == 1)
    not_streamed.close()
    narrow_server.wait_until(lambda: narrow_server.metric("caldera_running") == 0)
    narrow_server.wait_until(lambda: num_cancelled(narrow_server) == before + 3)
    assert narrow_server.ask("What?").status == 200
    assert num_cancelled(narrow_server) == before + 3, "a complete answer is not counted"
    assert any(line.get("status") == 499 for line in narrow_server.log)


def test_a_disconnected_client_stops_its_decoder(narrow_server: ServerProcess) -> None:
    """The process that decodes for it is killed, and its place is free."""
    narrow_server.ask("What?", PNG)
    before, [child] = num_cancelled(narrow_server), narrow_server.children()
    os.kill(child, signal.SIGSTOP)
    connection = narrow_server.connect()
    body = json.dumps(chat_body("What?", PNG))
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    narrow_server.wait_until(lambda: narrow_server.metric("caldera_running") == 0)
    connection.close()
    narrow_server.wait_until(lambda: num_cancelled(narrow_server) == before + 1)
    narrow_server.wait_until(lambda: child not in narrow_server.children())
    assert narrow_server.ask("What?", PNG).status == 200


def test_disconnected_clients_do_not_change_other_answers(server: ServerProcess) -> None:
    """Of fifty clients half disconnect at random times; the others get the tokens of solo runs, in five rounds."""
    questions = [f"What is it, {number}?" for number in range(5)]
    alone = {question: server.ask(question, PNG, max_tokens=40).text for question in questions}
    order = random.Random(7)
    sizes = []
    for _ in range(5):
        wrong: list[str] = []
        threads = [
            threading.Thread(
                target=stream_or_leave,
                args=(
                    server,
                    questions[number % 5],
                    order.randrange(30) if number % 2 else None,
                    alone,
                    wrong,
                ),
            )
            for number in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        server.wait_until(
            lambda: server.metric("caldera_running") + server.metric("caldera_waiting") == 0
        )
        sizes.append(server.memory())
    assert max(sizes[2:]) - sizes[1] < 16 << 20, sizes


@pytest.fixture(scope="module")
def poisoned(
    tmp_path_factory: pytest.TempPathFactory,
    vision_folder: Path,
    language_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> tuple[Path, str, int]:
    """A model with one NaN embedding; the text of that token, and the position where "Begin" generates it."""
    assistant = assemble(vision_folder, language_folder, seed=3)

    def request(text: str, max_new_tokens: int) -> Request:
        conversation = Conversation("x", (Turn("user", (text,)),))
        return Request(
            engine.build_prompt(conversation), SamplingParams(max_new_tokens=max_new_tokens)
        )

    with Engine(assistant, EngineConfig(allow_fast_decoder=False)) as engine:
        prompt = request("Begin", 60).prompt
        tokens = [token for delta in engine.submit(request("Begin", 60)) for token in delta.tokens]
        other_tokens = [
            token
            for text in ("What is it?", "Hello")
            for delta in engine.submit(request(text, 40))
            for token in delta.tokens
        ]
    poison = next(
        token
        for position, token in enumerate(tokens)
        if position >= 3
        and token not in (*prompt.ids, *other_tokens)
        and str(tokenizer.decode([token])).isalpha()
        and token
        in tokenizer(f"xyz {tokenizer.decode([token])}{tokenizer.decode([token])}").input_ids
    )
    with torch.no_grad():
        assistant.model.embedding_weight[poison] = torch.nan
    folder = tmp_path_factory.mktemp("poisoned") / "model"
    save_model_folder(folder, assistant)
    return folder, str(tokenizer.decode([poison])), tokens.index(poison)


@pytest.fixture(scope="module")
def failing_server(poisoned: tuple[Path, str, int]) -> Iterator[ServerProcess]:
    """A server of that model, which also runs out of memory for one word."""
    with ServerProcess(poisoned[0], faults=["memory:zyxw"]) as server:
        yield server


def test_an_error_before_the_first_token_is_a_status(
    failing_server: ServerProcess, poisoned: tuple[Path, str, int], loopback: None
) -> None:
    """NaN logits of a prompt: status 500, also for a stream, with a fixed message."""
    for stream in (False, True):
        answer = failing_server.ask("xyz " + poisoned[1] * 2, stream=stream)
        assert (answer.status, answer.code) == (500, "internal_error")
        assert answer.error["message"] == "the server failed at this request"


def test_an_error_at_a_later_token_is_an_event(
    failing_server: ServerProcess, poisoned: tuple[Path, str, int], loopback: None
) -> None:
    """The text before it, then the error, then [DONE]; no usage and no finish reason."""
    stream = failing_server.open_stream(
        "Begin", max_tokens=60, stream_options={"include_usage": True}
    )
    events = list(stream.events())
    assert stream.response.status == 200
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["type"] == "server_error"
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert not any(event.get("usage") for event in events[:-1])
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-2])
    assert failing_server.ask("Begin", max_tokens=60).status == 500


def test_errors_do_not_change_concurrent_answers(
    failing_server: ServerProcess, poisoned: tuple[Path, str, int], loopback: None
) -> None:
    """While other requests fail one after another, an answer is the same as alone."""
    alone = failing_server.ask("Hello", max_tokens=40).text
    stop = threading.Event()
    statuses = []

    def fail() -> None:
        while not stop.is_set():
            statuses.append(failing_server.ask("xyz " + poisoned[1] * 2).status)

    failing = threading.Thread(target=fail)
    failing.start()
    answers = [failing_server.ask("Hello", max_tokens=40).text for _ in range(5)]
    stop.set()
    failing.join()
    assert answers == [alone] * 5
    assert set(statuses) == {500}


def test_a_request_without_memory_fails_alone(
    failing_server: ServerProcess, loopback: None
) -> None:
    """Status 503 with Retry-After; a concurrent stream is the same as alone."""
    alone = failing_server.ask("Hello", max_tokens=40).text
    stream = failing_server.open_stream("Hello", max_tokens=40)
    answer = failing_server.ask("zyxw")
    assert (answer.status, answer.code) == (503, "out_of_memory")
    assert answer.headers["retry-after"] == "2"
    assert stream.text() == alone


def test_a_full_queue_is_rejected(narrow_server: ServerProcess) -> None:
    """One request runs, one waits, the third gets 503; the second is answered in turn."""
    expected = narrow_server.ask("Who?").text
    first = narrow_server.open_stream("What is it?", **LONG)
    second = narrow_server.open_stream("Who?")
    assert narrow_server.metric("caldera_waiting") == 1
    for more in ({}, {"stream": True}):
        third = narrow_server.ask("Why?", **more)
        assert (third.status, third.code, third.headers["retry-after"]) == (503, "busy", "2")
    first.close()
    assert second.text() == expected
    assert narrow_server.metric("caldera_rejected_total") >= 2
