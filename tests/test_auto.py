"""`solver="auto"`: what it takes, and that the committed measurement agrees."""

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.cli import app as cli
from pndm_fast.phase_space import PSLD
from pndm_fast.solvers.auto import recommend

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "quality"
IN_PHASE_SPACE = ROOT / "benchmarks" / "results" / "phase" / "mnist.json"
LINEAR = pf.Schedule.linear()
BUDGETS = (5, 8, 10, 15, 20, 30, 50)
ENOUGH = 1.05  # times the best
REFERENCE = 0.0025  # about the error of phase space's fine solution: half of what the same solver leaves at 100 calls


def same(a, b):
    return a.rows == b.rows and a.prologue == b.prologue and a.solver == b.solver


@pytest.mark.parametrize("name", ["mnist", "mnist_flow"])
def test_the_choice_is_the_best_measured(name):
    if not (RESULTS / f"{name}.json").is_file():
        pytest.skip("no results")
    sys.path.append(str(ROOT / "benchmarks"))
    from quality import propose
    from quality.solvers import NETWORKS

    tree = json.loads((RESULTS / f"{name}.json").read_text())
    for nfe, good in propose.good_enough(tree).items():
        choice = recommend(NETWORKS[name].schedule, nfe)
        assert any(propose.is_choice(name, choice, *one) for one in good), f"{choice} at {nfe} calls is not in {good}"


@pytest.mark.parametrize("nfe", [10, 25, 50, 100])
def test_the_choice_in_phase_space_is_the_best_measured(nfe):
    if not IN_PHASE_SPACE.is_file():
        pytest.skip("no benchmarks beside the tests")
    sys.path.append(str(ROOT / "benchmarks"))
    from quality.phase import LINES

    choice = recommend(PSLD(), nfe)
    results = json.loads(IN_PHASE_SPACE.read_text())["results"]
    rms = {one["line"]: one["rms"] for one in results if one["budget"] == nfe and one.get("rms")}
    rms = {name: value for name, value in rms.items() if LINES[name].space == "psld"}
    own = [
        value
        for name, value in rms.items()
        if (LINES[name].solver, LINES[name].options, LINES[name].spacing)
        == (choice.solver, choice.options, choice.spacing or PSLD().spacing)
    ]
    assert len(own) == 1
    assert own[0] <= ENOUGH * min(rms.values()) + REFERENCE


@pytest.mark.parametrize("nfe", BUDGETS)
def test_the_plan_is_the_named_one(nfe):
    choice, plan = recommend(LINEAR, nfe), pf.make_plan("auto", nfe=nfe)
    t_min = None if choice.last is None else 10.0
    named = pf.make_plan(choice.solver, nfe=nfe, spacing=choice.spacing, t_min=t_min, **choice.options)
    assert plan.solver == choice.solver and plan.nfe == named.nfe == nfe
    assert plan.times == pytest.approx(named.times, rel=1e-3)


def test_leading_grids_are_for_schedules_that_are_noise_there():
    assert {recommend(LINEAR, nfe).spacing for nfe in (5, 6, 9, 10, 12)} == {"leading"}
    assert pf.make_plan("auto", pf.Schedule.vp(), nfe=10).solver == "deis"
    for schedule in (pf.Schedule.cosine(), pf.Schedule.scaled_linear(), pf.Schedule.linear(T=8)):
        named = pf.make_plan("unipc", schedule, nfe=10, spacing="trailing")
        assert same(pf.make_plan("auto", schedule, nfe=10), named)


def test_a_schedule_of_few_times_gets_a_grid_that_it_has():
    schedule = pf.Schedule.linear(T=50)
    for nfe in range(1, 50):
        assert pf.make_plan("auto", schedule, nfe=nfe).nfe == nfe


@pytest.mark.slow
@pytest.mark.parametrize("nfe", range(1, 120))
def test_every_number_of_calls(nfe):
    assert pf.make_plan("auto", nfe=nfe).nfe == nfe
    assert pf.make_plan("auto", demo.flow, nfe=nfe, prediction="flow").nfe == nfe


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(
    "schedule",
    [
        pf.Schedule.cosine(),
        pf.Schedule.scaled_linear(),
        pf.Schedule.linear(T=100),
        pf.Schedule.vp(),
        pf.Schedule.edm(),
        pf.Schedule.flow(shift=3.0),
        pf.Schedule.scaled_linear().zero_terminal_snr(),
    ],
    ids=lambda schedule: schedule.name,
)
def test_every_schedule(schedule, prediction):
    if prediction == "eps" and schedule.alpha(schedule.last) == 0:
        pytest.skip("eps says nothing of x_0 there")
    for nfe in BUDGETS:
        plan = pf.make_plan("auto", schedule, nfe=nfe, prediction=prediction)
        assert plan.nfe == nfe and plan.prediction == prediction


