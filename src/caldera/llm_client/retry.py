"""Backoff and rate limits."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime

from caldera.llm_client.client import Reply, RequestConfig, TransientError

Sleep = Callable[[float], Awaitable[None]]

_BURST = 0.05
"""Seconds of a rate that may be caught up on, so that a timer's delay does not slow the run."""


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Read how many seconds an endpoint asks to be left alone.

    `retry-after-ms` counts first; `Retry-After` is seconds or a date (RFC 9110, section 10.2.3).

    Args:
        headers: Of the response, names in any case as the client's are.
        now: Seconds since 1970; now by default.

    Returns:
        Seconds, never negative; None where nothing usable was said.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    told = headers.get("retry-after")
    seconds = _number(told)
    if seconds is not None:
        return max(0.0, seconds)
    try:
        until = parsedate_to_datetime(told or "").timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, until - (time.time() if now is None else now))


def _number(text: str | None) -> float | None:
    """Read a number; None where there is none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(value) else value


class RateLimiter:
    """Spaces requests evenly, and holds all of them back while the endpoint rests."""

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        *,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the rates; None is no limit."""
        self._request = (60 + _BURST) / requests_per_minute if requests_per_minute else 0.0
        self._token = (60 + _BURST) / tokens_per_minute if tokens_per_minute else 0.0
        self._sleep, self._clock = sleep, clock
        self._requests_from = self._tokens_from = self._rested = -math.inf
        """The moments from which the next request may be sent."""

    async def acquire(self, tokens: int) -> None:
        """Wait until a request of so many tokens may be sent, and count it."""
        while True:
            now = self._clock()
            free = max(self._requests_from, self._tokens_from, self._rested)
            if free <= now:
                break
            await self._sleep(free - now)
        self._requests_from = max(self._requests_from, now - _BURST) + self._request
        self._tokens_from = max(self._tokens_from, now - _BURST) + self._token * tokens

    def pause(self, seconds: float) -> None:
        """Hold back every request for so long."""
        self._rested = max(self._rested, self._clock() + seconds)


class RetriesExhausted(Exception):  # noqa: N818 - one request's fate, not the user's error
    """A request met trouble too often."""


class Retrier:
    """Sends requests again after trouble, all of them slower where the endpoint asks for that."""

    def __init__(self, sending: RequestConfig, pace: RateLimiter, sleep: Sleep) -> None:
        """Take how often and how long to wait, whose pace to hold back, and how to sleep."""
        self._sending, self._pace, self._sleep = sending, pace, sleep

    async def run(self, name: str, send: Callable[[], Awaitable[Reply]]) -> Reply:
        """Send a request until it has a reply; `name` seeds how waits are varied.

        Raises:
            NoReply: Trouble did not pass.
        """
        rng, tried, limited = random.Random(name), 0, 0
        while True:
            try:
                return await send()
            except TransientError as trouble:
                tried, limited = tried + (not trouble.limited), limited + trouble.limited
                most = self._sending.retries
                if tried > most or limited > 10 * most:
                    raise RetriesExhausted(f"{trouble} (tried {tried + limited} times)") from None
                await self._backoff(trouble, tried + limited, rng)

    async def _backoff(self, trouble: TransientError, times: int, rng: random.Random) -> None:
        """Wait before a retry: twice as long each time, at least as long as the endpoint asks, as all others do."""
        sending = self._sending
        own = sending.initial_backoff * 2.0 ** min(times - 1, 20) * rng.uniform(1.0, 1.5)
        if trouble.wait:
            self._pace.pause(min(trouble.wait, sending.max_backoff))
        elif trouble.limited:
            self._pace.pause(min(own, sending.max_backoff))
        await self._sleep(min(own, sending.max_backoff))
