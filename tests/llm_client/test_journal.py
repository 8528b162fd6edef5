"""The journal: whatever byte a process dies at, what was written before is read back, and each request counts once."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from caldera.errors import InputError, OutputError
from caldera.llm_client.client import Reply
from caldera.llm_client.journal import Journal, ReceivedReply, recorded_replies

REPLY = Reply("Two lines:\na “dog”", "stop", 11, 7, "m")


def hear(journal: Journal, name: str, cost: float, heard: ReceivedReply) -> None:
    """Note a reply, and wait until it is on disk."""

    async def hearing() -> None:
        journal.log_reply(name, cost, heard)
        await journal.flushed()

    asyncio.run(hearing())


def story(path: Path) -> None:
    """Write a journal of three dialogues: one kept, one in flight, one failed after a repaired try."""
    journal = Journal(path)
    journal.log_sent("a", 0.5)
    journal.log_sent("b", 0.25)
    hear(journal, "a", 0.2, ReceivedReply(REPLY, "p1", "r1"))
    journal.log_outcome("a", "kept")
    journal.log_sent("c", 0.5)
    journal.log_failure("c", 0.0, "HTTP 500")
    journal.log_sent("c", 0.5)
    hear(journal, "c", 0.125, ReceivedReply(Reply("?", "stop"), "p2", "r1"))
    journal.log_outcome("c", "failed", "no reply", "it is late")
    journal.close()


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """Replies, outcomes, requests and money; what was in flight counts with all it may cost."""
    story(tmp_path / "run" / "journal.jsonl")
    journal = Journal(tmp_path / "run" / "journal.jsonl")
    assert journal.replies("a") == [ReceivedReply(REPLY, "p1", "r1")]
    assert journal.replies("b") == []
    assert {name: entry.outcome for name, entry in journal.entries.items()} == {
        "a": "kept",
        "c": "failed",
    }
    assert (journal.entries["c"].rule, journal.entries["c"].detail) == ("no reply", "it is late")
    assert journal.requests == 4
    assert journal.spent == pytest.approx(0.2 + 0.125 + 0.25)
    journal.close()


def test_a_cut_at_any_byte_loses_the_last_line_at_most(tmp_path: Path) -> None:
    """The torn line is moved aside, the rest stands, and the journal goes on."""
    whole = tmp_path / "whole.jsonl"
    story(whole)
    data = whole.read_bytes()
    for cut in range(0, len(data), 13):
        path = tmp_path / str(cut) / "journal.jsonl"
        path.parent.mkdir()
        path.write_bytes(data[:cut])
        journal = Journal(path)
        kept = data[: data[:cut].rfind(b"\n") + 1]
        assert path.read_bytes() == kept
        if len(kept) < cut:
            assert (path.parent / "truncated.jsonl").read_bytes() == data[len(kept) : cut] + b"\n"
        journal.log_sent("d", 0.0)
        hear(journal, "d", 0.0, ReceivedReply(REPLY, "p", "r"))
        journal.close()
        again = Journal(path)
        assert again.replies("d") == [ReceivedReply(REPLY, "p", "r")]
        again.close()


def test_a_broken_line_in_the_middle_is_told(tmp_path: Path) -> None:
    """By file and line; it cannot come from a kill, so it is not passed over."""
    path = tmp_path / "journal.jsonl"
    path.write_text('{"sent": "a", "cost": 1}\n{"se\n{"sent": "b", "cost": 1}\n')
    with pytest.raises(InputError, match=r"journal\.jsonl:2 is broken"):
        Journal(path)
    path.write_text('{"said": "a"}\n')
    with pytest.raises(InputError, match="not a journal's"):
        Journal(path)


def test_many_replies_at_once_share_flushes_and_are_all_there(tmp_path: Path) -> None:
    """Two hundred in one loop, each on its line."""
    journal = Journal(tmp_path / "journal.jsonl")

    async def hearing() -> None:
        for at in range(200):
            journal.log_reply(f"{at}", 0.0, ReceivedReply(Reply(f"é{at}", "stop"), "p", "r"))
            await asyncio.sleep(0)
        await journal.flushed()

    asyncio.run(hearing())
    journal.close()
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert {line["heard"] for line in lines} == {f"{at}" for at in range(200)}
    again = Journal(tmp_path / "journal.jsonl")
    assert [again.replies(f"{at}")[0].reply.text for at in range(200)] == [
        f"é{at}" for at in range(200)
    ]
    again.close()


def test_replies_are_recorded_for_a_replay(tmp_path: Path) -> None:
    """Of a run's folder or its journal; a folder without any is told."""
    story(tmp_path / "journal.jsonl")
    assert recorded_replies(tmp_path) == {"a": [REPLY], "c": [Reply("?", "stop")]}
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no replies"):
        recorded_replies(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="cannot read"):
        recorded_replies(tmp_path / "nowhere.jsonl")


def test_a_disk_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a flush is met by the next reply, or at the end, in words that say what to do."""
    journal = Journal(tmp_path / "journal.jsonl")

    def fail(_file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="Input/output error; free space"):
        hear(journal, "a", 0.0, ReceivedReply(REPLY, "p", "r"))

    async def twice() -> None:
        journal.log_reply("b", 0.0, ReceivedReply(REPLY, "p", "r"))
        await asyncio.sleep(0.1)
        journal.log_reply("c", 0.0, ReceivedReply(REPLY, "p", "r"))

    journal._flushing = None
    with pytest.raises(OutputError, match="Input/output error"):
        asyncio.run(twice())
    journal.close()
