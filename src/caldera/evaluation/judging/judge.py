"""Client of a judge: rate-limited, within a budget, and without repeating requests.

Every request and reply is in `journal.jsonl` of the run's folder, keyed by everything that a reply depends on: the
judge's model, the parameters, the protocol, the request, and the number of the run. So an interrupted command resumes,
and a changed answer, prompt or parameter is requested again. Replies at a temperature above 0 are sampled: they serve
their own run only, and another folder or run samples anew.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from caldera.errors import Interrupted, LLMClientError, UsageError
from caldera.files.fingerprint import json_fingerprint
from caldera.llm_client.budget import Budget, Price
from caldera.llm_client.client import Message, RejectedReply, Reply, RequestConfig
from caldera.llm_client.journal import Journal
from caldera.llm_client.openai_client import OPENAI_URL, OpenAIClient
from caldera.llm_client.runner import EndpointDownError, LLMRequest, RequestRunner, RunnerConfig
from caldera.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """A language model that judges answers, and the limits of its cost."""

    model: str
    base_url: str = OPENAI_URL
    key: SecretStr | None = None
    request_config: RequestConfig = field(
        default_factory=lambda: RequestConfig(temperature=0.0, max_repairs=0)
    )
    price: Price | None = None
    no_price: bool = False
    """Whether the user accepts an unknown cost."""

    max_cost: float | None = None
    max_requests: int | None = None

    def __post_init__(self) -> None:
        """Check that a model is named and that costs are known."""
        is_openai = self.base_url.rstrip("/") == OPENAI_URL
        if not self.model:
            raise UsageError("a judge needs the name of a model; give --judge-model")
        if is_openai and not self.key:
            raise UsageError(
                "no API key for OpenAI; set OPENAI_API_KEY, or give your own server with --judge-url"
            )
        if is_openai and self.price is None and not self.no_price:
            raise UsageError(
                "the cost of the judge is unknown; give --price PROMPT,REPLY (per million tokens each), or "
                "--no-price to ignore it"
            )
        if self.max_cost is not None and self.price is None:
            raise UsageError("--max-cost needs --price PROMPT,REPLY (per million tokens each)")

    def digest(self, protocol: str) -> str:
        """Return twelve characters that identify the judge, its parameters and the protocol with that digest."""
        config = self.request_config
        parameters = {
            "model": self.model,
            "protocol": protocol,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": config.seed,
            "max_tokens": config.max_tokens,
            # The field's former name, so that journals of earlier versions stay valid.
            "repairs": config.max_repairs,
        }
        return json_fingerprint(parameters, 12)


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One request to a judge."""

    name: str
    """Human-readable name of the case."""

    run: int
    """Number of the judging run, from 1."""

    messages: Sequence[Message]
    parse: Callable[[str], object]
    """Parses the reply; raises RejectedReply."""

    id: str
    """Key made of everything that the reply depends on."""


def build_request(
    judge: str, name: str, run: int, messages: Sequence[Message], parse: Callable[[str], object]
) -> JudgeRequest:
    """Return a request, with its key, to the judge with the digest `judge`."""
    key = json_fingerprint([judge, name, run, [*map(dict, messages)]], 24)
    return JudgeRequest(name, run, messages, parse, key)


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """Reply of a judge to one request, or the reason why it cannot be used."""

    text: str = ""
    model: str = ""
    """The judge's name as reported by its endpoint."""

    failure: str = ""
    """The rule that the reply breaks, or the reason why there is none; empty if it can be parsed."""

    detail: str = ""


def ask_judge(
    judge: Judge,
    protocol: str,
    requests: Sequence[JudgeRequest],
    *,
    out: Path,
    progress: Progress,
) -> list[JudgeReply]:
    """Send the requests that have no reply yet, and return the replies to all of them, in order.

    `protocol` is the digest of the protocol; `journal.jsonl` in the folder `out`, which the caller has locked, is the
    cache.

    Raises:
        LLMClientError: The key, the quota or the budget ended the run; received replies are saved.
        OutputError: The journal cannot be written.
    """
    journal = Journal(out / "journal.jsonl")
    try:
        config = RunnerConfig[JudgeRequest](
            client=OpenAIClient(
                judge.base_url, judge.model, judge.key, judge.request_config, "judge"
            ),
            request=lambda request: LLMRequest(request.messages, protocol),
            check=lambda request, reply: _parse_or_raise(request.parse, reply),
            journal=journal,
            budget=Budget(
                price=judge.price,
                max_cost=judge.max_cost,
                max_requests=judge.max_requests,
                spent=journal.spent,
                requests=journal.requests,
            ),
            request_config=judge.request_config,
            run=judge.digest(protocol),
        )
        num_decided = sum(journal.is_decided(request.id) for request in requests)
        with progress.task("asking the judge", len(requests), num_decided) as tick:
            try:
                error = asyncio.run(_run(config, RequestRunner(config, tick), requests))
            except Interrupted as interrupted:
                num_decided = sum(journal.is_decided(request.id) for request in requests)
                message = (
                    f"stopped; {num_decided} of {len(requests)} verdicts are kept in {out}; repeat the command to "
                    "resume"
                )
                raise Interrupted(message, interrupted.signal_number) from None
        if error and not isinstance(error, EndpointDownError):
            raise LLMClientError(
                f"{error}; the replies so far are saved in {out}: fix this, or raise the budget, and run the same "
                "command to resume"
            )
        return [_to_reply(journal, request, error) for request in requests]
    finally:
        journal.close()


async def _run(
    config: RunnerConfig[JudgeRequest],
    runner: RequestRunner[JudgeRequest],
    requests: Sequence[JudgeRequest],
) -> LLMClientError | None:
    """Run all requests, and close the client in the same event loop."""
    try:
        return await runner.run_all(requests)
    finally:
        await config.client.close()


def _to_reply(journal: Journal, request: JudgeRequest, error: LLMClientError | None) -> JudgeReply:
    """Return the result of one request; stored replies are parsed again, by the current rules."""
    entry, received = journal.entries.get(request.id), journal.replies(request.id)
    if entry is None or entry.outcome is None:
        return JudgeReply(failure="not asked", detail=str(error or ""))
    if entry.outcome == "failed" or not received:
        return JudgeReply(failure=entry.rule, detail=entry.detail)
    reply = received[-1].reply
    try:
        _parse_or_raise(request.parse, reply)
    except RejectedReply as rejection:
        return JudgeReply(reply.text, reply.model, rejection.rule, _detail_of(rejection))
    return JudgeReply(reply.text, reply.model)


def _parse_or_raise(parse: Callable[[str], object], reply: Reply) -> None:
    """Parse a reply; a truncated one is accepted if it holds the scores."""
    try:
        parse(reply.text)
    except RejectedReply as rejection:
        if reply.finish == "stop":
            raise
        detail = _detail_of(rejection)
        ending = f"the reply ended by {reply.finish!r}" + (f"; {detail}" if detail else "")
        raise RejectedReply(rejection.rule, ending, feedback=rejection.feedback) from None


def _detail_of(rejection: RejectedReply) -> str:
    return str(rejection).removeprefix(rejection.rule).removeprefix(": ")
