"""How a server is set up, in one value."""

from dataclasses import dataclass, field

from caldera.errors import UsageError
from caldera.inference.engine import EngineConfig
from caldera.server.media.loader import MediaSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one request, one key and all together may take."""

    body_bytes: int = 20 << 20
    """Of one request's body."""

    bodies_bytes: int = 256 << 20
    """Of all bodies that are held at a time."""

    body_timeout: float = 30.0
    """Until a body has come."""

    images: int = 8
    """In one request."""

    max_tokens: int = 1024
    """Of an answer whose request names no number; it also ends where the context does."""

    answer_timeout: float = 300.0
    """Until an answer is whole."""

    drain_timeout: float = 30.0
    """For answers under way when the server is told to end."""

    send_timeout: float = 30.0
    """Until a client that does not read its stream is cut off."""

    keep_alive_interval: float = 15.0
    """Between signs of life on a stream whose answer has not begun."""

    max_concurrent_per_key: int = 0
    """Requests of one key that may be under way; 0 for any number."""

    max_per_minute_per_key: int = 0
    """Requests of one key in a minute; 0 for any number."""

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            UsageError: One is out of its range.
        """
        for name in (
            "body_bytes", "bodies_bytes", "body_timeout", "max_tokens", "answer_timeout", "send_timeout",
            "keep_alive_interval",
        ):  # fmt: skip
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be over 0")
        for name in ("images", "drain_timeout", "max_concurrent_per_key", "max_per_minute_per_key"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """A whole server but for its model."""

    name: str
    """What clients call the model."""

    keys: tuple[str, ...] = ()
    """Any of them opens the server; none for a server that is open to all who reach it."""

    host_names: tuple[str, ...] = ()
    """Names by which a server without keys may be reached, beside those of this machine; `*` for any."""

    metrics: bool = True
    """Whether `/metrics` is there."""

    temperature: float = 0.2
    """Where a request names none."""

    limits: Limits = field(default_factory=Limits)
    media: MediaSettings = field(default_factory=MediaSettings)
    engine: EngineConfig = field(default_factory=EngineConfig)
