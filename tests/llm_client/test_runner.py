"""Runs against a real server: every fault has its consequence, nothing is paid twice, no budget is exceeded."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from caldera.conversation import read_conversations
from caldera.errors import LLMClientError
from caldera.llm_client.client import RequestConfig
from tests.instructions.llm_teacher.runs import FAST, generate, read_lines, teacher_config
from tests.teacher_server import Answer, Script, TeacherServer, completion, good, write_coco

Serve = Callable[..., TeacherServer]

VIOLATION = Answer({"error": {"message": "no", "code": "content_policy_violation"}}, 400)
TOO_MANY = {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}


def fail_once(fault: Answer) -> Script:
    """Return a script that fails every request the first time, and answers it the second time."""
    seen: set[str] = set()

    def script(request: dict[str, Any], _number: int) -> Answer:
        image = request["messages"][-1]["content"]
        if image in seen:
            return good(request)
        seen.add(image)
        return fault

    return script


def test_decided_tasks_are_not_requested_again(tmp_path: Path, serve: Serve) -> None:
    """Neither rejected nor accepted ones: a finished run sends nothing."""
    server = serve(lambda request, number: VIOLATION if number == 2 else good(request))
    config = teacher_config(write_coco(tmp_path / "coco", 6), server.url)
    out = tmp_path / "data.json"
    for _ in range(2):
        generate(config, out)
        assert server.count == 6
        assert len(read_lines(out, "rejected.jsonl")) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Answer(TOO_MANY, 429),
        Answer(TOO_MANY, 429, {"retry-after": "0"}),
        Answer(TOO_MANY, 429, {"retry-after": "-3"}),
        Answer(TOO_MANY, 429, {"retry-after": "soon"}),
        Answer(TOO_MANY, 429, {"retry-after-ms": "20"}),
        Answer(TOO_MANY, 429, {"retry-after": formatdate(0, usegmt=True)}),
        Answer(b"<html>busy</html>", 500),
        Answer(b"", 502),
        Answer({"error": "overloaded"}, 503, {"retry-after": "0.01"}),
        Answer({"error": {"type": "overloaded_error"}}, 529),
        Answer({}, 408),
        Answer(completion("x" * 500).content, cut=100),
        Answer(b"", cut=0),
        Answer(b"<html>Welcome</html>", headers={"content-type": "text/html"}),
        Answer({}),
        Answer({"choices": []}),
        Answer({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}),
        Answer(b'{"choices": [{"mess'),
        Answer(b"[" * 5000),
    ],
)
def test_transient_faults_are_retried(tmp_path: Path, serve: Serve, fault: Answer) -> None:
    """Each dialogue meets the fault once and is then written; none is lost or duplicated."""
    server = serve(fail_once(fault))
    out = tmp_path / "data.json"
    generate(teacher_config(write_coco(tmp_path / "coco", 7), server.url), out)
    assert server.count == 14
    assert len({conversation.id for conversation in read_conversations(out)}) == 7
    assert read_lines(out, "failed.jsonl") == read_lines(out, "rejected.jsonl") == []


@pytest.mark.parametrize(
    ("fault", "rule", "file", "requests"),
    [
        (VIOLATION, "content policy", "rejected", 1),
        (Answer({"error": {"message": "long", "code": "context_length_exceeded"}}, 400), "bad request", "failed", 1),
        (Answer({"error": {"message": "no"}}, 422), "bad request", "failed", 1),
        (completion("It goes on and", finish="length"), "cut off", "rejected", 1),
        (completion(None, finish="length"), "cut off", "rejected", 1),
        (completion(None, finish="content_filter"), "content filter", "rejected", 1),
        (completion("  "), "empty reply", "rejected", 1),
        (completion("No form at all."), "form", "rejected", 2),
        (completion('```json\n{"question": "q", "answer": "a", "more": 1}\n```'), "form", "rejected", 2),
        (completion("Question:\nWhat is <image>?\n===\nAnswer:\nA mark."), "image mark", "rejected", 1),
        (Answer({"error": "down"}, 503), "no reply", "failed", 4),
    ],
)  # fmt: skip
def test_persistent_faults_are_listed_with_their_rule(
    tmp_path: Path, serve: Serve, fault: Answer, rule: str, file: str, requests: int
) -> None:
    """One image always meets the fault; the others are written, and the list has its rule and reply."""

    def script(request: dict[str, Any], _number: int) -> Answer:
        text = json.dumps(request["messages"][-3:])
        return fault if "seen 3 times" in text else good(request)

    server = serve(script)
    out = tmp_path / "data.json"
    data = generate(teacher_config(write_coco(tmp_path / "coco", 7), server.url), out)
    assert len(read_conversations(out)) == 6
    assert data.rejected == {f"reasoning: {rule}": 1}
    [line] = read_lines(out, f"{file}.jsonl")
    assert (line["id"], line["rule"]) == ("0003-reasoning", rule)
    assert server.count == 6 + requests
    if file == "rejected" and isinstance(fault.body, dict) and "choices" in fault.body:
        assert line["reply"] == (fault.body["choices"][0]["message"]["content"] or "")


def test_a_repair_request_contains_the_reply_and_the_feedback(tmp_path: Path, serve: Serve) -> None:
    """The second request has the first reply and its fault; the record states that there were two replies."""
    out = tmp_path / "data.json"
    server = serve(lambda request, number: good(request) if number else completion("Who? A dog."))
    generate(teacher_config(write_coco(tmp_path / "coco", 1), server.url), out)
    messages = server.bodies()[1]["messages"][-3:]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "Who? A dog."
    assert "not in the form" in messages[2]["content"]
    assert read_lines(out, "provenance.jsonl")[0]["replies"] == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Answer({"error": {"code": "insufficient_quota"}}, 429, {"retry-after": "0"}), "quota is used up"),
        (Answer({"error": {"message": "pay", "type": "credit_balance_exhausted"}}, 429), "quota is used up"),
        (Answer({"error": {"message": "pay"}}, 402), "quota is used up"),
        (Answer({"error": {"message": "who?", "code": "invalid_api_key"}}, 401), "does not accept the API key"),
        (Answer({"error": {"message": "not here"}}, 403), "does not accept the API key"),
        (Answer({"error": {"message": "what?"}}, 404), "no model 'little-teacher'"),
    ],
)  # fmt: skip
def test_faults_of_every_request_stop_the_run_at_once(
    tmp_path: Path, serve: Serve, fault: Answer, message: str
) -> None:
    """Exit code 5; finished dialogues are in the file, no further request is sent, and the run can be resumed."""
    server = serve(lambda request, number: good(request) if number < 10 else fault)
    config = teacher_config(write_coco(tmp_path / "coco", 50), server.url)
    out = tmp_path / "data.json"
    with pytest.raises(LLMClientError, match=f"{message}.*same command to resume") as caught:
        generate(config, out)
    assert caught.value.exit_code == 5
    assert 11 <= server.count <= 10 + FAST.concurrency
    assert len(read_conversations(out)) == 10
    num_before = server.count
    server.script = lambda request, _: good(request)
    generate(config, out)
    assert server.count - num_before == 40
    assert len(read_conversations(out)) == 50


def test_a_requested_pause_applies_to_all_workers(tmp_path: Path, serve: Serve) -> None:
    """After a 429 with 0.4 s nothing arrives for that long; a huge pause is cut at `max_backoff`."""
    times: list[float] = []

    def script(request: dict[str, Any], number: int) -> Answer:
        times.append(time.monotonic())
        pause = {"retry-after": "99999999"} if number == 20 else {"retry-after-ms": "400"}
        return Answer(TOO_MANY, 429, pause) if number in (5, 20) else good(request)

    server = serve(script)
    requests = RequestConfig(concurrency=3, initial_backoff=0.001, max_backoff=0.5)
    folder = write_coco(tmp_path / "coco", 40)
    generate(teacher_config(folder, server.url, request_config=requests), tmp_path / "data.json")
    gaps = sorted(later - sooner for sooner, later in pairwise(times))
    assert gaps[-2] > 0.3
    assert server.count == 42


def test_a_server_that_is_down_ends_the_run(tmp_path: Path, serve: Serve) -> None:
    """It ends after `max_consecutive_failures`, with the last reason, not after all dialogues failed."""
    server = serve(lambda request, _: Answer({"error": "down"}, 503))
    requests = RequestConfig(
        concurrency=2, retries=1, initial_backoff=0.0, max_consecutive_failures=4
    )
    config = teacher_config(write_coco(tmp_path / "coco", 40), server.url, request_config=requests)
    with pytest.raises(LLMClientError, match=r"4 requests in a row failed.*HTTP 503"):
        generate(config, tmp_path / "data.json")
    assert server.count <= 12


def test_a_reply_that_does_not_arrive_is_requested_again(tmp_path: Path, serve: Serve) -> None:
    """After `timeout`; it may have been billed, so it counts with its maximum cost."""
    server = serve(lambda request, number: Answer(good(request).body, delay=30.0 * (number == 0)))
    requests = RequestConfig(concurrency=1, timeout=0.5, initial_backoff=0.0)
    config = teacher_config(write_coco(tmp_path / "coco", 2), server.url, request_config=requests)
    out = tmp_path / "data.json"
    generate(config, out)
    assert len(read_conversations(out)) == 2
    assert server.count == 3
    [missed] = [line for line in read_lines(out, "journal.jsonl") if "missed" in line]
    assert missed["reason"] == "no reply in 0.5 s"
    assert missed["cost"] > 0


@pytest.fixture
def no_tls(loopback: None) -> Iterator[str]:
    """Return the address of a server that answers TLS in plain text."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(refuse, "127.0.0.1", 0)

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(listen())
    thread = Thread(target=loop.run_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.parametrize("tls_fails", [False, True])
def test_a_failed_connection_is_reported_by_name(
    tmp_path: Path, no_tls: str, *, tls_fails: bool
) -> None:
    """Whether it is refused or TLS fails: it costs nothing, is retried, and ends the run."""
    requests = RequestConfig(
        retries=1, initial_backoff=0.0, max_consecutive_failures=1, concurrency=1
    )
    folder, out = write_coco(tmp_path / "coco", 3), tmp_path / "data.json"
    address = no_tls if tls_fails else "http://127.0.0.1:9/v1"
    with pytest.raises(LLMClientError, match="connection: Connect"):
        generate(teacher_config(folder, address, request_config=requests), out)
    missed = [line for line in read_lines(out, "journal.jsonl") if "missed" in line]
    assert [line["cost"] for line in missed] == [0.0, 0.0]


@pytest.mark.parametrize("limit", [{"max_requests": 13}, {"max_cost": 0.03}])
def test_a_budget_is_never_exceeded_and_can_be_raised(
    tmp_path: Path, serve: Serve, limit: dict[str, Any]
) -> None:
    """The server's own count stays within it, over two starts; a larger budget finishes the rest."""
    server = serve(lambda request, _: good(request))
    folder, out = write_coco(tmp_path / "coco", 40), tmp_path / "data.json"
    for _ in range(2):
        with pytest.raises(LLMClientError, match="the budget allows no further request"):
            generate(teacher_config(folder, server.url, **limit), out)
        assert 5 <= server.count <= 25
        assert server.count <= limit.get("max_requests", 99)
        assert server.count * 0.0012 <= limit.get("max_cost", 99)
    generate(teacher_config(folder, server.url), out)
    assert server.count == 40
    assert len(read_conversations(out)) == 40
