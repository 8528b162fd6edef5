"""Things to ask in, a journal of checked replies out: many requests at a time, at the pace and price that are allowed.

Each dialogue (or answer to be judged) is asked for, its reply checked, and where it pays asked for once more with what
was wrong. The run ends when all are decided, or when the model or the budget ends it; started again, it goes on from
its journal.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from caldera.errors import LLMClientError
from caldera.llm_client.budget import Budget, estimate_tokens, max_tokens_of
from caldera.llm_client.client import (
    LLMClient,
    Message,
    RejectedReply,
    Reply,
    RequestConfig,
    RequestRejected,
    TransientError,
)
from caldera.llm_client.journal import Journal, JournalEntry, ReceivedReply
from caldera.llm_client.retry import RateLimiter, Retrier, RetriesExhausted
from caldera.progress import Advance


class LLMTask(Protocol):
    """What is asked of a model: a dialogue to be written, an answer to be judged."""

    @property
    def id(self) -> str:
        """Its name in the journal; no two have the same."""
        ...


_Asked = TypeVar("_Asked", bound=LLMTask)


@dataclass(frozen=True, slots=True)
class LLMRequest:
    """What is sent about one thing."""

    messages: Sequence[Message]
    prompt: str
    """Digest of the prompt that it was made with, for the journal."""


class EndpointDownError(LLMClientError):
    """A model that answers nothing any more."""


class _Stopped(Exception):  # noqa: N818 - a signal between the parts of a run
    """The run is over for this worker; its dialogue stays undecided."""


@dataclass(frozen=True, kw_only=True)
class RunnerConfig(Generic[_Asked]):
    """What a run works with."""

    endpoint: LLMClient
    request: Callable[[_Asked], LLMRequest]
    check: Callable[[_Asked, Reply], None]
    """Judges a reply; raises ReplyRefusal with the rule that it breaks."""

    journal: Journal
    budget: Budget
    sending: RequestConfig
    run: str = ""
    """Digest of the run's identity, for the journal."""


