"""Named samplers as loops, after the papers' formulas and what k-diffusion, ComfyUI and RES4LYF do: no plans, no rows.

All in one state x = x_0 + s eps, called by denoise(x, s): any schedule's in x / alpha and s = sigma / alpha, or a
flow's own x and s = sigma, where dx/ds = (x - x_0) / s too. `draw()` is the next normal. Each ends at the last of the
given s, at 0 by its estimate of x_0.
"""

from __future__ import annotations

from itertools import pairwise
from math import exp, expm1, log, sqrt

import numpy as np

GAUSS = np.polynomial.legendre.leggauss(60)


def _integral(value, low, high):
    points, weights = GAUSS
    return float(weights @ value((low + high) / 2 + (high - low) / 2 * points)) * (high - low) / 2


def phi(k, h):
    """phi_k(-h), by phi_(k+1)(z) = (phi_k(z) - 1/k!)/z."""
    value = exp(-h)
    for j in range(k):
        value = (value - 1 / [1, 1, 2, 6][j]) / -h
    return value


def slope(denoise, x, s):
    return (x - denoise(x, s)) / s


def ancestral(s, to, eta):
    up = min(to, eta * sqrt(to**2 * (s**2 - to**2) / s**2))
    return sqrt(to**2 - up**2), up


def rectified(s, to, eta):
    down = to * (1 + (to / s - 1) * eta)
    scale = (1 - to) / (1 - down)
    return down, scale, sqrt(max(0.0, to**2 - (down * scale) ** 2))


def below(s, to, eta, flow):
    """sigma_down, what the state is scaled by after it, and the noise, of either split."""
    down, up = ancestral(s, to, eta)
    return rectified(s, to, eta) if flow else (down, 1.0, up)


def churned(x, s, n, churn, draw):
    gamma = min(churn / n, sqrt(2) - 1)
    hat = s * (1 + gamma)
    return (x + draw() * sqrt(hat**2 - s**2), hat) if gamma else (x, s)


def euler(denoise, x, sigmas, draw, churn=0.0):
    for s, to in pairwise(sigmas):
        x, hat = churned(x, s, len(sigmas) - 1, churn, draw)
        x = x + (to - hat) * slope(denoise, x, hat)
    return x


def euler_ancestral(denoise, x, sigmas, draw, eta=1.0, flow=False):
    for s, to in pairwise(sigmas):
        down, scale, up = below(s, to, eta, flow)
        x = scale * (x + (down - s) * slope(denoise, x, s))
        x = x + up * draw() if up else x
    return x


def dpm_2(denoise, x, sigmas, draw, churn=0.0, eta=0.0, flow=False):
    for s, to in pairwise(sigmas):
        x, s = churned(x, s, len(sigmas) - 1, churn, draw)
        down, scale, up = below(s, to, eta, flow)
        d = slope(denoise, x, s)
        if down == 0:
            x = x + d * (down - s)
            continue
        middle = exp((log(s) + log(down)) / 2)
        x = scale * (x + (down - s) * slope(denoise, x + d * (middle - s), middle))
        x = x + up * draw() if up else x
    return x


def heunpp2(denoise, x, sigmas, draw):
    n = len(sigmas) - 1
    for i in range(n):
        d, dt = slope(denoise, x, sigmas[i]), sigmas[i + 1] - sigmas[i]
        if i < n - 1:
            ahead = x + d * dt
            d2, w2 = slope(denoise, ahead, sigmas[i + 1]), sigmas[i + 1] / sigmas[0]
            if i == n - 2:
                d = d * (1 - w2 / 2) + d2 * w2 / 2
            else:
                ahead = ahead + d2 * (sigmas[i + 2] - sigmas[i + 1])
                w3 = sigmas[i + 2] / sigmas[0]
                d = d * (1 - w2 / 3 - w3 / 3) + d2 * w2 / 3 + slope(denoise, ahead, sigmas[i + 2]) * w3 / 3
        x = x + d * dt
    return x


def gradient_estimation(denoise, x, sigmas, draw, gamma=2.0):
    old = None
    for s, to in pairwise(sigmas):
        d = slope(denoise, x, s)
        used = d if old is None or to == 0 else gamma * d + (1 - gamma) * old
        x, old = x + used * (to - s), d
    return x


