"""What grids and schedules take from elsewhere, and where they say that less happens than was asked for."""

import inspect
import math
import re
import warnings

import numpy as np
import pytest
import torch
from golden_data import SCALAR
from hypothesis import given
from hypothesis import strategies as st

import pndm_fast as pf
from pndm_fast.plan.grids import SPACINGS, check_times, make_grid
from pndm_fast.plan.hints import HINTS, hint
from pndm_fast.plan.named_grids import NAMED
from pndm_fast.solvers import SOLVER_INFO, SOLVERS
from pndm_fast.solvers.compat import COMPAT, SCHEDULERS

LINEAR, LATENT, FLOW = pf.Schedule.linear(), pf.Schedule.scaled_linear(), pf.Schedule.flow()
ZERO = LINEAR.zero_terminal_snr()
# Align Your Steps (arXiv:2404.14507), the table for Stable Diffusion 1.5, as printed
AYS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029, 0.0]


def says(*arguments, **options):
    """The warnings that a plan gives."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pf.make_plan(*arguments, **options)
    return [str(warning.message) for warning in told if "diverges" not in str(warning.message)]


# what is taken


@pytest.mark.parametrize("as_given", [list, np.float32, torch.tensor, tuple])
def test_published_noise_levels(as_given):
    plan = pf.make_plan("euler", LATENT, sigmas=as_given(AYS))
    assert plan.times[0] == pytest.approx(999, abs=1e-9) and plan.rows[-1].levels.y.sigma == 0
    told = [row.levels.call.sigma / row.levels.call.alpha for row in plan]
    assert told[1:] == pytest.approx(AYS[1:-1], rel=1e-6)


@pytest.mark.parametrize("schedule", [LINEAR, LATENT, pf.Schedule.cosine(), pf.Schedule.vp(), FLOW], ids=repr)
def test_noise_levels_may_be_rounded(schedule):
    """To float32, by some operations in it, and to four digits or more, at the noisiest level; not beyond."""
    most = 1.0 if schedule is FLOW else float(schedule.sigma(schedule.last) / schedule.alpha(schedule.last))
    words = {"prediction": "x0" if schedule is not FLOW else "flow"}
    for level in (np.float32(most), most * (1 + 9e-7), most * (1 - 9e-7), *(float(f"{most:.{d}g}") for d in (4, 5, 6))):
        plan = pf.make_plan("euler", schedule, sigmas=[level, most / 2, 0], **words)
        assert schedule.last * (1 - 1e-3) <= plan.times[0] <= schedule.last
    for factor, excess in ((1.001, r"0\.1 % above"), (1.5, "50 % above"), (3.0, "200 % above")):
        with pytest.raises(ValueError, match=rf"sigmas must be in \[0, {most:g}\] on .*, {excess}"):
            pf.make_plan("euler", schedule, sigmas=[most * factor, most / 2, 0], **words)


def test_the_lower_end():
    """A schedule whose last level still has noise: no clamp in silence."""
    levels = pf.Schedule.from_levels([0.1, 0.6, 0.8], [0.99**0.5, 0.8, 0.6])
    assert pf.make_plan("euler", levels, sigmas=[4.0, 0.75 * (1 - 5e-7)]).times[0] == pytest.approx(1.5055, abs=1e-4)
    with pytest.raises(ValueError, match=r"sigmas must be in \[0.75, 9.94987\] on levels, got 0, 100 % below"):
        pf.make_plan("euler", levels, sigmas=[4.0, 0.0])
    assert pf.make_plan("euler", sigmas=[1.0, -0.0]).rows[-1].levels.y.sigma == 0
    with pytest.raises(ValueError, match="sigmas must be in .*got inf"):
        pf.make_plan("euler", pf.Schedule.edm(), sigmas=[math.inf, 0])


@pytest.mark.parametrize("values", [torch.tensor(3.0), np.array(3.0), torch.ones(3, device="meta"), torch.ones(3) * 1j])
@pytest.mark.parametrize("name", ["times", "sigmas"])
def test_no_grid(name, values):
    with pytest.raises(TypeError, match=f"{name} must be a decreasing sequence of numbers, got "):
        pf.make_plan("euler", **{name: values})


@given(st.floats(1e-3, 1e3), st.one_of(st.just(1.0), st.integers(1, 5000), st.floats(1e-3, 1e4)))
def test_no_shift_refuses_its_own_end(shift, T):
    """Grids of any shift begin at the schedule's last time and stay inside, in order."""
    schedule = pf.Schedule.flow(shift, T)
    for spacing in ("trailing", "leading", "quadratic", "beta"):
        for final in ("zero", "min"):
            times = check_times(schedule, make_grid(schedule, 7, spacing, final), 1, "euler")
            assert 0 <= times[-1] and (spacing == "leading" or times[0] == T)


