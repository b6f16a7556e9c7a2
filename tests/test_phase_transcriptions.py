"""Every integrator once more as a direct loop, its sub-updates one after another: the plan takes the same steps.

The loops run in theta = int beta, in which F and G G^T are constant. What the plans integrate by quadrature is here an
initial value problem for A_t, Sigma_t, R_t and the integrals together, solved to 3e-14 a step.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from drawing import draw
from phase_case import PROCESSES, START, act, one_a_step, relative, smooth, spread, two_a_step
from scipy.integrate import solve_ivp
from scipy.linalg import expm

import pndm_fast as pf
from pndm_fast.phase_space import PSLD

NOISE = np.random.default_rng(7).standard_normal((32, *START.shape))
ADAMS = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
I2 = np.eye(2)


@cache  # threads make it slow on a busy machine
def exponential(a, b, c, d, t):
    return expm(t * np.array([[a, b], [c, d]]))


class Direct:
    """The process in its own clock, and the network's score at z = [x, m]."""

    def __init__(self, process: PSLD) -> None:
        self.g, self.nu, self.M = process.gamma, process.nu, process.mass
        self.process, self.jitter, self.first = process, process.jitter, process.kappa * process.mass
        self.F = np.array([[-self.g, 1 / self.M], [-1.0, -self.nu]]) / 2
        self.GG = np.diag([self.g, self.M * self.nu])

    def theta(self, t):
        low, high = self.process.ends
        return low * t + (high - low) * t**2 / 2

    def sigma(self, t):
        psi, S = exponential(*self.F.ravel(), self.theta(t)), np.diag([1, self.M])
        return psi @ (np.diag([0, self.first]) - S) @ psi.T + S + self.jitter * I2

    def root(self, sigma):
        flip = slice(None, None, -1 if self.process.factor == "upper" else 1)
        return np.linalg.cholesky(sigma[flip, flip])[flip, flip]

    def eps(self, z, t):
        told = torch.full((len(z),), t * self.process.time_scale, dtype=torch.float64)
        return smooth(torch.from_numpy(z), told).numpy()

    def score(self, x, m, t):
        """s_x and s_m; without friction of the position s_x is not used."""
        s = act(-np.linalg.inv(self.root(self.sigma(t))).T, self.eps(np.stack([x, m], 1), t))
        return s[:, 0] * (self.g > 0), s[:, 1]


def euler(p, x, m, t, u, n):
    h, (sx, sm) = p.theta(t) - p.theta(u), p.score(x, m, t)
    return x + h / 2 * (p.g * x - m / p.M + p.g * sx), m + h / 2 * (x + p.nu * m + p.M * p.nu * sm)


def em(p, x, m, t, u, n):
    h, (sx, sm), (nx, nm) = p.theta(t) - p.theta(u), p.score(x, m, t), n
    return (
        x + h / 2 * (p.g * x - m / p.M + 2 * p.g * sx) + np.sqrt(h * p.g) * nx,
        m + h / 2 * (x + p.nu * m + 2 * p.M * p.nu * sm) + np.sqrt(h * p.M * p.nu) * nm,
    )


def sscs(p, x, m, t, u, n):
    h, S = p.theta(t) - p.theta(u), np.diag([1, p.M])
    mean = exponential(-p.g / 2, -1 / p.M / 2, 1 / 2, -p.nu / 2, h / 2)
    factor = np.linalg.cholesky(S - mean @ S @ mean.T + p.jitter * I2)
    x, m = np.moveaxis(act(mean, np.stack([x, m], 1)) + act(factor, n[0]), 1, 0)
    sx, sm = p.score(x, m, t)
    x, m = x + h * p.g * (sx + x), m + h * p.M * p.nu * (sm + m / p.M)
    return np.moveaxis(act(mean, np.stack([x, m], 1)) + act(factor, n[1]), 1, 0)


def symplectic(p, x, m, t, u, n, naive):
    h, (sx, sm) = p.theta(t) - p.theta(u), p.score(x, m, t)
    m = m + h / 2 * (x + p.nu * m + p.M * p.nu * sm)
    if naive:
        sx, _ = p.score(x, m, t)
    return x + h / 2 * (p.g * x - m / p.M + p.g * sx), m


