"""A request's Authorization header in, whose it is out; and how much each key may ask for."""

import hashlib
import hmac
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from caldera.server.api.config import Limits
from caldera.server.api.errors import ApiError

ANONYMOUS = "anyone"
"""Whose requests are where there are no keys."""


class ApiKeys:
    """The keys that open a server; only their digests are kept."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Open to any of `keys`, or to everyone if there are none."""
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        """Tell whether a key is needed."""
        return bool(self._digests)

    def authenticate(self, authorization: str | None) -> str:
        """Return a name for the key in an Authorization header, which does not give it away.

        Args:
            authorization: The header's value, each character a byte.

        Raises:
            ApiError: No key is given, or not one of these.
        """
        if not self._digests:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip().encode("latin-1", "replace"))
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]  # all of them
        if scheme.lower() != "bearer" or not any(matches):
            missing = "no API key was given" if not authorization else "the API key is not valid"
            raise ApiError(
                401, f"{missing}; send Authorization: Bearer KEY", code="invalid_api_key"
            )
        return hashlib.sha256(given).hexdigest()[:8]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class KeyRateLimiter:
    """How many requests each key has under way, and had in the last minute."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow what `limits` say."""
        self._limits = limits
        self._clock = clock
        self._under_way: defaultdict[str, int] = defaultdict(int)
        self._left: dict[str, tuple[float, float]] = {}
        """Requests that a key may still make, and when that was so."""

    def acquire(self, owner: str) -> Callable[[], None]:
        """Begin a request; return what ends it.

        Raises:
            ApiError: The key has too many.
        """
        most = self._limits.max_concurrent_per_key
        if most and self._under_way[owner] >= most:
            raise _too_many(f"this key has {most} requests under way, which is its limit")
        rate = self._limits.max_per_minute_per_key
        if rate:
            now = self._clock()
            left, then = self._left.get(owner, (float(rate), now))
            left = min(rate, left + (now - then) * rate / 60)
            self._left[owner] = (max(0.0, left - 1) if left >= 1 else left, now)
            if left < 1:
                raise _too_many(f"this key may make {rate} requests a minute")
        self._under_way[owner] += 1
        return lambda: self._release(owner)

    def _release(self, owner: str) -> None:
        self._under_way[owner] -= 1


def _too_many(said: str) -> ApiError:
    return ApiError(429, f"{said}; try again later", code="rate_limit_exceeded", retry_after=True)