def test_a_shift_that_was_refused():
    assert pf.make_plan("euler", pf.Schedule.flow(2.4596, 1000), steps=50, prediction="flow").times[0] == 1000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tables_of_any_dtype(dtype):
    table = torch.linspace(0.99, 0.01, 10).to(dtype)
    schedule = pf.Schedule.from_alphas_cumprod(table.requires_grad_())
    assert schedule.alpha(np.arange(10)) ** 2 == pytest.approx(table.double().detach().numpy(), rel=1e-14)
    betas = torch.linspace(1e-4, 1.0, 10).to(dtype)
    assert pf.Schedule.from_betas(betas).alpha(9) == 0  # zero terminal SNR, as alphas_cumprod that end at 0 are
    assert pf.Schedule.from_betas(betas.numpy() if dtype is not torch.bfloat16 else betas).alpha(8) > 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: pf.Schedule.from_alphas_cumprod(torch.tensor(LINEAR.alpha(np.arange(1000)) ** 2).half()),
         "torch.float16 has too few digits for this table, give it in float32"),
        (lambda: pf.Schedule.from_alphas_cumprod(np.float16([0.9, 0.89999, 0.5])), "float16 has too few digits"),
        (lambda: pf.Schedule.from_betas(torch.ones(3, device="meta")), "got Tensor of torch.float32 on meta"),
        (lambda: pf.Schedule.from_betas(np.array([True, False])), "betas must be a sequence of numbers, got ndarray"),
        (lambda: pf.Schedule.from_betas(np.array([0.1 + 1j])), "betas must be a sequence of numbers, got ndarray of c"),
        (lambda: pf.Schedule.from_betas([0.1, 1.0, 0.2]), r"betas must be in \(0, 1\) \(the last: or 1\), got 1.0"),
        (lambda: pf.Schedule.from_betas([1.0]), "betas must be in .*, got 1.0 at index 0"),
        (lambda: pf.Schedule.linear(beta_end=1.0), "betas must leave some signal .*none at index 9"),
        (lambda: pf.Schedule.vp(-5.0, 3.0), "that is beta_min [+] beta_max > 0, got -5.0, 3.0"),
        (lambda: pf.Schedule.vp(3.0, 1.0), "beta_min <= beta_max"),
        (lambda: pf.Schedule.vp("0.1"), "beta_min must be float, got '0.1'"),
        (lambda: pf.Schedule.flow(shift="3"), "shift must be float, got '3'"),
        (lambda: pf.Schedule.flow(T=None), "T must be float, got None"),
        (lambda: pf.Schedule.edm(sigma_max=True), "sigma_max must be float, got True"),
        (lambda: pf.Schedule.linear(beta_end="0.02"), "beta_end must be float, got '0.02'"),
        (lambda: pf.make_plan("ddim", integer_times="yes"), "integer_times must be bool, got 'yes'"),
    ],
)  # fmt: skip
def test_schedules_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_betas_that_end_at_one():
    schedule = pf.Schedule.scaled_linear(T=20, beta_end=1.0)
    wanted = np.append(schedule.alpha(np.arange(19)) ** 2, 0.0)
    assert schedule == pf.Schedule.from_alphas_cumprod(wanted, name="scaled-linear") or schedule.alpha(19) == 0
    assert pf.make_plan("ddim", schedule, steps=5, spacing="trailing", prediction="v").start == (0.0, 1.0)