def verlet(p, x, m, t, u, n, naive, last=None):
    """Halves of a step are halves of its time: where beta is not constant, not of theta."""
    middle, told = (t + u) / 2, {"start": t, "end": u}[last or ("start" if naive else "end")]
    h = p.theta(t) - p.theta(middle)
    sx, sm = p.score(x, m, t)
    m = m + h / 2 * (x + p.nu * m + p.M * p.nu * sm)
    if naive:
        sx, _ = p.score(x, m, t)
    x = x + (p.theta(t) - p.theta(u)) / 2 * (p.g * x - m / p.M + p.g * sx)
    _, sm = p.score(x, m, told)
    return x, m + (p.theta(middle) - p.theta(u)) / 2 * (x + p.nu * m + p.M * p.nu * sm)


def friction(p, x, m, t, u, n, lam_s=None):
    """O."""
    h, (nx, nm) = p.theta(t) - p.theta(u), n
    variance = 1 - np.exp(-(h if lam_s is None else lam_s * (p.theta(t) + p.theta(u)) / 2) * p.g)
    x = np.exp(-h * p.g / 2) * x + np.sqrt(variance) * nx
    return x, np.exp(-h * p.nu / 2) * m + np.sqrt(p.M * (1 - np.exp(-h * p.nu))) * nm


def splitting(p, x, m, t, u, n, naive, sequence="OBA", score_time="start", lam_s=None):
    h, s = p.theta(t) - p.theta(u), None
    for part in sequence:
        if part == "O":
            x, m = friction(p, x, m, t, u, n, lam_s)
            continue
        if s is None or naive:
            s = p.score(x, m, {"start": t, "end": u}[score_time])
        if part == "B":
            m = m + h / 2 * (x + 2 * p.nu * m + 2 * p.M * p.nu * s[1])
        else:
            x = x + h / 2 * (2 * p.g * x - m / p.M + 2 * p.g * s[0])
    return x, m


def obab(p, x, m, t, u, n, naive):
    x, m = friction(p, x, m, t, u, n)
    whole, first, second = (p.theta(a) - p.theta(b) for a, b in ((t, u), (t, (t + u) / 2), ((t + u) / 2, u)))
    sx, sm = p.score(x, m, t)
    m = m + first / 2 * (x + 2 * p.nu * m + 2 * p.M * p.nu * sm)
    if naive:
        sx, _ = p.score(x, m, t)
    x = x + whole / 2 * (2 * p.g * x - m / p.M + 2 * p.g * sx)
    _, sm = p.score(x, m, u)
    return x, m + second / 2 * (x + 2 * p.nu * m + 2 * p.M * p.nu * sm)


def transfer(p, t, u, K, gain, R=None, weights=(lambda r: 1.0,)):
    """(A, [W_j], R) at t: A' = K A, W_j' = A gain T^-T l_j upward from A = I, W = 0 at u.

    T is the network's factor L, or R with R' = (F + G G^T Sigma^-1 / 2) R from the given R at u.
    """

    def right(r, y):
        A, sigma, root = (part.reshape(2, 2) for part in np.split(y[:12], 3))
        if R is None:
            root = p.root(sigma + p.jitter * I2)
            turn = np.zeros((2, 2))
        else:
            turn = (p.F + p.GG @ np.linalg.inv(sigma + p.jitter * I2) / 2) @ root
        slope = A @ gain @ np.linalg.inv(root).T
        drift = p.F @ sigma
        return np.concatenate(
            [(K @ A).ravel(), (drift + drift.T + p.GG).ravel(), turn.ravel()]
            + [(weight(r) * slope).ravel() for weight in weights]
        )

    first = np.concatenate([I2.ravel(), (p.sigma(u) - p.jitter * I2).ravel(), (I2 if R is None else R).ravel()])
    y = np.concatenate([first, np.zeros(4 * len(weights))])
    y = solve_ivp(right, (p.theta(u), p.theta(t)), y, "DOP853", rtol=3e-14, atol=1e-16).y[:, -1].reshape(-1, 2, 2)
    return y[0], y[3:], y[2]


