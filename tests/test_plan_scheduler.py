"""`PlanScheduler`: what pipelines ask of a scheduler, and what `step` does with one row."""

import inspect
import json
import math
import warnings

import numpy as np
import pytest

diffusers = pytest.importorskip("diffusers", reason="the scheduler is one of diffusers'")
import torch  # noqa: E402
from compat_case import network  # noqa: E402
from golden_data import relative  # noqa: E402
from plan_scheduler_case import DDIM, FLOW, SOLVERS, ready  # noqa: E402
from scheduler_case import LOOPS, loop, scheduler_of  # noqa: E402

import pndm_fast as pf  # noqa: E402
from pndm_fast.integrations.diffusers import PlanScheduler  # noqa: E402

# diffusers' of numpy, and ours of few steps
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.* diverges in")


@pytest.mark.parametrize("case", LOOPS)
def test_the_loop_of_diffusers_scheduler(case):
    """The noise of a generator too, sample by sample as theirs."""
    theirs = scheduler_of(case)
    ours = PlanScheduler.from_config(theirs)
    got, wanted = [], []
    loop(theirs, network, 6, states=wanted)
    loop(ours, network, 6, states=got)
    assert len(got) == len(wanted)
    assert max(map(relative, got, wanted)) < 1e-5
    assert ours.timesteps.tolist() == pytest.approx(theirs.timesteps.tolist(), abs=2e-3)
    assert ours.order == theirs.order and len(ours) == len(theirs)
    assert float(ours.init_noise_sigma) == pytest.approx(float(getattr(theirs, "init_noise_sigma", 1.0)), rel=1e-5)


TIMES, FLOW_TIMES = [999, 850, 736, 455, 124, 24], [1000.0, 900.0, 620.5, 400.0, 150.0]
AYS = [14.6146, 6.4746, 3.8637, 2.6947, 1.8842, 1.3944, 0.9643, 0.6524, 0.3977, 0.1515, 0.0292, 0.0]
SDXL_END = [14.6146, 6.3184, 2.1811, 0.8621, 0.3299, 0.0292]  # which leaves noise
GIVEN = [
    *((case, {"timesteps": TIMES}) for case in ("DDPM", "LCM", "TCD", "LCM clipped", "3M", "2M SDE", "Euler", "Heun")),
    *((case, {"timesteps": TIMES}) for case in ("2S", "Heun clipped", "Euler leading")),
    *(("Euler", {"sigmas": sigmas}) for sigmas in (AYS, SDXL_END)),
    ("Euler leading", {"sigmas": AYS}),
    ("flow Euler", {"timesteps": FLOW_TIMES}),
    ("flow Euler", {"sigmas": [1.0, 0.9, 0.5, 0.2]}),
    ("flow Euler", {"sigmas": [1.0, 0.9, 0.5, 0.2], "timesteps": [1000.0, 950.0, 700.0, 100.0]}),
    ("UniPC flow", {"sigmas": np.array([1.0, 0.9, 0.5, 0.2])}),
]


@pytest.mark.filterwarnings("ignore:timesteps are told as they are")
@pytest.mark.parametrize("case, grid", GIVEN, ids=str)
def test_grids_that_are_given(case, grid):
    """timesteps and sigmas, of every class that takes them: the same calls, states and noise."""
    theirs = scheduler_of(case)
    ours = PlanScheduler.from_config(theirs)
    got, wanted = [], []
    loop(theirs, network, None, grid=grid, states=wanted)
    loop(ours, network, None, grid=grid, states=got)
    assert len(got) == len(wanted)
    assert max(map(relative, got, wanted)) < 5e-5  # their float32, where a step grows the state twentyfold
    assert ours.timesteps.tolist() == pytest.approx(theirs.timesteps.tolist(), abs=2e-3)