def test_a_negative_beta_min():
    """The line through alpha-bar at t = 1e-3 and 1 of sigma = 0.002 and 80 (DEIS's released code for EDM's levels)."""
    low, high = 0.002, 80.0
    steep = 2 * (math.log1p(low**2) / 1e-3 - math.log1p(high**2)) / (1e-3 - 1)
    beta_min = math.log1p(high**2) - steep / 2
    assert beta_min == pytest.approx(-0.0048, abs=1e-4)
    schedule = pf.Schedule.vp(beta_min, beta_min + steep)
    rho = schedule.sigma([1e-3, 1.0]) / schedule.alpha([1e-3, 1.0])
    assert rho == pytest.approx([low, high], rel=1e-9)
    t = np.linspace(schedule.first, 1, 50)
    assert schedule.sigma(schedule.first) == 0 and np.all(np.diff(schedule.sigma(t)) > 0)
    assert schedule.time_at(schedule.lam(t)) == pytest.approx(t, abs=1e-12)
    for solver in ("deis", "dpmpp-2m", "heun", "f-pndm"):
        plan = pf.make_plan(solver, schedule, steps=8, spacing="logsnr")
        assert plan.rows[-1].levels.y.sigma == 0 and plan.times[-1] == 1e-3
    with pytest.raises(ValueError, match=r"times must be in \[0.000543847, 1\], got 0.0001"):
        schedule.alpha(1e-4)
    assert pf.Schedule.vp(0.0, 20.0).time_at([math.inf, 0.0]) == pytest.approx([0, math.sqrt(math.log(2) / 10)])


# what is said


@pytest.mark.parametrize(
    "arguments, end",
    [
        (("ddim", LINEAR, {"times": [999, 850, 24]}), "t = 24, where sigma / alpha is 0.0923: times that end with -1 "),
        (("euler", LATENT, {"sigmas": AYS[:-1]}), "where sigma / alpha is 0.029.*: sigmas that end with 0 give clean"),
        (("euler", FLOW, {"sigmas": [1.0, 0.5], "prediction": "flow"}), "t = 0.5, where sigma / alpha is 1: "),
        (("em", None, {"times": [1.0, 0.5, 0.1]}), "t = 0.1: times that end with 0 give clean"),
        (("unipc", LINEAR, {"times": [999, 500, 24], "integer_times": True}), "t = 24"),
        (("auto", LINEAR, {"times": [999, 500, 24]}), "t = 24"),
    ],
)
def test_a_grid_that_ends_early(arguments, end):
    solver, schedule, options = arguments
    (told,) = says(solver, schedule, **options)
    assert re.search(f"the grid ends at .*{end}", told) and "final='min' says that this end is meant" in told
    assert says(solver, schedule, **options, final="min") == []
    with pytest.raises(ValueError, match="final must be 'min' where .* end above sigma = 0, got 'zero'"):
        pf.make_plan(solver, schedule, **options, final="zero")