def runge_kutta(denoise, x, sigmas, draw, a, b, c):
    for s, to in pairwise(sigmas):
        if to == 0:
            return denoise(x, s)
        slopes = [slope(denoise, x, s)]
        for row, node in zip(a, c, strict=True):
            y = x + (to - s) * sum(w * d for w, d in zip(row, slopes, strict=True))
            slopes.append(slope(denoise, y, s + node * (to - s)))
        x = x + (to - s) * sum(w * d for w, d in zip(b, slopes, strict=True))
    return x


def exponential_runge_kutta(denoise, x, sigmas, draw, weights, nodes):
    """x' = e^-h x + h sum b_j(h) D_j, stages likewise over c_i h; weights(h) gives the rows of stages and the end."""
    for s, to in pairwise(sigmas):
        if to == 0:
            return denoise(x, s)
        h, data = log(s / to), [denoise(x, s)]
        for row, c in zip(weights(h), (*nodes, 1.0), strict=True):
            y = exp(-c * h) * x + h * sum(w * d for w, d in zip(row, data, strict=True))
            if len(data) <= len(nodes):
                data.append(denoise(y, s * exp(-c * h)))
        x = y
    return x


def res_2s(denoise, x, sigmas, draw, c2=0.5):
    def weights(h):
        return [c2 * phi(1, c2 * h)], [phi(1, h) - phi(2, h) / c2, phi(2, h) / c2]

    return exponential_runge_kutta(denoise, x, sigmas, draw, weights, [c2])


def res_3s(denoise, x, sigmas, draw, c2=0.5, c3=1.0):
    g = (3 * c3**2 - 2 * c3) / (c2 * (2 - 3 * c2))

    def weights(h):
        inner = g * c2 * phi(2, c2 * h) + c3**2 / c2 * phi(2, c3 * h)
        last = phi(2, h) / (g * c2 + c3)
        return (
            [c2 * phi(1, c2 * h)],
            [c3 * phi(1, c3 * h) - inner, inner],
            [phi(1, h) - last - g * last, g * last, last],
        )

    return exponential_runge_kutta(denoise, x, sigmas, draw, weights, [c2, c3])


