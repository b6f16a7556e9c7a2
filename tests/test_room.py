"""Rows with much history, with both outputs of guidance, with factors and times of their own, against plain loops."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

import pndm_fast as pf
from pndm_fast.phase_space import PSLD
from pndm_fast.plan.levels import Level, Levels
from pndm_fast.plan.row import ANCHOR, MAX_SLOTS, PHASE_SLOTS, SLOT, STATE, Row
from pndm_fast.plan.stability import gaussian_spread
from pndm_fast.row import table

SHAPE = (3, 7)
SIGMAS = [80.0, 21.0, 6.0, 2.2, 0.7, 0.2, 0.05, 0.0]


def network(x, t, shift):
    """An estimate of x_0 that depends on everything."""
    return torch.tanh(x * 0.3 + shift.view(-1, 1)) * 0.8 + torch.sin(t.view(-1, 1) * 0.01) * 0.1 + x * 0.05


def said(x, t, shift):
    return network(x, torch.full((len(x),), t, dtype=torch.float64), shift)


def inputs():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    cond, uncond = (torch.randn(SHAPE[0], generator=generator, dtype=torch.float64) for _ in range(2))
    return x, cond, uncond


def drawn(plan, x, cond, uncond=None, guidance=None, **options):
    sampler = pf.Sampler(network, plan, shape=SHAPE, dtype=x.dtype)
    trees = {"cond": {"shift": cond}} | ({} if uncond is None else {"uncond": {"shift": uncond}})
    return sampler(start=pf.State(x), guidance=guidance, **trees, **options)


def euler_cfgpp(levels):
    """DDIM whose rows carry what takes CFG++'s scale to their own. Chung et al. 2024, arXiv:2406.08070, algorithm 2."""
    rows = []
    for i, (now, then) in enumerate(zip(levels, levels[1:], strict=False)):
        on_y = then.sigma / now.sigma
        on_d = then.alpha - on_y * now.alpha
        factor = then.alpha / on_d
        rows.append(
            Row(t=100.0 * i, slot=0, y=tuple(on_y * STATE + on_d * SLOT[0]), levels=Levels(now, then, then),
                x=tuple(on_y * STATE + on_d * SLOT[0]), guidance_factor=factor, preview=(0.0, 1.0))
        )  # fmt: skip
    return pf.Plan(tuple(rows), "euler-cfg++", len(rows), "x0")


VP = [Level(math.cos(a), math.sin(a)) for a in np.linspace(1.5, 0.0, 9)]


@pytest.mark.parametrize("scale", [0.6, 1.0, 2.0])
@pytest.mark.parametrize("calls", ["batched", "separate"])
def test_euler_cfgpp_is_its_loop(scale, calls):
    x, cond, uncond = inputs()
    got = drawn(euler_cfgpp(VP), x, cond, uncond, pf.Guidance(scale, calls=calls))
    y = x
    for i, (now, then) in enumerate(zip(VP, VP[1:], strict=False)):
        without, guided = (said(y, 100.0 * i, c) for c in (uncond, cond))
        guided = without + scale * (guided - without)
        y = then.alpha * guided + then.sigma * (y - now.alpha * without) / now.sigma
    torch.testing.assert_close(got, y, rtol=1e-13, atol=1e-13)


def test_a_plan_with_factors_has_scale_one_by_itself_and_outside_an_interval():
    x, cond, uncond = inputs()
    plan = euler_cfgpp(VP)
    assert torch.equal(drawn(plan, x, cond, uncond), drawn(plan, x, cond, uncond, 1.0))
    with pytest.raises(ValueError, match="must have uncond"):
        drawn(plan, x, cond)
    factors = [row.guidance_factor for row in plan]
    assert [row.guidance for row in plan.with_guidance(3.0).with_guidance(2.0)] == [2 * f for f in factors]
    ratios = [level.sigma / level.alpha for level in VP[:-1]]
    inside = [0.5 < r <= 3 for r in ratios]
    assert {True, False} == set(inside)
    wanted = [f * (2 if i else 1) for f, i in zip(factors, inside, strict=True)]
    assert [row.guidance for row in plan.with_guidance(2.0, (0.5, 3))] == wanted
    assert pf.Plan.from_json(plan.to_json()) == plan and "guidance_factor" in str(plan.to_json())
    assert f"guidance {2 * factors[0]:.6g} = {factors[0]:.6g} scale" in str(plan.with_guidance(2.0))


