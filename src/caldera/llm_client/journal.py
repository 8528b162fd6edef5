"""Requests and replies; replay client.

The file is only ever added to. A request is noted before it is sent and a reply before it is used; both outlive the
process from then on, and replies are flushed to disk all the while. So after a kill at any point nothing is asked again
but what was in flight, and money that may have been spent is counted. A last line that was cut off by the end of the
process is moved to `torn.jsonl`.

    {"sent": "7-detail", "cost": 0.002}                       a request goes out; the most it can cost
    {"heard": "7-detail", "cost": 0.001, "reply": {...}, ...}  its reply (or, without one, "missed" and a "reason")
    {"done": "7-detail", "outcome": "kept"}                    or "refused", "failed", with "rule" and "detail"
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from caldera.errors import InputError
from caldera.files.journal import JournalFile, journal_lines
from caldera.llm_client.client import Message, Reply, RequestRejected

Outcome = Literal["kept", "refused", "failed"]


@dataclass(slots=True)
class JournalEntry:
    """Where one dialogue stands."""

    log_reply: list[int] = field(default_factory=list)
    """Where its replies stand in the file, in bytes."""

    outcome: Outcome | None = None
    rule: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ReceivedReply:
    """A reply as the journal holds it."""

    reply: Reply
    prompt: str
    """Digest of the prompt it answers."""

    run: str
    """Digest of the run's identity."""


class Journal:
    """The file, and what it says so far."""

    def __init__(self, path: Path) -> None:
        """Open a journal, or begin one; a torn last line is moved aside.

        Raises:
            InputError: A line in the middle is broken.
            OutputError: It cannot be written.
        """
        self.path = path
        self.entries: dict[str, JournalEntry] = {}
        self.spent = 0.0
        self.requests = 0
        self._open: dict[str, float] = {}
        """Requests that were sent and have not come back, with what they may cost."""
        self._file = JournalFile(path)
        for offset, line in journal_lines(path):
            self._apply_line(line, offset)
        self.spent += sum(self._open.values())  # in flight when the process ended: it may be billed
        self._open.clear()
        self._unflushed = False
        self._flushing: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def log_sent(self, name: str, cost: float) -> None:
        """Note a request before it is sent; the operating system holds the line even if this process is killed."""
        self._write({"sent": name, "cost": cost})

    def log_failure(self, name: str, cost: float, reason: str) -> None:
        """Note that a request came to nothing, and what it may have cost."""
        self._write({"missed": name, "cost": cost, "reason": reason})

    def log_reply(self, name: str, cost: float, heard: ReceivedReply) -> None:
        """Note a reply, and begin to flush it to disk.

        Whatever follows from it is written behind it, so a cut loses that first.

        Raises:
            OutputError: It cannot be written, or what came before could not be flushed.
        """
        told = {"reply": asdict(heard.reply), "prompt": heard.prompt, "run": heard.run}
        self._write({"heard": name, "cost": cost, **told})
        self._start_flush()

    async def flushed(self) -> None:
        """Wait until all replies are on disk.

        Raises:
            OutputError: They cannot be.
        """
        if self._flushing is not None:
            await self._flushing

    def log_outcome(self, name: str, outcome: Outcome, rule: str = "", detail: str = "") -> None:
        """Note what became of a dialogue; were the line lost, its replies would be judged again, for nothing."""
        told = {"rule": rule, "detail": detail} if rule else {}
        self._write({"done": name, "outcome": outcome, **told})

    def is_decided(self, name: str) -> bool:
        """Tell whether a dialogue is kept or refused; one that failed is tried again."""
        entry = self.entries.get(name)
        return entry is not None and entry.outcome in ("kept", "refused")

    def replies(self, name: str) -> list[ReceivedReply]:
        """Read the replies that a dialogue got so far."""
        entry = self.entries.get(name)
        return [self._heard_at(offset) for offset in entry.log_reply] if entry else []

    def _heard_at(self, offset: int) -> ReceivedReply:
        """Read the reply whose line begins at a byte."""
        line = self._file.line_at(offset)
        return ReceivedReply(Reply(**line["reply"]), line["prompt"], line["run"])

    def _write(self, line: dict[str, Any]) -> None:
        """Add a line.

        Raises:
            OutputError: It cannot be written.
        """
        self._apply_line(line, self._file.append(line))

    def _apply_line(self, line: dict[str, Any], offset: int) -> None:
        """Count a line in."""
        match line:
            case {"sent": str(name), "cost": cost}:
                self.requests += 1
                self.spent += self._open.pop(name, 0.0)
                self._open[name] = cost
            case {"missed": str(name), "cost": cost}:
                self._open.pop(name, None)
                self.spent += cost
            case {"heard": str(name), "cost": cost}:
                self._open.pop(name, None)
                self.spent += cost
                self.entries.setdefault(name, JournalEntry()).log_reply.append(offset)
            case {"done": str(name), "outcome": outcome}:
                entry = self.entries.setdefault(name, JournalEntry())
                entry.outcome = outcome
                entry.rule, entry.detail = line.get("rule", ""), line.get("detail", "")
            case _:
                raise InputError(
                    f"{self.path}: the line at byte {offset} is not a journal's; was it edited?"
                )

    def _start_flush(self) -> None:
        """Have what was written flushed to disk beside the run; one flush at a time, and none is left out.

        Raises:
            OutputError: The last flush failed.
        """
        self._unflushed = True
        if self._flushing is None or self._flushing.done():
            if self._flushing is not None:
                self._flushing.result()
            self._flushing = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        """Flush until nothing new was written meanwhile."""
        while self._unflushed:
            self._unflushed = False
            await asyncio.to_thread(self._file.flush)


def recorded_replies(path: Path) -> dict[str, list[Reply]]:
    """Read every reply of a journal, by dialogue, without opening it to be written.

    Raises:
        InputError: It cannot be read, or holds no reply.
    """
    place = path / "journal.jsonl" if path.is_dir() else path
    replies: dict[str, list[Reply]] = {}
    for _, line in journal_lines(place):
        match line:
            case {"heard": str(name), "reply": dict(reply)}:
                replies.setdefault(name, []).append(Reply(**reply))
    if not replies:
        raise InputError(f"{place} holds no replies; give the journal of a run of another teacher")
    return replies


class ReplayClient:
    """Gives each dialogue the replies that it got before, in their order."""

    def __init__(self, path: Path) -> None:
        """Read a journal, or the one in a run's folder.

        Raises:
            InputError: It cannot be read, or holds no reply.
        """
        self._replies = {name: iter(heard) for name, heard in recorded_replies(path).items()}

    async def complete(self, name: str, messages: Sequence[Message]) -> Reply:
        """Give the next reply that was recorded.

        Raises:
            Declined: There is none.
        """
        reply = next(self._replies.get(name, iter(())), None)
        if reply is None:
            raise RequestRejected(
                "not recorded", "the journal holds no further reply", by_policy=False
            )
        return reply

    async def close(self) -> None:
        """Do nothing."""