def dpmpp_3s(denoise, x, sigmas, draw):
    """Groups of three, stages on the grid, by D and its first divided differences; then two and one."""
    i, n = 0, len(sigmas) - 2
    for size in [3] * (n // 3) + [n % 3] * (n % 3 > 0):
        s, h = sigmas[i], log(sigmas[i] / sigmas[i + size])
        d, parts = denoise(x, s), [log(s / sigmas[i + 1 + j]) / h for j in range(size - 1)]
        y, other = x, d
        for j, r in enumerate((*parts, 1.0)):
            if j == 1:
                weight = phi(2, r * h) * r * h if size == 3 else phi(1, h) * h / 2
            elif j == 2:
                weight = phi(2, h) * h
            y = exp(-r * h) * x - expm1(-r * h) * d + (weight * (other - d) / (parts[j - 1] / r) if j else 0)
            if j < size - 1:
                other = denoise(y, sigmas[i + 1 + j])
        x, i = y, i + size
    return denoise(x, sigmas[-2])


def dpmpp_2s_ancestral(denoise, x, sigmas, draw, eta=1.0, flow=False):
    def lam(s):
        return log((1 - s) / s) if flow else -log(s)

    def at(value):
        return 1 / (1 + exp(value)) if flow else exp(-value)

    for s, to in pairwise(sigmas):
        down, scale, up = below(s, to, eta, flow)
        if to == 0:
            return denoise(x, s)
        middle = at((lam(s) + lam(down)) / 2)
        inner = denoise(middle / s * x + (1 - middle / s) * denoise(x, s), middle)
        x = scale * (down / s * x + (1 - down / s) * inner)
        x = x + up * draw() if up else x
    return x


def dpm_fast(denoise, x, sigmas, draw, eta=0.0):
    """Between the first and the last s, whatever stands between them; then the step to 0."""
    first, last, n = -log(sigmas[0]), -log(sigmas[-2]), len(sigmas) - 2
    m = n // 3 + 1
    orders = [3] * (m - 2) + [2, 1] if n % 3 == 0 else [3] * (m - 1) + [n % 3]
    ends = np.linspace(first, last, len(orders) + 1)

    def eps(y, lam):
        return slope(denoise, y, exp(-lam))

    for order, t, to in zip(orders, ends[:-1], ends[1:], strict=True):
        down, up = ancestral(exp(-t), exp(-to), eta)
        end = -log(down)
        h, e = end - t, eps(x, t)
        if order == 1:
            x = x - exp(-end) * expm1(h) * e
        elif order == 2:
            u = x - exp(-(t + h / 2)) * expm1(h / 2) * e
            x = x - exp(-end) * expm1(h) * eps(u, t + h / 2)
        else:
            r1, r2 = 1 / 3, 2 / 3
            e1 = eps(x - exp(-(t + r1 * h)) * expm1(r1 * h) * e, t + r1 * h)
            s2 = t + r2 * h
            u = x - exp(-s2) * (expm1(r2 * h) * e + r2 / r1 * (expm1(r2 * h) / (r2 * h) - 1) * (e1 - e))
            x = x - exp(-end) * (expm1(h) * e + 1 / r2 * (expm1(h) / h - 1) * (eps(u, s2) - e))
        x = x + up * draw() if up else x
    return denoise(x, sigmas[-2])


def res_multistep(denoise, x, sigmas, draw, eta=0.0):
    old = before = None
    for i, (s, to) in enumerate(pairwise(sigmas)):
        data, (down, up) = denoise(x, s), ancestral(s, to, eta)
        if down == 0 or old is None:
            x = x + (x - data) / s * (down - s)
        else:
            h, c2 = log(s / down), log(before / sigmas[i - 1]) / log(s / down)
            b2 = phi(2, h) / c2
            x = exp(-h) * x + h * ((phi(1, h) - b2) * data + b2 * old)
        x = x + up * draw() if up else x
        old, before = data, down
    return x


def exponential_adams(denoise, x, sigmas, draw, order):
    """Exponential Adams-Bashforth: e^-h x + int e^(u - lam') p(u) du, p through the past values."""
    past = []
    for s, to in pairwise(sigmas):
        past = [(-log(s), denoise(x, s)), *past][:order]
        if to == 0:
            return past[0][1]
        x = to / s * x + sum(w * d for w, (_, d) in zip(_weights(past, -log(s), -log(to), 1.0), past, strict=True))
    return x


def _weights(past, start, end, k):
    """int k e^(k (u - end)) l_j(u) du of the nodes."""
    nodes = [lam for lam, _ in past]

    def basis(j):
        def value(u):
            out = k * np.exp(k * (u - end))
            for q, node in enumerate(nodes):
                out = out * (u - node) / (nodes[j] - node) if q != j else out
            return out

        return value

    return [_integral(basis(j), start, end) for j in range(len(nodes))]


def seeds_2(denoise, x, sigmas, draw, eta=1.0, r=0.5, phi_2=False):
    for s, to in pairwise(sigmas):
        data = denoise(x, s)
        if to == 0:
            return data
        h = log(s / to)
        he, middle, noise = h * (1 + eta), s * exp(-r * h), 0.0
        y = middle / s * exp(-r * h * eta) * x - expm1(-r * he) * data
        if eta:
            noise = sqrt(-expm1(-2 * r * h * eta)) * draw()
        inner = denoise(y + middle * noise, middle)
        b2 = -((expm1(-he) + he) / -he) / r if phi_2 else -expm1(-he) / (2 * r)
        x = to / s * exp(-h * eta) * x + (-expm1(-he) - b2) * data + b2 * inner
        if eta:
            left = (r - 1) * h * eta
            noise = noise * exp(left) + (sqrt(-expm1(2 * left)) * draw() if r < 1 else 0)
        x = x + to * noise
    return x


def seeds_3(denoise, x, sigmas, draw, eta=1.0, r1=1 / 3, r2=2 / 3):
    def second(h):
        return (expm1(h) - h) / h

    for s, to in pairwise(sigmas):
        data = denoise(x, s)
        if to == 0:
            return data
        h = log(s / to)
        he, s1, s2 = h * (1 + eta), s * exp(-r1 * h), s * exp(-r2 * h)
        noise = sqrt(-expm1(-2 * r1 * h * eta)) * draw() if eta else 0.0
        y = s1 / s * exp(-r1 * h * eta) * x - expm1(-r1 * he) * data + s1 * noise
        data1 = denoise(y, s1)
        a32 = r2 / r1 * second(-r2 * he)
        noise = noise * exp((r1 - r2) * h * eta) + sqrt(-expm1(2 * (r1 - r2) * h * eta)) * draw() if eta else 0.0
        y = s2 / s * exp(-r2 * h * eta) * x - (expm1(-r2 * he) - a32) * data - a32 * data1 + s2 * noise
        data2, b3 = denoise(y, s2), second(-he) / r2
        noise = noise * exp((r2 - 1) * h * eta) + sqrt(-expm1(2 * (r2 - 1) * h * eta)) * draw() if eta else 0.0
        x = to / s * exp(-h * eta) * x - (expm1(-he) - b3) * data - b3 * data2 + to * noise
    return x


def er_sde(denoise, x, sigmas, draw, order=3, scaler=None, rectangles=0):
    f = scaler or (lambda u: u * (np.exp(u**0.3) + 10))

    def integral(value, low, high):
        if not rectangles:
            return _integral(lambda v: value(np.exp(v)) * np.exp(v), log(low), log(high))
        width = (high - low) / rectangles
        return sum(value(low + i * width) for i in range(rectangles)) * width

    data, first = [], []
    for i, (s, to) in enumerate(pairwise(sigmas)):
        data.append(denoise(x, s))
        if to == 0:
            return data[-1]
        r, d = f(to) / f(s), to - s
        x = r * x + (1 - r) * data[-1]
        first.append((data[-1] - data[-2]) / (s - sigmas[i - 1]) if i else None)
        if i >= 1 and order >= 2:
            x = x + (d + f(to) * integral(lambda u: 1 / f(u), to, s)) * first[-1]
        if i >= 2 and order >= 3:
            weight = d * d / 2 + f(to) * integral(lambda u, s=s: (u - s) / f(u), to, s)
            x = x + weight * (first[-1] - first[-2]) / ((s - sigmas[i - 2]) / 2)
        noise = to**2 - s**2 * r**2
        x = x + sqrt(noise) * draw() if noise > 1e-9 * to**2 else x
    return x


def sa_solver(denoise, x, sigmas, draw, tau=lambda s: 1.0, predictor=3, corrector=4, pece=False):
    lam, past, guess, noise, rate = [-log(s) if s else None for s in sigmas], [], x, 0.0, 0.0
    old = x
    for i, (s, to) in enumerate(pairwise(sigmas)):
        past = [(lam[i], denoise(guess, s)), *past][: max(predictor, corrector)]
        x = guess
        if i and corrector:
            used, before = past[:corrector], sigmas[i - 1]
            weights = _weights(used, lam[i - 1], lam[i], 1 + rate)
            x = s / before * exp(-rate * log(before / s)) * old + noise
            x = x + sum(w * d for w, (_, d) in zip(weights, used, strict=True))
            if pece:
                past[0] = (lam[i], denoise(x, s))
        if to == 0:
            return past[0][1]
        h, rate, used = log(s / to), tau(to) ** 2, past[:predictor]
        noise = to * sqrt(-expm1(-2 * rate * h)) * draw() if rate else 0.0
        weights = _weights(used, lam[i], lam[i + 1], 1 + rate)
        guess = to / s * exp(-rate * h) * x + noise + sum(w * d for w, (_, d) in zip(weights, used, strict=True))
        old = x
    return guess


def euler_cfg_pp(denoise, x, sigmas, draw, weight, eta=0.0):
    """denoise gives the conditional and the unconditional x_0."""
    for s, to in pairwise(sigmas):
        cond, uncond = denoise(x, s)
        down, up = ancestral(s, to, eta)
        x = uncond + weight * (cond - uncond) + down * (x - uncond) / s
        x = x + up * draw() if up else x
    return x


def dpmpp_2m_cfg_pp(denoise, x, sigmas, draw, weight, paper):
    old = None
    for i, (s, to) in enumerate(pairwise(sigmas)):
        cond, uncond = denoise(x, s)
        guided = uncond + weight * (cond - uncond)
        if old is None or to == 0:
            x = guided + to / s * (x - uncond)
        else:
            h, r = log(s / to), log(sigmas[i - 1] / s) / log(s / to)
            newest = uncond if paper else guided
            x = guided - exp(-h) * uncond + exp(-h) * x - expm1(-h) / (2 * r) * (newest - old)
        old = uncond
    return x


def res_multistep_cfg_pp(denoise, x, sigmas, draw, weight, eta=0.0):
    old = before = None
    for i, (s, to) in enumerate(pairwise(sigmas)):
        cond, uncond = denoise(x, s)
        guided, (down, up) = uncond + weight * (cond - uncond), ancestral(s, to, eta)
        if down == 0 or old is None:
            x = guided + (x - uncond) / s * down
        else:
            h, c2 = log(s / down), log(before / sigmas[i - 1]) / log(s / down)
            b2 = phi(2, h) / c2
            x = x + (guided - uncond)
            x = exp(-h) * x + h * ((phi(1, h) - b2) * uncond + b2 * old)
        x = x + up * draw() if up else x
        old, before = uncond, down
    return x


def gradient_estimation_cfg_pp(denoise, x, sigmas, draw, weight, gamma=2.0, flow=False):
    """ComfyUI's; a flow's in its own x and sigma is noised anew by eps, which is x + (1 - s) flow there."""
    old = None
    for s, to in pairwise(sigmas):
        cond, uncond = denoise(x, s)
        guided, d = uncond + weight * (cond - uncond), (x - uncond) / s
        x = (1 - to) * guided + to * (x + (1 - s) * d) if flow else guided + d * to
        x = x + (gamma - 1) * (d - old) * (to - s) if old is not None and to else x
        old = d
    return x


def dpmpp_2s_ancestral_cfg_pp(denoise, x, sigmas, draw, weight, paper, eta=1.0):
    def both(x, s):
        cond, uncond = denoise(x, s)
        return uncond + weight * (cond - uncond), uncond

    for s, to in pairwise(sigmas):
        (guided, uncond), (down, up) = both(x, s), ancestral(s, to, eta)
        if down == 0:
            x = guided
            continue
        h, middle = log(s / down), sqrt(s * down)
        if paper:
            inner, other = both(middle / s * x - expm1(-h / 2) * uncond, middle)
            x = inner - exp(-h) * other + down / s * x
        else:
            inner, other = both(middle / s * (x + guided - uncond) - expm1(-h / 2) * guided, middle)
            x = down / s * (x + guided - other) - expm1(-h) * inner
        x = x + up * draw() if up else x
    return x


def restart(denoise, x, sigmas, draw, restarts, noise=1.0):
    """The authors' code: Heun's steps, and again from the high end of each interval as the main loop meets its low."""
    places = {}
    for points, count, low, high in restarts:
        near = min((i for i, s in enumerate(sigmas) if i and 0 < s < high), key=lambda i: abs(sigmas[i] - low))
        places.setdefault(near, []).append((points, count, high))

    def heun(x, s, to):
        d = slope(denoise, x, s)
        ahead = x + (to - s) * d
        return x + (to - s) * (d + slope(denoise, ahead, to)) / 2 if to else ahead

    for i, (s, to) in enumerate(pairwise(sigmas), 1):
        x = heun(x, s, to)
        for points, count, high in places.get(i, []):
            roots = np.linspace(high ** (1 / 7), to ** (1 / 7), points)
            for _ in range(count):
                x = x + noise * sqrt(high**2 - to**2) * draw()
                for a, b in pairwise([*roots[:-1] ** 7, to]):
                    x = heun(x, a, b)
    return x


def alphafold_3(denoise, x, sigmas, draw, gamma=0.8, gamma_min=1.0, step_scale=1.5, noise_scale=1.003):
    """Algorithm 18, lines 3 to 12, but for the augmentation."""
    for s, to in pairwise(sigmas):
        hat = s * (1 + (gamma if to > gamma_min else 0.0))
        x = x + noise_scale * sqrt(hat**2 - s**2) * draw() if hat > s else x
        x = x + step_scale * (to - hat) * slope(denoise, x, hat)
    return x
