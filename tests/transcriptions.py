"""Published solvers, written down once more as loops over a grid: no plans, no registers, no schedulers.

Every function takes network(x, t) -> eps, the first state, the told times t[0..n-1] and the levels alpha[0..n],
sigma[0..n] of the grid, all float64 and alpha^2 + sigma^2 = 1, and returns the n states after each step. A last
sigma of 0 is allowed where the method allows it. `normal(k)` is the k-th normal of a stochastic method.

Of the papers: ddim, exponential_adams, dpm_multistep and dpm_sde of order 1 and 2, unipc, lms, heun, edm, lcm. After
code of others, which cannot tell where that code is wrong: order 3 of dpm_multistep (its authors'), the second stage of
dpm_singlestep (diffusers'), midpoint, euler_ancestral and dpmpp_sde (k-diffusion's). What those weigh is checked for
itself: by `test_polynomials.py` for every weight that is exact, by `test_order.py` for the others, and noises by
`test_laws.py::test_variance` and `test_peers.py`'s responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Network = Callable[[Array, float], Array]
Normal = Callable[[int], Array]
GAUSS = np.polynomial.legendre.leggauss(32)


class Gaussian:
    """Data x_0 ~ N(mean, deviation^2): its eps and its probability flow in closed form."""

    def __init__(self, mean: float = 0.4, deviation: float = 0.3) -> None:
        self.mean, self.deviation = mean, deviation

    def scale(self, alpha: float, sigma: float) -> float:
        return float(np.hypot(alpha * self.deviation, sigma))

    def eps(self, x: Array, alpha: float, sigma: float) -> Array:
        return sigma * (x - alpha * self.mean) / self.scale(alpha, sigma) ** 2

    def flow(self, x: Array, source: tuple[float, float], target: tuple[float, float]) -> Array:
        """The point at the target level of the flow line through x at the source level."""
        z = (x - source[0] * self.mean) / self.scale(*source)
        return target[0] * self.mean + z * self.scale(*target)


def _lam(alpha: Array, sigma: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.log(alpha) - np.log(sigma)


def _x0(x: Array, e: Array, alpha: float, sigma: float) -> Array:
    return (x - sigma * e) / alpha


def ramp(n: int, order: int, last: Sequence[int] = ()) -> list[int]:
    """Orders 1, 2, ..., order, order, ... with those of the last steps given."""
    orders = [min(i + 1, order) for i in range(n)]
    for i, limit in enumerate(reversed(last)):
        orders[n - 1 - i] = min(orders[n - 1 - i], limit)
    return orders


def _lagrange_integrals(nodes: Array, low: float, high: float, weight: Callable[[Array], Array]) -> Array:
    """The integrals of weight times each Lagrange basis polynomial of the nodes, by 32 Gauss points."""
    points, weights = GAUSS
    u = (low + high) / 2 + (high - low) / 2 * points
    basis = [np.prod([(u - m) / (c - m) for m in nodes if m != c], axis=0) * np.ones_like(u) for c in nodes]
    return np.array([np.sum(weights * weight(u) * b) for b in basis]) * (high - low) / 2


def ddim(
    network: Network, x: Array, t: Array, alpha: Array, sigma: Array, eta: float = 0.0, normal: Normal | None = None
) -> list[Array]:
    """x' = a' x0 + sqrt(s'^2 - c^2) eps + c z, c = eta s'/s sqrt(1 - a^2/a'^2). arXiv:2010.02502, eq. 12 and 16.

    eta = 1 is DDPM's posterior (arXiv:2006.11239, eq. 7) with the smaller of its variances.
    """
    states = []
    for i, (a, s) in enumerate(zip(alpha[:-1], sigma[:-1], strict=True)):
        e, a1, s1 = network(x, t[i]), alpha[i + 1], sigma[i + 1]
        c = eta * s1 / s * np.sqrt(1 - (a / a1) ** 2)
        x = a1 * _x0(x, e, a, s) + np.sqrt(s1**2 - c**2) * e
        if c > 0 and normal:
            x = x + c * normal(i)
        states.append(x)
    return states


def exponential_adams(
    network: Network,
    x: Array,
    t: Array,
    alpha: Array,
    sigma: Array,
    orders: Sequence[int],
    data: bool,
    normal: Normal | None = None,
) -> list[Array]:
    """x' = s'/s x + s' int e^lam x0 dlam, or a'/a x - a' int e^-lam eps dlam, for the polynomial through past values.

    With eps this is DEIS with polynomials in log rho (arXiv:2204.13902; log rho = -lam), and of order 2
    DPM-Solver's multistep method in its Taylor ("heun") form; with x0 the same form of DPM-Solver++ (2211.01095), and
    with x0 and normals of SDE-DPM-Solver++: the rate of the exponential doubles.
    """
    lam, states, history, rate = _lam(alpha, sigma), [], [], 2 if normal else 1
    sign = rate if data else -1
    for i, order in enumerate(orders):
        e = network(x, t[i])
        history.append(_x0(x, e, alpha[i], sigma[i]) if data else e)
        if sigma[i + 1] == 0:
            x = alpha[i + 1] * history[-1]
        else:  # the exponential is 1 at the end of the interval, where its factor is a' or s'
            end, h = lam[i + 1], lam[i + 1] - lam[i]
            c = _lagrange_integrals(
                lam[i - order + 1 : i + 1], lam[i], end, lambda u, end=end: np.exp(sign * (u - end))
            )
            total = rate * sum(weight * m for weight, m in zip(c, history[-order:], strict=True))
            if data:
                x = sigma[i + 1] / sigma[i] * np.exp((1 - rate) * h) * x + alpha[i + 1] * total
            else:
                x = alpha[i + 1] / alpha[i] * x - sigma[i + 1] * total
            if normal:
                x = x + sigma[i + 1] * np.sqrt(-np.expm1(-2 * h)) * normal(i)
        states.append(x)
    return states


def dpm_multistep(
    network: Network, x: Array, t: Array, alpha: Array, sigma: Array, orders: Sequence[int], data: bool
) -> list[Array]:
    """DPM-Solver(++) of order 1 and 2 in midpoint form, D = m0 + (m0 - m1)/(2r); order 3 as its authors' code has it.

    arXiv:2211.01095, algorithm 2. Order 3 gives the second difference half of its weight in the integral.
    """
    lam, states, history = _lam(alpha, sigma), [], []
    for i, order in enumerate(orders):
        e = network(x, t[i])
        history.append(_x0(x, e, alpha[i], sigma[i]) if data else e)
        m, h = history[::-1], lam[i + 1] - lam[i]
        sign, keep, scale = (-1, sigma, alpha[i + 1]) if data else (1, alpha, -sigma[i + 1])
        phi_1 = -np.expm1(sign * h) if data else np.expm1(h)
        x = keep[i + 1] / keep[i] * x + scale * phi_1 * m[0]
        if order > 1:
            r0 = (lam[i] - lam[i - 1]) / h
            d1 = first = (m[0] - m[1]) / r0
        if order == 2:
            x = x + scale * phi_1 * d1 / 2
        if order == 3:
            r1 = (lam[i - 1] - lam[i - 2]) / h
            second = (first - (m[1] - m[2]) / r1) / (r0 + r1)
            d1 = first + r0 * second
            phi_2 = sign * (phi_1 / h - 1)
            phi_3 = sign * (phi_2 / h - 0.5)
            x = x + scale * (phi_2 * d1 + phi_3 * second)
        states.append(x)
    return states


def dpm_sde(
    network: Network, x: Array, t: Array, alpha: Array, sigma: Array, orders: Sequence[int], normal: Normal
) -> list[Array]:
    """SDE-DPM-Solver++ 1 and 2M: x' = s'/s e^-h x + a'(1 - e^-2h) D + s' sqrt(1 - e^-2h) z. 2211.01095."""
    lam, states, history = _lam(alpha, sigma), [], []
    for i, order in enumerate(orders):
        h = lam[i + 1] - lam[i]
        d = _x0(x, network(x, t[i]), alpha[i], sigma[i])
        history.append(d)
        if order == 2:
            d = d + (d - history[-2]) * h / (lam[i] - lam[i - 1]) / 2
        shrink = -np.expm1(-2 * h)
        x = sigma[i + 1] / sigma[i] * np.exp(-h) * x + alpha[i + 1] * shrink * d
        x = x + sigma[i + 1] * np.sqrt(shrink) * normal(i)
        states.append(x)
    return states


def dpm_singlestep(
    network: Network, x: Array, t: Array, alpha: Array, sigma: Array, orders: Sequence[int], data: bool
) -> list[Array]:
    """DPM-Solver(++) 1S, 2S, 3S: orders 1, 2, 3 are the stages of a step over three intervals of the grid.

    arXiv:2206.00927, algorithms 1 and 2, and 2211.01095, algorithm 1, with r1 and r2 from the grid; but the second
    stage of a third-order step is the second-order step in midpoint form, as diffusers has it.
    """
    lam, states, stages = _lam(alpha, sigma), [], []
    for i, order in enumerate(orders):
        e = network(x, t[i])
        if order == 1:
            b, base, stages = i, x, []
        stages.append(_x0(x, e, alpha[i], sigma[i]) if data else e)
        h = lam[i + 1] - lam[b]
        sign, keep, scale = (-1, sigma, alpha[i + 1]) if data else (1, alpha, -sigma[i + 1])
        phi_1 = -np.expm1(sign * h) if data else np.expm1(h)
        x = keep[i + 1] / keep[b] * base + scale * phi_1 * stages[0]
        if order > 1:
            d = (stages[-1] - stages[0]) / ((lam[i] - lam[b]) / h)
            x = x + scale * (phi_1 / 2 if order == 2 else sign * (phi_1 / h - 1)) * d
        states.append(x)
    return states


def unipc(
    network: Network,
    x: Array,
    t: Array,
    alpha: Array,
    sigma: Array,
    orders: Sequence[int],
    variant: str = "bh2",
    data: bool = True,
    corrector: Callable[[int], bool] = lambda step: True,
) -> list[Array]:
    """UniP and UniC, arXiv:2302.04867, with B(h) = h (bh1) or e^h - 1 (bh2).

    States are the predictions. corrector(i) says whether step i's end is corrected once its network call is there.
    """
    lam, states, history = _lam(alpha, sigma), [], []

    def step(i: int, base: Array, order: int, extra: Array | None) -> Array:
        """From level i to i + 1: the predictor, or with the network's word at i + 1 the corrector."""
        h = lam[i + 1] - lam[i]
        hh = -h if data else h
        keep, scale = (sigma, alpha[i + 1]) if data else (alpha, sigma[i + 1])
        out = keep[i + 1] / keep[i] * base - scale * np.expm1(hh) * history[i]
        r = [(lam[i - m] - lam[i]) / h for m in range(1, order)]
        d = [(history[i - m] - history[i]) / r[m - 1] for m in range(1, order)]
        if extra is not None:
            r, d = [*r, 1.0], [*d, extra - history[i]]
        if not d:
            return out
        b_of_h = hh if variant == "bh1" else np.expm1(hh)
        phi, factorial, rhs = np.expm1(hh) / hh, 1.0, []
        for k in range(1, len(d) + 1):
            factorial *= k
            phi = (phi - 1 / factorial) / hh
            rhs.append(hh * phi * factorial / b_of_h)
        rho = np.linalg.solve(np.vander(r, increasing=True).T, rhs) if len(d) > 1 else [0.5]
        return out - scale * b_of_h * sum(c * v for c, v in zip(rho, d, strict=True))

    base = x
    for i, order in enumerate(orders):
        e = network(x, t[i])
        value = _x0(x, e, alpha[i], sigma[i]) if data else e
        base = step(i - 1, base, orders[i - 1], value) if i and corrector(i - 1) else x
        history.append(value)
        x = step(i, base, order, None)
        states.append(x)
    return states


def euler(network: Network, x: Array, t: Array, alpha: Array, sigma: Array) -> list[Array]:
    """dx/dsigma = eps in x/alpha, sigma/alpha: the same as DDIM."""
    return lms(network, x, t, alpha, sigma, 1)


def lms(network: Network, x: Array, t: Array, alpha: Array, sigma: Array, order: int = 4) -> list[Array]:
    """Adams-Bashforth in sigma/alpha with the weights of the grid, orders 1, 2, ... at the start."""
    rho, y, states, history = sigma / alpha, x / alpha[0], [], []
    for i, now in enumerate(ramp(len(t), order)):
        history.append(network(alpha[i] * y, t[i]))
        c = _lagrange_integrals(rho[i - now + 1 : i + 1], rho[i], rho[i + 1], np.ones_like)
        y = y + sum(weight * e for weight, e in zip(c, history[-now:], strict=True))
        states.append(alpha[i + 1] * y)
    return states


def heun(network: Network, x: Array, t: Array, alpha: Array, sigma: Array) -> list[Array]:
    """Improved Euler in sigma/alpha, Euler to sigma = 0. arXiv:2206.00364, algorithm 1.

    Where the last sigma is above 0 the network is told t[n] there.
    """
    rho, y, states = sigma / alpha, x / alpha[0], []
    for i in range(len(sigma) - 1):
        h, e = rho[i + 1] - rho[i], network(alpha[i] * y, t[i])
        if sigma[i + 1] > 0:
            e = (e + network(alpha[i + 1] * (y + h * e), t[i + 1])) / 2
        y = y + h * e
        states.append(alpha[i + 1] * y)
    return states


def midpoint(
    network: Network, x: Array, t: Array, alpha: Array, sigma: Array, between: Callable[[int], float]
) -> list[Array]:
    """The midpoint method in sigma/alpha through the geometric mean, Euler to 0: k-diffusion's DPM-Solver-2.

    between(i) is the time told at the middle of step i.
    """
    rho, y, states = sigma / alpha, x / alpha[0], []
    for i in range(len(t)):
        e = network(alpha[i] * y, t[i])
        if sigma[i + 1] > 0:
            mid = np.sqrt(rho[i] * rho[i + 1])
            e = network((y + (mid - rho[i]) * e) / np.hypot(1.0, mid), between(i))
        y = y + (rho[i + 1] - rho[i]) * e
        states.append(alpha[i + 1] * y)
    return states


def euler_ancestral(
    network: Network, x: Array, t: Array, alpha: Array, sigma: Array, normal: Normal, eta: float = 1.0
) -> list[Array]:
    """Euler in sigma/alpha down to sqrt(s'^2 - u^2), then u z; u = eta s' sqrt(1 - s'^2/s^2): DDIM with eta."""
    rho, y, states = sigma / alpha, x / alpha[0], []
    for i, (s, s1) in enumerate(pairwise(rho)):
        up = eta * s1 * np.sqrt(1 - (s1 / s) ** 2)
        y = y + (np.sqrt(s1**2 - up**2) - s) * network(alpha[i] * y, t[i]) + up * normal(i)
        states.append(alpha[i + 1] * y)
    return states


def dpmpp_sde(
    network: Network, x: Array, t: Array, alpha: Array, sigma: Array, between: Callable[[int], float], normal: Normal
) -> list[Array]:
    """DPM-Solver++ of two stages with ancestral noise in both, as k-diffusion and diffusers' DPMSolverSDE have it.

    From s, to the geometric mean m and with D there to s': y = down/s y + (1 - down/s) D + up z. Both noises start at
    s: a Brownian path makes them correlated, here they are whatever normal(2i) and normal(2i + 1) are. To 0: y = D.
    """
    rho, y, states = sigma / alpha, x / alpha[0], []
    for i, (s, s1) in enumerate(pairwise(rho)):
        d = y - s * network(alpha[i] * y, t[i])
        for k, to in enumerate((np.sqrt(s * s1), s1) if s1 > 0 else ()):
            up = to * np.sqrt(1 - (to / s) ** 2)
            down = np.sqrt(to**2 - up**2)
            moved = down / s * y + (1 - down / s) * d + up * normal(2 * i + k)
            if k == 0:
                d = moved - to * network(moved / np.hypot(1.0, to), between(i))
        y = moved if s1 > 0 else d
        states.append(alpha[i + 1] * y)
    return states


def edm(
    network: Network,
    x: Array,
    t: Array,
    alpha: Array,
    sigma: Array,
    gamma: Sequence[float],
    normal: Normal,
    time: Callable[[float], float],
    second_order: bool = True,
) -> list[Array]:
    """Stochastic Heun: to s(1 + gamma) with noise first, then the network, told the new level. 2206.00364, algorithm 2.

    time(rho) is the time of the level sigma/alpha = rho; where gamma is 0 no normal is drawn from.
    """
    rho, y, states = sigma / alpha, x / alpha[0], []
    for i, (s, s1) in enumerate(pairwise(rho)):
        hat, told = s * (1 + gamma[i]), time(s * (1 + gamma[i])) if gamma[i] > 0 else t[i]
        if gamma[i] > 0:
            y = y + np.sqrt(hat**2 - s**2) * normal(i)
        e = network(y / np.hypot(1.0, hat), told)
        if second_order and s1 > 0:
            e = (e + network(alpha[i + 1] * (y + (s1 - hat) * e), t[i + 1])) / 2
        y = y + (s1 - hat) * e
        states.append(alpha[i + 1] * y)
    return states


def lcm(
    network: Network, x: Array, t: Array, alpha: Array, sigma: Array, normal: Normal, scaling: float = 10.0
) -> list[Array]:
    """x' = a' f(x, t) + s' z, f = c_skip x + c_out x0. arXiv:2310.04378; sigma_data = 1/2."""
    states = []
    for i in range(len(t)):
        x0, u = _x0(x, network(x, t[i]), alpha[i], sigma[i]), scaling * t[i]
        x = (0.25 * x + u * np.sqrt(u**2 + 0.25) * x0) / (u**2 + 0.25)
        if sigma[i + 1] > 0:
            x = alpha[i + 1] * x + sigma[i + 1] * normal(i)
        states.append(x)
    return states
