"""A worker's numbers for Prometheus: `REGISTRY.register(collector(worker))`; needs the extra `serve`.

Nothing is registered here, and no server is started: that is the application's, with its own labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pndm_fast.engine.metrics import ENDS
from pndm_fast.engine.worker import Worker

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

EVERY = 4  # of a histogram's edges one is told: four a decade

_NOW = {
    "queue": "Requests that wait",
    "running": "Requests under way",
    "lanes": "Samples that may be under way",
    "rows_per_second": "Rows of samples run, over the last ten seconds",
}
_SUMS = {
    "submitted": "Requests taken into the queue",
    "late": "Requests finished after their deadlines",
    "rows": "Rows of samples run",
    "calls": "Calls of the network",
    "busy_seconds": "Seconds in which rows were run",
}


def collector(worker: Worker, prefix: str = "pndm_fast") -> Collector:
    """Reads `worker.metrics()` when it is collected.

    `<prefix>_requests_total` by how they ended, `<prefix>_refused_total` by reason, histograms `<prefix>_wait_seconds`
    and, by priority, `<prefix>_latency_seconds`, and the other numbers by their own names. It keeps the worker.

    Raises:
        ImportError: prometheus_client is missing.
    """
    try:
        from prometheus_client.registry import Collector
    except ImportError as error:
        raise ImportError("a collector needs prometheus-client: pip install 'pndm_fast[serve]'") from error

    class OfWorker(Collector):  # type: ignore[misc, unused-ignore]  # where it is missing
        def collect(self) -> Iterable[Metric]:
            return _families(worker.metrics(), prefix)

        def describe(self) -> Iterable[Metric]:
            """As empty ones are: a registry asks for names alone."""
            return self.collect()

    return OfWorker()


def _families(numbers: Mapping[str, Any], prefix: str) -> list[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    ended = CounterMetricFamily(f"{prefix}_requests", "Requests by how they ended", labels=["end"])
    for end in ENDS:
        ended.add_metric([end], numbers[end])
    refused = CounterMetricFamily(f"{prefix}_refused", "Requests that were not taken", labels=["reason"])
    for reason, count in numbers["refused"].items():
        refused.add_metric([reason], count)
    wait = HistogramMetricFamily(f"{prefix}_wait_seconds", "From submitting a request to its beginning")
    wait.add_metric([], *_histogram(numbers["wait"]))
    latency = HistogramMetricFamily(
        f"{prefix}_latency_seconds", "From submitting a request to its result", labels=["priority"]
    )
    for priority, times in numbers["latency"].items():
        latency.add_metric([priority], *_histogram(times))
    return [
        *[GaugeMetricFamily(f"{prefix}_{name}", text, value=numbers[name]) for name, text in _NOW.items()],
        *[CounterMetricFamily(f"{prefix}_{name}", text, value=numbers[name]) for name, text in _SUMS.items()],
        *(ended, refused, wait, latency),
    ]


def _histogram(times: Mapping[str, Any]) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets, and the sum."""
    buckets = [(f"{edge:.6g}", float(count)) for edge, count in times["buckets"][::EVERY]]
    return [*buckets, ("+Inf", float(times["count"]))], times["sum"]
