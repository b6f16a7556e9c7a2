"""The process and its network: closed forms against their equations, golden checks, what gamma = 0 needs."""

import numpy as np
import pytest
import torch
from drawing import draw
from golden_data import Recorder
from phase_case import DATA, PROCESSES, START, T_MIN, Mixture, act, relative, smooth
from scipy.integrate import solve_ivp
from scipy.linalg import expm

import pndm_fast as pf
from pndm_fast.phase_space import PSLD, MomentumOnly, Preconditioning, momentum, position
from pndm_fast.solvers import SOLVER_INFO

PROCESS = PSLD()
CLD = PSLD(gamma=0.0, nu=4.0)
PHASE = sorted(name for name, facts in SOLVER_INFO.items() if facts.space != "scalar" and name != "lambda-ddim")
IN_PHASE = [*(name for name in PHASE if name != "conjugate"), "conjugate L", "conjugate R"]
TIMES = (1.0, 0.7, 0.45, 0.2, 0.05, T_MIN)
MOMENTS = [(name, t) for name in PROCESSES for t in (0.004, 0.05, 0.3, 1.0)]


def rates(process, t):
    """F and G G^T at t, as the paper writes them."""
    (first, last), mass = process.ends, process.mass
    beta = first + t * (last - first)
    return (
        beta / 2 * np.array([[-process.gamma, 1 / mass], [-1.0, -process.nu]]),
        beta * np.diag([process.gamma, mass * process.nu]),
    )


@pytest.fixture(scope="module")
def solved():
    """Psi_t and Sigma_t from dPsi/dt = F Psi, dSigma/dt = F Sigma + Sigma F^T + G G^T."""

    def right(t, y, process):
        (F, GG), psi, sigma = rates(process, t), y[:4].reshape(2, 2), y[4:].reshape(2, 2)
        return np.concatenate([(F @ psi).ravel(), (F @ sigma + sigma @ F.T + GG).ravel()])

    def at(name, t):
        process = PROCESSES[name]
        first = np.concatenate([np.eye(2).ravel(), [0, 0, 0, process.kappa * process.mass]])
        y = solve_ivp(right, (0, t), first, "DOP853", args=(process,), rtol=1e-12, atol=1e-16).y[:, -1]
        return y[:4].reshape(2, 2), y[4:].reshape(2, 2)

    return at


def run(name, process, network, **noises):
    """Samples of one solver on a few unequal steps, always with the same noises."""
    solver, _, frame = name.partition(" ")
    plan = pf.SOLVERS[solver](process, TIMES, **({"frame": frame} if frame else {}))
    noise = np.random.default_rng(5).standard_normal((99, *START.shape))
    return draw(network, solver=plan, start=pf.State(START), noise_sampler=lambda i: torch.from_numpy(noise[i]))


@pytest.mark.parametrize("i, t", list(enumerate(DATA["chk_t"])), ids=str)
def test_golden_process(i, t):
    gamma, nu, stiffness, beta, kappa, jitter, floor = DATA["params"]
    process = PSLD(gamma, nu, 1 / stiffness, beta, kappa, jitter)
    assert (process.mass, process.floor) == (pytest.approx(PROCESS.mass), floor)
    assert relative(process.transition(t), DATA["chk_psi"][i]) < 1e-12
    assert relative(process.covariance(t), DATA["chk_cov"][i]) < 1e-12
    assert relative(process.score(t), -DATA["chk_Linvt"][i]) < 1e-12
    assert relative(Mixture(process).eps(START.numpy(), t), DATA["chk_eps"][i]) < 1e-11


@pytest.mark.parametrize("name, t", MOMENTS, ids=str)
def test_moments_solve_their_equations(name, t, solved):
    process, (psi, sigma) = PROCESSES[name], solved(name, t)
    wanted = sigma + process.jitter * np.eye(2)
    assert relative(process.transition(t), psi) < 1e-11
    assert np.abs(process.covariance(t) - wanted).max() < 1e-11 * wanted.max()
    L = process.cholesky(t)
    assert L[(1, 0) if process.factor == "upper" else (0, 1)] == 0 and (L.diagonal() > 0).all()
    assert relative(L @ L.T, process.covariance(t)) < 1e-14
    if process.gamma:
        np.testing.assert_allclose(process.score(t).T @ L, -np.eye(2), atol=1e-9)


@pytest.mark.parametrize("name, t", MOMENTS, ids=str)
def test_transition_is_the_exponential(name, t):
    process = PROCESSES[name]
    first, last = process.ends
    whole = first * t + (last - first) * t**2 / 2
    assert relative(process.transition(t), expm(whole / first * rates(process, 0.0)[0])) < 1e-12
    assert relative(process.transition(t, 0.5) @ process.transition(0.5), process.transition(t)) < 1e-11


