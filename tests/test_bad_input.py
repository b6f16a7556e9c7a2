"""What a user can get wrong: each is refused by name, with what was got, before the first network call."""

import dataclasses
import inspect
import math

import numpy as np
import pytest
import torch
from drawing import REQUEST, SAMPLER, draw

import pndm_fast as pf

S = pf.Schedule.linear()
PLAN = pf.make_plan("ddim", steps=5)
SHAPE = (2, 8)
X = torch.zeros(SHAPE)
TREE = PLAN.to_json()
ANCHORED = list(pf.make_plan("f-pndm", steps=5).rows)
ANCHORED[1] = dataclasses.replace(ANCHORED[1], levels=ANCHORED[1].levels._replace(x=ANCHORED[1].levels.y))


# arguments that the short form does not have
LONG = SAMPLER | REQUEST | inspect.signature(pf.make_plan).parameters.keys()
LONG -= inspect.signature(pf.sample).parameters.keys()


def network(x, t, **cond):
    raise AssertionError("the network was called")


def sample(**arguments):
    call = draw if arguments.keys() & LONG else pf.sample
    return lambda: call(network, **{"steps": 5, "shape": SHAPE, "solver": "ddim", **arguments})


def plan(*positional, **arguments):
    return lambda: pf.make_plan(*positional, **{"steps": 5, **arguments} if "times" not in arguments else arguments)


def row(**changes):
    fields = {"t": 1.0, "slot": 0, "y": PLAN.rows[0].y, "levels": PLAN.rows[0].levels, **changes}
    return lambda: pf.Row(**fields)


