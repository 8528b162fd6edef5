"""What the server did in, Prometheus's text out."""

from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from caldera.inference.engine import EngineStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_NEXT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """Counts and times of one server."""

    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        """Begin at nothing; `stats` gives what the engine says, None before there is one."""
        disable_created_metrics()  # type: ignore[no-untyped-call] # else there are times nobody plots
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "caldera_requests",
            "Requests by route and status; 499 for those whose client went away.",
            ["route", "status"],
            registry=self._registry,
        )
        self.rejected = Counter(
            "caldera_rejected", "Requests refused, by reason.", ["reason"], registry=self._registry
        )
        self.aborted = Counter(
            "caldera_aborted",
            "Requests whose client went away before their end.",
            registry=self._registry,
        )
        self.first_token = Histogram(
            "caldera_first_token_seconds",
            "From a request's first byte to the first words of its answer.",
            buckets=_FIRST,
            registry=self._registry,
        )
        self.next_token = Histogram(
            "caldera_next_token_seconds",
            "Between tokens of an answer.",
            buckets=_NEXT,
            registry=self._registry,
        )
        self.decoding = Histogram(
            "caldera_image_decode_seconds",
            "Decoding and preparing one image.",
            buckets=_NEXT,
            registry=self._registry,
        )
        self._registry.register(_EngineCollector(stats))

    def text(self) -> bytes:
        """Return all of them in Prometheus's format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Asks the engine whenever the metrics are asked for."""

    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Yield what the engine says of itself."""
        stats = self._stats()
        if stats is None:
            return
        for name, value, what in (
            ("running", stats.running, "Requests that are being answered."),
            ("waiting", stats.waiting, "Requests that wait for a slot."),
            ("cache_bytes", stats.cache_bytes, "Memory for what is kept of earlier requests."),
        ):
            yield GaugeMetricFamily(f"caldera_{name}", what, value=value)
        for name, value, what in (
            ("prompt_tokens", stats.prompt_tokens, "Tokens of prompts, image tokens among them."),
            ("cached_tokens", stats.cached_tokens, "Tokens of prompts that were kept from before."),
            ("completion_tokens", stats.completion_tokens, "Tokens of answers."),
            ("cache_hits", stats.cache_hits, "Requests that began as an earlier one."),
            ("failed", stats.failed, "Answers that the model could not finish."),
        ):
            yield CounterMetricFamily(f"caldera_{name}", what, value=value)
