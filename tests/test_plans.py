"""Committed plans: a changed coefficient is a changed line in review. `python tests/test_plans.py` writes them anew."""

import json
from pathlib import Path

import pytest

import pndm_fast as pf
from pndm_fast.phase_space import PSLD
from pndm_fast.solvers import SOLVER_INFO
from pndm_fast.solvers.compat import COMPAT

FOLDER = Path(__file__).parent / "golden" / "plans"
VARIANTS = {
    "deis-log-rho": ("deis", {"variable": "log_rho"}),
    "deis-rho": ("deis", {"variable": "rho"}),
    "dpm-solver-3-multistep": ("dpm-solver-3", {"multistep": True, "exact": True, "lower_order_final": False}),
    "dpmpp-2m-heun": ("dpmpp-2m", {"solver_type": "heun"}),
    "euler-flow": ("euler", {"schedule": pf.Schedule.flow(3.0), "prediction": "flow"}),
    "heun-edm": ("heun", {"schedule": pf.Schedule.edm(), "prediction": "edm"}),
    "heun-flow": ("heun", {"schedule": pf.Schedule.flow(3.0), "prediction": "flow"}),
    "ipndm-v-flow": ("ipndm-v", {"schedule": pf.Schedule.flow(), "prediction": "flow"}),
    "ddim-zero-snr": (
        "ddim",
        {"schedule": pf.Schedule.linear().zero_terminal_snr(), "prediction": "v", "spacing": "trailing"},
    ),
    "unipc-3-bh1": ("unipc", {"order": 3, "variant": "bh1", "lower_order_final": False}),
    "unipc-eps": ("unipc", {"predict": "eps"}),
    "conjugate-psld": ("conjugate", {"schedule": PSLD(), "order": 3}),
    "conjugate-psld-ones": ("conjugate", {"schedule": PSLD(), "frame": "L", "B": ((0.5, 0.5), (0.5, 0.5))}),
    "em-preconditioned": (
        "em",
        {"schedule": PSLD(gamma=0.0, nu=4.0, beta=(4.0, 12.0)).preconditioned(0.5), "clip": 1.0, "t_min": 0.01},
    ),
}
CASES = {
    **{name: (name, {}) for name in pf.SOLVERS},
    **VARIANTS,
    **{f"diffusers-{name}": (name, {"compat": "diffusers"}) for name in COMPAT["diffusers"]},
}


def made(case):
    solver, options = CASES[case]
    return pf.make_plan(solver, steps=max(6, SOLVER_INFO[solver].min_steps), **options)


def text(plan):
    """JSON with one line for each row."""
    tree = plan.to_json()
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in tree.pop("rows"))
    return f'{json.dumps(tree, separators=(",", ":"))[:-1]},"rows":[\n{rows}\n]}}\n'


def close(got, wanted):
    """The same tree, numbers to the rounding of another machine's logarithms."""
    if isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(close(got[k], wanted[k]) for k in wanted)
    if isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(close, got, wanted))
    return got == (pytest.approx(wanted, rel=1e-10, abs=1e-13) if isinstance(wanted, float) else wanted)


@pytest.mark.filterwarnings("ignore:.* diverges in")  # six steps are few for some
@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    path = FOLDER / f"{case}.json"
    wanted = json.loads(path.read_text())
    plan = made(case)
    got = json.loads(text(plan))
    for i, (a, b) in enumerate(zip(got.pop("rows"), wanted.pop("rows"), strict=True)):
        assert close(a, b), f"row {i} of {path.name}"
    assert close(got, wanted)
    assert pf.Plan.load(path).nfe == plan.nfe


def test_none_is_left_over():
    assert {path.stem for path in FOLDER.iterdir()} == set(CASES)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.iterdir():
        path.unlink()
    for case in CASES:
        (FOLDER / f"{case}.json").write_text(text(made(case)))
