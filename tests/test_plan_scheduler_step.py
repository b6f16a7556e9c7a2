"""`PlanScheduler.step`: what it does with one row."""

import copy
import dataclasses
import math
import pickle

import pytest

diffusers = pytest.importorskip("diffusers", reason="the scheduler is one of diffusers'")
import torch  # noqa: E402
from compat_case import network  # noqa: E402
from golden_data import relative  # noqa: E402
from plan_scheduler_case import DDIM, FLOW, SAMPLE, SOLVERS, ready  # noqa: E402
from scheduler_case import LOOPS, loop, scheduler_of  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import pndm_fast as pf  # noqa: E402
from pndm_fast.integrations import stepping  # noqa: E402
from pndm_fast.integrations.diffusers import PlanScheduler  # noqa: E402
from pndm_fast.integrations.outputs import EstimatingOutput  # noqa: E402
from pndm_fast.row.backends import choose_backend  # noqa: E402

# diffusers' of numpy, and ours of few steps
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.* diverges in")


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step(solver):
    """Of the sample's shape and dtype, fresh each time; a tuple is the same."""
    outputs = []
    for return_dict in (True, False):
        scheduler = ready(DDIM, solver)
        generator = torch.Generator().manual_seed(0)
        given = SAMPLE.clone()
        out = scheduler.step(0.1 * given, scheduler.timesteps[0], given, generator=generator, return_dict=return_dict)
        first = out[0] if isinstance(out, tuple) else out.prev_sample
        kept = first.clone()
        second = scheduler.step(0.1 * given, scheduler.timesteps[1], first, generator=generator).prev_sample
        assert first.shape == SAMPLE.shape and first.dtype == SAMPLE.dtype
        assert torch.equal(first, kept) and torch.equal(given, SAMPLE) and first.data_ptr() != second.data_ptr()
        assert scheduler.step_index == 2
        outputs.append(second)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("case", LOOPS)
def test_the_estimate_of_each_step(case):
    """pred_original_sample, of the classes that have it, however they are asked; a clamped one too."""
    theirs = scheduler_of(case)
    ours = PlanScheduler.from_config(theirs)
    got, wanted = [], []
    loop(theirs, network, 6, outputs=wanted)
    loop(ours, network, 6, outputs=got)
    has = "pred_original_sample" in {field.name for field in dataclasses.fields(wanted[0])}
    assert has == isinstance(got[0], EstimatingOutput)
    if not has:
        assert set(got[0]) == set(wanted[0]) - {"pred_noised_sample"}  # TCD's, before its noise
        return
    for one, other in zip(got, wanted, strict=True):
        assert relative(one.pred_original_sample, other.pred_original_sample) < 1e-5
        assert one["pred_original_sample"] is one.pred_original_sample is one.to_tuple()[1] is one[1]
        assert one[0] is one.prev_sample


def test_an_estimate_is_made_when_it_is_asked_for():
    """Of what it was then, in inference mode too; copies have it."""
    scheduler = ready(DDIM, "dpmpp-2m")
    said = 0.1 * SAMPLE
    out = scheduler.step(said, scheduler.timesteps[0], SAMPLE)
    level = pf.make_plan("dpmpp-2m", steps=6).start
    want = (SAMPLE - level.sigma * said) / level.alpha
    assert out._estimate is None and relative(out.pred_original_sample, want) < 1e-5
    copied = pickle.loads(pickle.dumps(out))
    assert torch.equal(copied.pred_original_sample, out.pred_original_sample)
    half = ready(DDIM, "dpmpp-2m").step(said.half(), scheduler.timesteps[0], SAMPLE.half())
    assert half.pred_original_sample.dtype is torch.float16
    changed = ready(DDIM, "dpmpp-2m").step(said, scheduler.timesteps[0], SAMPLE)
    said.add_(1)
    with pytest.raises(ValueError, match="pred_original_sample must be read before model_output or sample change"):
        _ = changed.pred_original_sample
    with torch.inference_mode():
        out = ready(DDIM, "dpmpp-2m").step(0.1 * SAMPLE, scheduler.timesteps[0], SAMPLE)
        assert relative(out.pred_original_sample, want) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    """The state is float32, whatever the sample: the last of many steps is rounded once."""
    small = lambda x, t: network(x.float(), t).to(dtype)  # noqa: E731
    made = loop(PlanScheduler.from_config(DDIM, "dpmpp-2m"), small, 20, dtype=dtype)
    assert made.dtype is dtype
    want = loop(PlanScheduler.from_config(DDIM, "dpmpp-2m"), network, 20)
    assert relative(made.float(), want) < 40 * torch.finfo(torch.float32 if dtype is torch.float64 else dtype).eps