def sub_flow(p, z, eps, t, u, part, lam, doubled=False):
    """A row of dz/dtheta = F z + gain L^-T eps, eps frozen, as one Euler step of d(A z) = A (B z + gain L^-T eps)."""
    rows = np.diag([0.0, 1.0] if part == "B" else [1.0, 0.0])
    drift, gain = (p.F + np.diag(p.F.diagonal()), p.GG) if doubled else (p.F, p.GG / 2)
    A, (W,), _ = transfer(p, t, u, lam * rows - rows @ drift, rows @ gain)
    return act(A, z - (p.theta(t) - p.theta(u)) * lam * act(rows, z)) - act(W, eps)


def conjugate_splitting(p, x, m, t, u, n, method, lam=0.0, last="end"):
    lam = lam / p.theta(1.0)
    if method == "coba":
        x, m = friction(p, x, m, t, u, n)
    z, middle = np.stack([x, m], 1), (t + u) / 2 if method == "cvv" else u
    e = p.eps(z, t)
    z = sub_flow(p, z, e, t, middle, "B", lam, method == "coba")
    z = sub_flow(p, z, e, t, u, "A", lam, method == "coba")
    if method == "cvv":
        z = sub_flow(p, z, p.eps(z, t if last == "start" else u), middle, u, "B", lam)
    return z[:, 0], z[:, 1]


def conjugate(p, z, times, B=0.0, order=1, weights="deis", frame="R"):
    """z_u = A (1 - h B) z_t - sum_j W_j e_j with A = I at u, e = eps or R^T L^-T eps of the past steps."""
    B = np.array(B) * (I2 if np.ndim(B) == 0 else 1) / p.theta(1.0)
    grid, steps = [p.theta(t) for t in times], len(times) - 1
    R, tables = p.root(p.sigma(times[-1])) if frame == "R" else None, []
    for i in reversed(range(steps)):
        past = grid[max(i - order + 1, 0) : i + 1][::-1]
        if weights == "pndm":
            basis = [lambda r, w=w: w for w in ADAMS[len(past)]]
        else:
            basis = [lambda r, c=c, p=past: np.prod([(r - o) / (c - o) for o in p if o != c]) for c in past]
        A, W, R = (
            (*transfer(p, times[i], times[i + 1], B - p.F, p.GG / 2, R, basis)[:2], None)
            if R is None
            else (transfer(p, times[i], times[i + 1], B - p.F, p.GG / 2, R, basis))
        )
        turn = I2 if R is None else np.linalg.solve(p.root(p.sigma(times[i])), R).T
        tables.append((A @ (I2 - (grid[i] - grid[i + 1]) * B), W, turn))
    history = []
    for t, (on_z, W, turn) in zip(times, reversed(tables), strict=False):
        history.insert(0, act(turn, p.eps(z, t)))
        z = act(on_z, z) - sum(act(w, e) for w, e in zip(W, history, strict=False))
    return z


def direct(step, p, times, options, denoise):
    """All steps, and a last one to t = 0."""
    z, grid = START.numpy(), times[: -1 if denoise else None]
    if step is conjugate:
        z = conjugate(p, z, grid, **options)
    else:
        for i, (t, u) in enumerate(zip(grid, grid[1:], strict=False)):
            n = NOISE[2 * i : 2 * i + 2] if step is sscs else NOISE[i].swapaxes(0, 1)
            z = np.stack(step(p, z[:, 0], z[:, 1], t, u, n, **options), 1)
    if denoise:
        t, s = grid[-1], np.stack(p.score(z[:, 0], z[:, 1], grid[-1]), 1)
        z = z + p.theta(t) * (act(-p.F, z) + {"ode": 0.5, "sde": 1.0}[denoise] * act(p.GG, s))
    return z


def drawn(seed: int) -> PSLD:
    random = np.random.default_rng(seed)
    gamma, nu, M, kappa = random.uniform([0.005, 1.5, 0.15, 0.02], [0.5, 5.0, 2.0, 0.5])
    beta = tuple(random.uniform([0.1, 8.0], [2.0, 20.0]).tolist()) if seed % 2 else random.uniform(3, 12)
    return PSLD(gamma, nu, None if seed == 2 else M, beta, kappa, time_scale=1.0 + seed)


