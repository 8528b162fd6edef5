"""Prometheus metrics of one server."""

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

_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics(Collector):
    """Counters and histograms of requests, and the engine's own counts."""

    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        """Start all counts at zero; `stats` returns the engine's counts, or None before it is loaded."""
        # Without this, every counter has an extra time series with its creation time.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._stats = stats
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "caldera_requests",
            "Requests by route and status; 499 if the client disconnected.",
            ["route", "status"],
            registry=registry,
        )
        self.rejected = Counter(
            "caldera_rejected", "Rejected requests by reason.", ["reason"], registry=registry
        )
        self.cancelled = Counter(
            "caldera_cancelled",
            "Requests whose client disconnected before the end.",
            registry=registry,
        )
        self.time_to_first_token = Histogram(
            "caldera_time_to_first_token_seconds",
            "Time from a request's first byte to the first token of its answer.",
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.inter_token_latency = Histogram(
            "caldera_inter_token_latency_seconds",
            "Time between two tokens of an answer.",
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self.image_decode = Histogram(
            "caldera_image_decode_seconds",
            "Time to decode and preprocess one image.",
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        registry.register(self)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the engine's counts; the registry calls this for each scrape."""
        stats = self._stats()
        if stats is None:
            return
        for name, value, description in (
            ("running", stats.running, "Requests that are being answered."),
            ("waiting", stats.waiting, "Requests in the queue."),
            ("cache_bytes", stats.cache_bytes, "Memory of the prefix cache."),
        ):
            yield GaugeMetricFamily(f"caldera_{name}", description, value=value)
        for name, value, description in (
            ("prompt_tokens", stats.prompt_tokens, "Tokens of prompts, including image tokens."),
            ("cached_tokens", stats.cached_tokens, "Tokens of prompts that came from the cache."),
            ("completion_tokens", stats.completion_tokens, "Tokens of answers."),
            ("cache_hits", stats.cache_hits, "Requests that reused a cached prefix."),
            ("failed", stats.failed, "Answers that failed in the engine."),
        ):
            yield CounterMetricFamily(f"caldera_{name}", description, value=value)
