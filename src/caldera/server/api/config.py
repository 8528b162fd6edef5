"""Configuration of a server."""

from dataclasses import dataclass, field, fields

from caldera.errors import check_ranges
from caldera.inference.engine import EngineConfig
from caldera.server.media.loader import MediaConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits per request, per key and in total."""

    body_bytes: int = 20 << 20
    """Length of one request's body."""

    bodies_bytes: int = 256 << 20
    """Length of all bodies in memory together."""

    body_timeout: float = 30.0
    """Seconds until a body must be complete."""

    images: int = 8
    """Images per request."""

    max_tokens: int = 1024
    """Tokens of an answer whose request sets no limit, as far as the context allows them."""

    answer_timeout: float = 300.0
    """Seconds until an answer must be complete."""

    drain_timeout: float = 30.0
    """Seconds that running requests have to finish on shutdown."""

    send_timeout: float = 30.0
    """Seconds until a client that does not read its stream is disconnected."""

    keep_alive_interval: float = 15.0
    """Seconds between keep-alive comments on a stream without new tokens."""

    max_concurrent_per_key: int = 0
    """Running requests per key; 0 for no limit."""

    max_per_minute_per_key: int = 0
    """Requests per minute and key; 0 for no limit."""

    def __post_init__(self) -> None:
        """Raise UsageError if a setting is out of range."""
        may_be_zero = (
            "images",
            "drain_timeout",
            "max_concurrent_per_key",
            "max_per_minute_per_key",
        )
        names = [setting.name for setting in fields(self)]
        check_ranges(
            self, {name: "[0, inf]" if name in may_be_zero else "(0, inf]" for name in names}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Configuration of a server except for its model and its address."""

    name: str
    """Name of the model for clients."""

    keys: tuple[str, ...] = ()
    """API keys; without any, every request is accepted."""

    allowed_hosts: tuple[str, ...] = ()
    """Host names of a server without keys, in addition to those of this machine; `*` for any."""

    metrics: bool = True
    """Whether `/metrics` is available."""

    temperature: float = 0.2
    """Default of requests."""

    limits: Limits = field(default_factory=Limits)
    media: MediaConfig = field(default_factory=MediaConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
