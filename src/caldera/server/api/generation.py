"""Bridge from the engine's thread to asyncio.

`AnswerStream` of the engine lives in threads: the engine's thread writes it. `AsyncAnswerStreams` lives in the event
loop: it merges the answer streams of all `n` choices of a completion and never blocks.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from caldera.errors import CalderaError, OutOfMemoryError, QueueFullError, UsageError
from caldera.inference.engine import AnswerStream, Engine, Request, TextDelta
from caldera.server.api.errors import ApiError, bad_request, internal_error, service_unavailable
from caldera.server.api.metrics import Metrics

_log = logging.getLogger(__name__)

Events = list[tuple[int, TextDelta | None]]
"""Index of a choice, and its new text; None when the choice has ended."""


class AsyncAnswerStreams:
    """Answer streams of all choices of one completion, for the event loop."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        """Submit all requests to the engine; raise ApiError if it does not accept them."""
        self._loop = asyncio.get_running_loop()
        self._updated = asyncio.Event()
        self.choices: list[AnswerStream] = []
        try:
            for request in requests:
                self.choices.append(engine.submit(request))
        except CalderaError as error:
            self.cancel()
            raise from_engine_error(error) from None
        for choice in self.choices:
            choice.on_update(self._notify)

    def cancel(self) -> None:
        """Cancel the choices that have not ended."""
        for choice in self.choices:
            choice.cancel()

    @property
    def token_counts(self) -> dict[str, int]:
        """Tokens of the prompt, counted once, and of all choices."""
        usages = [choice.usage for choice in self.choices]
        completion = sum(usage.completion_tokens for usage in usages)
        return {"prompt_tokens": usages[0].prompt_tokens, "completion_tokens": completion}

    @property
    def usage(self) -> dict[str, object]:
        """Token counts as the API reports them."""
        counts = self.token_counts
        return {
            **counts,
            "total_tokens": sum(counts.values()),
            "prompt_tokens_details": {"cached_tokens": self.choices[0].usage.cached_tokens},
        }

    async def events(self, keep_alive_interval: float) -> AsyncIterator[Events]:
        """Yield new events until all choices have ended; an empty list after `keep_alive_interval` silent seconds.

        Raises:
            ApiError: A choice failed.
        """
        active = dict(enumerate(self.choices))
        while active:
            is_silent = not await self._wait_for_update(keep_alive_interval)
            events: Events = []
            failure = None
            for index, choice in list(active.items()):
                # Read before the deltas are drained, or the last ones could be missed.
                ended = choice.ended
                events += [(index, delta) for delta in choice.drain()]
                if ended and choice.error is not None:
                    failure = choice.error
                elif ended:
                    events.append((index, None))
                    del active[index]
            if events or is_silent:
                yield events
            if failure is not None:
                raise from_engine_error(failure)

    async def _wait_for_update(self, timeout: float) -> bool:
        """Wait for the engine; return False after `timeout` seconds without an update."""
        try:
            async with asyncio.timeout(timeout):
                await self._updated.wait()
        except TimeoutError:
            return False
        self._updated.clear()
        return True

    def _notify(self) -> None:
        """Wake the event loop; called on the engine's thread."""
        # RuntimeError: the loop is closed, so that no reader is left.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._updated.set)


def latency_recorder(metrics: Metrics, started: float) -> Callable[[Events], None]:
    """Return a function that records token latencies from events as they arrive.

    Args:
        metrics: Metrics to record in.
        started: `time.perf_counter()` when the request arrived.
    """
    last_times: dict[int, float] = {}

    def record(events: Events) -> None:
        now = time.perf_counter()
        for index, delta in events:
            if delta is None:
                continue
            if not last_times:
                metrics.time_to_first_token.observe(now - started)
            elif index in last_times and delta.tokens:
                latency = (now - last_times[index]) / len(delta.tokens)
                for _ in delta.tokens:
                    metrics.inter_token_latency.observe(latency)
            last_times[index] = now

    return record


def from_engine_error(error: CalderaError) -> ApiError:
    """Return the API error for an error of the engine."""
    if isinstance(error, QueueFullError):
        return service_unavailable("the queue is full; try again", "busy")
    if isinstance(error, OutOfMemoryError):
        return service_unavailable(
            "there is not enough memory for this request; try again", "out_of_memory"
        )
    if isinstance(error, UsageError):
        return bad_request(str(error))
    # The engine's messages quote nothing of a request.
    _log.error("engine error", extra={"kind": type(error).__name__, "error": str(error)})
    return internal_error()