@pytest.mark.parametrize("t", [0.004, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("name", ["default", "cld", "linear beta"])
def test_covariance_expanded(name, t):
    """At critical damping, multiplied out as in the appendix of arXiv:2303.01748."""
    process = PROCESSES[name]
    g, nu, M, b = process.gamma, process.nu, process.mass, float(process.clock(t))
    E, mm0 = np.exp(-(nu + g) * b / 2), process.kappa * process.mass
    xx = E * (mm0 * b**2 / (4 * M**2) - b**2 / (2 * M) + (g - nu) * b / 2 + 1 / E - 1)
    xm = E * (mm0 * b**2 * (g - nu) / (8 * M) + mm0 * b / (2 * M) + (nu - g) * b**2 / 4)
    mm = E * (mm0 * b**2 / (4 * M) + mm0 * b * (g - nu) / 2 + mm0 - b**2 / 2 + M * (nu - g) * b / 2 + M * (1 / E - 1))
    wanted = np.array([[xx, xm], [xm, mm]]) + process.jitter * np.eye(2)
    assert np.abs(process.covariance(t) - wanted).max() < 1e-13


@pytest.mark.parametrize("name", PROCESSES)
def test_prior_is_stationary(name):
    """diag(1, M) solves the moment equation, and is where every data ends."""
    process = PROCESSES[name]
    F, GG = rates(process, 0.3)
    S = process.stationary
    np.testing.assert_allclose(F @ S + S @ F.T + GG, np.zeros((2, 2)), atol=1e-14)
    held = process.covariance(0.3, xx0=1.0, mm0=process.mass) - process.jitter * np.eye(2)
    np.testing.assert_allclose(held, S, atol=1e-15)


def test_beta_is_a_number_or_a_pair():
    """Whatever it was given as, so that processes can be compared, hashed and not changed."""
    assert PSLD(beta=8).beta == 8.0 and PSLD(beta=np.float32(8)) == PSLD()
    given = np.array([0.1, 20.0])
    process = PSLD(beta=given)
    given[1] = 1.0
    assert (
        process.beta == (0.1, 20.0)
        and process == PSLD(beta=[0.1, 20.0])
        and hash(process) == hash(PSLD(beta=(0.1, 20.0)))
    )
    assert PSLD(nu=np.float64(4.01)) == PSLD()


@pytest.mark.parametrize("name", PROCESSES)
def test_time_at_inverts_unit(name):
    process, t = PROCESSES[name], np.linspace(0, 1, 23)
    np.testing.assert_allclose(process.time_at(process.unit(t)), t, atol=1e-14)
    assert process.unit(1.0) == 1
    beta = [rates(process, r)[1][1, 1] / process.mass / process.nu for r in t]
    np.testing.assert_allclose(np.gradient(process.clock(t), t)[1:-1], beta[1:-1], rtol=1e-12)


@pytest.mark.parametrize("name, t", MOMENTS, ids=str)
def test_estimate_of_the_data(name, t):
    """Exact where z is made of a known x_0 and eps."""
    process, random = PROCESSES[name], np.random.default_rng(3)
    x0, eps = random.standard_normal((7, 1, 4)), random.standard_normal((7, 2, 4))
    start = np.concatenate([x0, np.zeros_like(x0)], axis=1)
    on_z, on_eps = process.data(t)
    estimate = act(on_z, act(process.transition(t), start) + act(process.cholesky(t), eps)) + act(on_eps, eps)
    assert relative(estimate, start) < 1e-10
    row = pf.SOLVERS["rse"](process, (1.0, t / 2) if t == 1 else (1.0, t, t / 2)).rows[-1]
    assert relative(np.array(row.preview), np.array([on_z, on_eps])) == 0


@pytest.mark.parametrize("name, t", MOMENTS, ids=str)
def test_score_is_the_gradient(name, t):
    """score(t) eps of one Gaussian's network is the gradient of its log density; at gamma = 0 the momentum's alone."""
    process, z = PROCESSES[name], START.clone().requires_grad_()
    normal = Mixture(process, DATA["mix_mu"][:1], DATA["mix_var"][:1], [1.0])
    mean, covariance, _, _ = normal.level(t)
    away = (z - torch.from_numpy(mean[0])).transpose(1, 2).reshape(-1, 2)
    torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.from_numpy(covariance[0])).log_prob(
        away
    ).sum().backward()
    wanted = z.grad.numpy() * ([[0.0], [1.0]] if process.gamma == 0 else 1.0)
    got = act(process.score(t), normal.eps(START.numpy(), t))
    assert relative(got, wanted) < 1e-10


@pytest.mark.parametrize("name", PHASE)
def test_at_gamma_zero_eps_of_the_position_is_not_read(name):
    """No row has a coefficient for it in frame L; so a network that gives 0 there leads to the same samples."""
    frame = {"frame": "L"} if name == "conjugate" else {}
    plan = pf.SOLVERS[name](CLD, TIMES, **frame)
    assert all(np.array(c)[:, 0].tolist() == [0, 0] for row in plan for c in row.y[2:-1] if c)
    network = Mixture(CLD)
    label = f"{name} L" if frame else name
    half = run(label, CLD, lambda x, t: network(x, t) * torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(half, run(label, CLD, network), rtol=0, atol=0)


def test_frame_r_reads_eps_of_the_position():
    """gDDIM's eps is turned between two times, so that at gamma = 0 a network of the momentum alone is not enough."""
    plan = pf.SOLVERS["conjugate"](CLD, TIMES, frame="R")
    assert all(abs(row.y[2][1][0]) > 1e-6 for row in plan)


def test_momentum_only():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    network = MomentumOnly(lambda x, t, shift=0.0: layer(momentum(x)) + shift)
    x = torch.randn(3, 2, 4)
    out = network(x, torch.ones(3), shift=2.0)
    assert position(out).eq(0).all() and torch.equal(momentum(out), layer(momentum(x)) + 2)
    assert torch.equal(torch.cat([position(x), momentum(x)], 1), x)


@pytest.mark.parametrize("name", ["conjugate", "rvv", "roba"])
def test_momentum_only_fills_in_the_position(name):
    """At gamma = 0 it follows exactly, so that frame R and clip, which read it, are those of the whole network."""
    network = Mixture(CLD)
    half = MomentumOnly(lambda x, t: momentum(network(x, t)))

    def samples(process, model):
        plan = pf.make_plan(name, process, steps=12, clip=1.0)
        noise = np.random.default_rng(5).standard_normal((99, *START.shape))
        return draw(model, solver=plan, start=pf.State(START), noise_sampler=lambda i: torch.from_numpy(noise[i]))

    wanted = samples(CLD, network)
    torch.testing.assert_close(samples(CLD.momentum_only(), half), wanted, rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match=rf"momentum_only\(\) for a network of the momentum alone, but {name}'s plan"):
        samples(CLD, half)


@pytest.mark.parametrize("process", [PSLD(), PSLD(gamma=0.0, nu=4.0, factor="upper")], ids=["gamma", "upper"])
def test_momentum_only_needs_gamma_zero_and_a_lower_factor(process):
    with pytest.raises(ValueError, match="momentum_only must have gamma = 0 and a lower factor, got psld"):
        process.momentum_only()


@pytest.mark.parametrize("name", IN_PHASE)
def test_preconditioned_networks(name):
    """A network that gives out^-1 (score - skip z) of its scaled input leads to the samples of one that gives eps."""
    skip, out, into = (
        lambda t: np.array([[-0.7 - t, 0.2], [0.1, -0.4]]),
        lambda t: np.array([[0.9 + t, -0.3 * t], [0.2, 1.3]]),
        lambda t: np.array([[1.0, 0.4], [-0.2 * t, 0.8 + t]]),
    )
    process = PSLD(preconditioning=Preconditioning(skip, out, into))
    mixture = Mixture(process)

    def network(x, t):
        time = float(t[0])
        z = act(np.linalg.inv(into(time)), x.numpy())
        return torch.from_numpy(act(np.linalg.inv(out(time)), mixture.score(z, time) - act(skip(time), z)))

    torch.testing.assert_close(
        run(name, process, network), run(name, PROCESS, Mixture(PROCESS)), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("name", IN_PHASE)
def test_factor(name):
    """Lower or upper is the network's affair, but where eps at t stands for eps at another time: in what integrates
    L_t^-T. In frame R that is eps of a factor of its own, whatever the network's."""
    lower, upper = PSLD(jitter=0.0), PSLD(jitter=0.0, factor="upper")
    ours, theirs = run(name, lower, Mixture(lower)), run(name, upper, Mixture(upper))
    if name in ("conjugate L", "cse", "cvv", "coba"):
        assert relative(theirs, ours) > 1e-3
    else:
        assert relative(theirs, ours) < 1e-10


@pytest.mark.parametrize("name", ["euler", "rvv", "sscs", "conjugate R"])
def test_time_scale_is_what_the_network_is_told(name):
    scaled = PSLD(time_scale=999.0)
    networks = Recorder(Mixture(PROCESS)), Recorder(Mixture(scaled))
    ours, theirs = run(name, PROCESS, networks[0]), run(name, scaled, networks[1])
    assert networks[1].times == pytest.approx([999 * t for t in networks[0].times])
    assert relative(theirs, ours) < 1e-12


@pytest.mark.parametrize(
    "argument, value",
    [
        *((name, bad) for name in ("gamma", "nu", "kappa", "jitter", "time_scale") for bad in (-1, np.nan, np.inf)),
        *(("gamma", bad) for bad in ("0.1", True, None)),
        *(("nu", 0.0), ("time_scale", 0.0), ("M", 0.0), ("M", -1.0), ("M", np.inf), ("M", "1"), ("M", True)),
        *(("beta", bad) for bad in (0.0, -8.0, (0.1, 0.0), (1.0, 2.0, 3.0), np.nan, (0.1, np.inf), "8", None)),
        *(("factor", "L"), ("factor", None)),
    ],
    ids=str,
)
def test_bad_arguments(argument, value):
    with pytest.raises(ValueError, match=f"{argument}.* must be .*, got"):
        PSLD(**{argument: value})


def test_bad_combinations():
    with pytest.raises(ValueError, match="M must be given where gamma equals nu"):
        PSLD(gamma=2.0, nu=2.0)
    assert PSLD(gamma=2.0, nu=2.0, M=0.5).mass == 0.5
    with pytest.raises(TypeError, match="preconditioning must be a Preconditioning, got"):
        PSLD(preconditioning=(lambda t: 1, lambda t: 1, lambda t: 1))
    with pytest.raises(ValueError, match=r"times must be in \[0, 1\], got 1.5"):
        PROCESS.inside([0.2, 1.5])


BAD_OPTIONS = [
    *((name, {"denoise": "no"}, "denoise") for name in PHASE if name != "euler"),
    *((name, {"prediction": "v"}, "prediction") for name in PHASE),
    *((name, {"last": "middle"}, "last") for name in ("nvv", "rvv", "cvv")),
    *((name, {"sequence": "ABO"}, "sequence") for name in ("noba", "roba")),
    *((name, {"score_time": "middle"}, "score_time") for name in ("noba", "roba")),
    *((name, {"lam_s": bad}, "lam_s") for name in ("noba", "roba") for bad in (-0.5, np.inf, np.nan)),
    *((name, {"lam": bad}, "lam") for name in ("cse", "cvv", "coba") for bad in (101.0, -101.0, np.nan)),
    *(("conjugate", {"order": order}, "order") for order in (0, 5)),
    *(("conjugate", {"B": bad}, "B") for bad in (101.0, -np.inf, np.nan, ((0.0, 0.0), (101.0, 0.0)))),
    ("conjugate", {"weights": "ab"}, "weights"),
    ("conjugate", {"frame": "Q"}, "frame"),
]


@pytest.mark.parametrize("name, options, argument", BAD_OPTIONS, ids=str)
def test_bad_options(name, options, argument):
    with pytest.raises(ValueError, match=f"{argument} must be .*, got"):
        pf.make_plan(name, PROCESS, steps=5, **options)


@pytest.mark.parametrize("name", PHASE)
def test_schedules_and_spaces_do_not_mix(name):
    if SOLVER_INFO[name].space == "phase":
        with pytest.raises(ValueError, match="solver must be one of .* got"):
            pf.make_plan(name, pf.Schedule.linear(), steps=5)
        with pytest.raises(TypeError, match="schedule must be a PSLD"):
            pf.SOLVERS[name](pf.Schedule.linear(), TIMES)
    with pytest.raises(ValueError, match="solver must be one of .* got 'f-pndm'"):
        pf.make_plan("f-pndm", PROCESS, steps=5)
    with pytest.raises(ValueError, match="times must decrease"):
        pf.make_plan(name, PROCESS, times=(1.0, 0.5, 0.6))


def test_a_block_is_for_phase_space():
    with pytest.raises(ValueError, match="B must be a number outside phase space"):
        pf.make_plan("conjugate", pf.Schedule.vp(), steps=5, B=((1.0, 0.0), (0.5, 1.0)))
    with pytest.raises(ValueError, match="schedule must be variance-preserving"):
        pf.make_plan("conjugate", pf.Schedule.edm(), steps=5)
    for bad in ("1", ((1.0, 0.0),), ((1.0, "a"), (0.0, 1.0))):
        with pytest.raises((TypeError, ValueError), match="must be a number or"):
            pf.make_plan("conjugate", PROCESS, steps=5, B=bad)


@pytest.mark.parametrize(
    "process", [PROCESS, CLD, PSLD(jitter=0.0), PSLD(kappa=0.0)], ids=["default", "cld", "no jitter", "no momentum"]
)
@pytest.mark.parametrize("times", [(1.0, T_MIN), (1.0, 0.0), (1.0, T_MIN, 0.0)], ids=str)
def test_shortest_grids(times, process):
    """One step, one to zero, and both, with nothing added to Sigma or no first momentum too: finite, and no warning."""
    for name in PHASE:
        plan = pf.SOLVERS[name](process, times)
        assert pf.sample(smooth, solver=plan, start=pf.State(START), seeds=1).isfinite().all()
