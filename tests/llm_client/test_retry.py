"""Rate limits are never exceeded, and an endpoint's requested pause is kept in whatever format it is given."""

import asyncio
from email.utils import formatdate

import pytest

from caldera.llm_client.client import Reply, RequestConfig, TransientError
from caldera.llm_client.retry import RateLimiter, retry_after, send_with_retries

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
def test_every_format_of_retry_after_is_parsed(
    headers: dict[str, str], seconds: float | None
) -> None:
    """Seconds, milliseconds, dates in future and past; None for anything else."""
    assert retry_after(headers, NOW) == seconds


class Clock:
    """Clock that advances only during sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Advance the time, by a little more than requested as real timers do."""
        self.now += seconds + 0.001


def acquire_times(limiter: RateLimiter, clock: Clock, count: int, tokens: int) -> list[float]:
    """Return the times at which requests were allowed."""

    async def acquire_all() -> list[float]:
        times = []
        for _ in range(count):
            await limiter.acquire(tokens)
            times.append(clock.now)
        return times

    return asyncio.run(acquire_all())


@pytest.mark.parametrize(
    ("requests", "tokens", "allowed"), [(30, None, 30), (None, 6000, 6000 / 70), (3000, 700, 10)]
)
def test_no_minute_exceeds_the_limit(
    requests: int | None, tokens: int | None, allowed: float
) -> None:
    """For requests of 70 tokens each the tighter limit applies, and nearly all of it is used."""
    clock = Clock()
    limiter = RateLimiter(requests, tokens, sleep=clock.sleep, clock=clock)
    times = acquire_times(limiter, clock, 200, 70)
    for start in times:
        assert sum(start <= time < start + 60 for time in times) <= allowed + 1
    assert len(times) / (times[-1] - times[0]) == pytest.approx(allowed / 60, rel=0.02)


def test_a_pause_applies_to_all_requests_and_is_never_shortened() -> None:
    """A shorter pause after a longer one changes nothing."""
    clock = Clock()
    limiter = RateLimiter(sleep=clock.sleep, clock=clock)
    limiter.pause(9)
    limiter.pause(2)
    assert 109 <= acquire_times(limiter, clock, 1, 5)[0] < 109.1


def test_without_limits_nothing_waits() -> None:
    """A thousand requests take no time."""
    clock = Clock()
    limiter = RateLimiter(sleep=clock.sleep, clock=clock)
    assert acquire_times(limiter, clock, 1000, 10)[-1] == 100.0


@pytest.mark.parametrize(
    ("error", "shortest", "longest"),
    [
        (TransientError("429", limited=True, wait=7.0), 7.0, 7.1),
        (TransientError("429", limited=True, wait=99999999999.0), 60.0, 60.1),
        (TransientError("429", limited=True, wait=float("inf")), 60.0, 60.1),
        (TransientError("429", limited=True, wait=0.0), 1.0, 1.6),
        (TransientError("429", limited=True), 1.0, 1.6),
        (TransientError("503"), 1.0, 1.6),
    ],
)
def test_a_request_is_repeated_after_the_requested_pause(
    error: TransientError, shortest: float, longest: float
) -> None:
    """At least that long, up to `max_backoff`; without a pause after 1 s, and up to 50 % of jitter."""

    def second_attempt(name: str) -> float:
        clock = Clock()
        times: list[float] = []

        async def send() -> Reply:
            await limiter.acquire(1)
            times.append(clock.now)
            if len(times) == 1:
                raise error
            return Reply("", "stop")

        limiter = RateLimiter(sleep=clock.sleep, clock=clock)
        asyncio.run(send_with_retries(name, send, RequestConfig(max_backoff=60.0), limiter))
        return times[1] - times[0]

    pauses = {second_attempt(f"task {number}") for number in range(20)}
    assert shortest <= min(pauses) <= max(pauses) <= longest
    assert len(pauses) == (20 if longest < 2 else 1)
