"""The probability flow itself, integrated adaptively: what every deterministic solver approximates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pndm_fast.plan.schedule import Schedule


def probability_flow(
    eps: Callable[..., Any],
    schedule: Schedule,
    state: Tensor,
    *,
    start: float | None = None,
    end: float | None = None,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    method: str = "DOP853",
) -> Tensor:
    """Integrate the probability-flow equation with SciPy's adaptive Runge-Kutta, in float64.

    With w = x / alpha and rho = sigma / alpha it reads dw/drho = eps(alpha w, t(rho)). Song et al. 2021,
    arXiv:2011.13456, eq. 13, in the variables of arXiv:2010.02502, eq. 14.

    Args:
        eps: the network, eps-prediction, called as eps(x, t) with float64 x and t of shape [B].
        state: [B, ...] at time `start`.
        start, end: times; default the schedule's last and first.

    Raises:
        TypeError: the schedule is of phase space.
        ImportError: SciPy is missing: `pip install 'pndm_fast[reference]'`.
        RuntimeError: the integrator gave up.
    """
    try:
        from scipy.integrate import solve_ivp
    except ImportError as error:
        raise ImportError("probability_flow needs SciPy: pip install 'pndm_fast[reference]'") from error
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a Schedule, got {type(schedule).__name__}")
    start = schedule.last if start is None else start
    end = schedule.first if end is None else end
    state = state.double()

    def slope(rho: float, w: np.ndarray) -> np.ndarray:
        t = float(schedule.time_at(-np.log(rho)) if rho > 0 else schedule.first)
        x = torch.from_numpy(w).view(state.shape) * float(schedule.alpha(t))
        times = torch.full(state.shape[:1], t, dtype=torch.float64)
        with torch.no_grad():
            return np.asarray(eps(x, times).double().reshape(-1))

    rhos = [float(schedule.sigma(t) / schedule.alpha(t)) for t in (start, end)]
    w = (state / float(schedule.alpha(start))).reshape(-1).numpy()
    solution = solve_ivp(slope, rhos, w, method=method, rtol=rtol, atol=atol)
    if not solution.success:
        raise RuntimeError(f"probability_flow: {solution.message}")
    return torch.from_numpy(solution.y[:, -1] * float(schedule.alpha(end))).view(state.shape)