def test_each_class_that_takes_a_grid_is_tried():
    """By the arguments of its set_timesteps, whatever the class."""
    for case in LOOPS:
        takes = inspect.signature(scheduler_of(case).set_timesteps).parameters.keys() & {"timesteps", "sigmas"}
        kind = type(scheduler_of(case))
        tried = {name for other, grid in GIVEN for name in grid if type(scheduler_of(other)) is kind}
        assert tried == takes, case


def test_timesteps_beside_their_sigmas_are_told():
    with pytest.warns(
        UserWarning, match="timesteps are told as they are, but the sigmas that they stand for are shift"
    ):
        pf.plan_like(FLOW, timesteps=FLOW_TIMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pf.plan_like({**FLOW, "shift": 1.0}, timesteps=FLOW_TIMES)


@pytest.mark.parametrize("spacing", [None, "trailing", "karras"])
def test_a_terminal_of_flow_is_the_last_call_of_any_grid(spacing):
    """Qwen-Image's shift_terminal; a t_min that is given stands."""
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "shift_terminal": 0.02}
    uniform = np.linspace(1.0, 1 / 8, 8)
    scheduler = PlanScheduler.from_config(config, "unipc", spacing=spacing)
    scheduler.set_timesteps(sigmas=uniform, mu=0.9)
    assert scheduler.sigmas[-2] == pytest.approx(0.02)
    if spacing != "karras":
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
        theirs.set_timesteps(sigmas=uniform, mu=0.9)
        assert scheduler.sigmas.tolist() == pytest.approx(theirs.sigmas.tolist(), abs=1e-6)
    if spacing:
        other = PlanScheduler.from_config(config, "unipc", spacing=spacing, t_min=50.0)
        other.set_timesteps(8, mu=0.9)
        assert other.sigmas[-2] == pytest.approx(0.05)


NOT_LATER = ("PNDM", "LMS")


@pytest.mark.parametrize("case", [case for case in LOOPS if case not in NOT_LATER])
def test_a_loop_from_a_later_time(case):
    theirs = scheduler_of(case)
    begin = 2 * theirs.order
    ours = PlanScheduler.from_config(theirs)
    assert relative(loop(ours, network, 6, begin=begin), loop(theirs, network, 6, begin=begin)) < 1e-5


@pytest.mark.parametrize("case", [*NOT_LATER, "2S", "Heun"])  # of which a step, or two, have two calls
def test_a_later_time_is_refused_before_any_call(case):
    scheduler = ready(scheduler_of(case))
    with pytest.raises(ValueError, match="begin must be a call of|begin must be 0 for f-pndm"):
        scheduler.set_begin_index(3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("config", [DDIM, FLOW], ids=["discrete", "flow"])
def test_a_solver_s_loop_is_its_plan_s(config, solver):
    schedule, prediction = pf.schedule_of(config)
    plan = pf.make_plan(solver, schedule, steps=6, prediction=prediction)
    ours = PlanScheduler.from_config(config, solver)
    made = loop(ours, network, 6)
    assert ours.timesteps.tolist() == pytest.approx(plan.times)
    if not any(plan.noisy):
        start = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(3))
        assert torch.equal(made, pf.sample(network, solver=plan, start=pf.Noise(start)))


@pytest.mark.parametrize("solver, begin", [("dpmpp-2m", 3), ("unipc", 1), ("heun", 4), ("euler", 5), ("ipndm", 2)])
def test_a_solver_from_a_later_time(solver, begin):
    """A plan of its own for what is left of the grid, its warm-up included."""
    ours = PlanScheduler.from_config(DDIM, solver, spacing="trailing")
    made = loop(ours, network, 6, begin=begin)
    schedule, _ = pf.schedule_of(DDIM)
    start = pf.make_plan(solver, schedule, steps=6, spacing="trailing").times[begin]
    plan = pf.make_plan(solver, schedule, steps=6, spacing="trailing", t_start=start)
    noise = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(3))
    noised = (
        float(schedule.alpha(start)) * torch.linspace(-1, 1, 96).view(2, 3, 4, 4) + float(schedule.sigma(start)) * noise
    )
    assert relative(made, pf.sample(network, solver=plan, start=pf.State(noised))) < 1e-6