CASES = [
    # the network
    (lambda: pf.sample(None, 5, shape=SHAPE), TypeError, "model must be callable.*None"),
    (lambda: pf.sample(torch.nn.Linear, 5, shape=SHAPE), TypeError, "model must be callable"),
    # steps, nfe, times
    (sample(steps=0), ValueError, "steps must be .*1.*got 0"),
    (sample(steps=-3), ValueError, "steps must be .*got -3"),
    (sample(steps=1001), ValueError, "steps must be in .1, 1000.*got 1001"),
    (sample(steps=5.0), TypeError, "steps must be an integer, got 5.0"),
    (sample(steps="5"), TypeError, "steps must be an integer, got '5'"),
    (sample(steps=True), TypeError, "steps must be an integer, got True"),
    (sample(steps=3, solver="f-pndm"), ValueError, "steps must be at least 4 for f-pndm, got 3"),
    (sample(steps=3, solver="fon"), ValueError, "steps must be at least 4 for fon, got 3"),
    (sample(steps=1, solver="s-pndm"), ValueError, "steps must be at least 2 for s-pndm, got 1"),
    (sample(steps=1, solver="plms"), ValueError, "steps must be at least 2 for plms, got 1"),
    (sample(steps=None, nfe=12, solver="f-pndm"), ValueError, "nfe must be at least 13 for f-pndm, got 12"),
    (sample(steps=None, nfe=2.5), TypeError, "nfe must be an integer, got 2.5"),
    (sample(nfe=10), ValueError, "steps, nfe, times and sigmas exclude"),
    (plan("ddim", S, times=[10, 20, 30]), ValueError, "times must decrease, got 10 then 20 at index 1"),
    (plan("ddim", S, times=[999, 5, 5]), ValueError, "times must decrease, got 5 then 5 at index 2"),
    (plan("ddim", S, times=[1200, 5]), ValueError, r"times must be in \[-1, 999\], got 1200"),
    (plan("ddim", S, times=[5, -2]), ValueError, r"times must be in \[-1, 999\], got -2"),
    (plan("ddim", S, times=[math.nan, 5]), ValueError, "times must decrease, got nan"),
    (plan("ddim", S, times=[999]), ValueError, "steps must be at least 1 for ddim, got 0"),
    (plan("ddim", S, times=[9, 5], spacing="leading"), ValueError, "spacing and times exclude"),
    (plan("ddim", S, times=[9, 5], final="zero"), ValueError, "final must be 'min' where times end above"),
    (plan("ddim", S, times=[9, 5], sigmas=[9, 5]), ValueError, "steps, nfe, times and sigmas exclude"),
    (
        plan("ddim", S, sigmas=[900.0, 5.0], steps=None),
        ValueError,
        r"sigmas must be in \[0, 157.407\] on linear, got 900",
    ),
    (plan("ddim", S, sigmas="abc", steps=None), TypeError, "sigmas must be a decreasing sequence"),
    (plan("ddim", S, sigmas=[3.0, 5.0], steps=None), ValueError, "times must decrease"),
    (plan("ddim", S, final="nil"), ValueError, "final must be one of zero, min, got 'nil'"),
    (plan("ddim", S, spacing="karras", t_min=-1), ValueError, "t_min must be later than -1 for karras"),
    (plan("ddim", S, spacing="karras", t_min=1000), ValueError, r"t_min must be in \[-1, 999\), got 1000"),
    (plan("ddim", S, spacing="karras", t_min="a"), TypeError, "t_min must be float, got 'a'"),
    (plan("heun", steps=None, nfe=10), ValueError, "nfe must be 2 n - 1 for heun, such as 9 or 11, got 10"),
    (plan("lms", pf.Schedule.flow(), spacing="karras"), ValueError, "spacing must be uniform in t where .*alpha = 0"),
    (plan("deis", pf.Schedule.flow()), ValueError, "schedule must have alpha > 0 for deis, got flow"),
    (plan("fon", pf.Schedule.edm()), ValueError, "schedule must be variance-preserving for fon, got edm"),
    (plan("lambda-ddim", pf.Schedule.edm()), ValueError, "schedule must be variance-preserving for lambda-ddim"),
    (
        plan("ddim", S.zero_terminal_snr(), spacing="trailing"),
        ValueError,
        "prediction must be v, x0 or flow where alpha",
    ),
    (plan("dpmpp-2m", pf.Schedule.flow()), ValueError, "prediction must be v, x0 or flow where alpha = 0"),
    (
        plan("lms", S.zero_terminal_snr(), spacing="trailing", prediction="v"),
        ValueError,
        "times must start where alpha > 0",
    ),
    (plan("ddim", S, prediction="edm"), ValueError, "prediction 'edm' must be on Schedule.edm"),
    (plan("ddim", S, times=[2.4, 2.3, -1], integer_times=True), ValueError, "integer_times must round"),
    (plan("ddim", pf.Schedule.vp(), integer_times=True), ValueError, "integer_times must have a discrete schedule"),
    # names
    (sample(solver="f-pmdn"), ValueError, "solver must be one of .*got 'f-pmdn'; did you mean 'f-pndm'"),
    (sample(solver=3), ValueError, "solver must be one of .*got 3"),
    (sample(spacing="trailling"), ValueError, "spacing must be one of .*did you mean 'trailing'"),
    (
        sample(prediction="epsilon"),
        ValueError,
        "prediction must be one of .*did you mean 'eps'",
    ),
    (sample(schedule="linear"), TypeError, "schedule must be a Schedule or a PSLD, got str"),
    (sample(compat="k-diffusion", solver="plms"), ValueError, "compat must be one of diffusers"),
    (sample(compat="diffusers", solver="s-pndm"), ValueError, "solver must be one of ddim, .*for compat.*got 's-pndm'"),
    (
        sample(compat="diffusers", solver="plms", prediction="x0"),
        ValueError,
        "prediction must be one of eps, v for",
    ),
    (sample(compat="diffusers", solver="plms", steps=1000, steps_offset=1), ValueError, "steps_offset must keep"),
    (plan("euler", compat="diffusers", final="min"), ValueError, "final cannot go with compat='diffusers'"),
    (
        plan("euler", compat="diffusers", spacing="karras"),
        ValueError,
        "spacing must be one of leading, lin",
    ),
    (
        plan("euler", compat="diffusers", sigma_spacing="cosine"),
        ValueError,
        "sigma_spacing must be .*'cosine'",
    ),
    (plan("deis", S, steps=61, compat="diffusers", spacing="trailing"), ValueError, "steps must be a number whose"),
    (plan("lcm", compat="diffusers", steps=60), ValueError, r"original_inference_steps must be in .60, 1000.*got 50"),
    (plan("unipc", pf.Schedule.vp(), compat="diffusers"), ValueError, "must have a discrete schedule, got vp"),
    (sample(backend="cuda"), ValueError, "backend must be one of .*got 'cuda'"),
    (sample(on_nan="skip"), ValueError, "on_nan must be one of raise, mark, ignore, got 'skip'"),
    # the solver's options
    (sample(eta=1.5), ValueError, r"eta must be in \[0, 1\], got 1.5"),
    (sample(eta=-0.1), ValueError, "eta must be in .*got -0.1"),
    (sample(eta="abc"), TypeError, "eta must be float, got 'abc'"),
    (sample(eta=True), TypeError, "eta must be float, got True"),
    (sample(clip="1"), TypeError, "clip must be a number, got '1'"),
    (sample(solver="ipndm", order=2.0), TypeError, "order must be int, got 2.0"),
    (sample(clip=0.0), ValueError, "clip must be positive, got 0.0"),
    (
        sample(etta=1.0),
        ValueError,
        "'etta' is neither an argument nor an option of ddim .its options: eta.; did you mean 'eta'",
    ),
    (
        sample(solver="s-pndm", eta=1.0),
        ValueError,
        "'eta' is neither an argument nor an option of s-pndm .its options: none",
    ),
    (sample(solver="ddpm", variance="learned"), ValueError, "variance must be one of small, large, got 'learned'"),
    (sample(solver="ipndm", order=5), ValueError, "order must be 1 to 4, got 5"),
    (sample(solver="deis", variable="x"), ValueError, "variable must be one of t, rho, log_rho, got 'x'"),
    (sample(solver="deis", order=4), ValueError, "order must be 1 to 3, got 4"),
    (sample(solver="lms", order=0), ValueError, "order must be 1 to 4, got 0"),
    (sample(solver="unipc", order=4), ValueError, "order must be 1 to 3, got 4"),
    (sample(solver="unipc", variant="bh3"), ValueError, "variant must be one of bh1, bh2, got 'bh3'"),
    (sample(solver="dpmpp-2m", solver_type="bh1"), ValueError, "solver_type must be one of midpoint, heun, got 'bh1'"),
    (sample(solver="dpmpp-2m-sde", eta=-1.0), ValueError, "eta must be 0 or positive, got -1"),
    (sample(solver="dpmpp-sde", r=1.0), ValueError, r"r must be in \(0, 1\), got 1"),
    (sample(solver="edm", churn=-1.0), ValueError, "churn must be 0 or positive, got -1"),
    (sample(solver="lcm", sigma_data=0.0), ValueError, "sigma_data must be positive, got 0"),
    (sample(solver="lambda-ddim", lam=math.inf), ValueError, r"lam must be in \[-100, 100\], got inf"),
    (sample(solver="ddim-inverse"), ValueError, "the grid starts pure noise at .* or give start=State"),
    (
        sample(solver="ddim-inverse", schedule=pf.Schedule.edm(), prediction="x0"),
        ValueError,
        "prediction 'x0' gives no eps",
    ),
    (
        sample(solver="ddim-inverse", schedule=pf.Schedule.edm()),
        ValueError,
        "the grid starts pure noise .* give start=State",
    ),
    (
        plan("ddim-inverse", pf.Schedule.edm(), prediction="edm"),
        ValueError,
        "prediction must be eps, v, x0 or flow for",
    ),
    (sample(solver="heun", schedule=pf.Schedule.edm(), steps=None, times=[1, 0]), ValueError, "starts pure noise"),
    (sample(solver="fon", delta=-1.0), ValueError, "delta must be 0 or a positive time, got -1"),
    (sample(solver=PLAN, steps=5), ValueError, "steps cannot go with a ready plan"),
    (sample(solver=PLAN, steps=None, eta=0.5), ValueError, "eta cannot go with a ready plan"),
    (sample(solver=PLAN, steps=None, prediction="v"), ValueError, "prediction cannot go with a ready plan"),
    # shape, seeds, noise
    (sample(shape=None), ValueError, "shape must be given"),
    (sample(shape=8), TypeError, "shape must be a sequence"),
    (sample(shape=(2,)), ValueError, r"shape must be \(batch, ...\)"),
    (sample(shape=(0, 8)), ValueError, "shape must be .*positive"),
    (sample(shape=(2, 8.5)), TypeError, "shape must hold integers"),
    (sample(seeds=-1), ValueError, r"seeds must be in \[0, 2\^64\), got -1"),
    (sample(seeds=2**64), ValueError, "seeds must be in .*got 18446744073709551616"),
    (sample(seeds=2**64 - 1), ValueError, "seeds must be in .*at position 1"),
    (sample(seeds=[1, 2, 3]), ValueError, "seeds must have one entry for each of the 2 samples, got 3"),
    (sample(seeds=[1, 2.5]), TypeError, "seeds must be integers, got 2.5 at position 1"),
    (sample(seeds="12"), TypeError, "seeds must be an integer or a sequence"),
    (sample(seeds=None), TypeError, "seeds must be an integer or a sequence of integers, got None"),
    (sample(seeds=[]), ValueError, "seeds must have"),
    (sample(start=pf.Noise(torch.zeros(2, 9))), ValueError, r"noise must have shape \(batch, 8\), got \(2, 9\)"),
    (sample(start=pf.Noise(torch.zeros(3, 8))), ValueError, "noise must have batch 2.*got 3"),
    (sample(start=pf.Noise([0.0])), TypeError, "noise must be a floating-point tensor, got list"),
    (
        sample(start=pf.Noise(torch.zeros(2, 8, dtype=torch.int64))),
        TypeError,
        "noise must be a floating-point tensor, got torch",
    ),
    (sample(start=pf.Noise(X + math.nan)), ValueError, "noise must be finite, got NaN or infinity in sample 0"),
    (sample(start=pf.State(X + math.inf)), ValueError, "state must be finite"),
    (
        lambda: pf.Sampler(network, PLAN, shape=SHAPE)(start=pf.Noise(X[:0])),
        ValueError,
        "noise must have at least one sample",
    ),
    (sample(start=pf.Noise(X.to("meta"))), ValueError, "noise must be on cpu, got meta"),
    (sample(noise_sampler=3), TypeError, "noise_sampler must be callable, got 3"),
    (sample(noise_sampler=lambda i: 0), TypeError, r"noise_sampler\(0\) must return a tensor, got int"),
    (
        sample(noise_sampler=lambda i: torch.zeros(2, 7)),
        ValueError,
        r"noise_sampler\(0\) must have shape \(2, 8\), got \(2, 7\)",
    ),
    # conditioning
    (sample(cond=[1]), TypeError, "cond must be a dict.*got list"),
    (sample(cond={1: 2}), TypeError, "cond must be a dict of the network's keyword arguments"),
    (
        sample(cond={"y": torch.tensor([1, 2, 3])}),
        ValueError,
        r"cond\['y'\] must have one entry for each of the 2 .*got shape \(3,\)",
    ),
    (
        sample(cond={"y": {"z": torch.zeros(2, device="meta")}}),
        ValueError,
        r"cond\['y'\]\['z'\] must be on cpu",
    ),
    (sample(guidance=2.0), ValueError, "a guided plan must have uncond"),
    (sample(guidance=2.0, cond={}, uncond={"y": 1}), ValueError, "uncond must have keys of cond alone, got 'y'"),
    (sample(guidance=math.inf, uncond={}), ValueError, "guidance must be finite, got inf"),
    (sample(guidance="2", uncond={}), TypeError, "guidance must be a number"),
    (
        sample(guidance=[1.0, 2.0], uncond={}),
        ValueError,
        "guidance must be .* one for each of the 5 rows, got 2",
    ),
    (sample(generator=torch.Generator()), ValueError, "'generator' is neither .*; seeds= gives"),
    (lambda: pf.sample(network, 5, clip=1.0, shape=SHAPE), TypeError, "clip is an argument of make_plan: .*clip="),
    (lambda: pf.sample(network, 5, graph="eager", shape=SHAPE), TypeError, "graph is an argument of Sampler: "),
    (lambda: pf.sample(network, 5, on_nan="mark", shape=SHAPE), TypeError, "on_nan is an argument of Request: "),
    (sample(uncond={}), ValueError, "uncond must come with guidance, or a plan that has it"),
    (sample(guidance=pf.Guidance(None, rescale=0.5)), ValueError, "guidance without a scale must come with a guided"),
    (lambda: pf.Sampler(network, shape=SHAPE)(), ValueError, "plan must be given: the sampler has none of its own"),
    (lambda: pf.Sampler(network, PLAN, shape=SHAPE)(cancel=3), TypeError, "cancel must be a Cancel, got int"),
    (sample(prediction="v_prediction"), ValueError, "did you mean 'v'"),
    (sample(noise_sampler=lambda i: X + math.nan), ValueError, r"noise_sampler\(0\) must be finite"),
    (sample(seeds=(s for s in (1, 2, 3))), ValueError, "seeds must have one entry for each of the 2 samples, got 3"),
    (sample(seeds=torch.tensor([True, False])), TypeError, "seeds must be integers, got True at position 0"),
    (sample(guidance=np.ones(3), uncond={}), ValueError, "guidance must be .* 5 rows, got 3: plans of several lengths"),
    (sample(steps=None, times=5), TypeError, "times must be a decreasing sequence of numbers, got 5"),
    (sample(solver="fon", spacing="trailing", delta=900.0), ValueError, "delta must keep t - delta at -1 or later"),
    (sample(compat="diffusers", solver="plms", steps_offset=-5), ValueError, r"steps_offset must be in \[0, 1000\)"),
    # dtypes, devices, callbacks
    (sample(dtype=torch.int8), TypeError, "dtype must be one of .*got torch.int8"),
    (sample(time_dtype=torch.float16), TypeError, "time_dtype must be one of float32, int64, got torch.float16"),
    (sample(backend="cpp", start=pf.Noise(X.double())), ValueError, "backend must be 'reference' for a float64 state"),
    (sample(on_step=1), TypeError, "on_step must be callable, got 1"),
    (lambda: pf.Sampler(network, "ddim"), TypeError, "plan must be a Plan, got str"),
    (lambda: pf.Sampler(network, PLAN, shape=SHAPE)(plan=3), TypeError, "plan must be a Plan or one for each"),
    (lambda: pf.Sampler(network, PLAN, shape=SHAPE)(plan=[PLAN]), ValueError, "plan must be one Plan or one for each"),
    # schedules
    (lambda: pf.Schedule.linear(T=0), ValueError, "T must be an integer in .*got 0"),
    (lambda: pf.Schedule.cosine(T=2.5), ValueError, "T must be an integer in .*got 2.5"),
    (lambda: pf.Schedule.linear(beta_start=0), ValueError, "beta_start and beta_end must be .*got 0"),
    (lambda: pf.Schedule.linear(beta_end=1.5), ValueError, "beta_start and beta_end must be .*1.5"),
    (lambda: pf.Schedule.from_betas([0.1, 1.5]), ValueError, r"betas must be in \(0, 1\) .*, got 1.5 at index 1"),
    (lambda: pf.Schedule.from_betas([]), ValueError, "betas must be a non-empty vector"),
    (lambda: pf.Schedule.from_betas("abc"), TypeError, "betas must be a sequence of numbers"),
    (lambda: pf.Schedule.from_alphas_cumprod([0.5, 0.6]), ValueError, "alphas_cumprod must decrease, got 0.5 then 0.6"),
    (lambda: pf.Schedule.from_alphas_cumprod(np.ones((2, 2))), ValueError, "alphas_cumprod must be a non-empty vector"),
    (lambda: pf.Schedule.edm(1.0, 0.5), ValueError, "sigma_min, sigma_max and sigma_data must be 0 < .*got 1.0, 0.5"),
    (lambda: pf.Schedule.flow(shift=0), ValueError, "shift must be positive, got 0"),
    (lambda: pf.Schedule.from_levels([0.1, 1], [1]), ValueError, "alphas and sigmas must be as many"),
    (lambda: S.interpolate("alpha"), ValueError, "interp must be one of log_abar, sigma, log_sigma.*got 'alpha'"),
    (
        lambda: pf.Schedule.vp().interpolate("sigma"),
        ValueError,
        "interp must be .*of a discrete schedule, got 'sigma' for vp",
    ),
    (lambda: S.zero_terminal_snr().interpolate("sigma"), ValueError, "interp must be 'log_abar' where alpha reaches 0"),
    (lambda: pf.Schedule.edm().zero_terminal_snr(), ValueError, "zero_terminal_snr must be of a discrete schedule"),
    (lambda: pf.Schedule.edm().time(-1.0), ValueError, "log alpha-bar must be of a variance-preserving schedule"),
    (lambda: pf.Schedule.vp(5, 1), ValueError, "beta_min and beta_max must be"),
    (lambda: S.alpha(1000.5), ValueError, r"times must be in \[-1, 999\], got 1000.5"),
    (lambda: S.time(0.5), ValueError, "log alpha-bar must be in"),
    # rows and plans
    (row(t=math.nan), ValueError, "coefficients of a row must be finite"),
    (row(slot=12), ValueError, r"slot must be a slot in \[0, 12\), got 12"),
    (row(y=(1.0, 2.0)), ValueError, "y must have 15 coefficients, got 2"),
    (row(store=pf.OutputMap(clamp=-1.0)), ValueError, "clamp must be positive, got -1.0"),
    (lambda: pf.Plan(()), ValueError, "a plan must have 1 to 65536 rows, got 0"),
    (
        lambda: pf.Plan(pf.make_plan("s-pndm", steps=5).rows[1:]),
        ValueError,
        "row 0: reads slot 0, which no",
    ),
    (lambda: pf.Plan(ANCHORED), ValueError, "row 1: leaves x at"),
    (lambda: pf.Plan(PLAN.rows[::2]), ValueError, "row 1: is called at level"),
    (lambda: pf.Plan.from_json([]), ValueError, "a plan file must be a JSON object"),
    (lambda: pf.Plan.from_json({"format": "pndm_fast.plan.1", "rows": [{}]}), ValueError, "row 0: "),
    (row(preview=(1.0, 0.0, 0.0)), ValueError, "preview must be two coefficients"),
    (row(t=True), ValueError, "must be finite float32 numbers, got True"),
    (row(guidance=1e300), ValueError, "must be finite float32 numbers, got 1e.300"),
    (row(ends_step="no"), ValueError, "ends_step true or false"),
    (lambda: pf.Plan(PLAN.rows, prologue=pf.Prologue(p0=math.nan)), ValueError, "the prologue must be finite"),
    (lambda: pf.Plan(PLAN.rows, prediction="noise"), ValueError, "prediction must be one of"),
    (lambda: pf.Plan([1]), TypeError, "rows must be of type Row"),
    (lambda: pf.Plan.from_json(TREE | {"steps": math.inf}), ValueError, "prologue and steps must be numbers"),
    (lambda: pf.Plan.from_json(TREE | {"rows": [TREE["rows"][0] | {"t": 10**400}]}), ValueError, "row 0: "),
    (lambda: pf.Plan.from_json(TREE | {"rows": [TREE["rows"][0] | {"x": []}]}), ValueError, "row 0: "),
    (lambda: pf.Plan.from_json({"format": "pndm_fast.plan.1", "rows": 3}), ValueError, "rows must be a list, got int"),
]


@pytest.mark.filterwarnings("ignore:the grid starts")
@pytest.mark.parametrize("call, kind, message", CASES, ids=[message[:50] for _, _, message in CASES])
def test_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_there_are_many():
    assert len(CASES) >= 60
