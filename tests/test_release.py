"""When graphs that nobody uses any more are destroyed: after their work, never in a capture, without a wait."""

import gc
import threading

import pytest
import torch
from drawing import Reporting
from sampler_case import Conv, Pointwise

import pndm_fast as pf
from pndm_fast.runtime import capture, graphs

SHAPE = (2, 3, 8, 8)
pytestmark = [pytest.mark.filterwarnings("ignore:the grid starts")]


def sampler(model=None, **options):
    return Reporting(
        model or Pointwise(), pf.make_plan("ddim", steps=3), **{"shape": SHAPE, "graph": "replay"} | options
    )


def test_what_is_idle_goes_at_once(stand_in):
    ours = sampler()
    ours()
    assert stand_in.fake.live == {"exec": 1}
    del ours
    gc.collect()
    assert stand_in.fake.live == {} and not stand_in.counts["synchronize"]


def test_what_runs_still_goes_later(stand_in):
    """Whoever drops a graph does not wait for the device; the next call on it finds the work done."""
    ours, other = sampler(), sampler()
    ours(), other()
    stand_in.busy = True
    del ours
    gc.collect()
    assert stand_in.fake.live == {"exec": 2} and not stand_in.counts["synchronize"]
    other()
    assert stand_in.fake.live == {"exec": 2}
    stand_in.busy = False
    other()
    assert stand_in.fake.live == {"exec": 1} and not stand_in.counts["synchronize"]


def test_eviction_waits_in_the_next_capture_alone(stand_in, monkeypatch):
    """Which waits for the device in any case."""
    from cuda_stand_in import Event

    waits = []
    monkeypatch.setattr(Event, "synchronize", lambda self: waits.append(capture._CAPTURES.owner is not None))
    ours = sampler()
    stand_in.busy = True
    for batch in range(1, graphs.KEPT + 4):
        ours(seeds=range(batch))
    assert waits == [True] * 3 and stand_in.fake.live["exec"] == graphs.KEPT
    ours(seeds=range(batch))
    assert len(waits) == 3


@pytest.mark.parametrize("thread", ["own", "another"])
def test_nothing_is_destroyed_or_asked_in_a_capture(stand_in, thread):
    """Python's collector, or another thread, may drop a graph at any time."""
    held, seen = [sampler()], []
    held[0]()

    def drop():
        held.clear()
        gc.collect()
        seen.append((stand_in.fake.live, stand_in.counts["query"], stand_in.counts["synchronize"]))

    def during():
        if thread == "own":
            drop()
        else:
            other = threading.Thread(target=drop)
            other.start()
            other.join()

    ours, before = sampler(Conv()), stand_in.counts["query"]
    stand_in.during = during
    ours()
    assert seen == [({"exec": 1}, before, 0)]
    assert stand_in.fake.live == {"exec": 1} and stand_in.fake.destroyed == ["exec"]  # at the capture's end


def test_a_reset_waits(stand_in):
    ours = sampler()
    ours()
    stand_in.busy = True
    ours.reset()
    assert stand_in.fake.live == {} and stand_in.counts["synchronize"] == 1
    network = Conv()
    for _ in range(2):
        pf.sample(network, 3, solver="ddim", shape=SHAPE)
    gc.collect()  # the samplers that it made
    assert stand_in.fake.live == {"exec": 1}
    pf.clear()
    assert stand_in.fake.live == {}


def test_the_end_of_the_process_waits(stand_in, monkeypatch):
    monkeypatch.setattr(capture._CAPTURES, "leaving", True)
    ours = sampler()
    ours()
    stand_in.busy = True
    del ours
    gc.collect()
    assert stand_in.fake.live == {} and stand_in.counts["synchronize"] == 1


def test_a_failed_device_keeps_nothing(stand_in, monkeypatch):
    ours = sampler()
    ours()
    stand_in.busy = True
    cache, ours.cache = ours.cache, None
    del cache
    gc.collect()

    def failed(self):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    from cuda_stand_in import Event

    monkeypatch.setattr(Event, "query", failed)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        capture.release()
    assert stand_in.fake.live == {}


def test_comparisons_with_eager_calls_come_before_the_capture(stand_in):
    """What they allocate is returned when the capture begins: afterwards nobody would give it back."""
    calls = []
    network = Conv()

    def noted(x, t):
        calls.append("eager" if not launching else "graph")
        return network(x, t)

    launching = []
    stand_in.during = lambda: (calls.append("capture"), launching.append(1))
    sampler(noted)()
    at = calls.index("capture")
    assert set(calls[:at]) == {"eager"} and set(calls[at + 1 :]) == {"graph"}
    assert torch.is_tensor(network.first.weight)


def test_nothing_is_destroyed_in_somebody_elses_capture(stand_in, monkeypatch):
    """Dropping may happen anywhere: in a capture of the caller's own, what is dropped waits for a later call."""
    ours, other = sampler(), sampler()
    ours(), other()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    before = stand_in.counts["query"]
    del ours
    gc.collect()
    assert stand_in.fake.live == {"exec": 2} and stand_in.counts["query"] == before
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    other()
    assert stand_in.fake.live == {"exec": 1}
