"""The same step against an expression that torch.compile makes of the same outputs."""

import pytest
import torch
from speed.harness import Side, Target, contest, skip_unless_full
from speed.steps import Steps

SHAPES = {
    "3x32x32-B1": (1, 3, 32, 32),
    "3x32x32-B16": (16, 3, 32, 32),
    "3x32x32-B256": (256, 3, 32, 32),
    "4x64x64-B1": (1, 4, 64, 64),
    "4x64x64-B16": (16, 4, 64, 64),
    "4x128x128-B1": (1, 4, 128, 128),
    "4x128x128-B16": (16, 4, 128, 128),
    "4x128x128-B96": (96, 4, 128, 128),
}


class Compiled:
    """The expression on the registers of a `Steps`, its coefficients constants: the easiest form for a compiler.

    Args:
        place: write into the buffers that ours writes, instead of allocating results.
    """

    def __init__(self, steps, place):
        r, first = steps.registers, steps.newest_slot()
        slots = [r.slots[(first - age) % 4] for age in range(4)]
        cy, c0, c1, c2, c3 = steps.weights()
        network = steps.out.dtype if r.net_in is not None else None
        out = steps.out.reshape(steps.batch, -1)

        def fresh(y, out, s1, s2, s3):
            following = cy * y + c0 * out.float() + c1 * s1.float() + c2 * s2.float() + c3 * s3.float()
            return following, out.clone(), None if network is None else following.to(network)

        def into(y, out, s1, s2, s3, slot, net_in):
            following = cy * y + c0 * out.float() + c1 * s1.float() + c2 * s2.float() + c3 * s3.float()
            slot.copy_(out)
            if net_in is not None:
                net_in.copy_(following)
            y.copy_(following)

        options = {"cpp.threads": torch.get_num_threads()}
        torch._dynamo.reset()
        self.call = torch.compile(into if place else fresh, dynamic=False, fullgraph=True, options=options)
        self.arguments = (r.y, out, *slots[1:], *((slots[0], r.net_in) if place else ()))

    def run(self, calls):
        call, arguments = self.call, self.arguments
        with torch.no_grad():
            for _ in range(calls):
                results = call(*arguments)
        if arguments[0].is_cuda:
            torch.cuda.synchronize()
        return results


def check(steps, fresh, into):
    """Ours, both compiled ones: within 1e-5, or one bfloat16 rounding where the network's dtype is that."""
    r, newest = steps.registers, steps.newest_slot()
    steps.reset()
    steps.run(1)
    expected = [None if x is None else x.clone() for x in (r.y, r.slots[newest], r.net_in)]
    steps.reset()
    results = {"fresh": fresh.run(1)}
    into.run(1)
    results["into"] = (r.y, r.slots[newest], r.net_in)
    for got in results.values():
        torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=0)
        assert torch.equal(got[1], expected[1])
        if expected[2] is not None:
            torch.testing.assert_close(got[2], expected[2], atol=1e-5, rtol=2**-7)
    steps.reset()


@pytest.mark.parametrize("network", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_step_against_inductor(benchmark, request, rounds, threads, shape, network):
    if shape != "3x32x32-B1" or threads > 1:
        skip_unless_full(request, benchmark)
    steps = Steps(SHAPES[shape], network)
    fresh, into = Compiled(steps, False), Compiled(steps, True)
    check(steps, fresh, into)
    rivals = {"inductor": Side(fresh.run, steps.reset), "inductor-in-place": Side(into.run, steps.reset)}
    contest(benchmark, steps.side(), rivals, Target(1.0), rounds=rounds, moved=steps.moved())