def test_grids_that_end_where_they_should():
    for options in ({"times": [999, 500, -1]}, {"sigmas": [10, 1, 0]}):
        assert says("ddim", **options) == says("ddim", **options, final="zero") == []
        with pytest.raises(ValueError, match="final must be 'zero' where .* end at sigma = 0, got 'min'"):
            pf.make_plan("ddim", **options, final="min")
    assert says("ddim", steps=5, final="min") == says("ddim-inverse", times=[999, 500, 3]) == []


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "f-pndm", "s-pndm", "ipndm", "plms"])
def test_a_grid_without_the_noisiest_time(solver):
    """Leading grids leave out alpha = 0, for which the network was trained."""
    (told,) = says(solver, ZERO, steps=20, prediction="v")
    assert "the grid starts at t = 950, where alpha is 0.00397, and never visits the alpha = 0 of linear, zero" in told
    can = solver in ("ddim", "ddpm")
    assert f"spacing='trailing' does{', t_start' if can else ' with a solver that can begin there, such as'}" in told
    assert says(solver, ZERO, steps=20, prediction="v", t_start=950) == []
    assert says(solver, ZERO, steps=20, prediction="v", strength=0.5) == []
    assert says(solver, LINEAR, steps=20) == []


@pytest.mark.filterwarnings("ignore:.* diverges in", "ignore:.* adds no noise")
@pytest.mark.parametrize("schedule", [ZERO, pf.Schedule.trigflow()], ids=["discrete", "trigflow"])
def test_the_solvers_that_begin_without_data(schedule):
    """What the warning says of a solver is so: it begins at alpha = 0, or refuses that in words."""
    cannot = []
    for solver in SCALAR:
        if not SOLVER_INFO[solver].inverts:
            told = says(solver, schedule, steps=12, spacing="leading", prediction="v")
            (told,) = (line for line in told if "never visits" in line)
            if f"({solver} cannot)" in told:
                cannot.append(solver)
                with pytest.raises(ValueError, match="alpha [>=] 0"):
                    pf.make_plan(solver, schedule, steps=12, prediction="v", spacing="trailing")
            else:
                plan = pf.make_plan(solver, schedule, steps=12, prediction="v", spacing="trailing")
                assert plan.times[0] == schedule.last and plan.start.alpha == 0, solver
    assert not {"ddim", "euler", "dpmpp-2m", "unipc"} & set(cannot) and {"f-pndm", "fon", "rk", "heun"} <= set(cannot)


@pytest.mark.parametrize("schedule", [FLOW, pf.Schedule.flow(3.0, 1000), pf.Schedule.trigflow(), LATENT], ids=str)
def test_a_start_but_for_rounding_is_the_start(schedule):
    """In float32 a grid may begin an ulp off; on flow sigma = 1 - 6e-8 would leave no digit to solvers in log-SNR."""
    last = schedule.last
    for off in (0, 6e-8, -6e-8, 3e-7, -3e-7):
        plan = pf.make_plan("deis" if last == 1 else "ddim", schedule, times=[last * (1 + off), last / 3, 0.0],
                            prediction="v", final="zero" if schedule.first == 0 else "min")  # fmt: skip
        assert plan.times[0] == last
        if schedule.scale == "flow":
            assert pf.make_plan("ddim", schedule, sigmas=[1 + off, 0.3, 0], prediction="flow").times[0] == last
    first = last * (1 - 2e-5)
    assert pf.make_plan("ddim", schedule, times=[first, last / 3], final="min", prediction="v").times[0] == first


def test_the_noisiest_time():
    assert says("auto", ZERO, steps=20, prediction="v") == []
    assert "never visits" in says("ddim", ZERO, times=[950, 500, -1], prediction="v")[0]
    assert "never visits" in says("ddim", FLOW, steps=9, spacing="leading", prediction="flow")[0]
    assert says("ddim", FLOW, steps=9, prediction="flow") == []
    for steps in (7, 13, 50):  # the start that the warning names keeps every step, whatever its digits
        (told,) = says("ddim", FLOW, steps=steps, spacing="leading", prediction="flow")
        start = float(re.search(r"t_start=(\S+) says", told).group(1))
        assert pf.make_plan("ddim", FLOW, steps=steps, spacing="leading", prediction="flow", t_start=start).nfe == steps
    assert says("ddim", FLOW, times=[0.6, 0.3, 0], prediction="flow") == []  # from an image


