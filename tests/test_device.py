"""Copies between host and device as a GPU has them, in order, on the CPU."""

import numpy as np
import pytest
import torch

from pndm_fast.row import device


class Memory:
    """A tensor that says it is on a GPU, and notes what is asked of it."""

    is_cuda = True

    def __init__(self, values, log):
        self.values, self.log, self.shape = values, log, values.shape
        self.dtype, self.device = values.dtype, torch.device("cuda", 1)

    def copy_(self, source, non_blocking=False):
        self.log.append(("copy", non_blocking))
        self.values.copy_(source)


class Event:
    def __init__(self, log):
        self.log = log

    def record(self, stream):
        self.log.append(("record", stream))

    def synchronize(self):
        self.log.append("synchronize")


@pytest.fixture
def log(monkeypatch):
    """Pinned memory is the host's own here."""
    log, empty = [], torch.empty

    def pinned(*arguments, pin_memory=False, **options):
        log.append(("empty", pin_memory, options.get("device")))
        return Host(empty(*arguments, **options), log)

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.cuda, "Event", lambda: Event(log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda where: f"of {where}")
    return log


class Host:
    """Of pinned memory what is used of it."""

    def __init__(self, values, log):
        self.values, self.log = values, log

    def numpy(self):
        return self.values.numpy()

    def copy_(self, source, non_blocking=False):
        self.log.append(("copy", non_blocking))
        self.values.copy_(source.values)

    def tolist(self):
        self.log.append("read")
        return self.values.tolist()

    def __torch_function__(self, *_):
        raise AssertionError("nothing else is asked of it")


def test_what_is_staged_goes_up_once_when_it_is_written(log, monkeypatch):
    memory = Memory(torch.zeros(5, dtype=torch.uint8), log)
    memory.copy_ = lambda source, non_blocking: (log.append(("copy", non_blocking)), memory.values.copy_(source.values))
    with device.staged(memory) as host:
        host[:] = np.arange(5)
        assert log == [("empty", True, "cpu")] and not memory.values.any()
    assert log[1:] == [("copy", True)] and memory.values.tolist() == [0, 1, 2, 3, 4]


def test_what_is_fetched_is_read_after_its_event(log):
    first, second = (Memory(torch.tensor(values), log) for values in ([1, 2], [0.5]))
    wait = device.fetch(first, second)
    pinned = ("empty", True, "cpu")
    assert log == [pinned, pinned, ("copy", True), ("copy", True), ("record", "of cuda:1")]
    first.values.zero_()  # the buffers are somebody else's by now
    log.clear()
    assert wait() == [[1, 2], [0.5]] and log == ["synchronize", "read", "read"]