def test_outputs_of_another_dtype_and_layout():
    scheduler = ready(DDIM, "dpmpp-2m")
    x, want = SAMPLE, ready(DDIM, "dpmpp-2m")
    y = SAMPLE
    for t in scheduler.timesteps:
        out = network(x, t.reshape(1)).to(memory_format=torch.channels_last)
        x = scheduler.step(out.double(), t, x).prev_sample
        y = want.step(network(y, t.reshape(1)), t, y).prev_sample
    assert torch.equal(x, y)


class Reads(TorchDispatchMode):
    """Counts what waits for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", ["PNDM", "UniPC", "2M SDE", "Euler a", "Heun", "flow Euler"])
def test_no_step_reads_from_the_device(case):
    scheduler = ready(scheduler_of(case))
    x, reads = SAMPLE, Reads()
    generator = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        with reads:
            seen = scheduler.scale_model_input(x, t)
        out = network(seen, t.reshape(1))
        with reads:
            x = scheduler.step(out, t, x, generator=generator).prev_sample
    assert reads.found == []


@pytest.mark.parametrize(
    "case, backend",
    [("Euler a", "triton"), ("Euler a", "reference"), pytest.param("UniPC", "triton", marks=pytest.mark.stress)],
)
def test_backends(case, backend, monkeypatch):
    """The same bits as those of the C++ rows."""
    want = loop(PlanScheduler.from_config(scheduler_of(case)), network, 4)
    monkeypatch.setattr(stepping, "choose_backend", lambda _, *of: choose_backend(backend, *of))
    assert torch.equal(loop(PlanScheduler.from_config(scheduler_of(case)), network, 4), want)


def test_a_loop_is_made_once():
    """Another loop of the same kind makes no plan, no registers and no table."""
    scheduler = PlanScheduler.from_config(DDIM, "unipc")
    first, run, plan = loop(scheduler, network, 6), scheduler._run, scheduler._plan
    assert torch.equal(loop(scheduler, network, 6), first)
    assert scheduler._run is run and scheduler._plan is plan
    assert loop(scheduler, network, 6, shape=(3, 5, 3)).shape == (3, 5, 3)
    assert torch.equal(loop(scheduler, network, 6), first)


def test_a_second_loop_without_set_timesteps():
    scheduler = ready(steps=2)
    x = SAMPLE
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    with pytest.raises(ValueError, match="set_timesteps must be called before each loop: all 2 calls of ddim"):
        scheduler.step(0.1 * x, scheduler.timesteps[0], x)


def test_a_step_before_set_timesteps():
    with pytest.raises(ValueError, match="set_timesteps must be called before step"):
        PlanScheduler.from_config(DDIM).step(SAMPLE, 999, SAMPLE)


@pytest.mark.parametrize("case", ["DDIM", "2M Karras", "Euler a", "LCM"])
def test_generators_of_each_sample(case):
    """One for each sample: the first sample's image is that of it alone."""

    def run(scheduler, seeds):
        scheduler.set_timesteps(5)
        x, generators = SAMPLE[: len(seeds)], [torch.Generator().manual_seed(seed) for seed in seeds]
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.reshape(1)), t, x, generator=generators).prev_sample
        return x

    scheduler = PlanScheduler.from_config(scheduler_of(case))
    assert torch.equal(run(scheduler, [7, 8])[:1], run(scheduler, [7]))


@pytest.mark.parametrize("case", ["LCM", "LCM clipped"])
def test_what_consistency_models_noise_again(case):
    """Their pipelines take it too, and its last for the image."""
    made = []
    for scheduler in (theirs := scheduler_of(case), PlanScheduler.from_config(theirs)):
        scheduler.set_timesteps(4)
        x, generator = SAMPLE, torch.Generator().manual_seed(5)
        for t in scheduler.timesteps:
            x, denoised = scheduler.step(network(x, t.reshape(1)), t, x, generator=generator, return_dict=False)
            made.append(denoised)
    assert max(map(relative, made[4:], made[:4])) < 1e-5
    scheduler.set_timesteps(1)
    out = scheduler.step(SAMPLE, scheduler.timesteps[0], SAMPLE)
    assert torch.equal(out.prev_sample, out.denoised) and out.prev_sample is not out.denoised


