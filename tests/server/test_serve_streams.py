"""Rows D1 to D5, D7 and D8 of the faults: streams, queues and answers that fail, against a real server."""

import json
import os
import random
import signal
import socket
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
from tests.server.server_process import ServerProcess, asking, image, words

PNG = image()
LONG = {"max_tokens": 1900}


def test_a_stream_has_the_form_that_clients_expect(server: ServerProcess) -> None:
    """The wire contract: role first, one id and time, an empty last delta, then usage, then [DONE]; and its head."""
    stream = server.open_stream("What is it?", PNG, n=2, stream_options={"include_usage": True})
    assert stream.response.status == 200
    assert stream.response.headers["Cache-Control"] == "no-cache"
    assert stream.response.headers["X-Accel-Buffering"] == "no"
    assert stream.response.headers["Content-Type"].startswith("text/event-stream")
    *chunks, counted, done = stream.events()
    assert done == "[DONE]"
    assert (
        len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in [*chunks, counted]}) == 1
    )
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["delta"] == {}
        assert [one["finish_reason"] for one in own] == [None] * (len(own) - 1) + ["length"]
    assert counted["choices"] == []
    whole = server.ask("What is it?", PNG, n=2).json
    assert counted["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 24
    assert words(chunks) == whole["choices"][0]["message"]["content"]


def test_queued_streams_are_kept_alive(narrow_server: ServerProcess) -> None:
    """The wire contract: a stream that waits is sent comments, which clients pass over."""
    first = narrow_server.open_stream("What is it?", **LONG)
    second = narrow_server.open_stream("What is it?")
    line = second.response.readline()
    assert line.startswith(b":")
    first.close()
    assert second.text() == narrow_server.ask("What is it?").text


def aborted(server: ServerProcess) -> float:
    """Return how many clients went away."""
    return server.metric("caldera_aborted_total")


def test_d1_a_client_that_goes_frees_its_place(narrow_server: ServerProcess) -> None:
    """D1: after a chunk, while it waits and while it waits for a whole answer: its slot and its place are free."""
    before = aborted(narrow_server)
    first = narrow_server.open_stream("What is it?", **LONG)
    assert next(first.events())
    waiting = narrow_server.connect()
    body = json.dumps(asking("What?", **LONG))
    waiting.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    narrow_server.wait_until(lambda: narrow_server.metric("caldera_waiting") == 1)
    waiting.close()
    narrow_server.wait_until(lambda: narrow_server.metric("caldera_waiting") == 0)
    assert narrow_server.metric("caldera_running") == 1, "the first is not touched"
    first.close()
    narrow_server.wait_until(lambda: narrow_server.metric("caldera_running") == 0)
    whole = narrow_server.connect()
    whole.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    narrow_server.wait_until(lambda: narrow_server.metric("caldera_running") == 1)
    whole.close()
    narrow_server.wait_until(lambda: narrow_server.metric("caldera_running") == 0)
    narrow_server.wait_until(lambda: aborted(narrow_server) == before + 3)
    assert narrow_server.ask("What?").status == 200
    assert aborted(narrow_server) == before + 3, "a normal end counts as none"
    assert any(line.get("status") == 499 for line in narrow_server.log)


def test_d1_a_client_that_goes_during_decoding_stops_it(narrow_server: ServerProcess) -> None:
    """D1: the process that decodes for it is stopped, and its place is free."""
    narrow_server.ask("What?", PNG)
    before, [child] = aborted(narrow_server), narrow_server.children()
    os.kill(child, signal.SIGSTOP)
    going = narrow_server.connect()
    body = json.dumps(asking("What?", PNG))
    going.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    narrow_server.wait_until(lambda: narrow_server.metric("caldera_running") == 0)
    going.close()
    narrow_server.wait_until(lambda: aborted(narrow_server) == before + 1)
    narrow_server.wait_until(lambda: child not in narrow_server.children())
    assert narrow_server.ask("What?", PNG).status == 200


def test_d2_those_who_stay_are_answered_as_alone(server: ServerProcess) -> None:
    """D2: of fifty clients half go at random times; the others' tokens are those of solo runs; five rounds."""
    questions = [f"What is it, {number}?" for number in range(5)]
    alone = {one: server.ask(one, PNG, max_tokens=40).text for one in questions}
    order = random.Random(7)
    sizes = []
    for _ in range(5):
        wrong: list[str] = []
        threads = [
            threading.Thread(
                target=visit,
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


def visit(
    server: ServerProcess, question: str, leave: int | None, alone: dict[str, str], wrong: list[str]
) -> bool:
    """Ask for a stream; leave after so many events, or else compare it with what it is alone; False if it was full."""
    stream = server.open_stream(question, PNG, max_tokens=40)
    if stream.response.status == 503:
        stream.close()
        return False
    if leave is None:
        text = stream.text()
        if text != alone[question]:
            wrong.append(text)
        return True
    for number, _ in enumerate(stream.events()):
        if number == leave:
            break
    stream.close()
    return True


def deaf_client(server: ServerProcess) -> socket.socket:
    """Ask for a stream of many megabytes, and read none of it."""
    body = json.dumps(
        asking("What?", stream=True, n=4, max_tokens=1200, logprobs=True, top_logprobs=20)
    ).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    head = (
        "POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json",
        f"Content-Length: {len(body)}", "", "",
    )  # fmt: skip
    client.sendall("\r\n".join(head).encode() + body)
    return client


def test_d3_a_client_that_does_not_read_is_cut(quick_server: ServerProcess, loopback: None) -> None:
    """D3: others are answered meanwhile, memory stays, and after its time the deaf one is gone."""
    server = quick_server
    before, size = aborted(server), server.memory()
    client = deaf_client(server)
    server.wait_until(lambda: server.metric("caldera_running") > 0)
    assert server.ask("What is it?").status == 200
    server.wait_until(lambda: aborted(server) == before + 1)
    server.wait_until(lambda: server.metric("caldera_running") == 0)
    assert server.memory() - size < 64 << 20
    client.close()


@pytest.fixture(scope="module")
def quick_server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server that waits a second for clients that do not read."""
    with ServerProcess(model_folder, "--set", "limits.send_timeout=1") as server:
        yield server


@pytest.fixture(scope="module")
def poisoned(
    tmp_path_factory: pytest.TempPathFactory,
    vision_folder: Path,
    language_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> tuple[Path, str, int]:
    """A model in which one token's embedding is no number; that token's spelling, and when "Begin" comes to it."""
    assistant = assemble(vision_folder, language_folder, seed=3)
    with Engine(assistant, EngineConfig(allow_fast_decoder=False)) as engine:
        prompt = engine.build_prompt(Conversation("x", (Turn("user", ("Begin",)),)))
        answering = engine.submit(Request(prompt, SamplingParams(max_new_tokens=60)))
        said = [token for piece in answering for token in piece.tokens]
        others = [
            token
            for text in ("What is it?", "Hello")
            for piece in engine.submit(
                Request(engine.build_prompt(Conversation("x", (Turn("user", (text,)),))), SamplingParams(max_new_tokens=40))
            )
            for token in piece.tokens
        ]  # fmt: skip
    found = next(
        token
        for at, token in enumerate(said)
        if at >= 3
        and token not in (*prompt.ids, *others)
        and str(tokenizer.decode([token])).isalpha()
        and token
        in tokenizer(f"xyz {tokenizer.decode([token])}{tokenizer.decode([token])}").input_ids
    )
    with torch.no_grad():
        assistant.model.embedding_weight[found] = torch.nan
    folder = tmp_path_factory.mktemp("poisoned") / "model"
    save_model_folder(folder, assistant)
    return folder, str(tokenizer.decode([found])), said.index(found)


@pytest.fixture(scope="module")
def failing_server(poisoned: tuple[Path, str, int]) -> Iterator[ServerProcess]:
    """A server of that model, which also finds no memory for one word."""
    with ServerProcess(poisoned[0], faults=["memory:zyxw"]) as server:
        yield server


def test_d4_a_failure_before_the_first_token_is_a_status(
    failing_server: ServerProcess, poisoned: tuple[Path, str, int], loopback: None
) -> None:
    """D4, D8: a prompt whose logits are no numbers: 500, a stream of it too, with a text that says no more."""
    for stream in (False, True):
        answer = failing_server.ask("xyz " + poisoned[1] * 2, stream=stream)
        assert (answer.status, answer.code) == (500, "internal_error")
        assert answer.error["message"] == "the server failed at this request"


def test_d4_a_failure_at_a_later_token_is_told_in_the_stream(
    failing_server: ServerProcess, poisoned: tuple[Path, str, int], loopback: None
) -> None:
    """D4: the words before it, then the error, then [DONE]; no usage, no reason to have ended."""
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


def test_d8_those_beside_a_failure_are_not_touched(
    failing_server: ServerProcess, poisoned: tuple[Path, str, int], loopback: None
) -> None:
    """D8: with one request after another failing beside it, an answer is what it is alone."""
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


def test_d7_a_request_without_memory_fails_alone(
    failing_server: ServerProcess, loopback: None
) -> None:
    """D7: 503, to be tried again; a stream beside it is what it is alone."""
    alone = failing_server.ask("Hello", max_tokens=40).text
    beside = failing_server.open_stream("Hello", max_tokens=40)
    answer = failing_server.ask("zyxw")
    assert (answer.status, answer.code) == (503, "out_of_memory")
    assert answer.headers["retry-after"] == "2"
    assert beside.text() == alone


def test_d5_a_full_queue_is_told(narrow_server: ServerProcess) -> None:
    """D5: one runs, one waits, the third is asked to come again; the second is answered in its turn."""
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


def test_d5_while_it_loads_it_lives_but_is_not_ready(
    model_folder: Path, tmp_path: Path, loopback: None
) -> None:
    """D5: /health 200, /ready and requests 503 to be tried again, until the weights are there."""
    here = tmp_path / "weights"
    with ServerProcess(model_folder, faults=[f"loading:{here}"], await_ready=False) as server:
        assert server.get("/health").status == 200
        for answer in (server.get("/ready"), server.ask("What?")):
            assert (answer.status, answer.code, answer.headers["retry-after"]) == (
                503,
                "loading",
                "2",
            )
        here.touch()
        server.wait_until(lambda: server.get("/ready").status == 200)
        assert server.ask("What is it?").status == 200