@pytest.mark.parametrize("solver, begin", [("f-pndm", 4), ("f-pndm", 13), ("s-pndm", 1), ("heun", 3), ("fon", 2)])
def test_calls_that_are_not_a_step_each(solver, begin):
    scheduler = ready(DDIM, solver)
    with pytest.raises(ValueError, match=rf"begin must be a call that {solver} can start at, .* got {begin}"):
        scheduler.set_begin_index(begin)


def test_the_configuration_is_kept(tmp_path):
    theirs = diffusers.DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear", steps_offset=1)
    theirs.register_to_config(skip_prk_steps=True)  # of a class that it came from
    ours = PlanScheduler.from_config(theirs, "unipc", spacing="logsnr", order=3)
    for name, value in theirs.config.items():
        assert name.startswith("_") or ours.config[name] == value == getattr(ours.config, name)
    ours.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == "PlanScheduler"
    loaded = PlanScheduler.from_pretrained(tmp_path)
    assert torch.equal(loop(loaded, network, 5), loop(ours, network, 5))
    back = diffusers.DDIMScheduler.from_config(loaded.config)
    assert torch.equal(loop(back, network, 5), loop(theirs, network, 5))
    again = PlanScheduler.from_config(back, None)
    assert relative(loop(again, network, 5), loop(theirs, network, 5)) < 1e-5


def test_the_way_back_warns_of_nothing(caplog):
    ours = PlanScheduler.from_config(scheduler_of("Euler"), "unipc")
    diffusers.EulerDiscreteScheduler.from_config(ours.config)
    assert not caplog.records
    assert diffusers.EulerDiscreteScheduler in ours.compatibles


def test_another_solver_of_a_scheduler_of_ours():
    ours = PlanScheduler.from_config(DDIM, "unipc", order=3)
    assert PlanScheduler.from_config(ours.config).config["_plan"] == ours.config["_plan"]
    other = PlanScheduler.from_config(ours.config, "heun")
    assert other.config["_plan"] == {"like": "DDIMScheduler", "solver": "heun", "spacing": None, "options": {}}
    none = PlanScheduler.from_config(ours.config, None, set_alpha_to_one=False)
    assert none.config["set_alpha_to_one"] is False and none.config["_plan"]["solver"] is None
    assert pf.plan_like(ours, steps=6) == pf.make_plan("unipc", steps=6, order=3)


def test_a_configuration_without_its_class():
    """That of a scheduler made in code: its keys tell the class, or it must be said."""
    kept = {name: value for name, value in diffusers.EulerDiscreteScheduler().config.items()}
    assert "_class_name" not in kept
    assert PlanScheduler.from_config(kept).config["_plan"]["like"] == "EulerDiscreteScheduler"
    shared = diffusers.LCMScheduler().config
    with pytest.raises(
        ValueError, match="its keys are that of LCMScheduler and TCDScheduler: give the scheduler itself"
    ):
        PlanScheduler.from_config(shared)
    schedule = pf.Schedule.scaled_linear()
    scheduler = ready(shared, "dpmpp-2m")
    assert scheduler.timesteps.tolist() == pytest.approx(pf.make_plan("dpmpp-2m", schedule, steps=6).times)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"solver": "unipcc"}, ValueError, "solver must be one of .*, got 'unipcc'; did you mean 'unipc'"),
        ({"solver": "sscs"}, ValueError, "solver must be one of"),
        (
            {"solver": "unipc", "oder": 3},
            ValueError,
            "'oder' is no key of the config nor an option of unipc .its options: order",
        ),
        ({"use_karas_sigmas": True}, ValueError, "'use_karas_sigmas' is no key of the config$"),
        ({"thresholding": True}, ValueError, "thresholding must be False for a plan like DDIMScheduler"),
        ({"clip_sample": True}, ValueError, "clip_sample must be False for a plan like DDIMScheduler"),
        ({"spacing": "karras"}, ValueError, "spacing must go with a solver: without one the config says all"),
    ],
)
def test_settings_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        PlanScheduler.from_config(DDIM, **arguments)


