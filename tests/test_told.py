"""Networks that carry their schedule and prediction: defaults, and what contradicts them."""

from __future__ import annotations

import functools
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.loop.told import told_schedule
from pndm_fast.phase_space import PSLD
from pndm_fast.plan.agree import departure, same_levels
from pndm_fast.solvers import SOLVER_INFO
from pndm_fast.solvers.compat import COMPAT

FLAT = {
    "linear": pf.Schedule.linear(),
    "scaled": pf.Schedule.scaled_linear(),
    "cosine": pf.Schedule.cosine(),
    "sigmoid": pf.Schedule.sigmoid(),
    "short": pf.Schedule.linear(100),
    "steep": pf.Schedule.linear(beta_end=0.025),
    "zero": pf.Schedule.linear().zero_terminal_snr(),
    "vp": pf.Schedule.vp(),
    "edm": pf.Schedule.edm(),
    "flow": pf.Schedule.flow(),
    "flow of 1000": pf.Schedule.flow(3.0, 1000),
}
PHASE = {
    "psld": PSLD(),
    "cld": PSLD(gamma=0.0),
    "beta": PSLD(beta=(0.2, 15.0)),
    "scaled": PSLD(time_scale=1000.0),
    "wide": PSLD(time_scale=1000.0).preconditioned(1.0),
    "narrow": PSLD(time_scale=1000.0).preconditioned(0.5),
}
ALL = [*FLAT.values(), *PHASE.values()]


class Net(nn.Module):
    """eps = x / 2, with facts about itself."""

    def __init__(self, **facts):
        super().__init__()
        self.calls = 0
        for name, value in facts.items():
            setattr(self, name, value)

    def forward(self, x, t):
        self.calls += 1
        return x / 2


@functools.cache
def plan_of(schedule, solver=None, steps=20):
    if solver is None:
        solver = "conjugate" if isinstance(schedule, PSLD) else "dpmpp-2m"
    phase = isinstance(schedule, PSLD)
    return pf.make_plan(
        solver, schedule, steps=steps, prediction="eps" if phase or schedule.alpha(schedule.last) else "v"
    )


@pytest.mark.parametrize("own", ALL, ids=lambda one: one.name)
def test_each_schedule_agrees_with_itself_alone(own):
    plans = [plan_of(schedule) for schedule in ALL]
    assert [same_levels(schedule, own) for schedule in ALL] == [schedule is own for schedule in ALL]
    near = {id(FLAT["zero"]), id(FLAT["linear"]), id(FLAT["steep"])}  # some rows of long plans are within NEAR
    for schedule, plan in zip(ALL, plans, strict=True):
        if schedule is own or not {id(schedule), id(own)} <= near:
            assert (departure(plan, own) is None) == (schedule is own), schedule.name


@pytest.mark.parametrize(
    "one, other",
    [
        (pf.Schedule.linear().interpolate("sigma"), FLAT["linear"]),
        (pf.Schedule.from_betas(np.linspace(1e-4, 0.02, 1000, dtype=np.float32)), FLAT["linear"]),
        (pf.Schedule.edm(sigma_max=14.6), FLAT["edm"]),
        (pf.Schedule.flow(shift=2.0), FLAT["flow"]),
        (PSLD(time_scale=1000.0).preconditioned(1.0), PHASE["wide"]),
    ],
    ids=["interpolated", "float32 table", "a part of the times", "another shift", "made again"],
)
def test_the_same_levels_are_no_contradiction(one, other):
    assert same_levels(one, other) and same_levels(other, one)
    assert departure(plan_of(one), other) is None and departure(plan_of(other, steps=5), one) is None


@pytest.mark.filterwarnings("ignore:.* diverges in")
@pytest.mark.parametrize(
    "own", [FLAT["linear"], FLAT["edm"], FLAT["flow of 1000"], PHASE["wide"]], ids=lambda s: s.name
)
def test_plans_of_every_solver_agree_with_their_schedule(own):
    space = "phase" if isinstance(own, PSLD) else "scalar"
    made = 0
    for name in [name for name, info in SOLVER_INFO.items() if info.space in (space, "both")]:
        try:
            plan = plan_of(own, name, 13)
        except ValueError:  # not a solver for this schedule
            continue
        made += 1
        assert departure(plan, own) is None, name
    assert made > 12


@pytest.mark.slow
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_plans_equal_to_diffusers_agree(spacing):
    """Its grids tell the network times that are rounded, or a neighbor's."""
    made = 0
    for name in COMPAT["diffusers"]:
        for own in (FLAT["linear"], FLAT["scaled"], FLAT["flow of 1000"]):
            for options in ({}, {"sigma_spacing": "karras"}):
                try:
                    plan = pf.make_plan(name, own, steps=11, spacing=spacing, compat="diffusers", **options)
                except (ValueError, TypeError, ZeroDivisionError):
                    continue
                made += 1
                assert departure(plan, own) is None, (name, own.name, options)
    assert made > 20


