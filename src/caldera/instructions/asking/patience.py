"""A request in, its reply out, however often it has to be sent: waits after trouble, and gives up in the end."""

import random
from collections.abc import Awaitable, Callable

from caldera.instructions.asking.endpoint import Reply, RequestConfig, TransientError
from caldera.instructions.asking.waiting import RateLimiter, Sleep


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
