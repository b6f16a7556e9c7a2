"""Where diffusers and the exact model disagree, and who is right: each line of the exception list has its test."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the peer is diffusers")
import transcriptions as direct
from gaussian_case import MIN, MODEL, NORMALS, SDE, SPACINGS, START, eps, error, grid, level, relative, run, start_of
from peers import trajectory

pytestmark = pytest.mark.slow  # of diffusers alone


def exact_network(x, rho):
    """Told its own level."""
    return MODEL.eps(x, 1 / np.hypot(1, rho), rho / np.hypot(1, rho))


def dead(peer):
    """Calls that leave the state as it is."""
    return [
        i for i, (a, b) in enumerate(zip([peer.start, *peer.states], peer.states, strict=False)) if torch.equal(a, b)
    ]


def order_of(solver, steps=(128, 256, 512)):
    """The slope of log error against log n, uniform t of the continuous linear schedule from 1 to 0.1."""
    errors = []
    for n in steps:
        t = np.linspace(1.0, 0.1, n + 1)
        log_alpha = -(0.1 * t + 19.9 * t * t / 2) / 2
        alpha, sigma = np.exp(log_alpha), np.sqrt(-np.expm1(2 * log_alpha))
        end = solver(exact_network, START, (sigma / alpha)[:-1], alpha, sigma, direct.ramp(n, 3), False)[-1]
        errors.append(np.abs(end - MODEL.flow(START, (alpha[0], sigma[0]), (alpha[-1], sigma[-1]))).mean())
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def test_published_3m_is_of_second_order():
    """Its second difference has half of its weight in the integral; DEIS 3 and UniP 3 have all of it."""
    assert 1.9 < order_of(direct.dpm_multistep) < 2.2
    assert order_of(direct.exponential_adams) > 2.8


@pytest.mark.parametrize("data", [True, False])
def test_uni_p_is_exponential_adams(data):
    """Of order 3 the predictor's weights are the integrals; of order 2 it takes 1/2, the midpoint form."""
    _, times, alpha, sigma = grid(run("DPMSolverMultistep", 20, **MIN))
    third = [1, 1, *[3] * 18]
    uni = direct.unipc(eps, START, times, alpha, sigma, third, "bh2", data, lambda i: False)
    assert relative(uni[-1], direct.exponential_adams(eps, START, times, alpha, sigma, third, data)[-1]) < 1e-11
    second = direct.ramp(20, 2)
    uni = direct.unipc(eps, START, times, alpha, sigma, second, "bh2", data, lambda i: False)
    assert relative(uni[-1], direct.dpm_multistep(eps, START, times, alpha, sigma, second, data)[-1]) < 1e-11


def variance(n, solver):
    """Of the last state over that of the data, N(0, 1/4): a batch of unit inputs gives every linear response.

    solver(network, x, normal) takes and returns arrays; it starts from x = [1, 0, ...] and normal k is column k + 1.
    """
    model, eye = direct.Gaussian(0.0, 0.5), np.eye(2 * n + 2)
    return float(np.square(solver(model, eye[:, :1], lambda k: eye[:, k + 1 : k + 2])).sum()) / 0.25


def peer_variance(scheduler, n, **config):
    def solver(model, x, normal):
        def network(y, t):
            return torch.from_numpy(model.eps(y.numpy(), *level(float(t[0]))))

        fed = lambda k: torch.from_numpy(normal(k).copy())  # noqa: E731
        return trajectory(scheduler, network, torch.from_numpy(x.copy()), n, config, fed).final.numpy()

    return variance(n, solver)


def test_third_order_sde_has_a_wrong_sign():
    """(1 - e^-2h - 2h)/(2h)^2 - 1/2 should be + 1/2: multistep 3 is worse than 2, singlestep 3 never converges."""
    assert abs(peer_variance("DPMSolverMultistep", 100, **SDE) - 1) < 0.03
    assert peer_variance("DPMSolverMultistep", 100, solver_order=3, **SDE) > 1.2
    options = {"solver_order": 3, "solver_type": "heun", "lower_order_final": True}
    assert peer_variance("DPMSolverSinglestep", 100, **options, **SDE) > 10

    def right(model, x, normal):
        _, times, alpha, sigma = grid(run("DPMSolverMultistep", 100))
        orders = direct.ramp(100, 3, (1,))
        network = lambda y, t: model.eps(y, *level(t))  # noqa: E731
        return direct.exponential_adams(network, x, times, alpha, sigma, orders, True, normal)[-1]

    assert abs(variance(100, right) - 1) < 0.01


