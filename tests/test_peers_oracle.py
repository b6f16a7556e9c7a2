"""The float64 oracle made of diffusers schedulers: that it runs all of them, changes nothing but rounding, and leaves
diffusers as it was."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the oracle is diffusers")
from gaussian_case import ALPHA_BAR, network, relative
from gaussian_case import START as ARRAY
from peers import DEFAULTS, Peer, trajectory

pytestmark = pytest.mark.slow  # of diffusers alone
DETERMINISTIC = {
    "DDIM": {},
    "DDIMInverse": {},
    "PNDM": {},
    "DPMSolverMultistep": {},
    "DPMSolverSinglestep": {"lower_order_final": True},
    "DPMSolverMultistepInverse": {},
    "DEISMultistep": {},
    "UniPCMultistep": {},
    "EulerDiscrete": {},
    "HeunDiscrete": {},
    "LMSDiscrete": {},
    "KDPM2Discrete": {},
}
STOCHASTIC = {
    "DDIM": {"eta": 1.0},
    "DDPM": {},
    "DPMSolverMultistep": {"algorithm_type": "sde-dpmsolver++"},
    "DPMSolverSinglestep": {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True},
    "DPMSolverSDE": {},
    "EulerDiscrete": {"s_churn": 2.0},
    "EulerAncestralDiscrete": {},
    "KDPM2AncestralDiscrete": {},
    "LCM": {},
    "SASolver": {},
    "EDMEuler": {"s_churn": 2.0},
    "EDMDPMSolverMultistep": {"algorithm_type": "sde-dpmsolver++"},
}
OWN_TIME = {"IPNDM": {}, "EDMEuler": {}, "EDMDPMSolverMultistep": {}}
FLOW = {"FlowMatchEulerDiscrete": {"shift": 3.0}, "FlowMatchHeunDiscrete": {"shift": 3.0}}
START = torch.from_numpy(ARRAY)


def noise(index):
    return torch.randn(START.shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64)


def smooth(x, t):
    """A network for the schedulers with times of their own: sigma / 4 logs, flow sigmas, angles."""
    return torch.tanh(x + torch.cos(t).view(-1, *[1] * (x.ndim - 1)))


def compare(scheduler, predict, config):
    peer = trajectory(scheduler, predict, START, 10, config, noise)
    stock = trajectory(scheduler, predict, START, 10, config, noise, stock=True)
    assert peer.final.dtype is torch.float64
    assert peer.nfe == len(peer.states) == len(peer.levels) == len(peer.seen)
    assert len(stock.noises) == len(peer.noises)
    assert 0 < relative(stock.final, peer.final) < 5e-5
    return peer


def spacings(scheduler):
    """None where there is no choice."""
    if scheduler == "DPMSolverSinglestep":
        return [None]
    return ["leading", "trailing"] if scheduler == "DDIMInverse" else ["leading", "linspace", "trailing"]


@pytest.mark.parametrize("prediction", ["epsilon", pytest.param("v_prediction", marks=pytest.mark.stress)])
@pytest.mark.parametrize("scheduler, spacing", [(name, s) for name in DETERMINISTIC for s in spacings(name)])
def test_only_rounding_differs(scheduler, spacing, prediction):
    config = {"prediction_type": prediction, **DETERMINISTIC[scheduler]}
    if spacing:
        config["timestep_spacing"] = spacing
    compare(scheduler, network("v" if prediction == "v_prediction" else "eps"), config)


@pytest.mark.parametrize("scheduler", STOCHASTIC)
def test_noise_is_fed(scheduler):
    predict = smooth if scheduler.startswith("EDM") else network()
    peer = compare(scheduler, predict, STOCHASTIC[scheduler])
    assert peer.draws == sorted(peer.draws) and len(peer.draws) == len(peer.noises) > 0
    again = trajectory(scheduler, predict, START, 10, STOCHASTIC[scheduler], peer.noises.__getitem__)
    assert torch.equal(again.final, peer.final)
    changed = len(peer.draws) // 2  # SA-Solver uses its noise in the middle of the trajectory alone
    other = trajectory(scheduler, predict, START, 10, STOCHASTIC[scheduler], lambda k: noise(k + (k == changed)))
    first = peer.draws[changed]
    assert all(torch.equal(a, b) for a, b in zip(other.states[:first], peer.states[:first], strict=True))
    assert not torch.equal(other.states[first], peer.states[first])


@pytest.mark.parametrize("scheduler", [*OWN_TIME, *FLOW])
def test_schedulers_with_their_own_time(scheduler):
    compare(scheduler, smooth, {**OWN_TIME, **FLOW}[scheduler])


def test_default_noise_is_repeatable():
    runs = [trajectory("DDPM", network(), START, 4) for _ in range(2)]
    assert torch.equal(runs[0].final, runs[1].final)


def test_tables_are_float64():
    peer = trajectory("DPMSolverMultistep", network(), START, 10, {"timestep_spacing": "trailing"})
    alpha_bar = ALPHA_BAR[np.array(peer.times, dtype=int)]
    np.testing.assert_allclose([level.alpha for level in peer.seen], np.sqrt(alpha_bar), rtol=1e-13)
    np.testing.assert_allclose([level.sigma for level in peer.seen], np.sqrt(1 - alpha_bar), rtol=1e-12)
    assert peer.levels[:-1] == peer.seen[1:] and peer.levels[-1] == (1.0, 0.0)


def test_coordinates():
    """DPM-Solver++ 1 and Euler are one method: their states differ by the scale of the level alone."""
    grid = [999, 700, 400, 100]
    dpm = trajectory("DPMSolverMultistep", network(), START, None, {"solver_order": 1, "timesteps": grid})
    start = START * np.hypot(1.0, dpm.seen[0].sigma / dpm.seen[0].alpha)
    euler = trajectory("EulerDiscrete", network(), start, None, {"timesteps": grid}, scaled=True)
    assert all(level.alpha == 1.0 for level in euler.levels)
    for a, b in zip(dpm.vp_states, euler.vp_states, strict=True):
        assert relative(a, b) < 1e-12


def test_a_stride_that_loses_its_grid_is_seen():
    kept = trajectory("DDIM", network(), START, 10, {"timestep_spacing": "trailing"})
    lost = trajectory("DDIM", network(), START, 10, {"timestep_spacing": "linspace"})
    assert kept.levels[:-1] == kept.seen[1:]
    assert lost.levels[:-1] != lost.seen[1:]


def test_nothing_stays_changed():
    from diffusers.schedulers import scheduling_ddim as module

    def broken(x, t):
        raise KeyError("a network that fails")

    before = dict(vars(module))
    with pytest.raises(KeyError):
        trajectory("DDIM", broken, START, 4)
    trajectory("DDIM", network(), START, 4)
    assert vars(module) == before and torch.get_default_dtype() is torch.float32


def test_unknown_option():
    with pytest.raises(TypeError, match="has no argument churn"):
        trajectory("EulerDiscrete", network(), START, 4, {"churn": 1.0})


def test_options_reach_constructor_grid_and_step():
    peer = trajectory(
        "EulerDiscrete", network(), START, None, {"sigmas": [9.0, 3.0, 0.0], "s_churn": 1.0, "s_noise": 0.0}
    )
    assert isinstance(peer, Peer) and peer.draws == [0, 1]
    assert [level.sigma for level in peer.seen] == [9.0, 3.0] and peer.levels[-1].sigma == 0.0
    assert DEFAULTS["beta_end"] == peer.scheduler.config.beta_end
