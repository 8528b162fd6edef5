"""Pacing: never faster than allowed, silent as long as the endpoint asks, whatever form it asks in."""

import asyncio
from email.utils import formatdate

import pytest

from caldera.llm_client.retry import RateLimiter, retry_after

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "99999999999"}, 99999999999.0),
        ({"retry-after": "1e400"}, float("inf")),
        ({"retry-after": formatdate(NOW + 90, usegmt=True)}, 90.0),
        ({"retry-after": formatdate(NOW - 90, usegmt=True)}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_every_form_of_asking_for_rest_is_understood(
    headers: dict[str, str], seconds: float | None
) -> None:
    """Seconds, milliseconds, dates in future and past; nonsense is none."""
    assert retry_after(headers, NOW) == seconds


class Clock:
    """Time that passes only where someone sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let time pass, a little more than asked as real timers do."""
        self.now += seconds + 0.001


def moments(pace: RateLimiter, clock: Clock, count: int, tokens: int) -> list[float]:
    """Note when so many requests were let through."""

    async def take() -> list[float]:
        passed = []
        for _ in range(count):
            await pace.acquire(tokens)
            passed.append(clock.now)
        return passed

    return asyncio.run(take())


@pytest.mark.parametrize(
    ("requests", "tokens", "allowed"), [(30, None, 30), (None, 6000, 6000 / 70), (3000, 700, 10)]
)
def test_no_minute_holds_more_than_is_allowed(
    requests: int | None, tokens: int | None, allowed: float
) -> None:
    """Of requests of 70 tokens each, the tighter limit counts, and nearly all of it is used."""
    clock = Clock()
    pace = RateLimiter(requests, tokens, sleep=clock.sleep, clock=clock)
    passed = moments(pace, clock, 200, 70)
    for start in passed:
        assert sum(start <= moment < start + 60 for moment in passed) <= allowed + 1
    assert len(passed) / (passed[-1] - passed[0]) == pytest.approx(allowed / 60, rel=0.02)


def test_a_rest_holds_back_everyone_and_is_never_shortened() -> None:
    """A shorter wish after a longer one changes nothing."""
    clock = Clock()
    pace = RateLimiter(sleep=clock.sleep, clock=clock)
    pace.pause(9)
    pace.pause(2)
    assert 109 <= moments(pace, clock, 1, 5)[0] < 109.1


def test_without_limits_nobody_waits() -> None:
    """A thousand requests in no time."""
    clock = Clock()
    assert moments(RateLimiter(sleep=clock.sleep, clock=clock), clock, 1000, 10)[-1] == 100.0
