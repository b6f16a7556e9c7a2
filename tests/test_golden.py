"""The solvers against the authors' sampler and diffusers, float64, through the public `sample`."""

import pytest
import torch
from drawing import draw
from golden_data import DATA, START, Recorder, mixture, relative, schedule
from oracle import probability_flow

import pndm_fast as pf

SOLVER = {"ddim": "ddim", "spndm": "s-pndm", "fpndm": "f-pndm", "fon": "fon"}
PAPER = [key[:-2] for key in DATA.files if key.startswith("pad_") and key.endswith("_x")]
DIFFUSERS = [key[:-2] for key in DATA.files if key.startswith("hf64_") and key.endswith("_x")]
# alpha-bar falls to 2e-9 on the cosine schedule, where these two grids start: 1 - alpha-bar loses digits in diffusers
ILL_CONDITIONED = {"cosine": 1e-9}


def slow_if_long(key):
    return pytest.param(key, marks=pytest.mark.slow if int(key.rpartition("_")[2]) > 20 else ())


@pytest.mark.parametrize("key", [slow_if_long(key) for key in PAPER])
def test_paper(key):
    _, method, name, steps = key.split("_")
    network = Recorder(mixture(schedule(name)))
    x = pf.sample(network, int(steps), solver=SOLVER[method], schedule=schedule(name), start=pf.Noise(START))
    assert x.dtype is torch.float64
    assert relative(x, DATA[f"{key}_x"]) < 1e-12
    assert network.times == DATA[f"{key}_t"].tolist()
    plan = pf.make_plan(SOLVER[method], schedule(name), steps=int(steps))
    assert len(plan) == plan.nfe == len(network.times)


@pytest.mark.parametrize("key", [key for key in PAPER if f"{key}_traj" in DATA.files])
def test_paper_states(key):
    """Every step's state, not only the last one's."""
    _, method, name, steps = key.split("_")
    states = []

    def keep(step):
        if step.row.ends_step:
            states.append(step.state)

    draw(
        mixture(schedule(name)),
        int(steps),
        solver=SOLVER[method],
        schedule=schedule(name),
        start=pf.Noise(START),
        on_step=keep,
    )
    wanted = DATA[f"{key}_traj"]
    wanted = wanted[-len(states) :]
    assert relative(torch.stack(states), wanted) < 1e-12


@pytest.mark.parametrize("key", [slow_if_long(key) for key in DIFFUSERS])
def test_diffusers(key):
    _, *config, name, steps = key.split("_")
    config = "_".join(config)
    solver = "plms" if config == "sd" or config.startswith("plms") else "f-pndm"
    options = {
        "set_alpha_to_one": "one" in config,
        "steps_offset": int(config == "sd"),
        "spacing": next((s for s in ("linspace", "trailing") if s in config), "leading"),
        "prediction": "v" if config.endswith("_v") else "eps",
    }
    network = Recorder(mixture(schedule(name), options["prediction"]))
    common = {"solver": solver, "schedule": schedule(name), "compat": "diffusers"}
    x = draw(network, int(steps), start=pf.Noise(START), **common, **options)
    bound = ILL_CONDITIONED.get(name, 1e-12) if options["spacing"] != "leading" else 1e-12
    assert relative(x, DATA[f"{key}_x"]) < bound
    assert network.times == DATA[f"{key}_t"].tolist()


def test_prk_one_is_the_papers_f_pndm():
    ours = pf.make_plan("f-pndm", schedule("linear"), steps=10)
    theirs = pf.make_plan("f-pndm", schedule("linear"), steps=10, compat="diffusers", set_alpha_to_one=True)
    assert theirs.times == ours.times
    for a, b in zip(ours.rows, theirs.rows, strict=True):
        assert a.y == pytest.approx(b.y, abs=1e-13)


def test_named_as_diffusers():
    assert str(pf.make_plan("plms", steps=10, compat="diffusers")).startswith("plms (diffusers): 10 steps, 11 network")


@pytest.mark.slow
@pytest.mark.parametrize("solver, skip", [("plms", True), ("f-pndm", False)])
@pytest.mark.parametrize("steps", [10, 30, 50])
def test_stock_diffusers(solver, skip, steps):
    """diffusers as it is installed: float32 tables and float32 steps, so to rounding of float32."""
    scheduler = pytest.importorskip("diffusers").PNDMScheduler(skip_prk_steps=skip)
    scheduler.set_timesteps(steps)
    network = mixture(pf.Schedule.linear())
    x = START.float()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    ours = draw(network, steps, solver=solver, compat="diffusers", start=pf.Noise(START))
    assert relative(x.double(), ours) < 5e-5


@pytest.mark.slow
@pytest.mark.parametrize("name, steps", [("linear", 10), ("linear", 50), ("cosine", 50)])
def test_probability_flow(name, steps):
    """The oracle against an independent integration (DOP853 at 1e-12)."""
    end = probability_flow(
        mixture(schedule(name)), schedule(name), START, start=(steps - 1) * (1000 // steps), rtol=1e-11
    )
    assert (end - torch.from_numpy(DATA[f"flow_pad_{name}_{steps}_x"])).abs().max() < 1e-8
