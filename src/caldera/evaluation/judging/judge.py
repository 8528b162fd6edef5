"""Requests to a judge in, its replies out: at a pace, within a budget, and none asked twice.

Every request and reply stands in `journal.jsonl` of the run's folder under a key of all that a reply depends on: the
judge's model, the parameters, the protocol, every word of the request, and which of several runs it belongs to. So a
command that was killed goes on, and a changed answer, prompt or parameter is asked anew. At a temperature above 0 a
reply is a draw: it serves its own run only, and another folder or another run draws again.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from caldera.errors import LLMClientError, UsageError
from caldera.files.fingerprint import json_fingerprint
from caldera.llm_client.budget import Budget, Price
from caldera.llm_client.client import Message, RejectedReply, Reply, RequestConfig
from caldera.llm_client.journal import Journal
from caldera.llm_client.openai_client import OPENAI_URL, OpenAIClient
from caldera.llm_client.runner import (
    EndpointDownError,
    LLMRequest,
    RequestRunner,
    RunnerConfig,
)
from caldera.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """A language model as judge, and what it may cost."""

    model: str
    base_url: str = OPENAI_URL
    key: SecretStr | None = None
    sending: RequestConfig = field(
        default_factory=lambda: RequestConfig(temperature=0.0, max_repairs=0)
    )
    price: Price | None = None
    unpriced: bool = False
    """Whether the user said that the price does not matter."""

    max_cost: float | None = None
    max_requests: int | None = None

    def __post_init__(self) -> None:
        """Check that there is a model, and that no money is spent uncounted.

        Raises:
            UsageError: A model, key or price is missing.
        """
        if not self.model:
            raise UsageError("a judge needs the name of a model; give --judge-model")
        if self.base_url.rstrip("/") == OPENAI_URL and not self.key:
            raise UsageError(
                "there is no key for OpenAI; set OPENAI_API_KEY, or name a server of your own with --judge-url"
            )
        if self.base_url.rstrip("/") == OPENAI_URL and self.price is None and not self.unpriced:
            raise UsageError(
                "what the judge costs is not known; give --price PROMPT,REPLY (money for a million tokens each), or "
                "--unpriced to count no money"
            )
        if self.max_cost is not None and self.price is None:
            raise UsageError("--max-cost needs --price PROMPT,REPLY, money for a million tokens")

    def digest(self, protocol: str) -> str:
        """Return twelve characters that stand for the judge, its parameters and a protocol of that digest."""
        sending = self.sending
        told = {
            "model": self.model,
            "protocol": protocol,
            "temperature": sending.temperature,
            "top_p": sending.top_p,
            "seed": sending.seed,
            "max_tokens": sending.max_tokens,
            # The key that runs on disk were made with.
            "repairs": sending.max_repairs,
        }
        return json_fingerprint(told, 12)


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One request to a judge."""

    name: str
    """What it is about, for people."""

    run: int
    """Which of several runs it belongs to, from 1."""

    messages: Sequence[Message]
    read: Callable[[str], object]
    """Reads the reply; raises ReplyRefusal."""

    id: str
    """Its key: all that the reply depends on."""


def build_request(
    judge: str, name: str, run: int, messages: Sequence[Message], read: Callable[[str], object]
) -> JudgeRequest:
    """Make a request to the judge of that digest, with its key."""
    told = json.dumps([judge, name, run, [*map(dict, messages)]], sort_keys=True)
    return JudgeRequest(name, run, messages, read, hashlib.sha256(told.encode()).hexdigest()[:24])


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """What a judge said to one request, or why it said nothing that can be used."""

    text: str = ""
    model: str = ""
    """The judge by the name that its endpoint gives it."""

    failure: str = ""
    """The rule that the reply breaks, or why there is none; empty where it can be read."""

    detail: str = ""


def ask_judge(
    judge: Judge,
    protocol: str,
    hearings: Sequence[JudgeRequest],
    *,
    out: Path,
    progress: Progress,
) -> list[JudgeReply]:
    """Ask a judge all that it was not asked before, and return what it said to every request, in order.

    Args:
        judge: Who is asked.
        protocol: Digest of the protocol, for the journal.
        hearings: The requests.
        out: The run's folder, which is held by the caller; `journal.jsonl` in it is the cache.
        progress: Follows the work.

    Raises:
        TeacherError: The key, the quota or the budget ended the run; what was heard is kept.
        OutputError: The journal cannot be written.
    """
    journal = Journal(out / "journal.jsonl")
    try:
        means = RunnerConfig[JudgeRequest](
            endpoint=OpenAIClient(judge.base_url, judge.model, judge.key, judge.sending, "judge"),
            request=lambda asked: LLMRequest(asked.messages, protocol),
            check=lambda asked, reply: _parse_or_raise(asked.read, reply),
            journal=journal,
            budget=Budget(
                price=judge.price,
                max_cost=judge.max_cost,
                max_requests=judge.max_requests,
                spent=journal.spent,
                requests=journal.requests,
            ),
            sending=judge.sending,
            run=judge.digest(protocol),
        )
        before = sum(journal.is_decided(one.id) for one in hearings)
        with progress.task("asking the judge", len(hearings), before) as tick:
            ended = asyncio.run(_ask(means, RequestRunner(means, tick), hearings))
        if ended and not isinstance(ended, EndpointDownError):
            raise LLMClientError(
                f"{ended}; what was heard is kept in {out}: once that is mended, or with a greater budget, the same "
                "command goes on"
            )
        return [_to_reply(journal, one, ended) for one in hearings]
    finally:
        journal.close()


async def _ask(
    means: RunnerConfig[JudgeRequest],
    run: RequestRunner[JudgeRequest],
    hearings: Sequence[JudgeRequest],
) -> LLMClientError | None:
    """Run to the end, and let go of the endpoint in the same loop."""
    try:
        return await run.run_all(hearings)
    finally:
        await means.endpoint.close()


def _to_reply(journal: Journal, asked: JudgeRequest, ended: LLMClientError | None) -> JudgeReply:
    """Return what became of one request; a reply is read anew, by the rules as they are now."""
    entry, heard = journal.entries.get(asked.id), journal.replies(asked.id)
    if entry is None or entry.outcome is None:
        return JudgeReply(failure="not asked", detail=str(ended or ""))
    if entry.outcome == "failed" or not heard:
        return JudgeReply(failure=entry.rule, detail=entry.detail)
    reply = heard[-1].reply
    try:
        _parse_or_raise(asked.read, reply)
    except RejectedReply as refusal:
        told = str(refusal).removeprefix(refusal.rule).removeprefix(": ")
        return JudgeReply(reply.text, reply.model, refusal.rule, told)
    return JudgeReply(reply.text, reply.model)


def _parse_or_raise(read: Callable[[str], object], reply: Reply) -> None:
    """Read a reply; one that was cut off counts if what matters stands in it.

    Raises:
        ReplyRefusal: It cannot be read.
    """
    try:
        read(reply.text)
    except RejectedReply as refusal:
        if reply.finish == "stop":
            raise
        told = str(refusal).removeprefix(refusal.rule).removeprefix(": ")
        cut = f"the reply ended by {reply.finish!r}" + (f"; {told}" if told else "")
        raise RejectedReply(refusal.rule, cut, feedback=refusal.feedback) from None
