"""Append-only journal of requests and replies, and a client that replays one.

A request is logged before it is sent and a reply before it is used; replies are flushed to disk in the background.
After a kill at any point only requests that were in flight are sent again, and money that may have been spent is
counted. A last line that was cut off is moved to `truncated.jsonl`.

    {"sent": "7-detail", "cost": 0.002}                           a request, with its maximum cost
    {"received": "7-detail", "cost": 0.001, "reply": {...}, ...}  its reply
    {"missed": "7-detail", "cost": 0.0, "reason": "..."}          or a failure instead of a reply
    {"decided": "7-detail", "outcome": "accepted"}                or "rejected", "failed", with "rule" and "detail"
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from caldera.errors import InputError
from caldera.files.journal import JournalFile, journal_lines
from caldera.llm_client.client import Message, Reply, RequestRejected

Outcome = Literal["accepted", "rejected", "failed"]

_KEYS_0_1 = {"heard": "received", "done": "decided"}
_OUTCOMES_0_1: dict[str, Outcome] = {"kept": "accepted", "refused": "rejected"}
"""Names in journals that version 0.1 wrote, and their names now."""


@dataclass(slots=True)
class JournalEntry:
    """State of one task."""

    reply_offsets: list[int] = field(default_factory=list)
    """Byte offsets of its replies in the file."""

    outcome: Outcome | None = None
    rule: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ReceivedReply:
    """A reply as stored in the journal."""

    reply: Reply
    prompt: str
    """Digest of the prompt that it answers."""

    run: str
    """Digest of the run's fingerprint."""


class Journal:
    """Journal file and the state of all tasks in it."""

    def __init__(self, path: Path) -> None:
        """Open or create a journal; a truncated last line is moved to `truncated.jsonl`."""
        self.path = path
        self.entries: dict[str, JournalEntry] = {}
        self.spent = 0.0
        self.requests = 0
        self._in_flight: dict[str, float] = {}
        """Maximum cost of each request without a reply or failure yet."""
        self._file = JournalFile(path)
        for offset, line in journal_lines(path):
            self._apply_line(line, offset)
        # Requests that were in flight when the process ended may be billed.
        self.spent += sum(self._in_flight.values())
        self._in_flight.clear()
        self._unflushed = False
        self._flushing: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def log_sent(self, name: str, cost: float) -> None:
        """Log a request before it is sent; the line survives a kill of this process."""
        self._write({"sent": name, "cost": cost})

    def log_failure(self, name: str, cost: float, reason: str) -> None:
        """Log a request without a reply, and what it may have cost."""
        self._write({"missed": name, "cost": cost, "reason": reason})

    def log_reply(self, name: str, cost: float, received: ReceivedReply) -> None:
        """Log a reply and start to flush it to disk.

        Its outcome is written after it, so a truncated file loses the outcome first.
        """
        digests = {"prompt": received.prompt, "run": received.run}
        self._write({"received": name, "cost": cost, "reply": asdict(received.reply), **digests})
        self._start_flush()

    async def flushed(self) -> None:
        """Wait until all replies are on disk."""
        if self._flushing is not None:
            await self._flushing

    def log_outcome(self, name: str, outcome: Outcome, rule: str = "", detail: str = "") -> None:
        """Log the outcome of a task; if the line is lost, its replies are checked again at no cost."""
        reason = {"rule": rule, "detail": detail} if rule else {}
        self._write({"decided": name, "outcome": outcome, **reason})

    def is_decided(self, name: str) -> bool:
        """Return whether a task was accepted or rejected; a failed one is tried again."""
        entry = self.entries.get(name)
        return entry is not None and entry.outcome in ("accepted", "rejected")

    def replies(self, name: str) -> list[ReceivedReply]:
        """Read the replies of a task from the file."""
        entry = self.entries.get(name)
        lines = [self._file.line_at(offset) for offset in entry.reply_offsets] if entry else []
        return [
            ReceivedReply(Reply(**line["reply"]), line["prompt"], line["run"]) for line in lines
        ]

    def _write(self, line: dict[str, Any]) -> None:
        self._apply_line(line, self._file.append(line))

    def _apply_line(self, line: dict[str, Any], offset: int) -> None:
        """Update the state of its task by a line."""
        match _with_current_names(line):
            case {"sent": str(name), "cost": cost}:
                self.requests += 1
                self.spent += self._in_flight.pop(name, 0.0)
                self._in_flight[name] = cost
            case {"missed": str(name), "cost": cost}:
                self._in_flight.pop(name, None)
                self.spent += cost
            case {"received": str(name), "cost": cost}:
                self._in_flight.pop(name, None)
                self.spent += cost
                self.entries.setdefault(name, JournalEntry()).reply_offsets.append(offset)
            case {"decided": str(name), "outcome": outcome}:
                entry = self.entries.setdefault(name, JournalEntry())
                entry.outcome = outcome
                entry.rule, entry.detail = line.get("rule", ""), line.get("detail", "")
            case _:
                raise InputError(
                    f"{self.path}: the line at byte {offset} is not a journal line; was the file edited?"
                )

    def _start_flush(self) -> None:
        """Flush to disk in the background, one flush at a time."""
        self._unflushed = True
        if self._flushing is None or self._flushing.done():
            if self._flushing is not None:
                # Raises the error of the last flush.
                self._flushing.result()
            self._flushing = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        """Flush until nothing was written in the meantime."""
        while self._unflushed:
            self._unflushed = False
            await asyncio.to_thread(self._file.flush)


def _with_current_names(line: dict[str, Any]) -> dict[str, Any]:
    """Return a journal line with the keys and outcomes of this version."""
    line = {_KEYS_0_1.get(key, key): value for key, value in line.items()}
    if line.get("outcome") in _OUTCOMES_0_1:
        line["outcome"] = _OUTCOMES_0_1[line["outcome"]]
    return line


def recorded_replies(path: Path) -> dict[str, list[Reply]]:
    """Return all replies in a run folder or journal, by task, without opening it for writing."""
    file = path / "journal.jsonl" if path.is_dir() else path
    replies: dict[str, list[Reply]] = {}
    for _, line in journal_lines(file):
        match _with_current_names(line):
            case {"received": str(name), "reply": dict(reply)}:
                replies.setdefault(name, []).append(Reply(**reply))
    if not replies:
        raise InputError(f"{file} contains no replies; pass the folder of an LLM teacher's run")
    return replies


class ReplayClient:
    """Client that returns the recorded replies of each task in their order."""

    def __init__(self, path: Path) -> None:
        """Read a journal, or the one in a run folder."""
        self._replies = {name: iter(replies) for name, replies in recorded_replies(path).items()}

    async def complete(self, name: str, messages: Sequence[Message]) -> Reply:
        """Return the next recorded reply of a task."""
        reply = next(self._replies.get(name, iter(())), None)
        if reply is None:
            raise RequestRejected(
                "not recorded", "the journal contains no further reply", by_policy=False
            )
        return reply

    async def close(self) -> None:
        """Do nothing."""