def test_noise_without_a_generator_is_torch_s():
    theirs = scheduler_of("Euler a")
    made = []
    for scheduler in (theirs, PlanScheduler.from_config(theirs)):
        scheduler.set_timesteps(4)
        torch.manual_seed(11)
        x = SAMPLE * float(scheduler.init_noise_sigma)
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t.reshape(1)), t, x).prev_sample
        made.append(x)
    assert relative(made[1], made[0]) < 1e-5


@pytest.mark.parametrize("case", ["2M SDE", "DDPM", "LCM"])
def test_noise_in_half_precision_is_diffusers(case):
    """From the same generator, but for rounding."""
    theirs = scheduler_of(case)
    made = []
    for scheduler in (theirs, PlanScheduler.from_config(theirs)):
        scheduler.set_timesteps(4)
        x, generator = SAMPLE.half(), torch.Generator().manual_seed(5)
        made.append(scheduler.step(0 * x, scheduler.timesteps[0], x, generator=generator).prev_sample)
    assert made[1].dtype is torch.float16
    assert relative(made[1].float(), made[0].float()) < 4e-3


def test_another_sample_is_the_state():
    """A blend between two steps: the plan goes on from it, a multistep's history kept."""
    ours, theirs = ready(scheduler_of("DEIS")), scheduler_of("DEIS")
    theirs.set_timesteps(6)
    made = []
    for scheduler in (ours, theirs):
        x = SAMPLE
        for t in scheduler.timesteps:
            x = 0.5 * scheduler.step(network(x, t.reshape(1)), t, x).prev_sample
        made.append(x)
    assert relative(*made) < 1e-5


def test_a_change_in_place_is_seen():
    for mode in (torch.no_grad(), torch.inference_mode()):
        made = []
        with mode:
            for change in (lambda x: x.mul_(0.5), lambda x: x * 0.5):
                scheduler = ready(DDIM, "dpmpp-2m")
                x = SAMPLE.clone()
                for t in scheduler.timesteps:
                    x = change(scheduler.step(network(x, t.reshape(1)), t, x).prev_sample)
                made.append(x)
        assert torch.equal(*made)


@pytest.mark.parametrize("solver, calls", [("unipc", 2), ("heun", 1), ("f-pndm", 2)])
def test_a_state_that_a_plan_cannot_take(solver, calls):
    scheduler = ready(DDIM, solver)
    x = SAMPLE
    for t in scheduler.timesteps[:calls]:
        x = scheduler.step(network(x, t.reshape(1)), t, x).prev_sample
    with pytest.raises(ValueError, match=f"sample must be what step returned before call {calls} of {solver}"):
        scheduler.step(SAMPLE, scheduler.timesteps[calls], 0.5 * x)


@pytest.mark.parametrize(
    "output, sample, words, message",
    [
        (SAMPLE, SAMPLE[:1], {}, r"model_output must be \(1, 3, 4, 4\) on cpu, as sample is, got \(2, 3, 4, 4\)"),
        (SAMPLE, SAMPLE.long(), {}, "sample must be floating-point"),
        (SAMPLE.clone().requires_grad_(), SAMPLE, {}, "model_output must be without gradients"),
        (SAMPLE, SAMPLE, {"s_churn": 0.5}, "s_churn must be 0: no plan does another, got 0.5"),
        (SAMPLE, SAMPLE, {"use_clipped_model_output": True}, "use_clipped_model_output must be False"),
        (SAMPLE, SAMPLE, {"variance_noise": SAMPLE}, "variance_noise must be None: no plan does another"),
    ],
)
def test_steps_refused(output, sample, words, message):
    with pytest.raises(ValueError, match=message):
        (scheduler := ready()).step(output, scheduler.timesteps[0], sample, **words)


def test_a_step_s_unknown_argument():
    with pytest.raises(TypeError, match="step has no argument 'churn'"):
        ready().step(SAMPLE, 995, SAMPLE, churn=1)


def test_what_other_schedulers_steps_take():
    scheduler = ready()
    idle = {
        "s_churn": 0.0,
        "s_tmax": math.inf,
        "s_noise": 1.0,
        "use_clipped_model_output": None,
        "variance_noise": None,
    }
    assert torch.equal(
        scheduler.step(SAMPLE, scheduler.timesteps[0], SAMPLE, **idle).prev_sample,
        ready().step(SAMPLE, scheduler.timesteps[0], SAMPLE).prev_sample,
    )


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("case", ["DDIM", "TCD"])
def test_eta_that_steps_are_given(case, eta):
    theirs = scheduler_of(case)
    ours = PlanScheduler.from_config(theirs)
    assert relative(loop(ours, network, 6, eta=eta), loop(theirs, network, 6, eta=eta)) < 1e-5


