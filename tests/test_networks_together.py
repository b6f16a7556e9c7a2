"""Several networks in one sampler, of different dtypes and devices: each is called as it wants."""

import copy
import warnings

import pytest
import torch
from drawing import draw
from network_kinds import DDIM, LABELS, SHAPE, Small
from test_network_facts import BF16, CPU, CUDA, F32, Computed, Holding, named
from test_network_kinds import ddim_loop, noise

import pndm_fast as pf


class Noting(Small):
    """Notes the dtypes of its inputs; answers in its own."""

    def __init__(self, dtype):
        super().__init__()
        self.seen = set()
        self.to(dtype)

    def forward(self, x, t, label):
        self.seen.add(x.dtype)
        return super().forward(x, t, label)


def by_hand(predict):
    """DDIM in v, with predict(i, x, t) for row i."""
    rows = iter(range(len(DDIM)))
    with torch.no_grad():
        return ddim_loop(lambda x, t: predict(next(rows), x, t).float(), noise(SHAPE))


@pytest.mark.parametrize("dtypes", [(F32, BF16), (BF16, F32), (F32, torch.float64)])
def test_each_network_is_called_in_its_own_dtype(dtypes):
    networks, cond = [Noting(dtype) for dtype in dtypes], {"label": LABELS}
    got = pf.sample(networks, solver=DDIM.with_models([0, 1, 0, 1]), shape=SHAPE, cond=cond)
    assert [net.seen for net in networks] == [{dtype} for dtype in dtypes]
    wanted = by_hand(lambda i, x, t: networks[i % 2](x.to(dtypes[i % 2]), t, LABELS))
    # one rounding to bfloat16 may go the other way
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=0.05 if BF16 in dtypes else 1e-5)
    both = [Noting(BF16), Noting(BF16)]
    draw(both, solver=DDIM.with_models([0, 1, 0, 1]), shape=SHAPE, cond=cond, dtype=BF16)
    assert all(net.seen == {BF16} for net in both)


@pytest.mark.parametrize("solver", ["plms", "f-pndm"])
def test_the_history_keeps_its_dtype_from_one_network_to_the_next(solver):
    """Past outputs in float32 stay so, though the network that reads them answers in bfloat16."""
    net = Small()
    plan = pf.make_plan(solver, steps=8)
    narrow, cond = lambda x, t, label: net(x, t, label).bfloat16(), {"label": LABELS}
    models = [0] * (len(plan) - 2) + [1] * 2
    got = pf.sample([net, narrow], solver=plan.with_models(models), start=pf.Noise(torch.ones(SHAPE)), cond=cond)
    calls = iter(models)
    alike = lambda x, t, label: net(x, t, label) if next(calls) == 0 else narrow(x, t, label).float()  # noqa: E731
    wanted = pf.sample(alike, solver=plan, start=pf.Noise(torch.ones(SHAPE)), cond=cond)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtypes", [(F32, BF16), (BF16, F32)])
def test_a_weaker_network_is_called_in_its_own_dtype(dtypes):
    strong, weak = [Noting(dtype) for dtype in dtypes]
    sampler = pf.Sampler(strong, DDIM, shape=SHAPE)
    ask = {"cond": {"label": LABELS}, "guidance": pf.Guidance(1.5, weaker=weak)}
    got = sampler(**ask)
    assert (strong.seen, weak.seen) == ({dtypes[0]}, {dtypes[1]})
    assert torch.equal(sampler(**ask), got)

    def guided(i, x, t):
        without, out = (net(x.to(dtype), t, LABELS).float() for net, dtype in ((weak, dtypes[1]), (strong, dtypes[0])))
        return without + 1.5 * (out - without)

    torch.testing.assert_close(got.double(), by_hand(guided), rtol=0, atol=0.05)


@pytest.mark.parametrize("graph", ["while", "replay"])
def test_a_graph_tells_the_time_by_name_and_a_weaker_network_in_its_dtype(stand_in, graph):
    net, weak = Small(), Noting(BF16)
    late = lambda x, label, *, timestep: net(x, timestep, label)  # noqa: E731
    ask = {"cond": {"label": LABELS}, "guidance": pf.Guidance(1.5, weaker=weak)}
    result = pf.Sampler(late, DDIM, shape=SHAPE, graph=graph).run(pf.Request(**ask))
    assert result.report.graph == graph and weak.seen == {BF16}
    assert torch.equal(result.samples, pf.Sampler(net, DDIM, shape=SHAPE, graph="eager")(**ask))


def test_a_copied_sampler_has_each_networks_own_dtype():
    networks, cond = [Small(), Noting(BF16)], {"label": LABELS}
    networks.append(lambda x, label, *, t: networks[0](x, t, label))
    sampler = pf.Sampler(networks, DDIM.with_models([0, 1, 2, 1]), shape=SHAPE)
    twin = copy.deepcopy(sampler)
    assert torch.equal(twin(cond=cond), sampler(cond=cond)) and twin.models[1].seen == {BF16}


def test_networks_are_on_one_device():
    elsewhere = Computed([F32], where=CUDA, told=F32)
    with pytest.raises(ValueError, match="model must be networks on one device, got cpu and cuda:0: device= says"):
        pf.Sampler([Small(), elsewhere], DDIM, shape=SHAPE)
    assert pf.Sampler([lambda x, t: x, Small()], DDIM, shape=SHAPE).device == CPU
    for weaker, message in (
        (elsewhere, "^weaker must be on cpu, as the sampler's network, got cuda:0"),
        (Holding([F32], device="meta"), "^device must be given for weaker, whose weights are all on the meta"),
        (Holding([F32, BF16]), "^dtype must be given for weaker, whose dtypes are several"),
        (named("t", "x"), "^weaker must take x first"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            pf.Sampler(Small(), DDIM, shape=SHAPE)(cond={"label": LABELS}, guidance=pf.Guidance(2.0, weaker=weaker))
    with pytest.raises(ValueError, match=r"^dtype must be given for model\[1\], whose dtypes are several"):
        pf.Sampler([Small(), Holding([F32, BF16])], DDIM, shape=SHAPE)
    told = pf.Sampler(Small(), DDIM, shape=SHAPE, device="cpu", dtype=F32)
    for weaker in (elsewhere, Holding([F32], device="meta"), Holding([F32, BF16])):
        told(cond={"label": LABELS}, guidance=pf.Guidance(2.0, weaker=weaker))


def test_networks_that_the_plan_does_not_call_are_told():
    """`pf.sample` alone knows the plan: a sampler's networks may be for another request."""
    networks = [lambda x, t: x * 0.5, lambda x, t: x * 0.4]
    with pytest.warns(UserWarning, match=r"the plan calls 1 of the 2 in model: Plan\.with_models"):
        pf.sample(networks, 4, solver="ddim", spacing="trailing", shape=(1, 4))
    plan = pf.make_plan("ddim", steps=4, spacing="trailing").with_models([0, 1, 0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pf.sample(networks, solver=plan, shape=(1, 4))
        pf.Sampler(networks, pf.make_plan("ddim", steps=4, spacing="trailing"), shape=(1, 4))()