class RequestRunner(Generic[_Asked]):
    """One start of a run."""

    def __init__(self, means: RunnerConfig[_Asked], tick: Advance) -> None:
        """Take the means, and what to call after each dialogue."""
        self._means, self._tick = means, tick
        sending = means.sending
        self._pace = RateLimiter(
            sending.requests_per_minute, sending.tokens_per_minute, sleep=self._sleep
        )
        self._patience = Retrier(sending, self._pace, self._sleep)
        self._over = asyncio.Event()
        self._ended: LLMClientError | None = None
        self._failed_in_a_row = 0
        self._begun, self._before = time.monotonic(), means.budget.requests
        self._refused: Counter[str] = Counter()

    async def run_all(self, dialogues: Iterable[_Asked]) -> LLMClientError | None:
        """Decide every dialogue that is not decided yet, and tick for each; failed ones are tried again.

        Returns:
            What ended the run early; None where all are decided.
        """
        waiting = iter(dialogues)
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._means.sending.concurrency):
                    workers.create_task(self._worker(waiting))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        await self._means.journal.flushed()
        return self._ended

    async def _worker(self, waiting: Iterator[_Asked]) -> None:
        """Take the next dialogue as long as there are any; all workers take from the same."""
        for dialogue in waiting:
            if self._over.is_set():
                return
            if self._means.journal.is_decided(dialogue.id):
                continue
            try:
                await self._process(dialogue)
            except _Stopped:
                return
            self._report(self._means.journal.entries[dialogue.id])

    async def _process(self, dialogue: _Asked) -> None:
        """Ask for a dialogue, check the reply, and note what became of it.

        Raises:
            _Stopped: The run is over before it was decided.
        """
        journal, request = self._means.journal, self._means.request(dialogue)
        messages = request.messages
        heard = [one.reply for one in journal.replies(dialogue.id)]
        try:
            for repairs_left in range(self._means.sending.max_repairs, -1, -1):
                known = heard.pop(0) if heard else None
                reply = known or await self._ask(dialogue.id, messages, request.prompt)
                try:
                    self._means.check(dialogue, reply)
                except RejectedReply as refusal:
                    if refusal.feedback and repairs_left:
                        messages = _repair(messages, reply, refusal.feedback)
                        continue
                    told = str(refusal).removeprefix(refusal.rule).removeprefix(": ")
                    journal.log_outcome(dialogue.id, "refused", refusal.rule, told)
                else:
                    journal.log_outcome(dialogue.id, "kept")
                break
        except RequestRejected as no:
            told = str(no).removeprefix(no.reason).removeprefix(": ")
            journal.log_outcome(
                dialogue.id, "refused" if no.by_policy else "failed", no.reason, told
            )
        except RetriesExhausted as failure:
            journal.log_outcome(dialogue.id, "failed", "no reply", str(failure))
        self._count_failures(journal.entries[dialogue.id])

    async def _ask(self, name: str, messages: Sequence[Message], prompt: str) -> Reply:
        """Send a request until it has a reply.

        Raises:
            Declined: It will have none.
            NoReply: Trouble did not pass.
            _Stopped: The run is over.
        """
        return await self._patience.run(name, lambda: self._send(name, messages, prompt))

    async def _send(self, name: str, messages: Sequence[Message], prompt: str) -> Reply:
        """Send one request, within budget and pace, and write down what came of it.

        Raises:
            Trouble: It came to nothing, and may be sent again.
            Declined: It will have no reply.
            _Stopped: The run is over.
        """
        means, journal = self._means, self._means.journal
        reserved = await means.budget.reserve(max_tokens_of(messages), means.sending.max_tokens)
        if reserved is None:
            raise self._end(LLMClientError("the budget holds no further request"))
        try:
            about = sum(estimate_tokens(message["content"]) for message in messages)
            await self._pace.acquire(about + means.sending.max_tokens)
            self._stop_if_over()
        except BaseException:
            means.budget.release(reserved)
            raise
        journal.log_sent(name, reserved)
        cost = reserved
        try:
            reply = await means.endpoint.complete(name, messages)
            cost = means.budget.cost_of(reply, reserved)
            journal.log_reply(name, cost, ReceivedReply(reply, prompt, means.run))
        except TransientError as trouble:
            cost = reserved if trouble.billed else 0.0
            journal.log_failure(name, cost, str(trouble))
            raise
        except (RequestRejected, LLMClientError) as no:
            cost = 0.0
            journal.log_failure(name, cost, str(no))
            if isinstance(no, LLMClientError):
                raise self._end(no) from None
            raise
        finally:
            means.budget.commit(reserved, cost)
        return reply

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but wake when the run is over.

        Raises:
            _Stopped: It is.
        """
        try:
            await asyncio.wait_for(self._over.wait(), seconds)
        except TimeoutError:
            return
        raise _Stopped

    def _end(self, why: LLMClientError) -> _Stopped:
        """End the run: what is in flight comes home, nothing more is sent."""
        self._ended = self._ended or why
        self._over.set()
        return _Stopped()

    def _stop_if_over(self) -> None:
        """Raise where the run is over."""
        if self._over.is_set():
            raise _Stopped

    def _count_failures(self, entry: JournalEntry) -> None:
        """End a run that meets nothing but failure."""
        self._failed_in_a_row = self._failed_in_a_row + 1 if entry.outcome == "failed" else 0
        if self._failed_in_a_row >= self._means.sending.give_up_after:
            self._end(
                EndpointDownError(
                    f"{self._failed_in_a_row} requests in a row failed, the last: {entry.rule}: {entry.detail}"
                )
            )

    def _report(self, entry: JournalEntry) -> None:
        """Advance the bar: rate, money, and what was refused or failed, by rule."""
        if entry.outcome != "kept":
            self._refused[entry.rule] += 1
        budget, worst = self._means.budget, self._refused.most_common(3)
        rate = (budget.requests - self._before) / max(1e-3, time.monotonic() - self._begun)
        rules = ", ".join(f"{count} {rule}" for rule, count in worst)
        refused = f"not kept {self._refused.total()} ({rules})" if worst else "all kept"
        cost = f"  cost {budget.spent:.4f}" if budget.counts_money else ""
        self._tick(shown=f"{rate:.1f} requests/s{cost}  {refused}")


def _repair(messages: Sequence[Message], reply: Reply, told: str) -> list[Message]:
    """Add a reply, and what was wrong with it, to a request."""
    return [
        *messages,
        {"role": "assistant", "content": reply.text},
        {"role": "user", "content": told},
    ]
