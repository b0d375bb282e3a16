"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from .batching import Batcher
from .cache import StateCache

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counts of one app, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._responses = Counter(
            "cramer_responses", "Responses to POST /recommend, by status.", ["status"], registry=self._registry
        )
        self._vanished = Counter(
            "cramer_vanished", "Clients gone before their answer was there.", registry=self._registry
        )
        self._seconds = Histogram(
            "cramer_seconds", "Time to a list of recommendations.", buckets=_SECONDS, registry=self._registry
        )
        self._rows = Histogram("cramer_batch_rows", "Calls in a batch.", buckets=_ROWS, registry=self._registry)

    def watch(self, cache: StateCache, batcher: Batcher) -> None:
        """Report on a cache and a queue too."""
        self._registry.register(_CacheCollector(cache))
        Gauge("cramer_waiting", "Calls that wait.", registry=self._registry).set_function(lambda: batcher.waiting)

    def responded(self, status: int, seconds: float) -> None:
        """Count a response; time is measured where it was a list."""
        self._responses.labels(str(status)).inc()
        if status == 200:
            self._seconds.observe(seconds)

    def vanished(self) -> None:
        """Count a client that has gone."""
        self._vanished.inc()

    def batch(self, rows: int) -> None:
        """Count a batch."""
        self._rows.observe(rows)

    def text(self) -> bytes:
        """All counts, in Prometheus's text format."""
        return generate_latest(self._registry)


class _CacheCollector(Collector):
    def __init__(self, cache: StateCache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """The counts at this moment."""
        lookups = CounterMetricFamily("cramer_cache_lookups", "Texts looked up, once a batch.", labels=["result"])
        lookups.add_metric(["hit"], self._cache.hits)
        lookups.add_metric(["miss"], self._cache.misses)
        yield lookups
        yield GaugeMetricFamily("cramer_cache_entries", "Mask states kept.", value=len(self._cache))