IDLE = [
    ("deis", {"order": 1, "variable": "rho"}, "variable='rho'"),
    ("deis", {"order": 1, "variable": "log_rho", "lower_order_final": False}, "lower_order_final=False"),
    ("unipc", {"order": 1, "corrector": False, "variant": "bh1"}, "variant='bh1'"),
    ("unipc", {"order": 1, "lower_order_final": True}, "lower_order_final=True"),
    ("dpmpp-2m", {"lower_order_final": False}, "lower_order_final=False"),  # the last step is of order 1 in any case
    ("dpmpp-2s", {"steps": 2, "solver_type": "heun"}, "solver_type='heun'"),
    ("dpmpp-3m", {"steps": 2, "exact": True}, "exact=True"),
    ("dpmpp-sde", {"eta": 0.0, "one_path": False}, "one_path=False"),
    ("dpmpp-sde", {"steps": 1, "r": 0.7}, "r=0.7"),
    ("edm", {"churn": 0.0, "churn_max": 5.0}, "churn_max=5.0"),
    ("edm", {"churn": 0.0, "churn_noise": 1.003}, "churn_noise=1.003"),
    ("conjugate", {"weights": "pndm"}, "weights='pndm'"),
    ("conjugate", {"schedule": pf.phase_space.PSLD(), "final": "min", "denoise": "sde"}, "denoise='sde'"),
    ("em", {"final": "min", "denoise": "ode"}, "denoise='ode'"),
    ("noba", {"schedule": pf.phase_space.PSLD(gamma=0.0, nu=4.0), "lam_s": 1.0}, "lam_s=1.0"),
    ("lms", {"steps": 2, "order": 3}, "order=3"),
]
ACTIVE = [
    ("edm", {"churn": 5.0}),  # as much as 40 would, in few steps
    ("edm", {"churn": 0.0}),
    ("dpmpp-2m", {"lower_order_final": True, "final": "min"}),
    ("dpmpp-2m", {"lower_order_final": True, "final": "min", "steps": 20}),
    ("dpmpp-3m", {"lower_order_final": False}),
    ("deis", {"order": 1}),
    ("deis", {"variable": "t"}),  # the default, said
    ("unipc", {"order": 1, "variant": "bh1"}),
    ("conjugate", {"schedule": pf.phase_space.PSLD(), "frame": "R", "denoise": "ode"}),
    ("fon", {"delta": 1.0}),
    ("noba", {"lam_s": 1.0}),
    ("lms", {"order": 3}),
]


@pytest.mark.parametrize("solver, options, word", IDLE, ids=str)
def test_options_without_effect(solver, options, word):
    told = says(solver, **{"steps": 6, **options})
    assert any(text.startswith(f"{word} has no effect on this plan of {solver}: ") for text in told), told


@pytest.mark.parametrize("solver, options", ACTIVE, ids=str)
def test_options_with_effect(solver, options):
    assert says(solver, **{"steps": 6, **options}) == []


def test_churn_that_never_happens():
    """Of the plan itself, not of those that it is compared with."""
    assert says("edm", pf.Schedule.edm(), steps=9, prediction="x0", churn_min=70.0) == []
    assert says("edm", steps=1)[0].startswith("edm adds no noise on this grid")
    assert says("edm", steps=30, spacing="trailing", churn=0.01, integer_times=True)[0].startswith("edm adds no noise")
    assert says("edm", steps=30, spacing="trailing", churn=9.0, integer_times=True) == []


def test_a_start_beyond_the_schedule():
    with pytest.raises(ValueError, match=r"t_start must be in \[-1, 999\], got 5000"):
        pf.make_plan("ddim", t_start=5000)
    assert pf.make_plan("ddim", pf.Schedule.edm(), times=[200, 100, 0], t_start=150, prediction="x0").times == (100,)


# words of other libraries