@pytest.mark.parametrize("brownian, low, high", [(False, 0.88, 0.90), (True, 0.98, 0.995)])
def test_noises_of_dpmpp_sde_belong_to_one_path(brownian, low, high):
    """Both stages leave from s: with independent normals the variance is right to first order only."""

    def solver(model, x, normal):
        _, _, alpha, sigma = grid(run("EulerDiscrete", 100))
        rho = sigma / alpha

        def path(k):
            if k % 2 == 0 or not brownian:
                return normal(k)
            share = np.sqrt((rho[k // 2] - np.sqrt(rho[k // 2] * rho[k // 2 + 1])) / (rho[k // 2] - rho[k // 2 + 1]))
            return share * normal(k - 1) + np.sqrt(1 - share**2) * normal(k)

        network = lambda y, r: model.eps(y, 1 / np.hypot(1, r), r / np.hypot(1, r))  # noqa: E731
        between = lambda i: np.sqrt(rho[i] * rho[i + 1])  # noqa: E731
        return direct.dpmpp_sde(network, x, rho[:-1], alpha, sigma, between, path)[-1]

    assert low < variance(100, solver) < high


@pytest.mark.parametrize("n", [10, 50])
def test_churn_comes_after_the_call(n):
    """The network sees the state before the noise; 2206.00364, algorithm 2, asks it after. v is converted after."""
    peer = run("EulerDiscrete", n, s_churn=5.0)
    _, times, alpha, sigma = grid(peer)
    rho, y, gamma = sigma / alpha, peer.start.numpy(), min(5.0 / n, 2**0.5 - 1)
    for i in range(n):
        hat = rho[i] * (1 + gamma)
        e = eps(alpha[i] * y, times[i])
        y = y + np.sqrt(hat**2 - rho[i] ** 2) * NORMALS[i] + (rho[i + 1] - hat) * e
        assert relative(peer.states[i], y) < 1e-12
    options = ([gamma] * n, lambda k: NORMALS[k], lambda r: r, False)
    right = direct.edm(exact_network, start_of(peer), rho[:-1], alpha, sigma, *options)
    assert relative(peer.final, right[-1]) > 0.05
    assert relative(run("EulerDiscrete", n, "v", s_churn=5.0, prediction_type="v_prediction").final, peer.final) > 0.05


@pytest.mark.parametrize("skip", [True, False])
def test_pndm_combines_raw_v(skip):
    v = run("PNDM", 10, "v", prediction_type="v_prediction", skip_prk_steps=skip)
    assert relative(v.final, run("PNDM", 10, skip_prk_steps=skip).final) > 0.02


@pytest.mark.parametrize("scheduler", ["DDIM", "PNDM"])
@pytest.mark.parametrize("spacing, n", [("linspace", 10), ("linspace", 50), ("trailing", 30)])
def test_stride_of_linspace_and_trailing(scheduler, spacing, n):
    """They step by T // n, whatever the grid: the next call takes the state for what it is not."""
    config = {"skip_prk_steps": True} if scheduler == "PNDM" else {}
    lost, kept = run(scheduler, n, timestep_spacing=spacing, **config), run(scheduler, n, **config)
    assert lost.levels[:-1] != lost.seen[1:]
    assert kept.levels[:-1] == kept.seen[1:]


def test_odd_stride_of_runge_kutta():
    """T // n = 33: the midpoint stands at t - 16, the network is told t - 33 + 16."""
    peer = run("PNDM", 30)
    assert peer.times[:3] == [957.0, 940.0, 940.0]
    assert peer.levels[0].alpha == pytest.approx(level(957 - 16).alpha, rel=1e-12)


def test_pndm_loses_accuracy_with_the_grid():
    assert error(run("PNDM", 50, timestep_spacing="linspace")) > 10 * error(run("PNDM", 50))


@pytest.mark.parametrize("n", [61, 103, 121])
def test_trailing_tells_minus_one(n):
    """arange(T, 0, -T/n) has n + 1 points for 62 of the n up to 1000; DDIM then reads alpha-bar[-1], the noisiest."""
    peer = run("DDIM", n, timestep_spacing="trailing")
    assert peer.nfe == n + 1 and peer.times[-1] == -1
    assert error(peer) > 1 > error(run("DDIM", n - 1, timestep_spacing="trailing"))
    assert run("DPMSolverMultistep", n, timestep_spacing="trailing").times[-1] == -1


@pytest.mark.parametrize(
    "scheduler, config, calls",
    [
        ("PNDM", {}, [18]),
        ("DDIM", {"set_alpha_to_one": False}, [9]),
        ("DEISMultistep", {"use_karras_sigmas": True}, [9]),
        ("EulerDiscrete", MIN, [9]),
        ("EDMEuler", MIN, [9]),
        ("DPMSolverMultistepInverse", {"timestep_spacing": "trailing"}, [9]),
        ("DPMSolverMultistep", {}, []),
    ],
)
def test_dead_calls(scheduler, config, calls):
    assert dead(run(scheduler, 10, **config)) == calls


def test_first_call_of_ipndm_is_dead():
    """alpha is 0 there and eps = x, whatever the network says; x0 = -v was in it."""

    def shifted(x, t):
        return torch.tanh(x) + (t > 0.999).double().view(-1, 1, 1, 1)

    plain = trajectory("IPNDM", lambda x, t: torch.tanh(x), torch.from_numpy(START), 10)
    assert torch.equal(plain.final, trajectory("IPNDM", shifted, torch.from_numpy(START), 10).final)


@pytest.mark.parametrize("scheduler", ["DDIM", "EulerDiscrete", "HeunDiscrete", "LMSDiscrete"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_one_step(scheduler, spacing):
    """linspace and leading start one step at t = 0, where the state is taken for data; trailing at T - 1."""
    assert run(scheduler, 1, timestep_spacing=spacing).times == [999.0 if spacing == "trailing" else 0.0]


def test_log_linear_sigmas_do_not_reach_the_end():
    """n + 1 sigmas and a final 0 for n calls: the last step ends at sigma_min, the times stay linear."""
    peer = run("EulerDiscrete", 10, interpolation_type="log_linear")
    assert len(peer.scheduler.sigmas) == 12 and peer.levels[-1].sigma == pytest.approx(0.0100005, rel=1e-4)
    assert peer.times == [111.0 * i for i in range(9, -1, -1)]
    assert error(run("EulerDiscrete", 100, interpolation_type="log_linear")) > 5 * error(run("EulerDiscrete", 100))


@pytest.mark.parametrize("config", [{"lower_order_final": False}, {"predict_x0": False}])
def test_unipc_to_zero_is_nan(config):
    assert not torch.isfinite(run("UniPCMultistep", 10, **config).final).any()


@pytest.mark.parametrize("scheduler", ["UniPCMultistep", "DEISMultistep", "DPMSolverSinglestep", "SASolver"])
def test_karras_on_cosine_fails(scheduler):
    """The first two rounded times are 999; the first step then takes the second index and the last one overruns."""
    with pytest.raises((IndexError, AssertionError)):
        run(scheduler, 10, use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2")


def test_exponential_times_are_cut_to_integers():
    """DPM-Solver's fractional times lose their fraction, Euler's do not."""
    cut, kept = (run(name, 10, use_exponential_sigmas=True) for name in ("DPMSolverMultistep", "EulerDiscrete"))
    assert cut.times == [float(int(t)) for t in kept.times] != kept.times


def test_flow_shift_acts_twice():
    """The least sigma is shifted in the constructor and in set_timesteps."""
    peer = trajectory("FlowMatchEulerDiscrete", lambda x, t: x, torch.from_numpy(START), 5, {"shift": 3.0})
    once = 3 * 0.001 / (1 + 2 * 0.001)
    assert peer.seen[-1].sigma == pytest.approx(3 * once / (1 + 2 * once), rel=1e-12)


def test_prior_of_sigma_schedulers():
    """linspace and trailing start from sigma_max z, leading from sqrt(sigma_max^2 + 1) z, which is a VP normal."""
    for spacing in SPACINGS:
        peer = run("EulerDiscrete", 10, timestep_spacing=spacing)
        sigma = peer.seen[0].sigma
        scale = np.hypot(1, sigma) if spacing == "leading" else sigma
        assert relative(peer.start, START * scale) < 1e-12
