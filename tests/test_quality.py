"""The own parts of `benchmarks/quality/`: what is tried, kept and told, and A-FloPS."""

# ruff: noqa: E402
import json
import math
import sys
from pathlib import Path

import pytest
import torch

import pndm_fast as pf
from pndm_fast.demo import gaussian_mixture
from pndm_fast.solvers import SOLVER_INFO

FOLDER = Path(__file__).parent.parent / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("no benchmarks beside the tests", allow_module_level=True)
sys.path.append(str(FOLDER))

from quality import noisy, propose, report, solvers, survey

from pndm_fast.solvers.auto import LAST, Choice, recommend

VP = pf.Schedule.vp()
NETWORKS = solvers.NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_plans_make_exactly_the_calls_or_are_none(name):
    network = NETWORKS[name]
    for line in solvers.LINES.keys() - network.without.keys():
        if solvers.LINES[line].guard is None:
            plans = [solvers.make_plan(network, solvers.LINES[line], "trailing", nfe) for nfe in (13, 15)]
            assert any(plans), line
            assert all(plan is None or plan.nfe == nfe for plan, nfe in zip(plans, (13, 15), strict=True))


def test_every_deterministic_solver_has_a_line_or_a_reason():
    named = {line.solver for line in solvers.LINES.values()}
    rest = {name for name, fact in SOLVER_INFO.items() if not fact.stochastic and fact.space != "phase"}
    assert rest - named == solvers.LEFT_OUT.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_schedule_has_none_of_is_refused(name):
    network = NETWORKS[name]
    for line in network.without:
        if solvers.LINES[line].guard is None:
            with pytest.raises(ValueError, match="schedule must"):
                solvers.make_plan(network, solvers.LINES[line], "trailing", 15)


def test_each_line_is_tried_on_its_own_grid_and_at_least_four_others():
    for network in NETWORKS.values():
        for name, line in solvers.LINES.items():
            grids = solvers.grids_of(network, name)
            assert solvers.own_grid(network, line) in grids and len(set(grids)) >= 5
        every = {*network.spacings, *network.more}
        assert every <= set(solvers.GRIDS)
        assert all(every <= set(solvers.grids_of(network, probe)) for probe in solvers.PROBES)


def test_equal_tables_draw_equal_samples():
    network, model = NETWORKS["mnist"], gaussian_mixture(pf.Schedule.linear())
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def draw(line, grid, nfe):
        plan = solvers.make_plan(network, solvers.LINES[line], grid, nfe)
        return pf.sample(model, solver=plan, start=pf.Noise(noise))

    distinct, same = solvers.plans_of(network, 5)
    assert {("euler", "trailing", 5), ("dpm-solver-1", "trailing", 5), ("conjugate 3", "trailing", 5)} <= same.keys()
    assert ("unipc 2", "trailing", 5) in distinct and ("ddim", "trailing", 5) in distinct
    for key, twin in same.items():
        if key[1] != twin[1] or key[1] == "trailing":
            assert torch.allclose(draw(*key), draw(*twin), atol=1e-5), (key, twin)


@pytest.mark.parametrize("name", [name for name in solvers.LEFT_OUT if name.endswith("cfg-pp")])
def test_a_solver_of_guided_calls_is_none_without_guidance(name):
    with pytest.raises(ValueError, match="a guided plan must have uncond"):
        pf.sample(gaussian_mixture(VP), solver=pf.make_plan(name, VP, steps=9), shape=(1, 2))


def test_what_is_hopeless():
    def one(line, nfe, rms, note=""):
        return (line, "leading", nfe), {"rms": rms, "note": note}

    found = dict([one("far", 8, 9.0), one("near", 8, 0.2), one("nan", 8, None, "diverged")])
    found |= dict([one("again", 5, 9.0), one("again", 8, None, "hopeless")])
    told = {line: survey.hopeless(found, line, "leading", 10) for line in ("far", "near", "nan", "again", "new")}
    assert told == {"far": True, "near": False, "nan": True, "again": False, "new": False}
    assert not survey.hopeless(found, "far", "leading", 5)


def test_the_store_resumes(tmp_path, capsys):
    path, setting = tmp_path / "a.json", {"images": 2}
    store = survey.ResultFile(path, setting)
    for line, nfe in (("unipc 2", 8), ("ddim", 8), ("unipc 2", 5)):
        store.add("results", (line, "leading", nfe), {"rms": 0.1, "median": 0.1, "note": ""})
    store.write()
    again = survey.ResultFile(path, setting)
    assert again.found["results"] == store.found["results"]
    assert [one["line"] for one in json.loads(path.read_text())["results"]] == ["unipc 2", "ddim", "unipc 2"]
    assert not survey.ResultFile(path, {"images": 3}).found["results"]
    assert "measured anew" in capsys.readouterr().err


SETTING = {"network": "mnist", "few": 1, "images": 2, "finals": 2, "hopeless": 0.3, "part": 8, "finalists": 1}
SETTING |= {"references": NETWORKS["mnist"].references}


def result(rms, images=2, **more):
    values = {"rms": rms, "median": rms, "note": "" if rms else "hopeless", "images": images}
    return values | {"rms_90": [0.09, 0.11]} | more