@pytest.mark.parametrize(
    "word, said",
    [
        ("num_inference_steps", "say steps="),
        ("guidance_scale", "say guidance="),
        ("Guidance-Scale", "say guidance="),
        ("use_karras_sigmas", "say spacing='karras'"),
        ("beta_schedule", "the schedule says it"),
        ("timestep_spacing", "say spacing="),
        ("algorithm_type", "say solver="),
        ("seed", "seeds= gives each sample its own"),
        ("guidance", "it is an argument of Request"),
        ("device", "it is an argument of Sampler"),
        ("eta", "it is one of .*dpmpp-2m-sde, .*ddim, euler-ancestral"),
        ("spacings", "did you mean 'spacing'"),
        ("lower_order_fina", "did you mean 'lower_order_final'"),
        ("use_flow_sigmas", "schedule=pf.Schedule.flow"),
        ("euler_at_final", "compat='diffusers' has it as an option"),
    ],
)
def test_hints(word, said):
    with pytest.raises(ValueError, match=f"'{word}' is neither an argument nor an option of dpmpp-2m .*{said}"):
        pf.make_plan("dpmpp-2m", steps=5, **{word: 3})


@pytest.mark.parametrize(
    "word, meant",
    [
        ("DDIM", "ddim"),
        ("dpmpp_2m", "dpmpp-2m"),
        ("DPM++ 2M Karras", "dpmpp-2m"),
        ("DPM++ 3M SDE", "dpmpp-3m-sde"),
        ("euler_a", "euler-ancestral"),
        ("pndm", "f-pndm"),
        ("uni_pc", "unipc"),
        ("res_multistep", "res-2m"),
        ("res_multistep_ancestral", "res-multistep-ancestral"),
        ("dpmpp_2s_ancestral", "dpmpp-2s-ancestral"),
        ("seeds_3", "seeds-3"),
        ("KDPM2AncestralDiscreteScheduler", "dpm-2-ancestral"),
        ("SASolverScheduler", "sa-solver"),
    ],
)
def test_solvers_by_other_names(word, meant):
    with pytest.raises(ValueError, match=f"solver must be one of .*; did you mean '{meant}'"):
        pf.make_plan(word, steps=5)


@pytest.mark.parametrize("word", SCHEDULERS)
def test_solvers_by_diffusers_names(word):
    """The solver that stands for the class, under compat too."""
    with pytest.raises(ValueError) as refused:
        pf.make_plan(word, steps=5)
    meant = re.search("did you mean '(.*?)'", str(refused.value)).group(1)
    function = COMPAT["diffusers"][meant]
    classes = inspect.getclosurevars(function).nonlocals.values() if hasattr(function, "__wrapped__") else ()
    assert SCHEDULERS[word] in (function, *classes)


def test_hints_are_of_words_that_are_not_ours():
    ours = set(inspect.signature(pf.make_plan).parameters)
    for function in SOLVERS.values():
        ours |= set(inspect.signature(function).parameters) - {"schedule", "times", "prediction"}
    assert {word for word in ours if hint(word)} == {"denoise"}  # which it says
    assert hint("etta") == "" and hint("num-inference-steps") == hint("num_inference_steps") != ""


def test_hints_name_what_there_is():
    """Each argument that a hint names is one, of make_plan, a solver, a grid, a sampler or a request."""
    owners = [pf.make_plan, pf.Sampler, pf.Request, pf.sample, pf.Guidance, pf.Schedule.flow]
    owners += [*SOLVERS.values(), *NAMED.values()]
    known = {name for owner in owners for name in inspect.signature(owner).parameters} | {"sigma_spacing"}
    for word, said in HINTS.items():
        for name in re.findall(r"\b([a-z_]+)=", said):
            assert name in known, (word, name)


@pytest.mark.parametrize("solver", SCALAR)
def test_every_spacing_of_every_solver_is_silent(solver):
    """Usual grids on usual schedules say nothing."""
    for spacing in SPACINGS:
        assert says(solver, steps=20, spacing=spacing) == []