def test_eta_refused():
    scheduler = ready()
    first = scheduler.step(SAMPLE, scheduler.timesteps[0], SAMPLE, eta=0.5).prev_sample
    with pytest.raises(ValueError, match="eta must be the same in all of a loop, 0.5, got 0.2"):
        scheduler.step(SAMPLE, scheduler.timesteps[1], first, eta=0.2)
    other = ready(scheduler_of("PLMS"))
    with pytest.raises(ValueError, match="eta must not be given for PNDMScheduler"):
        other.step(SAMPLE, other.timesteps[0], SAMPLE, eta=0.5)


def test_a_learned_variance_is_left_out():
    scheduler, want = ready(), ready()
    twice = torch.cat([SAMPLE, 9 + SAMPLE], dim=1)
    got = scheduler.step(twice, scheduler.timesteps[0], SAMPLE).prev_sample
    assert torch.equal(got, want.step(SAMPLE, want.timesteps[0], SAMPLE).prev_sample)


def test_where_a_loop_begins_without_set_begin_index():
    """Its first timestep says so: a view of `timesteps`, a number, or a copy."""
    for told in (lambda t: t, lambda t: t.item(), lambda t: t.clone()):
        scheduler = ready(steps=8)
        assert scheduler.step_index is None
        scheduler.step(SAMPLE, told(scheduler.timesteps[3:][0]), SAMPLE)
        assert scheduler.step_index == 4
    with pytest.raises(ValueError, match="timestep must be one of timesteps, got 3"):
        ready(steps=8).step(SAMPLE, 3, SAMPLE)


@pytest.mark.parametrize("config", [{}, {"rescale_betas_zero_snr": True}])
def test_noise_and_velocity_of_training(config):
    theirs = diffusers.DDPMScheduler(clip_sample=False, **config)
    ours = PlanScheduler.from_config(theirs, "ddim" if config else "unipc")
    noise, times = SAMPLE.flip(0), torch.tensor([3, 999])
    for name in ("add_noise", "get_velocity"):
        want = getattr(theirs, name)(SAMPLE, noise, times)
        assert relative(getattr(ours, name)(SAMPLE, noise, times), want) < 1e-5
    with pytest.raises(ValueError, match="timesteps must be whole numbers outside of a loop, got torch.float32"):
        ours.add_noise(SAMPLE, noise, times.float())


def test_noise_of_flow_training():
    ours = PlanScheduler.from_config(FLOW, "heun")
    noise, times = SAMPLE.flip(0), torch.tensor([250.0, 1000.0])
    sigma = (times / 1000).view(2, 1, 1, 1)
    assert torch.equal(ours.scale_noise(SAMPLE, times, noise), (1 - sigma) * SAMPLE + sigma * noise)
    assert torch.equal(ours.get_velocity(SAMPLE, noise, times), noise - SAMPLE)


def test_noise_in_a_loop_is_that_of_the_next_call():
    scheduler, plan = ready(DDIM, "dpmpp-2m"), pf.make_plan("dpmpp-2m", steps=6)
    scheduler.set_begin_index(0)
    ones, x = torch.ones_like(SAMPLE), SAMPLE
    for i, t in enumerate(scheduler.timesteps):
        level = plan.rows[i].levels.call
        assert scheduler.add_noise(ones, 0 * ones, t.reshape(1))[0, 0, 0, 0] == pytest.approx(level.alpha, rel=1e-6)
        x = scheduler.step(0.1 * x, t, x).prev_sample
    assert torch.equal(scheduler.add_noise(SAMPLE, ones, t.reshape(1)), SAMPLE)  # where the loop ends


def test_copies():
    """A copy begins its own loop: requests in threads have one each."""
    scheduler = ready(DDIM, "unipc")
    scheduler.step(SAMPLE, scheduler.timesteps[0], SAMPLE)
    want = loop(PlanScheduler.from_config(DDIM, "unipc"), network, 6)
    for made in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert made.step_index is None and made.timesteps.tolist() == scheduler.timesteps.tolist()
        assert torch.equal(loop(made, network, 6), want)


def test_a_configuration_that_a_pipeline_changes():
    """Pipelines put another one in its place: the next loop is its."""
    scheduler = PlanScheduler.from_config({**DDIM, "steps_offset": 0})
    scheduler.set_timesteps(5)
    scheduler._internal_dict = diffusers.configuration_utils.FrozenDict({**scheduler.config, "steps_offset": 1})
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [801, 601, 401, 201, 1]
