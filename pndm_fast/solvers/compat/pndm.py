"""diffusers' schedulers that step by T // n whatever their grid: PNDM and DDIM."""

from __future__ import annotations

import numpy as np

from pndm_fast.plan.coefficients import ADAMS_BASHFORTH, Transfer, ancestral, combine, level, preview
from pndm_fast.plan.levels import Level, Levels
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import ANCHOR, NOISE, SLOT, STATE, Form, Row
from pndm_fast.plan.schedule import Schedule


class _DiffusersPNDM:
    """Rows of diffusers 0.42 `PNDMScheduler`: strides of T // N whatever the grid, alpha-bar of the told times."""

    def __init__(self, schedule: Schedule, steps: int, prediction: str, set_alpha_to_one: bool, offset: int) -> None:
        if not schedule.discrete:
            raise ValueError(f"compat='diffusers' must have a discrete schedule, got {schedule.name}")
        if prediction not in ("eps", "v"):
            raise ValueError(f"prediction must be 'eps' or 'v' for compat='diffusers', got {prediction!r}")
        self.schedule, self.prediction, self.offset = schedule, prediction, offset
        self.length = int(schedule.last) + 1
        if not is_integer(steps) or not 1 <= steps <= self.length:
            raise ValueError(f"steps must be an integer in [1, {self.length}] for compat='diffusers', got {steps!r}")
        if not 0 <= offset < self.length:
            raise ValueError(f"steps_offset must be in [0, {self.length}), got {offset}")
        self.steps, self.stride = int(steps), self.length // int(steps)
        self.final = level(schedule, -1.0 if set_alpha_to_one else 0.0)
        self.rows: list[Row] = []
        self.history: list[int] = []

    def grid(self, spacing: str) -> list[int]:
        """Increasing times, as `set_timesteps` rounds them."""
        if spacing == "leading":
            times = np.arange(self.steps) * self.stride + self.offset
        elif spacing == "linspace":
            times = np.round(np.linspace(0, self.length - 1, self.steps))
        elif spacing == "trailing":
            times = np.round(np.arange(self.length, 0, -self.length / self.steps))[::-1] - 1
        else:
            raise ValueError(f"spacing must be leading, linspace or trailing, got {spacing!r}")
        if times[-1] >= self.length:
            raise ValueError(f"steps_offset must keep times below {self.length}, got {times[-1]:g}")
        return [int(t) for t in times]

    def level(self, t: int) -> Level:
        return self.final if t < 0 else level(self.schedule, float(t))

    def call(
        self,
        t: int,
        slot: int,
        base: Form,
        eps: Form,
        source: int,
        target: int,
        x: Form = ANCHOR,
        ends: bool = True,
        reduced: Level | None = None,
        noise: float = 0.0,
    ) -> None:
        """The network is told t; y becomes phi(base, eps) from level(source) to level(target)."""
        start, end = self.level(source), self.level(target)
        if self.prediction == "v":  # converted after the history is combined, with the present sample
            eps = start.alpha * eps + start.sigma * base
        at = self.rows[-1].levels.y.position if self.rows else self.level(t)
        anchor = self.rows[-1].levels.x if self.rows and x is ANCHOR else at
        y = Transfer(start, reduced or end)(base, eps) + noise * NOISE
        estimate = preview("eps", at) if self.prediction == "eps" else (at.alpha, -at.sigma)
        self.rows.append(
            Row(float(t), slot, tuple(y), Levels(at, anchor, end), tuple(x), preview=estimate, ends_step=ends)
        )

    def multistep(self, t: int) -> None:
        """One row of the ramp 1, (3, -1)/2, (23, -16, 5)/12, (55, -59, 37, -9)/24."""
        slot = len(self.history) % 4
        self.history.append(slot)
        order = min(4, len(self.history))
        eps = combine(ADAMS_BASHFORTH[order], [SLOT[k] for k in self.history[: -order - 1 : -1]])
        self.call(t, slot, STATE, eps, t, t - self.stride, x=STATE if order == 1 else ANCHOR)

    def plan(self, name: str) -> Plan:
        return Plan(tuple(self.rows), f"{name} (diffusers)", self.steps, self.prediction)


def diffusers_plms(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "leading",
    steps_offset: int = 0,
    set_alpha_to_one: bool = False,
    prediction: str = "eps",
) -> Plan:
    """diffusers 0.42 PNDMScheduler with skip_prk_steps=True; arguments are its configuration's names and defaults.

    n + 1 network calls: the second time of the grid stands twice. v-predictions are combined before conversion.

    Raises:
        ValueError: steps outside [1, T], unknown spacing, a time beyond the schedule.
    """
    rows = _DiffusersPNDM(schedule, steps, prediction, set_alpha_to_one, steps_offset)
    times = rows.grid(spacing)[::-1]
    rows.multistep(times[0])
    if len(times) > 1:
        t, stride = times[1], rows.stride
        rows.call(t, 1, ANCHOR, (SLOT[0] + SLOT[1]) / 2, t + stride, t)
    for t in times[1:]:
        rows.multistep(t)
    return rows.plan("plms")


def diffusers_f_pndm(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "leading",
    steps_offset: int = 0,
    set_alpha_to_one: bool = False,
    prediction: str = "eps",
) -> Plan:
    """diffusers 0.42 PNDMScheduler with its Runge-Kutta start; arguments are its configuration's names and defaults.

    n + 9 network calls. Where the stride is odd the network is told a time one off the state's level, and with
    set_alpha_to_one=False and steps_offset=0 the last call changes nothing: both as diffusers does it.

    Raises:
        ValueError: fewer than 4 steps, unknown spacing, a time beyond the schedule.
    """
    rows = _DiffusersPNDM(schedule, steps, prediction, set_alpha_to_one, steps_offset)
    if steps < 4:
        raise ValueError(f"steps must be at least 4 for f-pndm, got {steps}")
    times, half = rows.grid(spacing)[::-1], rows.stride // 2
    for i in range(3):
        t, s = times[i], times[i + 1]
        e1, e2, e3, e4 = SLOT[i], *SLOT[3:6]
        rows.call(t, i, STATE, e1, t, t - half, x=STATE, ends=False)
        rows.call(s + half, 3, ANCHOR, e2, t, s + half, ends=False)
        rows.call(s + half, 4, ANCHOR, e3, t, s, ends=False)
        rows.call(s, 5, ANCHOR, combine((1 / 6, 1 / 3, 1 / 3, 1 / 6), (e1, e2, e3, e4)), t, s)
        rows.history.append(i)
    for t in times[3:]:
        rows.multistep(t)
    return rows.plan("f-pndm")


def diffusers_ddim(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "leading",
    steps_offset: int = 0,
    set_alpha_to_one: bool = True,
    eta: float = 0.0,
    prediction: str = "eps",
) -> Plan:
    """diffusers 0.42 DDIMScheduler with clip_sample=False; arguments are its configuration's names and defaults.

    Every step is T // n long, whatever the grid.

    Raises:
        ValueError: steps outside [1, T], unknown spacing, a time beyond the schedule, eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    rows = _DiffusersPNDM(schedule, steps, prediction, set_alpha_to_one, steps_offset)
    for t in rows.grid(spacing)[::-1]:
        reduced, tau = ancestral(rows.level(t), rows.level(t - rows.stride), eta)
        rows.call(t, 0, STATE, SLOT[0], t, t - rows.stride, x=STATE, reduced=reduced, noise=tau)
    return rows.plan("ddim")