@pytest.mark.parametrize("config", [3, "DDIMScheduler"])
def test_no_configuration(config):
    with pytest.raises(TypeError, match="config must be that of a scheduler, got (int|str)"):
        PlanScheduler.from_config(config)


def test_classes_refused_before_any_loop():
    for name, solver in (("EDMEulerScheduler", None), ("EDMEulerScheduler", "unipc"), ("SASolverScheduler", None)):
        with pytest.raises(ValueError, match=f"_class_name must be a scheduler that a plan stands for, got '{name}'"):
            PlanScheduler.from_config({"_class_name": name}, solver)
    tcd = ready({"_class_name": "TCDScheduler"}, "lcm")  # whose schedule is known
    assert tcd.timesteps.tolist() == pytest.approx(pf.make_plan("lcm", pf.Schedule.scaled_linear(), steps=6).times)


@pytest.mark.parametrize("key", ["clip_sample", "thresholding"])
def test_what_a_solver_leaves_out(key):
    with pytest.warns(UserWarning, match=f"{key} of the config is left out with solver='unipc': clip=1.0 clamps"):
        PlanScheduler.from_config({**DDIM, key: True}, "unipc")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        PlanScheduler.from_config({**DDIM, key: True}, "unipc", clip=1.0)


def test_levels_without_signal():
    """At zero terminal SNR alpha is 0, as it is where flow begins, whatever the network predicts there."""
    scheduler = ready(
        {**DDIM, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, "ddim", spacing="trailing"
    )
    assert scheduler.sigmas[0] == math.inf
    flow = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "sample"}
    assert ready(flow, "dpmpp-2m").sigmas[0] == 1


def test_solver_auto():
    scheduler = ready(DDIM, "auto")
    assert scheduler.timesteps.tolist() == pytest.approx(pf.make_plan("auto", pf.Schedule.linear(), steps=6).times)


def test_a_clipped_solver():
    scheduler = PlanScheduler.from_config(DDIM, "dpmpp-2m", clip=0.5)
    assert loop(scheduler, network, 6).abs().max() <= 0.5


def test_timesteps():
    whole = ready()
    assert whole.timesteps.dtype is torch.int64 and whole.num_inference_steps == 6
    assert (whole.timesteps.diff() < 0).all() and len(whole.sigmas) == 7 and whole.sigmas[-1] == 0
    broken = ready(FLOW)
    assert broken.timesteps.dtype is torch.float32 and broken.sigmas[0] == 1
    given = PlanScheduler.from_config(DDIM, "dpmpp-2m")
    given.set_timesteps(timesteps=[900, 500, 40])
    assert given.timesteps.tolist() == [900, 500, 40] and given.num_inference_steps == 3
    given.set_timesteps(sigmas=[14.0, 3.0, 0.5, 0.0])
    assert given.sigmas.tolist() == pytest.approx([14.0, 3.0, 0.5, 0.0])
    given.set_timesteps(4, device="meta")
    assert given.timesteps.device.type == "meta"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "steps must be given, got None"),
        (
            {"num_inference_steps": 4, "timesteps": [900, 5]},
            "timesteps must be as many as num_inference_steps, 4, got 2",
        ),
        ({"timesteps": [9, 5], "sigmas": [9, 5]}, "timesteps and sigmas exclude each other"),
        ({"num_inference_steps": 4, "original_inference_steps": 9}, "original_inference_steps must be of LCMScheduler"),
    ],
)
def test_timesteps_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PlanScheduler.from_config(DDIM, "dpmpp-2m").set_timesteps(**arguments)
