"""Runner of LLM tasks: many requests at a time, within rate limits and budget, with all results in a journal.

Each task (a dialogue to write, an answer to judge) is requested and its reply checked; after some faults the model
gets feedback and is asked again. A run ends when all tasks are decided, or when the model or the budget ends it; the
next run resumes from its journal.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from caldera.errors import LLMClientError
from caldera.interruption import StopRequest, deferred_signals
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
from caldera.llm_client.journal import Journal, JournalEntry, Outcome, ReceivedReply
from caldera.llm_client.retry import RateLimiter, RetriesExhausted, send_with_retries
from caldera.progress import Advance


class LLMTask(Protocol):
    """A task for a model: a dialogue to write, an answer to judge."""

    @property
    def id(self) -> str:
        """Unique name in the journal."""
        ...


_Task = TypeVar("_Task", bound=LLMTask)

_GRACE_SECONDS = 10.0
"""Time for replies in flight, which are paid for, after a signal."""


@dataclass(frozen=True, slots=True)
class LLMRequest:
    """Messages of one task."""

    messages: Sequence[Message]
    prompt: str
    """Digest of the prompt, for the journal."""


class EndpointDownError(LLMClientError):
    """An endpoint at which every request fails."""


class _RunStopped(Exception):  # noqa: N818 - a signal between the parts of a run
    """The end of the run for a worker; its task stays undecided."""


@dataclass(frozen=True, kw_only=True)
class RunnerConfig(Generic[_Task]):
    """Client, checks, journal and limits of a run."""

    client: LLMClient
    request: Callable[[_Task], LLMRequest]
    check: Callable[[_Task, Reply], None]
    """Checks a reply; raises RejectedReply with the rule that it breaks."""

    journal: Journal
    budget: Budget
    request_config: RequestConfig
    run: str = ""
    """Digest of the run's fingerprint, for the journal."""