def test_the_page_says_what_was_measured(tmp_path):
    store = survey.ResultFile(tmp_path / "a.json", SETTING)
    store.tree["floor"] = {"rms": 0.001, "median": 0.001}
    for line, rms in (("unipc 2", 0.1), ("a-flops", 0.095), ("a-flops, c = 0", 0.2), ("fon", None)):
        store.add("results", (line, "leading", 10), result(rms))
    store.add("results", ("heun", "leading", 10), result(0.21, images=1))
    store.add("results", ("unipc 3", "leading", 10), {"rms": None, "note": "same", "as": ["unipc 2", "leading"]})
    store.add("finals", ("unipc 2", "leading", 10), result(0.1))
    store.write()
    page = report.text(store.tree)
    assert "| a-flops |  |  | **0.0950 / 0.0950** |" in page and "| fon |  |  | - |" in page
    assert "| heun |  |  | (0.210 / 0.2100) |" in page and "| unipc 3 | unipc 2 | leading at 10 |" in page
    assert "| unipc 3 |  |  | 0.1000 (0.0900 to 0.1100), leading |" in page
    assert "| 10 | **unipc 2** | leading | 0.1000 | 0.0900 to 0.1100 | 0.1000 |" in page
    assert "**Verdict: Left out.**" in page and "| 0.95 |" in page
    assert 'Choice(math.inf, "unipc", "leading")' in page and "res-2m (new)" not in page


def test_on_all_images_are_the_best_and_each_line_on_its_best_grid():
    keys = [(line, grid, 8) for line in ("ddim", "unipc 2") for grid in ("leading", "trailing", "beta")]
    found = {key: {"few": 0.1 * place} for place, key in enumerate(keys, 1)}
    assert survey.chosen(found, keys) == [keys[0], keys[3]]


def final(line, grid, nfe, rms):
    return {"line": line, "grid": grid, "nfe": nfe, "rms": rms}


def test_the_table_of_auto_by_rule():
    ones = [("unipc 2", "trailing", 5, 0.102), ("deis 3", "beta", 5, 0.1), ("heun", "trailing", 5, 0.01)]
    ones += [("unipc 2", "trailing", 8, 0.05), ("deis 3", "beta", 8, 0.06)]  # heun makes no even number of calls
    ones += [("unipc 2", "trailing", 10, 0.04), ("dpmpp-3m", "karras to 10", 10, 0.02), ("a-flops", "beta", 10, 0.01)]
    tree = {"setting": {"network": "mnist"}, "floor": {"rms": 0.001}, "finals": [final(*one) for one in ones]}
    runs = propose.propose(tree)
    assert [(run.budgets, run.first, run.line) for run in runs] == [((5, 8), 1, "unipc 2"), ((10,), 9, "dpmpp-3m")]
    assert [run.most for run in runs] == [8, math.inf]
    lines = ['Choice(8, "unipc", "trailing")', 'Choice(math.inf, "dpmpp-3m", "karras", last=LAST)']
    told = propose.code("mnist", runs)
    assert told == "\n".join(["MEASURED = (", *[f"    {line}," for line in lines], ")"])
    choices = eval(told.removeprefix("MEASURED = "), {"Choice": Choice, "math": math, "LAST": LAST})
    for choice, run in zip(choices, runs, strict=True):
        assert propose.is_choice("mnist", choice, run.line, run.grid) and choice.most == run.most
    assert [run.line for run in propose.propose(tree | {"floor": {"rms": 0.06}})] == ["unipc 2"]


def test_what_auto_takes_today_has_a_name():
    for name in NETWORKS:
        for nfe in solvers.BUDGETS:
            line, grid, _ = propose.present(name, nfe)
            assert propose.is_choice(name, recommend(NETWORKS[name].schedule, nfe), line, grid)


@pytest.mark.parametrize("name", NETWORKS)
def test_solvers_that_add_noise_have_plans(name):
    plans = {line: noisy.plan_of(NETWORKS[name], one, 20) for line, one in noisy.LINES.items()}
    assert all(plan.nfe in (19, 20) for plan in plans.values())
    assert {line for line, plan in plans.items() if not any(plan.noisy)} == {"auto", "ddim"}


def test_interval_holds_the_rms():
    distances = torch.tensor([0.1, 0.2, 0.3, 0.9])
    low, high = solvers.interval(distances)
    assert low < float(distances.square().mean().sqrt()) < high


@pytest.mark.parametrize("guard", [0.0, 1.0])
def test_aflops_is_second_order(guard):
    model = gaussian_mixture(VP, means=[[0.0, 0.0]], variances=[[0.09, 0.25]])
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def draw(steps):
        times = [1 - 0.9 * i / steps for i in range(steps + 1)]
        return solvers.aflops(model, VP, times, noise, guard=guard).double()

    exact = draw(160)
    errors = [float((draw(n) - exact).norm()) for n in (20, 40)]
    assert exact.isfinite().all() and errors[0] / errors[1] > 3.2


def test_aflops_starts_with_ddim():
    model = gaussian_mixture(VP)
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = (0.8, 0.1)
    plan = pf.make_plan("ddim", VP, times=times, final="min")
    expected = pf.sample(model, solver=plan, start=pf.Noise(noise))
    assert torch.allclose(solvers.aflops(model, VP, times, noise).double(), expected, atol=1e-5)
