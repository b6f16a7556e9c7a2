"""`plan_like` and `schedule_of`: diffusers' configurations as plans and schedules, or refused by name."""

import ast
import importlib
import inspect
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

diffusers = pytest.importorskip("diffusers", reason="the configurations are diffusers'")
import torch  # noqa: E402
from compat_case import network  # noqa: E402
from golden_data import relative  # noqa: E402
from scheduler_case import LOOPS, loop, scheduler_of  # noqa: E402

import pndm_fast as pf  # noqa: E402
from pndm_fast.integrations.outputs import ESTIMATING  # noqa: E402
from pndm_fast.solvers.compat import SCHEDULERS  # noqa: E402
from pndm_fast.solvers.foreign import (  # noqa: E402
    BETAS_OF,
    CLIP_DEFAULT,
    CLIPS_ALL,
    FIXED,
    FLOWS,
    REFUSED,
    SAME_AS,
    ZERO_SNR,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' of numpy

SCHEDULE = {
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "shift", "flow_shift", "use_flow_sigmas", "use_dynamic_shifting", "time_shift_type"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "clip_sample", "clip_sample_range"),
}
IDLE = {  # what changes nothing where the others are as a plan has them
    *("dynamic_thresholding_ratio", "sample_max_value", "kwargs"),  # of thresholding
    *("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),  # pipelines make mu of them
}
IDLE_IN = {  # what a class has and never reads, or has one value of
    "LCMScheduler": {"set_alpha_to_one", "steps_offset", "timestep_spacing"},
    "TCDScheduler": {"set_alpha_to_one", "steps_offset", "timestep_spacing", "timestep_scaling", "thresholding"},
    "DPMSolverMultistepScheduler": {"variance_type"},
    "DPMSolverSinglestepScheduler": {"variance_type"},
    "DEISMultistepScheduler": {"algorithm_type", "solver_type"},
}
UNCLIPPED = {"DDIMScheduler": {"clip_sample": False}, "DDIMInverseScheduler": {"clip_sample": False}}


def class_of(name):
    if name != "DPMSolverSDEScheduler":
        return getattr(diffusers, name)
    sys.modules.setdefault("torchsde", ModuleType("torchsde"))
    return importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler


def config_of(name, **changed):
    return {"_class_name": name, **UNCLIPPED.get(name, {}), **changed}


def scheduler_classes():
    """Every class of the installed diffusers that is called a scheduler and steps, whatever it imports: by source.

    Flax's, which PyTorch has too, aside.
    """
    found = set()
    for file in Path(diffusers.__file__).parent.rglob("*.py"):
        text = file.read_text()
        if "Scheduler" not in text or "def step" not in text or "dummy_" in file.name:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Scheduler"):
                steps = {"step", "step_pred"} & {getattr(one, "name", None) for one in node.body}
                found |= {node.name} if steps else set()
    return {name for name in found if not name.startswith("Flax")}


def test_every_scheduler_is_taken_or_refused():
    """The table is all that is exported, and all that stands in any module of it."""
    table = {*SCHEDULERS, *SAME_AS, *REFUSED}
    exported = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    assert exported | {"ConsistencyDecoderScheduler", "ScoreSdeVpScheduler"} == table
    assert scheduler_classes() == table
    assert len(table) == len(SCHEDULERS) + len(SAME_AS) + len(REFUSED)
    assert set(SAME_AS.values()) <= set(SCHEDULERS)
    assert {*BETAS_OF, *CLIPS_ALL, *CLIP_DEFAULT, *FLOWS, *ZERO_SNR, *ESTIMATING} <= table


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_their_steps_take_and_return(name):
    """A grid that set_timesteps takes is taken, or refused by name; an estimate that step returns is known."""
    cls = class_of(name)
    assert ("pred_original_sample=" in inspect.getsource(cls.step)) == (name in ESTIMATING)
    theirs = {"timesteps", "sigmas"} & inspect.signature(cls.set_timesteps).parameters.keys()
    assert theirs == {"timesteps", "sigmas"} & inspect.signature(SCHEDULERS[name]).parameters.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_why(name):
    with pytest.raises(ValueError, match="_class_name must be a scheduler that a plan stands for, got") as error:
        pf.plan_like({"_class_name": name}, steps=5)
    assert REFUSED[name] in str(error.value)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_option_is_known(name):
    function = set(inspect.signature(SCHEDULERS[name]).parameters)
    ours = {"timestep_spacing" if key == "spacing" else key for key in function}
    fixed = {key for key, (_, owners, _) in FIXED.items() if name in owners}
    theirs = set(inspect.signature(class_of(name).__init__).parameters) - {"self"}
    assert theirs <= ours | fixed | SCHEDULE | IDLE | IDLE_IN.get(name, set())
    assert fixed <= theirs


@pytest.mark.parametrize("name", SCHEDULERS)
def test_defaults_are_diffusers_own(name):
    """A configuration without a key, as saved ones are, means the class's default."""
    changed = UNCLIPPED.get(name, {})
    assert pf.plan_like(config_of(name), steps=6) == pf.plan_like(class_of(name)(**changed), steps=6)


OTHERS = {
    "lambda_min_clipped": -5.1, "interpolation_type": "log_linear", "timestep_type": "continuous", "sigma_min": 0.1,
    "sigma_max": 10.0, "noise_sampler_seed": 3, "solver_p": "x", "disable_corrector": [0],
}  # fmt: skip


@pytest.mark.parametrize("key", FIXED)
def test_options_that_no_plan_does(key):
    _, owners, why = FIXED[key]
    for name in owners:
        with pytest.raises(ValueError, match=f"{key} must be .* for a plan like {name}, got ") as error:
            pf.plan_like(config_of(name, **{key: OTHERS.get(key, True)}), steps=5)
        assert why in str(error.value)
    pf.plan_like(config_of("PNDMScheduler", **{key: OTHERS.get(key, True)}), steps=5)  # which has no such option


@pytest.mark.parametrize("name", UNCLIPPED)
def test_a_clip_that_no_row_does(name):
    with pytest.raises(ValueError, match=f"clip_sample must be False for a plan like {name}, which clamps x_0 but not"):
        pf.plan_like({"_class_name": name}, steps=5)


@pytest.mark.parametrize("case", LOOPS)
def test_a_plan_is_the_scheduler_s_loop(case):
    scheduler = scheduler_of(case)
    want = loop(scheduler, network, 6)
    start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    plan = pf.plan_like(scheduler, steps=6)
    if any(plan.noisy):
        return  # the noise is a scheduler's generator's: tests/test_plan_scheduler.py
    assert relative(pf.sample(network, solver=plan, start=pf.Noise(start)).double(), want.double()) < 1e-5


BETAS = (
    {"beta_schedule": "linear", "num_train_timesteps": 100},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"trained_betas": np.linspace(1e-3, 0.02, 50).tolist(), "num_train_timesteps": 50},
    {"rescale_betas_zero_snr": True},
)


