"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one app; each has its own registry, so that tests can have several."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "shoplens_requests",
            "Requests answered, by route.",
            ["method", "route", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "shoplens_request_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.encode_seconds = Histogram(
            "shoplens_encode_seconds",
            "Time of a batch in the encoder.",
            ["kind"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.encode_rows = Histogram(
            "shoplens_encode_rows",
            "Pictures or texts that went through the encoder together.",
            ["kind"],
            buckets=_ROWS,
            registry=registry,
        )
        self.thumbnails = Counter(
            "shoplens_thumbnails",
            "Thumbnails sent, by whether they were there already.",
            ["source"],
            registry=registry,
        )
        self._pools = Gauge(
            "shoplens_in_work", "Requests that run or wait for a thread.", ["pool"],
            registry=registry,
        )  # fmt: skip
        self._versions = Gauge(
            "shoplens_index_version", "Version of an index that answers.", ["index"],
            registry=registry,
        )  # fmt: skip
        self._products = Gauge(
            "shoplens_index_products", "Products of an index.", ["index"], registry=registry
        )

    def on_batch(self, kind: str, rows: int, seconds: float) -> None:
        """Told by a `BatchingEncoder`."""
        self.encode_rows.labels(kind).observe(rows)
        self.encode_seconds.labels(kind).observe(seconds)

    def watch_pools(self, inside: Mapping[str, Callable[[], int]]) -> None:
        """Functions that tell how many requests are in each pool."""
        for pool, count in inside.items():
            self._pools.labels(pool).set_function(count)

    def render(self, indexes: Mapping[str, tuple[int, int]]) -> bytes:
        """The text that Prometheus reads; `indexes` has the version and products of each."""
        for name, (version, products) in indexes.items():
            self._versions.labels(name).set(version)
            self._products.labels(name).set(products)
        return generate_latest(self.registry)
