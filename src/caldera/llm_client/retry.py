"""Retries with exponential backoff, and rate limits."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime

from caldera.llm_client.client import Reply, RequestConfig, TransientError

Sleep = Callable[[float], Awaitable[None]]

_BURST = 0.05
"""Seconds of a rate that may be caught up on, so that timer delays do not slow the run."""


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the pause in seconds that an endpoint asks for, None if the headers have no valid value.

    `retry-after-ms` has precedence; `Retry-After` is in seconds or a date (RFC 9110, section 10.2.3).
    """
    milliseconds = _parse_number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    value = headers.get("retry-after")
    seconds = _parse_number(value)
    if seconds is not None:
        return max(0.0, seconds)
    try:
        until = parsedate_to_datetime(value or "").timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, until - (time.time() if now is None else now))


def _parse_number(text: str | None) -> float | None:
    """Parse a number; return None for anything else."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(value) else value


class RateLimiter:
    """Rate limiter that spaces requests evenly and can pause all of them."""

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        *,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the rates; None is no limit."""
        self._seconds_per_request = (
            (60 + _BURST) / requests_per_minute if requests_per_minute else 0.0
        )
        self._seconds_per_token = (60 + _BURST) / tokens_per_minute if tokens_per_minute else 0.0
        self.sleep, self._clock = sleep, clock
        # Times from which the next request may be sent, by each limit.
        self._next_by_requests = self._next_by_tokens = self._paused_until = -math.inf

    async def acquire(self, tokens: int) -> None:
        """Wait until a request of this many tokens may be sent, and count it."""
        while True:
            now = self._clock()
            next_time = max(self._next_by_requests, self._next_by_tokens, self._paused_until)
            if next_time <= now:
                break
            await self.sleep(next_time - now)
        earliest = now - _BURST
        self._next_by_requests = max(self._next_by_requests, earliest) + self._seconds_per_request
        self._next_by_tokens = (
            max(self._next_by_tokens, earliest) + self._seconds_per_token * tokens
        )

    def pause(self, seconds: float) -> None:
        """Send no request for this many seconds; a longer pause stays in effect."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)


class RetriesExhausted(Exception):  # noqa: N818 - the result of one request, which the run records
    """A request that failed more often than it may be retried."""


async def send_with_retries(
    name: str,
    send: Callable[[], Awaitable[Reply]],
    config: RequestConfig,
    limiter: RateLimiter,
) -> Reply:
    """Call `send` until it returns a reply, with longer and longer pauses; `name` seeds their jitter.

    A rate limit, or a pause that the endpoint asks for, pauses all requests of `limiter`.

    Raises:
        RetriesExhausted: All retries failed.
    """
    rng, num_errors, num_limited = random.Random(name), 0, 0
    while True:
        try:
            return await send()
        except TransientError as error:
            num_errors += not error.limited
            num_limited += error.limited
            num_attempts = num_errors + num_limited
            if num_errors > config.retries or num_limited > 10 * config.retries:
                raise RetriesExhausted(f"{error} (tried {num_attempts} times)") from None
            backoff = config.initial_backoff * 2.0 ** min(num_attempts - 1, 20)
            backoff = min(backoff * rng.uniform(1.0, 1.5), config.max_backoff)
            if error.wait:
                limiter.pause(min(error.wait, config.max_backoff))
            elif error.limited:
                limiter.pause(backoff)
            await limiter.sleep(backoff)