def two_m_cfgpp(sigmas):
    """DPM-Solver++(2M) in CFG++'s form: the direction is the unconditional output's, and so is the one before."""
    rows, times = [], [100.0 * i for i in range(len(sigmas) - 1)]
    for i, (s, then) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        now, before = 1 + i % 2, 2 - i % 2
        decay = then / s
        form = decay * STATE + SLOT[0] - decay * SLOT[now]
        if i and then:
            ratio = math.log(sigmas[i - 1] / s) / math.log(s / then)
            c = (decay - 1) / (2 * ratio)
            form = form - c * SLOT[0] + c * SLOT[before]
        levels = Levels(Level(1.0, s), *[Level(1.0, then)] * 2)
        rows.append(
            Row(t=times[i], slot=0, second=now, y=tuple(form), x=tuple(form), levels=levels, preview=(0.0, 1.0))
        )
    return pf.Plan(tuple(rows), "dpmpp-2m-cfg++", len(rows), "x0")


def two_m_loop(x, outputs):
    """x' = D_g - e^-h D_u + e^-h x - expm1(-h) / (2r) (D_g - D_u,before), sigma = e^-lambda; outputs(i, sigma, x)."""
    before = None
    for i, (s, then) in enumerate(zip(SIGMAS, SIGMAS[1:], strict=False)):
        without, guided = outputs(i, s, x)
        h = math.log(s / then) if then else math.inf
        x = guided - math.exp(-h) * without + math.exp(-h) * x
        if i and then:
            x = x - math.expm1(-h) / (2 * math.log(SIGMAS[i - 1] / s) / h) * (guided - before)
        before = without
    return x


@pytest.mark.parametrize("scale", [1.0, 1.7])
@pytest.mark.parametrize("calls", ["batched", "separate"])
def test_two_m_cfgpp_is_its_loop(scale, calls):
    x, cond, uncond = inputs()
    x = x * SIGMAS[0]
    got = drawn(two_m_cfgpp(SIGMAS), x, cond, uncond, pf.Guidance(scale, calls=calls))

    def outputs(i, sigma, y):
        without, guided = (said(y, 100.0 * i, c) for c in (uncond, cond))
        return without, without + scale * (guided - without)

    torch.testing.assert_close(got, two_m_loop(x, outputs), rtol=1e-13, atol=1e-12)