def test_a_network_of_its_own_facts_is_sampled_by_them():
    own = pf.Schedule.cosine()
    words = {"shape": (2, 3), "steps": 9, "solver": "ddim", "spacing": "trailing"}
    expected = pf.sample(lambda x, t: x / 2, schedule=own, prediction="v", **words)
    told = Net(schedule=own, prediction="v")
    alike = [told, nn.DataParallel(told).eval(), functools.partial(told), [told]]
    for model in (told.eval(), *alike):
        assert torch.equal(pf.sample(model, **words), expected)
    assert torch.equal(pf.sample(Net(prediction="v").eval(), schedule=own, **words), expected)
    assert torch.equal(pf.sample(Net(schedule=own).eval(), prediction="v", **words), expected)


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, functools.partial, lambda net: [net]])
@pytest.mark.parametrize(
    "words, message",
    [
        ({"prediction": "v"}, "prediction must be the network's own, 'eps', got 'v'"),
        ({"schedule": pf.Schedule.edm()}, "schedule must be the network's own, linear, got edm"),
        ({"schedule": pf.Schedule.linear(100)}, "schedule must be the network's own, linear, got linear of other"),
        ({"solver": "rvv"}, "solver must be one of"),
        ({"solver": plan_of(FLAT["edm"])}, "schedule must be the network's own, linear, got a plan whose row 0 tells"),
        ({"solver": plan_of(FLAT["scaled"], "f-pndm")}, "schedule must be the network's own, linear, got a plan"),
        ({"solver": plan_of(PHASE["psld"])}, "linear, got a plan whose states have two parts"),
        (
            {"solver": pf.make_plan("ddim", prediction="flow")},
            "prediction must be the network's own, 'eps', got 'flow'",
        ),
        (
            {"solver": pf.make_plan("heun", FLAT["edm"], prediction="edm")},
            "prediction must be the network's own, 'eps', got 'edm'",
        ),
    ],
)
def test_contradictions_are_refused_before_the_first_call(words, message, wrap):
    net = Net(schedule=FLAT["linear"], prediction="eps").eval()
    with pytest.raises(ValueError, match=message), warnings.catch_warnings(action="ignore"):
        pf.sample(wrap(net), shape=(2, 4), **words)
    assert net.calls == 0


def test_every_network_of_a_plan_is_asked():
    plan = plan_of(FLAT["linear"], steps=4)
    good, bad = Net(schedule=FLAT["linear"]).eval(), Net(prediction="x0").eval()
    with pytest.raises(ValueError, match="prediction must be the network's own, 'x0', got 'eps'"):
        pf.Sampler([good, bad], plan.with_models([0, 0, 1, 1]), shape=(1, 2))()
    pf.Sampler([good, bad], plan, shape=(1, 2))()  # no row calls the second
    sampler = pf.Sampler(good, plan, shape=(1, 2))
    sampler(guidance=pf.Guidance(2.0, weaker=Net().eval()))
    with pytest.raises(ValueError, match="prediction must be"):
        sampler(guidance=pf.Guidance(2.0, weaker=bad))
    with pytest.raises(ValueError, match="prediction must be"):
        pf.Thresholded(bad, plan)
    wrapped = pf.Thresholded(Net(schedule=FLAT["cosine"]).eval(), plan_of(FLAT["cosine"], steps=4))
    assert told_schedule(wrapped) is FLAT["cosine"] and wrapped.prediction == "eps"


def test_only_a_schedule_and_a_word_are_facts():
    """Heads and methods of these names are a network's own affair; a word that is not known is refused."""
    net = Net(schedule=torch.zeros(3), prediction=nn.Linear(2, 2)).eval()
    assert pf.sample(net, 5, solver="ddim", schedule=FLAT["edm"], prediction="v", shape=(1, 2)).shape == (1, 2)
    with pytest.raises(ValueError, match="attribute prediction must be one of .*'epsilon'; did you mean 'eps'"):
        pf.sample(Net(prediction="epsilon").eval(), 5, shape=(1, 2))
    silent = Net(schedule=FLAT["linear"], prediction="eps").eval()
    meant = pf.sample(lambda x, t: silent(x, t), 5, solver="ddim", prediction="v", schedule=FLAT["vp"], shape=(1, 2))
    assert meant.shape == (1, 2)


def test_the_packaged_networks_know_what_they_are():
    vp, phase = demo.mnist_unet(), demo.mnist_psld_unet()
    assert (vp.schedule, vp.prediction) == (pf.Schedule.linear(), "eps")
    assert (phase.schedule, phase.prediction) == (demo.psld, "eps")
    assert pickle.loads(pickle.dumps(phase)).schedule is demo.psld
    with pytest.raises(ValueError, match="schedule must be the network's own, linear, got edm"):
        pf.sample(vp, schedule=pf.Schedule.edm())
    vp.process = None  # trained further, on something else
    assert vp.schedule is vp.prediction is None
    mixture = demo.gaussian_mixture(FLAT["edm"], prediction="x0")
    with pytest.raises(ValueError, match="prediction must be the network's own, 'x0', got 'eps'"):
        pf.sample(mixture, shape=(1, 2), prediction="eps")
