"""Iterations on the fake driver."""

import gc

import torch
from fake_cuda import FakeDriver

from pndm_fast import _C

STREAM = 77
CANCELABLE = 1 << 30  # in the budget word


def checked_driver():
    """For a fixture: a fake driver in which the test must leave nothing alive."""
    driver = FakeDriver()
    yield driver
    driver.raised.clear()  # their tracebacks hold what the test held
    gc.collect()
    assert driver.live == {}


class Words:
    """The control words of a loop, and how often its body ran."""

    def __init__(self, active=1):
        self.values = torch.tensor([active, -7, 0], dtype=torch.int32)
        self.ran = 0

    def count(self):
        self.ran += 1

    @property
    def addresses(self):
        start = self.values.data_ptr()
        return {"active": start, "budget": start + 4, "cancel": start + 8}


def loop(fake, words, *calls):
    graph = fake.graph(words.count, *calls)
    return _C.Iteration(_C.Driver(fake.path), graph, **words.addresses)
