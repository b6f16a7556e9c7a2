"""Between two network calls: no tensor operator, no tensor allocation, no host read."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pndm_fast as pf


class Operators(TorchDispatchMode):
    """Every operator that reaches the dispatcher."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 7)])
@pytest.mark.parametrize("solver", ["ddpm", "f-pndm", "plms"])
@pytest.mark.parametrize("guided", [False, True])
def test_nothing_between_calls(shape, solver, guided):
    batch = shape[0] * (2 if guided else 1)
    answer = torch.randn(batch, *shape[1:]) * 0.1
    marks = []
    with Operators() as operators:

        def network(x, t, **cond):
            marks.append(len(operators.seen))
            return answer

        arguments = {}
        if guided:
            arguments = {"cond": {"y": torch.ones(2)}, "uncond": {"y": torch.zeros(2)}, "guidance": 2.0}
        sampler = pf.Sampler(network, pf.make_plan(solver, steps=6), shape=shape)
        for _ in range(2):  # the first call learns the form of the outputs
            marks.clear()
            sampler(**arguments)
    assert len(marks) == sampler.plan.nfe
    assert operators.seen[marks[0] : marks[-1]] == []


@pytest.mark.slow
def test_no_tensor_is_made_between_calls():
    """Operators aside: no Tensor object either (views count)."""
    import gc

    answer, counts = torch.zeros(2, 3, 8, 8), []

    def network(x, t):
        counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
        return answer

    sampler = pf.Sampler(network, pf.make_plan("f-pndm", steps=6), shape=(2, 3, 8, 8))
    for _ in range(2):
        counts.clear()
        sampler()
    assert len(set(counts)) == 1
