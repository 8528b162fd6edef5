"""Requests to the engine in, what it says out, for a loop that must not wait: all choices of one answer together."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from caldera.errors import CalderaError, OutOfMemoryError, QueueFullError, UsageError
from caldera.inference.engine import AnswerStream, Engine, Request, TextDelta, Usage
from caldera.server.api.errors import ApiError, bad_request, internal_error, service_unavailable
from caldera.server.api.metrics import Metrics

_log = logging.getLogger(__name__)

Events = list[tuple[int, TextDelta | None]]
"""Pieces by the number of their choice; None where a choice ended."""


class CompletionStreams:
    """The choices of one answer while they are written."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        """Ask the engine for all of them.

        Raises:
            ApiError: It cannot take them.
        """
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self.choices: list[AnswerStream] = []
        try:
            for request in requests:
                self.choices.append(engine.submit(request))
        except CalderaError as error:
            self.cancel()
            raise from_engine_error(error) from None
        for choice in self.choices:
            choice.on_update(self._wake)

    def cancel(self) -> None:
        """End those that are not at their end."""
        for choice in self.choices:
            choice.cancel()

    @property
    def usage(self) -> dict[str, object]:
        """Tokens of all choices; the prompt counts once."""
        used: list[Usage] = [choice.usage for choice in self.choices]
        prompt, completion = used[0].prompt_tokens, sum(one.completion_tokens for one in used)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": used[0].cached_tokens},
        }

    async def events(self, ping_interval: float) -> AsyncIterator[Events]:
        """Yield what is new until all choices have ended; nothing, after so many seconds of silence.

        Raises:
            ApiError: One of them failed.
        """
        going = dict(enumerate(self.choices))
        while going:
            silent = not await self._wake_within(ping_interval)
            news: Events = []
            failed = None
            for number, choice in list(going.items()):
                ended = choice.ended  # before its pieces are taken, or the last could be missed
                news += [(number, piece) for piece in choice.drain()]
                if ended and choice.error is not None:
                    failed = choice.error
                elif ended:
                    news.append((number, None))
                    del going[number]
            if news or silent:
                yield news
            if failed is not None:
                raise from_engine_error(failed)

    async def _wake_within(self, seconds: float) -> bool:
        """Wait for the engine; return whether it said anything in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True

    def _wake(self) -> None:
        """Wake the loop, from the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._woken.set)


class LatencyTracker:
    """When the tokens of an answer came."""

    def __init__(self, metrics: Metrics, begin: float) -> None:
        """Count from when the request came."""
        self._metrics = metrics
        self._begin = begin
        self._last: dict[int, float] = {}

    def record(self, said: Events) -> None:
        """Take what was said just now."""
        now = time.perf_counter()
        for number, piece in said:
            if piece is None:
                continue
            if not self._last:
                self._metrics.first_token.observe(now - self._begin)
            elif number in self._last and piece.tokens:
                apart = (now - self._last[number]) / len(piece.tokens)
                for _ in piece.tokens:
                    self._metrics.next_token.observe(apart)
            self._last[number] = now


def from_engine_error(error: CalderaError) -> ApiError:
    """Return the error for what the engine refused or could not do."""
    if isinstance(error, QueueFullError):
        return service_unavailable("as many requests as may wait are waiting; try again", "busy")
    if isinstance(error, OutOfMemoryError):
        return service_unavailable(
            "there is not enough memory for this request; try again", "out_of_memory"
        )
    if isinstance(error, UsageError):
        return bad_request(str(error))
    _log.error(
        "engine", extra={"kind": type(error).__name__, "said": str(error)}
    )  # the model's words, not a user's
    return internal_error()