class RequestRunner(Generic[_Task]):
    """Workers that request and decide tasks."""

    def __init__(self, config: RunnerConfig[_Task], tick: Advance) -> None:
        """Set up the rate limits; `tick` is called after each task."""
        self._config, self._tick = config, tick
        requests = config.request_config
        self._limiter = RateLimiter(
            requests.requests_per_minute, requests.tokens_per_minute, sleep=self._sleep
        )
        self._stopped = asyncio.Event()
        self._stop_reason: LLMClientError | None = None
        self._consecutive_failures = 0
        self._start_time, self._start_requests = time.monotonic(), config.budget.requests
        self._rejected: Counter[str] = Counter()

    async def run_all(self, tasks: Iterable[_Task]) -> LLMClientError | None:
        """Decide every undecided task, failed ones again; return the error that ended the run early, if any.

        Raises:
            Interrupted: A signal ended the run; replies that arrived are in the journal.
        """
        waiting = iter(tasks)
        concurrency = self._config.request_config.concurrency
        with deferred_signals() as stop_request:
            try:
                async with asyncio.TaskGroup() as group:
                    workers = [group.create_task(self._worker(waiting)) for _ in range(concurrency)]
                    watcher = asyncio.create_task(self._watch(stop_request, workers))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            finally:
                watcher.cancel()
            await self._config.journal.flushed()
            stop_request.raise_if_requested(
                f"stopped; the replies so far are kept in {self._config.journal.path}; repeat the command to resume"
            )
        return self._stop_reason

    async def _watch(
        self, stop_request: StopRequest, workers: Sequence[asyncio.Task[None]]
    ) -> None:
        """End the run after a signal: wait some seconds for the replies in flight."""
        while stop_request.signal is None:
            await asyncio.sleep(0.1)
        self._stopped.set()
        await asyncio.sleep(_GRACE_SECONDS)
        for worker in workers:
            worker.cancel()

    async def _worker(self, waiting: Iterator[_Task]) -> None:
        """Process tasks from the iterator that all workers share until it is exhausted."""
        for task in waiting:
            if self._stopped.is_set():
                return
            if self._config.journal.is_decided(task.id):
                continue
            try:
                await self._process(task)
            except _RunStopped:
                return
            self._report(self._config.journal.entries[task.id])

    async def _process(self, task: _Task) -> None:
        """Request a task, check the reply, and log the outcome."""
        journal, request = self._config.journal, self._config.request(task)
        messages = request.messages
        recorded = [received.reply for received in journal.replies(task.id)]
        try:
            for repairs_left in range(self._config.request_config.max_repairs, -1, -1):
                if recorded:
                    reply = recorded.pop(0)
                else:
                    send = partial(self._send, task.id, messages, request.prompt)
                    reply = await send_with_retries(
                        task.id, send, self._config.request_config, self._limiter
                    )
                try:
                    self._config.check(task, reply)
                except RejectedReply as rejection:
                    if rejection.feedback and repairs_left:
                        messages = [
                            *messages,
                            {"role": "assistant", "content": reply.text},
                            {"role": "user", "content": rejection.feedback},
                        ]
                        continue
                    journal.log_outcome(task.id, "rejected", rejection.rule, rejection.detail)
                else:
                    journal.log_outcome(task.id, "accepted")
                break
        except RequestRejected as rejection:
            outcome: Outcome = "rejected" if rejection.by_policy else "failed"
            journal.log_outcome(task.id, outcome, rejection.reason, rejection.detail)
        except RetriesExhausted as failure:
            journal.log_outcome(task.id, "failed", "no reply", str(failure))
        self._count_failures(journal.entries[task.id])

    async def _send(self, name: str, messages: Sequence[Message], prompt: str) -> Reply:
        """Send one request within budget and rate limits, and log its result."""
        config, journal = self._config, self._config.journal
        max_tokens = config.request_config.max_tokens
        reserved = await config.budget.reserve(max_tokens_of(messages), max_tokens)
        if reserved is None:
            raise self._stop(LLMClientError("the budget allows no further request"))
        try:
            prompt_tokens = sum(estimate_tokens(message["content"]) for message in messages)
            await self._limiter.acquire(prompt_tokens + max_tokens)
            if self._stopped.is_set():
                raise _RunStopped
        except BaseException:
            config.budget.release(reserved)
            raise
        journal.log_sent(name, reserved)
        cost = reserved
        try:
            reply = await config.client.complete(name, messages)
            cost = config.budget.cost_of(reply, reserved)
            journal.log_reply(name, cost, ReceivedReply(reply, prompt, config.run))
        except TransientError as error:
            cost = reserved if error.billed else 0.0
            journal.log_failure(name, cost, str(error))
            raise
        except (RequestRejected, LLMClientError) as error:
            cost = 0.0
            journal.log_failure(name, cost, str(error))
            if isinstance(error, LLMClientError):
                raise self._stop(error) from None
            raise
        finally:
            config.budget.commit(reserved, cost)
        return reply

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but raise _RunStopped as soon as the run ends."""
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return
        raise _RunStopped

    def _stop(self, reason: LLMClientError) -> _RunStopped:
        """End the run: requests in flight finish, no further ones are sent."""
        self._stop_reason = self._stop_reason or reason
        self._stopped.set()
        return _RunStopped()

    def _count_failures(self, entry: JournalEntry) -> None:
        """End the run after too many consecutive failures."""
        self._consecutive_failures = (
            self._consecutive_failures + 1 if entry.outcome == "failed" else 0
        )
        if self._consecutive_failures >= self._config.request_config.max_consecutive_failures:
            self._stop(
                EndpointDownError(
                    f"{self._consecutive_failures} requests in a row failed, the last: {entry.rule}: {entry.detail}"
                )
            )

    def _report(self, entry: JournalEntry) -> None:
        """Advance the progress bar: rate, cost, and counts of rejected or failed tasks by rule."""
        if entry.outcome != "accepted":
            self._rejected[entry.rule] += 1
        budget, top_rules = self._config.budget, self._rejected.most_common(3)
        seconds = max(1e-3, time.monotonic() - self._start_time)
        rate = (budget.requests - self._start_requests) / seconds
        rules = ", ".join(f"{count} {rule}" for rule, count in top_rules)
        rejected = f"not accepted {self._rejected.total()} ({rules})" if rules else "all accepted"
        cost = f"  cost {budget.spent:.4f}" if budget.counts_money else ""
        self._tick(detail=f"{rate:.1f} requests/s{cost}  {rejected}")