@pytest.mark.parametrize("config", BETAS)
def test_schedules(config):
    theirs = diffusers.DDPMScheduler(**config)
    schedule, prediction = pf.schedule_of(theirs)
    assert prediction == "eps"
    times = np.arange(len(theirs))
    assert schedule.alpha(times) ** 2 == pytest.approx(theirs.alphas_cumprod.numpy(), rel=2e-5, abs=1e-7)


@pytest.mark.parametrize("kind, shift", [("exponential", math.exp(0.8)), ("linear", 0.8)])
def test_dynamic_shifting(kind, shift):
    config = {"use_dynamic_shifting": True, "time_shift_type": kind}
    schedule, prediction = pf.schedule_of(config_of("FlowMatchEulerDiscreteScheduler", **config), mu=0.8)
    assert (schedule, prediction) == (pf.Schedule.flow(shift, 1000), "flow")
    still, _ = pf.schedule_of(config_of("FlowMatchEulerDiscreteScheduler", shift=3.0), mu=0.8)
    assert still == pf.Schedule.flow(3.0, 1000)


def test_keys_of_other_classes_are_left_out():
    """As diffusers does: only four classes have flow sigmas, and PNDM no zero terminal SNR."""
    foreign = {"use_flow_sigmas": True, "rescale_betas_zero_snr": True, "solver_order": 3, "use_karras_sigmas": True}
    assert pf.plan_like(config_of("PNDMScheduler", **foreign), steps=6) == pf.plan_like(
        config_of("PNDMScheduler"), steps=6
    )


def test_saved_configurations(tmp_path):
    scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, lambda_min_clipped=-math.inf)
    scheduler.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert pf.plan_like(config, steps=9) == pf.plan_like(scheduler, steps=9)


@pytest.mark.parametrize(
    "name, config",
    [
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift_terminal": 0.02}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_karras_sigmas": True}),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}),
    ],
)
def test_sigmas_of_flow_pipelines(name, config):
    theirs = class_of(name)(**config)
    sigmas = np.linspace(1.0, 0.2, 6)
    theirs.set_timesteps(sigmas=sigmas.copy(), mu=0.9)
    plan = pf.plan_like(theirs, sigmas=sigmas, mu=0.9)
    assert [row.levels.call.sigma for row in plan] == pytest.approx(theirs.sigmas.tolist()[:-1], abs=1e-6)
    assert plan.times == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_timesteps(name):
    theirs, times = class_of(name)(), [999, 850, 736, 455, 124, 24]
    plan = pf.plan_like(theirs, timesteps=times)
    theirs.set_timesteps(timesteps=times)
    assert plan.times == tuple(times) == tuple(theirs.timesteps.tolist())
    if hasattr(theirs, "sigmas"):
        levels = [row.levels.call for row in plan]
        assert [sigma / alpha for alpha, sigma in levels] == pytest.approx(theirs.sigmas.tolist()[:-1], rel=2e-5)
