"""The own parts of `benchmarks/quality/`: what is tried, kept and told, and A-FloPS."""

# ruff: noqa: E402
import json
import sys
from pathlib import Path

import pytest
import torch
from golden_data import SCALAR

import pndm_fast as pf
from pndm_fast.demo import gaussian_mixture
from pndm_fast.solvers import SOLVER_INFO

FOLDER = Path(__file__).parent.parent / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("no benchmarks beside the tests", allow_module_level=True)
sys.path.append(str(FOLDER))

from quality import report, solvers, survey

VP = pf.Schedule.vp()
# samplers by others' names that the survey has not compared
UNMEASURED = {
    *("dpm-2", "dpm-fast", "dpmpp-3s", "exp-heun-2-x0", "gradient-estimation", "heunpp2"),
    *("res-2m", "res-2s", "res-3m", "res-3s", "rk"),
}


@pytest.mark.parametrize("line", [name for name, line in solvers.LINES.items() if line.guard is None])
def test_plans_make_exactly_the_calls_or_are_none(line):
    made = {nfe: solvers.make_plan(solvers.LINES[line], "trailing", nfe) for nfe in solvers.BUDGETS}
    assert made[15] is not None and all(plan is None or plan.nfe == nfe for nfe, plan in made.items())


def test_every_deterministic_solver_has_a_line():
    named = {line.solver for line in solvers.LINES.values()}
    same_step = {"euler", "dpm-solver-1", "conjugate"}
    facts = {name: SOLVER_INFO[name] for name in SCALAR}
    rest = {name for name, fact in facts.items() if not fact.stochastic and not fact.inverts}
    assert rest - named == same_step | UNMEASURED


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


def test_the_page_says_what_was_measured(tmp_path):
    store = survey.ResultFile(
        tmp_path / "a.json", {"images": 2, "finals": 2, "hopeless": 0.3, "finalists": {"rms": 1, "median": 1}}
    )
    store.tree["floor"] = {"rms": 0.001, "median": 0.001}
    for line, rms in (("unipc 2", 0.1), ("a-flops", 0.095), ("a-flops, c = 0", 0.2), ("fon", None)):
        store.add("results", (line, "leading", 10), {"rms": rms, "median": rms, "note": "" if rms else "hopeless"})
    store.add("finals", ("unipc 2", "leading", 10), {"rms": 0.1, "median": 0.1, "rms_90": [0.09, 0.11]})
    store.write()
    page = report.text(store.tree)
    assert "| a-flops |  |  | **0.0950 / 0.0950** |" in page and "| fon |  |  | - |" in page
    assert "| 10 | **unipc 2** | leading | 0.1000 | 0.0900 to 0.1100 | 0.1000 |" in page
    assert "**Verdict: Left out.**" in page and "| 0.95 |" in page


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
