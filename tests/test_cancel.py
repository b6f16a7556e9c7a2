"""`Cancel`: another thread ends a call; nothing computed is lost."""

import threading

import pytest
import torch
from drawing import draw
from sampler_case import Pointwise

import pndm_fast as pf

SHAPE = (2, 3, 4, 4)
pytestmark = pytest.mark.filterwarnings("ignore:the grid starts")


class CancelsAt(Pointwise):
    """Sets the flag in its n-th call, as another thread would meanwhile."""

    def __init__(self, call, cancel):
        self.call, self.cancel, self.calls = call, cancel, 0

    def __call__(self, x, t):
        self.calls += 1
        if self.calls == self.call:
            self.cancel.set()
        return super().__call__(x, t)


def states(plan):
    kept = []
    draw(Pointwise(), solver=plan, shape=SHAPE, on_step=lambda step: kept.append(step.state))
    return kept


def test_ends_with_the_row_under_way():
    plan, cancel = pf.make_plan("f-pndm", steps=6), pf.Cancel()
    network = CancelsAt(3, cancel)
    with pytest.raises(pf.Cancelled) as error:
        draw(network, solver=plan, shape=SHAPE, cancel=cancel)
    assert error.value.index == 2 and network.calls == 3 and error.value.x0 is None
    assert torch.equal(error.value.state, states(plan)[2])


def test_from_another_thread():
    cancel, called = pf.Cancel(), threading.Event()

    def network(x, t):
        called.set()
        return x * 0.5

    threading.Thread(target=lambda: called.wait() and cancel.set(), daemon=True).start()
    with pytest.raises(pf.Cancelled):
        draw(network, 1000, solver="ddim", shape=(1, 4096), cancel=cancel)


def test_unset_changes_nothing_and_the_last_row_is_a_result():
    plan = pf.make_plan("ddim", steps=4)
    wanted = pf.sample(Pointwise(), solver=plan, shape=SHAPE)
    cancel = pf.Cancel()
    assert torch.equal(draw(Pointwise(), solver=plan, shape=SHAPE, cancel=cancel), wanted)
    assert torch.equal(draw(CancelsAt(4, cancel), solver=plan, shape=SHAPE, cancel=cancel), wanted)
    assert cancel.is_set()


def test_linked_flags_follow():
    cancel, flag = pf.Cancel(), torch.zeros(1, dtype=torch.int32)
    with cancel.linked(flag):
        assert flag.item() == 0
        cancel.set()
        assert flag.item() == 1
    assert flag.item() == 0
    with cancel.linked(flag):
        assert flag.item() == 1


def test_another_kind_of_object():
    with pytest.raises(TypeError, match="cancel must be a Cancel, got Event"):
        draw(Pointwise(), 4, solver="ddim", shape=SHAPE, cancel=threading.Event())
