"""`Cuda`, as far as it is Python: one device object and one side stream, and how a failed capture is mended."""

import contextlib
import gc
import weakref

import pytest
import torch

from pndm_fast.runtime.cuda import Cuda, cuda_of

DEVICE = torch.device("cuda", 0)


class Stream:
    made = 0

    def __init__(self, device):
        Stream.made += 1

    def wait_stream(self, other):
        pass


def test_captures_share_one_stream(monkeypatch):
    """torch gives out 32 in turn: another capture each would soon share the streams of whoever uses them."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    entered = []
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext(entered.append(stream)))
    device = Cuda(DEVICE)
    for _ in range(3):
        with device.aside():
            pass
    assert len(entered) == 3 and len(set(map(id, entered))) == 1
    assert cuda_of(DEVICE) is cuda_of(torch.device("cuda", 0))


def test_the_flag_is_the_hosts(monkeypatch):
    """Whatever default device torch was given."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    with torch.device("meta"):
        assert Cuda(DEVICE).flag().tolist() == [0]


class Graph:
    """Fails in the end of its capture, but for those that are made to mend."""

    made = []

    def __init__(self, keep_graph=False):
        Graph.made.append(weakref.ref(self))
        self.good = not keep_graph
        self.calls = []

    def capture_begin(self, **options):
        self.calls.append("begin")

    def capture_end(self):
        self.calls.append("end")
        if not self.good:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.fixture
def calls(monkeypatch):
    calls = []
    Graph.made.clear()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: None)
    for name in ("synchronize", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: calls.append("clear"), raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *where: calls.append(("release", *where)), raising=False)
    return calls


@pytest.mark.parametrize("mended", [False, True])
def test_a_failed_capture_is_ended(calls, monkeypatch, mended):
    """Where torch has not ended it, which its allocator says. Its graph is kept then: the allocator still knows it."""

    def end(device, pool):
        calls.append(("end", device, pool))
        if mended:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    device = Cuda(DEVICE)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        device.capture(lambda: None)
    gc.collect()
    ended = [("end", 0, (0, 7))]
    assert calls == ["clear", *(ended if mended else [*ended, ("release", 0, (0, 7))]), "clear"]
    assert [graph() is not None for graph in Graph.made] == ([False] if mended else [True, False])
    assert gc.isenabled()