FULL = ((0.4, -1.1), (0.7, 2.0))
# the process, 1 for a uniform or 2 for a quadratic grid, and the drift of a last step to t = 0
SYSTEMS = {
    "random 0": (drawn(0), 1, None),
    "random 1": (drawn(1), 2, None),
    "random 2": (drawn(2), 1, "ode"),
    "random 3": (drawn(3), 2, "sde"),
    "linear beta": (PROCESSES["linear beta"], 1, None),
    "upper": (PROCESSES["upper"], 2, "ode"),
    "cld": (PROCESSES["cld"], 2, "sde"),
}
SPLITTING = [
    ("euler", euler, {}, {}),
    ("em", em, {}, {}),
    ("sscs", sscs, {}, {}),
    ("nse", symplectic, {}, {"naive": True}),
    ("rse", symplectic, {}, {"naive": False}),
    *(("nvv", verlet, o, {"naive": True}) for o in ({}, {"last": "start"}, {"last": "end"})),
    *(("rvv", verlet, o, {"naive": False}) for o in ({}, {"last": "start"}, {"last": "end"})),
    *(
        (name, splitting, {"sequence": sequence, "score_time": told, "lam_s": lam_s}, {"naive": name == "noba"})
        for name in ("noba", "roba")
        for sequence, told, lam_s in (("OBA", "start", None), ("OBA", "end", 0.3), ("BAO", "end", None))
    ),
    ("obab", obab, {}, {"naive": False}),
    ("nobab", obab, {}, {"naive": True}),
]
CONJUGATE = [
    *(
        (name, conjugate_splitting, {"lam": lam}, {"method": name})
        for name in ("cse", "cvv", "coba")
        for lam in (0, 0.7)
    ),
    ("cvv", conjugate_splitting, {"lam": -0.4, "last": "start"}, {"method": "cvv"}),
    *(
        ("conjugate", conjugate, {"frame": frame, "order": order, "weights": weights, "B": B}, {})
        for frame in "LR"
        for order, weights, B in (
            (1, "deis", 0.0),
            (1, "deis", 1.5),
            (1, "pndm", FULL),
            (2, "deis", FULL),
            (2, "pndm", 0.0),
            (3, "deis", 0.0),
            (3, "pndm", FULL),
            (4, "deis", 0.8),
            (4, "pndm", 0.0),
        )
    ),
]


def compared(name, function, options, more, process, power, denoise, steps):
    if options.get("frame") == "R":  # R R^T = Sigma solves the moment equation without jitter alone
        process = replace(process, jitter=0.0)
    times = [*spread(power, steps, 0.02).tolist(), *([0.0] if denoise else [])]
    told = {"denoise": denoise} if denoise and name != "euler" else {}
    plan = pf.SOLVERS[name](process, times, **options, **told)
    noises = one_a_step(plan, {"noba": 2, "obab": 2, "nobab": 3}.get(name, 1), NOISE)
    if name == "sscs":
        noises = two_a_step(process, times[: -1 if denoise else None], NOISE)
    x = draw(smooth, solver=plan, start=pf.State(START), noise_sampler=noises)
    wanted = direct(
        function, Direct(process), times, {**options, **more}, "ode" if name == "euler" and denoise else denoise
    )
    return relative(x, wanted)


def named(case):
    name, _, options, _ = case
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])


@pytest.mark.parametrize(
    "system", [pytest.param(s, marks=() if s in ("random 3", "cld") else pytest.mark.slow) for s in SYSTEMS]
)
@pytest.mark.parametrize("case", SPLITTING, ids=named)
def test_splitting_and_euler(case, system):
    assert compared(*case, *SYSTEMS[system], 7) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("turn", [0, pytest.param(1, marks=pytest.mark.stress)])
@pytest.mark.parametrize("i", range(len(CONJUGATE)), ids=map(named, CONJUGATE))
def test_conjugate(i, turn):
    """Each on two systems of the four, in turn."""
    system = ("random 1", "upper", "random 2", "cld")[(2 * i + turn) % 4]
    assert compared(*CONJUGATE[i], *SYSTEMS[system], 4) < 1e-12