def full_history(calls, seed=0):
    """y <- A x + sum of B_j D_j over every call so far, x never rewritten: the form of fitted plans."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.3, 0.9, calls), np.tril(rng.uniform(-0.5, 0.5, (calls, calls)))
    told = np.linspace(900, 20, calls) + rng.uniform(-9, 9, calls)
    levels = [Level(math.cos(u), math.sin(u)) for u in np.linspace(1.4, 0.1, calls + 1)]
    rows = [
        Row(t=told[i], slot=i, y=tuple(a[i] * ANCHOR + sum(b[i, j] * SLOT[j] for j in range(i + 1))),
            levels=Levels(levels[i], levels[0], levels[i + 1]))
        for i in range(calls)
    ]  # fmt: skip
    return pf.Plan(tuple(rows), "fitted", calls, "x0"), a, b, told


@pytest.mark.parametrize("calls", [3, 7, 10, MAX_SLOTS])
def test_a_full_history_is_its_loop(calls):
    plan, a, b, told = full_history(calls)
    x, cond, _ = inputs()
    got = drawn(plan, x, cond)
    y, outputs = x, []
    for i in range(calls):
        outputs.append(said(y, told[i], cond))
        y = a[i] * x + sum(b[i, j] * outputs[j] for j in range(i + 1))
    torch.testing.assert_close(got, y, rtol=1e-13, atol=1e-13)
    assert plan.n_slots == calls and pf.Plan.from_json(plan.to_json()) == plan
    narrow = drawn(plan, x.float(), cond.float())
    torch.testing.assert_close(narrow.double(), y, rtol=1e-4, atol=1e-5)


PLANS = {
    "history": (full_history(10)[0], False),
    "both outputs": (two_m_cfgpp(SIGMAS), True),
    "factors": (euler_cfgpp(VP), True),
}


@pytest.mark.parametrize("mode", ["while", "replay"])
@pytest.mark.parametrize("name", PLANS)
def test_a_graph_has_eagers_bits_and_every_backend_the_references(name, mode, stand_in):
    plan, guided = PLANS[name]
    x, cond, uncond = (tensor.float() for tensor in inputs())
    arguments = {"start": pf.State(x), "cond": {"shift": cond}}
    arguments |= {"uncond": {"shift": uncond}, "guidance": 1.5} if guided else {}
    results = []
    for graph, backend in (("eager", "reference"), ("eager", "cpp"), ("eager", "triton"), (mode, "cpp")):
        sampler = pf.Sampler(network, plan, shape=SHAPE, graph=graph, backend=backend)
        for _ in range(2):
            result = sampler.run(pf.Request(**arguments))
        assert result.report.graph == graph
        results.append(result.samples)
    # a short plan beside it has the bits that it has alone
    short = pf.make_plan("ddim", steps=4, prediction="x0")
    request = {"start": pf.State(x), "cond": {"shift": cond}, "seeds": 1}
    alone = pf.Sampler(network, short, shape=SHAPE)(**request)
    beside = pf.Sampler(network, shape=SHAPE, graph=mode)(plan=[short, plan, short], **arguments)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert torch.equal(beside[1], results[0][1])
    assert guided or torch.equal(beside[::2], alone[::2])


def test_times_that_are_told():
    plan = pf.make_plan("ddim", pf.Schedule.flow(), steps=7, prediction="flow")
    seen = []

    def watching(x, t):
        seen.append(t[0].item())
        return x * 0.5

    told = plan.with_times(math.trunc)
    assert [row.levels for row in told] == [row.levels for row in plan] and told.times != plan.times
    pf.Sampler(watching, told, shape=(1, 4), time_dtype=torch.int64)()
    assert seen == [math.trunc(t) for t in plan.times]
    assert plan.with_times(range(7)).times == tuple(range(7))
    with pytest.raises(ValueError, match="times must be one for each of the 7 rows, got 6"):
        plan.with_times(range(6))


def test_what_a_row_cannot_hold():
    row = two_m_cfgpp(SIGMAS).rows[0]
    for second, name in ((0, "a slot of its own"), (MAX_SLOTS, rf"in \[0, {MAX_SLOTS}\)"), (True, "in"), (-1, "in")):
        with pytest.raises(ValueError, match=f"second must be (a slot )?{name}"):
            replace(row, second=second)
    matrix = ((1.0, 0.0), (0.5, 1.0))
    with pytest.raises(ValueError, match=rf"slot must be a slot in \[0, {PHASE_SLOTS}\), got 6"):
        replace(row, in_scale=matrix, second=None, slot=6)
    with pytest.raises(ValueError, match="second must be a slot of its own, of rows of numbers"):
        replace(row, in_scale=matrix)
    x, cond, uncond = inputs()
    with pytest.raises(ValueError, match=r"rescale must be 0 with a plan .*, got 0\.5"):
        drawn(two_m_cfgpp(SIGMAS), x, cond, uncond, pf.Guidance(2.0, rescale=0.5))


def test_a_clip_and_a_preview_of_both_outputs_are_the_loops():
    x, cond, uncond = inputs()
    x, plan, seen = x * SIGMAS[0], two_m_cfgpp(SIGMAS).with_clip(0.5), []
    got = drawn(plan, x, cond, uncond, 1.7, on_step=lambda step: seen.append(step.x0))

    def outputs(i, sigma, y):
        without, guided = (said(y, 100.0 * i, c) for c in (uncond, cond))
        guided, without = (v.clamp(-0.5, 0.5) for v in (without + 1.7 * (guided - without), without))
        torch.testing.assert_close(seen[i], guided, rtol=1e-12, atol=1e-12)
        return without, guided

    torch.testing.assert_close(got, two_m_loop(x, outputs), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="its guidance is a factor's"):
        euler_cfgpp(VP).with_clip(1.0)
    assert gaussian_spread(two_m_cfgpp(SIGMAS)) == pytest.approx(1.0, abs=0.05)


def test_both_outputs_with_a_weaker_network_and_in_an_interval():
    x, cond, uncond = inputs()
    x, plan = x * SIGMAS[0], two_m_cfgpp(SIGMAS)

    def weaker(x, t, shift):
        return 0.7 * network(x, t, shift)

    got = drawn(plan, x, cond, uncond, pf.Guidance(1.7, interval=(0.3, 10.0), weaker=weaker))

    def outputs(i, sigma, y):
        without, guided = 0.7 * said(y, 100.0 * i, uncond), said(y, 100.0 * i, cond)
        return without, without + (1.7 if 0.3 < sigma <= 10 else 1.0) * (guided - without)

    torch.testing.assert_close(got, two_m_loop(x, outputs), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("name", PLANS)
def test_a_prepared_batch_and_a_pickle(name):
    plan, guided = PLANS[name]
    x, cond, uncond = (tensor.float() for tensor in inputs())
    arguments = {"start": pf.State(x), "cond": {"shift": cond}}
    arguments |= {"uncond": {"shift": uncond}, "guidance": 1.5} if guided else {}
    wanted = pf.Sampler(network, plan, shape=SHAPE)(**arguments)
    ours = pf.Sampler(network, pickle.loads(pickle.dumps(plan)), shape=SHAPE)
    ours.prepare([5], pf.Request(**arguments))
    assert torch.equal(ours(**arguments), wanted)


@pytest.mark.filterwarnings("ignore:the grid starts")
def test_a_plan_that_needs_room_is_refused_where_there_is_none():
    """Beside a plan of 2x2 matrices, whose lines hold six slots, and in such a plan itself; before any network call."""
    phase = pf.make_plan("conjugate", PSLD(), steps=8)
    sampler = pf.Sampler(lambda x, t: pytest.fail("called"), shape=(2, 4, 4))
    for plan in [replace(p, prediction=phase.prediction) for p in (full_history(10)[0], two_m_cfgpp(SIGMAS))]:
        arguments = {"cond": {"y": 1}, "uncond": {"y": 0}} if plan.guided else {}
        with pytest.raises(ValueError, match="with a phase-space one must have at most 6 slots"):
            sampler(plan=[phase, plan], **arguments)
        with pytest.raises(ValueError, match="layout must hold"):
            table.lines(plan)
    matrix = ((1.0, 0.0), (0.5, 1.0))
    rows = list(two_m_cfgpp(SIGMAS).rows)
    with pytest.raises(ValueError, match="a plan of 2x2 matrices must have slots in"):
        pf.Plan((*rows[:-1], replace(rows[-1], second=None, in_scale=matrix)))


def test_guidance_is_the_factors_where_none_is_given():
    row = euler_cfgpp(VP).rows[0]
    assert row.guidance == row.guidance_factor != 1 and replace(row, guidance=2.0).guidance == 2.0
    with pytest.raises(ValueError, match="finite"):
        replace(row, guidance_factor=math.nan)
    with pytest.raises(ValueError, match="rescale must be 0"):
        x, cond, uncond = inputs()
        drawn(euler_cfgpp(VP), x, cond, uncond, pf.Guidance(2.0, rescale=0.5))
    plan = full_history(3)[0]
    for wrong, kind in ((None, TypeError), ("123", TypeError), ([1, 2, "3"], ValueError), (lambda t: None, ValueError)):
        with pytest.raises(kind, match="times must be"):
            plan.with_times(wrong)
