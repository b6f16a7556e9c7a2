"""DPM-Solver-3 against its paper, arXiv:2206.00927: algorithm 2's weights and its loop."""

import mpmath
import numpy as np
import pytest
import torch
from drawing import draw
from golden_data import mixture, relative
from hypothesis import given
from hypothesis import strategies as st
from oracle import probability_flow

import pndm_fast as pf
from pndm_fast.solvers.dpm import Exponential, singlestep

VP = pf.Schedule.vp()
STEP = st.floats(0.3, 2.0)


def at(lams):
    return [float(t) for t in VP.time_at(np.array(lams))]


def weights(levels):
    """(x, eps_t, eps_1, eps_2) of u_1, u_2 and x_s from the four levels of one group, in 50 digits.

    Algorithm 2 with D_1 = eps_1 - eps_t and D_2 = eps_2 - eps_t.
    """
    with mpmath.workdps(50):
        alpha, sigma = zip(*[(mpmath.mpf(a), mpmath.mpf(s)) for a, s in levels], strict=True)
        lam = [mpmath.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
        h = lam[3] - lam[0]
        r1, r2 = (lam[1] - lam[0]) / h, (lam[2] - lam[0]) / h
        g1, g2, g3 = (mpmath.expm1(part * h) for part in (r1, r2, 1))
        slope = sigma[2] * (r2 / r1) * (g2 / (r2 * h) - 1)
        end = sigma[3] / r2 * (g3 / h - 1)
        forms = (
            (alpha[1] / alpha[0], -sigma[1] * g1, 0, 0),
            (alpha[2] / alpha[0], -sigma[2] * g2 + slope, -slope, 0),
            (alpha[3] / alpha[0], -sigma[3] * g3 + end, 0, -end),
        )
        return [[float(w) for w in form] for form in forms]


def ours(row):
    """The same weights of a row, whose state is the anchor at the group's start."""
    return [row.y[0] + row.y[1], *row.y[2:5]]


def test_the_second_stage():
    """With half of the slope in place of its integral the weight of eps_1 would be -5.99618."""
    plan = pf.SOLVERS["dpm-solver-3"](VP, at([-3, -2, -1, 0]))
    assert plan.rows[1].y[3] == pytest.approx(-4.119163821490444, rel=1e-13)


@given(
    start=st.floats(-4.0, 1.0),
    first=st.lists(STEP, min_size=3, max_size=3),
    second=st.lists(STEP, min_size=3, max_size=3),
)
def test_the_paper_s_weights(start, first, second):
    """On any grid, to the rounding of lam: both groups, all three calls of each."""
    times = at(np.cumsum([start, *first, *second]))
    if len(set(times)) < 7:  # the schedule has ended
        return
    plan = pf.SOLVERS["dpm-solver-3"](VP, times)
    levels = [row.levels.call for row in plan.rows] + [plan.rows[-1].levels.y]
    for group in (0, 3):
        for row, wanted in zip(plan.rows[group : group + 3], weights(levels[group : group + 4]), strict=True):
            np.testing.assert_allclose(ours(row), wanted, rtol=0, atol=1e-14 * max(map(abs, wanted)))


def loop(network, x, groups):
    """Algorithm 2, its last groups DPM-Solver-2 and 1 (algorithm 1, eq. 4.1), on explicit times."""
    level = lambda t: (float(VP.alpha(t)), float(VP.sigma(t)), float(VP.lam(t)))  # noqa: E731
    for times in groups:
        t, *stages, s = times
        (a0, _, l0), (a, sigma, lam) = level(t), level(s)
        h, eps = lam - l0, network(x, t)
        if not stages:
            x = a / a0 * x - sigma * np.expm1(h) * eps
            continue
        a1, s1, l1 = level(stages[0])
        r1 = (l1 - l0) / h
        d1 = network(a1 / a0 * x - s1 * np.expm1(r1 * h) * eps, stages[0]) - eps
        if len(stages) == 1:
            x = a / a0 * x - sigma * np.expm1(h) * (eps + d1 / (2 * r1))
            continue
        a2, s2, l2 = level(stages[1])
        r2 = (l2 - l0) / h
        u2 = a2 / a0 * x - s2 * np.expm1(r2 * h) * eps - s2 * r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1) * d1
        d2 = network(u2, stages[1]) - eps
        x = a / a0 * x - sigma * np.expm1(h) * eps - sigma / r2 * (np.expm1(h) / h - 1) * d2
    return x


@pytest.mark.parametrize("sizes", [(3,), (3, 3, 1), (3, 3, 2)])
def test_the_paper_s_loop(sizes):
    """Groups of equal length in lam, a call a part: with orders 3, 3, 1 or 2 this is k-diffusion's dpm_fast too."""
    ends = np.linspace(-4.0, 4.0, len(sizes) + 1)
    groups = [at(np.linspace(a, b, size + 1)) for a, b, size in zip(ends[:-1], ends[1:], sizes, strict=True)]
    network = mixture(VP)
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = [groups[0][0], *(t for group in groups for t in group[1:])]
    plan = pf.SOLVERS["dpm-solver-3"](VP, times)
    wanted = loop(lambda y, t: network(y, torch.full((3,), t, dtype=torch.float64)), x, groups)
    assert relative(draw(network, solver=plan, start=pf.State(x)), wanted) < 1e-12


@pytest.mark.slow
def test_nearer_than_with_half_of_the_slope():
    """RMS to the flow, log-SNR grid: 0.84 and 0.148 at 9 and 12 calls, where the half makes 1.66 and 0.199."""
    x = torch.randn(256, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = mixture(VP)
    end = probability_flow(network, VP, x, rtol=1e-6, atol=1e-8)
    for calls, most, half in ((9, 0.9, 1.5), (12, 0.16, 0.19)):
        right = pf.make_plan("dpm-solver-3", VP, nfe=calls, spacing="logsnr")
        rows = Exponential("dpm-solver-3", VP, [*right.times, 0.0], "eps", "eps")
        sizes = [3] * ((calls - 1) // 3) + [2, 1]
        plans = right, singlestep(rows, sizes, halved=True)
        errors = [float((draw(network, solver=p, start=pf.Noise(x)) - end).square().mean().sqrt()) for p in plans]
        assert errors[0] < most and errors[1] > half
