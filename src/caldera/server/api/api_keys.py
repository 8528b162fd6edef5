"""API keys: authentication by the Authorization header, and rate limits per key."""

import hashlib
import hmac
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from caldera.server.api.config import Limits
from caldera.server.api.errors import ApiError

ANONYMOUS = "anyone"
"""Owner name used when authentication is off."""


class ApiKeys:
    """The server's API keys, of which only digests are stored."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Accept any of `keys`, or every request if there are none."""
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        """Return whether a key is required."""
        return bool(self._digests)

    def authenticate(self, authorization: str | None) -> str:
        """Return a name for the owner of the key, from which the key cannot be recovered.

        Args:
            authorization: Value of the Authorization header, decoded as Latin-1.

        Raises:
            ApiError: The key is missing or wrong.
        """
        if not self._digests:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
        # Compare with all keys, so that the time taken does not depend on which one matches.
        matches = [hmac.compare_digest(digest, valid) for valid in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            reason = "the API key is not valid" if authorization else "the API key is missing"
            raise ApiError(401, f"{reason}; send Authorization: Bearer KEY", code="invalid_api_key")
        return hashlib.sha256(digest).hexdigest()[:8]


class KeyRateLimiter:
    """Limits on the concurrent requests and the requests per minute of each key."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        """Apply the limits per key of `limits`."""
        self._limits = limits
        self._clock = clock
        self._num_active: defaultdict[str, int] = defaultdict(int)
        self._tokens: dict[str, tuple[float, float]] = {}
        """Token bucket of each owner: requests left, and the time of that count."""

    def acquire(self, owner: str) -> Callable[[], None]:
        """Count a new request and return the function that ends it; raise ApiError if the key exceeds a limit."""
        max_concurrent = self._limits.max_concurrent_per_key
        if max_concurrent and self._num_active[owner] >= max_concurrent:
            raise _rate_limit_error(f"this key has {max_concurrent} requests running, its limit")
        rate = self._limits.max_per_minute_per_key
        if rate:
            now = self._clock()
            tokens, updated = self._tokens.get(owner, (float(rate), now))
            tokens = min(rate, tokens + (now - updated) * rate / 60)
            self._tokens[owner] = (tokens - 1 if tokens >= 1 else tokens, now)
            if tokens < 1:
                raise _rate_limit_error(f"this key is limited to {rate} requests per minute")
        self._num_active[owner] += 1

        def release() -> None:
            self._num_active[owner] -= 1

        return release


def _rate_limit_error(reason: str) -> ApiError:
    message = f"{reason}; try again later"
    return ApiError(429, message, code="rate_limit_exceeded", retry_after=True)
