"""A journal truncated at any byte is read back up to its last whole line, and each request counts once."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from caldera.errors import InputError, OutputError
from caldera.llm_client.client import Reply
from caldera.llm_client.journal import Journal, ReceivedReply, recorded_replies

REPLY = Reply("Two lines:\na “dog”", "stop", 11, 7, "m")


def log_reply(journal: Journal, name: str, cost: float, received: ReceivedReply) -> None:
    """Log a reply, and wait until it is on disk."""

    async def log_and_flush() -> None:
        journal.log_reply(name, cost, received)
        await journal.flushed()

    asyncio.run(log_and_flush())


def write_journal(path: Path) -> None:
    """Write a journal of three tasks: one accepted, one in flight, one failed after a retry."""
    journal = Journal(path)
    journal.log_sent("a", 0.5)
    journal.log_sent("b", 0.25)
    log_reply(journal, "a", 0.2, ReceivedReply(REPLY, "p1", "r1"))
    journal.log_outcome("a", "accepted")
    journal.log_sent("c", 0.5)
    journal.log_failure("c", 0.0, "HTTP 500")
    journal.log_sent("c", 0.5)
    log_reply(journal, "c", 0.125, ReceivedReply(Reply("?", "stop"), "p2", "r1"))
    journal.log_outcome("c", "failed", "no reply", "it is late")
    journal.close()


JOURNAL_0_1 = """\
{"sent": "a", "cost": 0.5}
{"sent": "b", "cost": 0.25}
{"heard": "a", "cost": 0.2, "reply": {"text": "Two lines:\\na “dog”", "finish": "stop", "prompt_tokens": 11, \
"reply_tokens": 7, "model": "m"}, "prompt": "p1", "run": "r1"}
{"done": "a", "outcome": "kept"}
{"sent": "c", "cost": 0.5}
{"missed": "c", "cost": 0.0, "reason": "HTTP 500"}
{"sent": "c", "cost": 0.5}
{"heard": "c", "cost": 0.125, "reply": {"text": "?", "finish": "stop", "prompt_tokens": null, "reply_tokens": null, \
"model": ""}, "prompt": "p2", "run": "r1"}
{"done": "c", "outcome": "failed", "rule": "no reply", "detail": "it is late"}
"""
"""The same journal as version 0.1 wrote it."""


@pytest.mark.parametrize("version", ["0.1", "now"])
def test_a_journal_is_read_back(tmp_path: Path, version: str) -> None:
    """Replies, outcomes, requests and money; a request in flight counts with its maximum cost."""
    path = tmp_path / "run" / "journal.jsonl"
    if version == "0.1":
        path.parent.mkdir()
        path.write_text(JOURNAL_0_1)
    else:
        write_journal(path)
    journal = Journal(path)
    assert journal.replies("a") == [ReceivedReply(REPLY, "p1", "r1")]
    assert journal.replies("b") == []
    assert {name: entry.outcome for name, entry in journal.entries.items()} == {
        "a": "accepted",
        "c": "failed",
    }
    assert (journal.entries["c"].rule, journal.entries["c"].detail) == ("no reply", "it is late")
    assert journal.is_decided("a")
    assert not journal.is_decided("c")
    assert journal.requests == 4
    assert journal.spent == pytest.approx(0.2 + 0.125 + 0.25)
    journal.close()


def test_truncation_at_any_byte_loses_at_most_the_last_line(tmp_path: Path) -> None:
    """The truncated line is moved to another file, the rest is unchanged, and lines can be appended."""
    complete = tmp_path / "complete.jsonl"
    write_journal(complete)
    data = complete.read_bytes()
    for length in range(0, len(data), 13):
        path = tmp_path / str(length) / "journal.jsonl"
        path.parent.mkdir()
        path.write_bytes(data[:length])
        journal = Journal(path)
        whole_lines = data[: data[:length].rfind(b"\n") + 1]
        assert path.read_bytes() == whole_lines
        if len(whole_lines) < length:
            rest = data[len(whole_lines) : length] + b"\n"
            assert (path.parent / "truncated.jsonl").read_bytes() == rest
        journal.log_sent("d", 0.0)
        log_reply(journal, "d", 0.0, ReceivedReply(REPLY, "p", "r"))
        journal.close()
        reopened = Journal(path)
        assert reopened.replies("d") == [ReceivedReply(REPLY, "p", "r")]
        reopened.close()


def test_an_invalid_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    """With file and line; it cannot come from a kill, so it is not skipped."""
    path = tmp_path / "journal.jsonl"
    path.write_text('{"sent": "a", "cost": 1}\n{"se\n{"sent": "b", "cost": 1}\n')
    with pytest.raises(InputError, match=r"journal\.jsonl:2"):
        Journal(path)
    path.write_text('{"said": "a"}\n')
    with pytest.raises(InputError, match="not a journal line"):
        Journal(path)


def test_concurrent_replies_share_flushes_and_are_all_written(tmp_path: Path) -> None:
    """Two hundred in one event loop, each on its line."""
    journal = Journal(tmp_path / "journal.jsonl")

    async def log_all() -> None:
        for index in range(200):
            journal.log_reply(f"{index}", 0.0, ReceivedReply(Reply(f"é{index}", "stop"), "p", "r"))
            await asyncio.sleep(0)
        await journal.flushed()

    asyncio.run(log_all())
    journal.close()
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert {line["received"] for line in lines} == {f"{index}" for index in range(200)}
    reopened = Journal(tmp_path / "journal.jsonl")
    assert [reopened.replies(f"{index}")[0].reply.text for index in range(200)] == [
        f"é{index}" for index in range(200)
    ]
    reopened.close()


def test_replies_are_recorded_for_a_replay(tmp_path: Path) -> None:
    """From a run folder or its journal, of this version or 0.1; a journal without replies is an error."""
    write_journal(tmp_path / "journal.jsonl")
    expected = {"a": [REPLY], "c": [Reply("?", "stop")]}
    assert recorded_replies(tmp_path) == expected
    (tmp_path / "0_1.jsonl").write_text(JOURNAL_0_1)
    assert recorded_replies(tmp_path / "0_1.jsonl") == expected
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(InputError, match="contains no replies"):
        recorded_replies(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="cannot read"):
        recorded_replies(tmp_path / "nowhere.jsonl")


def test_a_failing_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a flush is raised by the next reply, or at the end."""
    journal = Journal(tmp_path / "journal.jsonl")

    def fail(_file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="Input/output error; free space"):
        log_reply(journal, "a", 0.0, ReceivedReply(REPLY, "p", "r"))

    async def log_twice() -> None:
        journal.log_reply("b", 0.0, ReceivedReply(REPLY, "p", "r"))
        await asyncio.sleep(0.1)
        journal.log_reply("c", 0.0, ReceivedReply(REPLY, "p", "r"))

    journal._flushing = None
    with pytest.raises(OutputError, match="Input/output error"):
        asyncio.run(log_twice())
    journal.close()