def test_elsewhere_it_is_unipc_on_the_schedules_own_grid():
    for schedule, how in ((pf.Schedule.edm(), "x0"), (pf.Schedule.scaled_linear().zero_terminal_snr(), "v")):
        chosen = pf.make_plan("auto", schedule, nfe=7, prediction=how)
        assert same(chosen, pf.make_plan("unipc", schedule, nfe=7, prediction=how))


@pytest.mark.parametrize("schedule", [pf.Schedule.flow(), pf.Schedule.flow(shift=3.0, T=1000), demo.flow])
def test_flow_has_a_table_of_its_own(schedule):
    few = pf.make_plan("auto", schedule, nfe=10, prediction="flow")
    assert same(few, pf.make_plan("lms", schedule, nfe=10, prediction="flow", order=3))
    more = pf.make_plan("auto", schedule, nfe=30, prediction="flow")
    assert same(more, pf.make_plan("ipndm", schedule, nfe=30, spacing="beta57", prediction="flow"))


def test_what_is_given_of_the_grid_stands():
    sa = pf.make_plan("sa-solver", nfe=20, spacing="beta", t_min=25.0, tau=0.0)
    assert same(pf.make_plan("auto", nfe=20, t_min=25.0), sa)
    for schedule, prediction in ((LINEAR, "eps"), (pf.Schedule.flow(T=1000), "flow")):
        for nfe in (*BUDGETS, 40):
            for given in ({"t_min": 25.0}, {"final": "min"}, {"t_min": 25.0, "final": "min"}):
                assert pf.make_plan("auto", schedule, nfe=nfe, prediction=prediction, **given).nfe == nfe
    chosen = pf.make_plan("auto", nfe=30, spacing="karras")
    assert same(chosen, pf.make_plan("unipc", nfe=30, spacing="karras"))
    assert pf.make_plan("auto", times=[900, 500, 200, -1]).times == (900, 500, 200)
    assert pf.make_plan("auto", steps=20, t_min=25.0).times[-1] == 25.0
    ends = pf.make_plan("auto", steps=20, final="min").rows[-1].levels.y
    assert ends.sigma == pytest.approx(LINEAR.sigma(0))
    assert pf.make_plan("auto", steps=20, strength=0.5).steps == 10
    assert all(t == int(t) for t in pf.make_plan("auto", steps=20, integer_times=True).times)


@pytest.mark.parametrize(
    "arguments, told",
    [
        ({"eta": 0.5}, "'eta' cannot go with solver 'auto'"),
        ({"order": 3}, "'order' cannot go with solver 'auto'"),
        ({"compat": "diffusers"}, "solver must be one of .* for compat='diffusers', got 'auto'"),
        ({"nfe": 0}, "nfe must be at least"),
        ({"steps": 5.0}, "steps must be an integer"),
        ({"steps": 5, "nfe": 5}, "exclude one another"),
        ({"spacing": "even"}, "spacing must be one of"),
        ({"times": 7}, "times must be a decreasing"),
    ],
)
def test_mistakes(arguments, told):
    with pytest.raises((ValueError, TypeError), match=told):
        pf.make_plan("auto", **arguments)


def test_sample_and_command_line(tmp_path):
    def model(x, t):
        return 0.5 * x

    drawn = pf.sample(model, nfe=6, solver="auto", shape=(2, 3))
    assert torch.equal(drawn, pf.sample(model, solver=pf.make_plan("auto", nfe=6), shape=(2, 3)))
    chosen = recommend(LINEAR, 10)
    told = CliRunner().invoke(cli.app, ["plan", "auto", "--nfe", "10"])
    assert told.exit_code == 0 and told.stdout.startswith(f"{chosen.solver}: ")
    assert f"auto: {chosen.solver} spacing={chosen.spacing}" in told.stderr
    out = str(tmp_path / "a.npz")
    words = ["sample", "--solver", "auto", "--nfe", "3", "-n", "1", "--device", "cpu", "--out", out, "--json"]
    summary = json.loads(CliRunner().invoke(cli.app, words).stdout)
    assert summary["solver"] == recommend(LINEAR, 3).solver and summary["nfe"] == 3
    refused = CliRunner().invoke(cli.app, ["plan", "auto", "--option", "eta=1"])
    assert refused.exit_code == 2 and "'eta' cannot go with solver 'auto'" in refused.stderr
