"""The collector says what `Worker.metrics` says, in the exposition format that a server reads."""

import subprocess
import sys

import pytest
from fake_engine import FakeEngine, request

import pndm_fast as pf

prometheus_client = pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from pndm_fast.integrations.prometheus import collector  # noqa: E402


def exposed(registry):
    """{(name, labels): value} as a server parses it."""
    text = prometheus_client.generate_latest(registry).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_registry_exposes_what_the_worker_counts():
    registry = prometheus_client.CollectorRegistry()
    with pf.Worker(FakeEngine(bad=(3,)), max_queue=100) as worker:
        registry.register(collector(worker))
        tickets = [worker.submit(request(5, seed), priority=seed % 2) for seed in range(8)]
        with pytest.raises(ValueError):
            worker.submit(pf.Request(seeds=[1]))
        concluded = [ticket.exception(60) for ticket in tickets]
        worker.drain()
        told, found = worker.metrics(), exposed(registry)
    assert sum(error is not None for error in concluded) == 1
    assert found["pndm_fast_requests_total", ("end", "finished")] == 7
    assert found["pndm_fast_requests_total", ("end", "failed")] == 1
    assert found["pndm_fast_refused_total", ("reason", "invalid")] == 1
    for name in ("queue", "running", "lanes"):
        assert found[f"pndm_fast_{name}",] == told[name]
    for name in ("submitted", "late", "rows", "calls", "busy_seconds"):
        assert found[f"pndm_fast_{name}_total",] == told[name]
    for name, label, times in (
        ("wait", (), told["wait"]),
        *[("latency", (("priority", priority),), times) for priority, times in told["latency"].items()],
    ):
        assert found[f"pndm_fast_{name}_seconds_count", *label] == times["count"]
        assert found[f"pndm_fast_{name}_seconds_sum", *label] == times["sum"]
        edges = {key: value for key, value in found.items() if key[0] == f"pndm_fast_{name}_seconds_bucket"}
        buckets = {dict(key[1:])["le"]: value for key, value in edges.items() if set(label) <= set(key[1:])}
        assert buckets["+Inf"] == times["count"] and list(buckets.values()) == sorted(buckets.values())
        assert len(buckets) == 34 and buckets["1"] == dict(times["buckets"])[1.0]


def test_names_have_a_prefix_of_choice_and_two_workers_one_registry():
    registry = prometheus_client.CollectorRegistry()
    with pf.Worker(FakeEngine()) as first, pf.Worker(FakeEngine(capacity=7)) as second:
        registry.register(collector(first))
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(collector(second))
        registry.register(collector(second, prefix="images"))
        found = exposed(registry)
    assert found["pndm_fast_lanes",] == 4 and found["images_lanes",] == 7


def test_it_is_asked_for_where_it_is_missing():
    code = """if True:
        import sys
        sys.modules["prometheus_client"] = None
        from pndm_fast.integrations import prometheus
        try:
            prometheus.collector(None)
        except ImportError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "a collector needs prometheus-client: pip install 'pndm_fast[serve]'\n"
