"""diffusers' schedulers that step by T // n whatever their grid: PNDM, DDIM and DDIMInverse."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from pndm_fast.plan.checks import choose
from pndm_fast.plan.coefficients import ADAMS_BASHFORTH, Transfer, ancestral, combine, level, preview, to_store
from pndm_fast.plan.levels import Level, Levels
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import ANCHOR, NOISE, SLOT, STATE, Form, Row
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import check_eta
from pndm_fast.solvers.compat.grids import model_times
from pndm_fast.solvers.pndm import BEGIN, END, STAGE_SLOTS, START_STEPS, start_stages

FOR = " for compat='diffusers'"


class _Strides:
    """Rows whose steps are T // n long, whatever the grid: alpha-bar of the told times, and of those a stride away.

    A state may then stand at another level than its coefficients take it for. The slots hold what the network says.
    """

    def __init__(
        self, schedule: Schedule, steps: int, prediction: str, spacing: str, set_alpha_to_one: bool, offset: int
    ) -> None:
        self.schedule, self.prediction = schedule, prediction
        self.times = [int(t) for t in model_times(schedule, steps, spacing, offset, False).round()]
        self.steps, self.stride = len(self.times), (int(schedule.last) + 1) // len(self.times)
        self.final = level(schedule, -1.0 if set_alpha_to_one else 0.0)
        self.rows: list[Row] = []

    def level(self, t: int) -> Level:
        return self.final if t < 0 else level(self.schedule, float(t))

    def row(
        self, t: int, slot: int, y: Form, source: Level, end: Level, x: Form, estimate: Level, ends: bool = True
    ) -> None:
        """The network is told t; y becomes what is said of a state at `source`, and stands at `end`."""
        at = self.rows[-1].levels.y.position if self.rows else source
        anchor = self.rows[-1].levels.x if self.rows and x is ANCHOR else at
        kind = {"eps": "eps", "x0": "x0"}.get(self.prediction)
        shown = preview(kind, estimate) if kind else (estimate.alpha, -estimate.sigma)
        self.rows.append(
            Row(float(t), slot, tuple(y), Levels(at, anchor, end), tuple(x), preview=shown, ends_step=ends)
        )

    def plan(self, name: str) -> Plan:
        return Plan(tuple(self.rows), f"{name} (diffusers)", self.steps, self.prediction)

    def direct(self, t: int, source: Level, end: Level, reduced: Level, noise: float) -> None:
        """alpha_s x_0 + sigma_s eps from the network's x_0 and eps at `source`, and fresh noise."""
        data, eps = (to_store(kind, self.prediction, source) for kind in ("x0", "eps"))
        past, said = (end.alpha * np.array(data[:2]) + reduced.sigma * np.array(eps[:2])).tolist()
        self.row(t, 0, past * STATE + said * SLOT[0] + noise * NOISE, source, end, STATE, source)


class _PNDM(_Strides):
    """Rows of `PNDMScheduler`."""

    history: list[int]

    def call(
        self, t: int, slot: int, base: Form, eps: Form, source: int, target: int, x: Form = ANCHOR, ends: bool = True
    ) -> None:
        """The network is told t; y becomes phi(base, eps) from level(source) to level(target)."""
        start, end = self.level(source), self.level(target)
        if self.prediction == "v":  # converted after the history is combined, with the present sample
            eps = start.alpha * eps + start.sigma * base
        at = self.rows[-1].levels.y.position if self.rows else self.level(t)
        self.row(t, slot, Transfer(start, end)(base, eps), self.level(t), end, x, at, ends)

    def multistep(self, t: int) -> None:
        """One row of the ramp 1, (3, -1)/2, (23, -16, 5)/12, (55, -59, 37, -9)/24."""
        slot = len(self.history) % 4
        self.history.append(slot)
        order = min(4, len(self.history))
        eps = combine(ADAMS_BASHFORTH[order], [SLOT[k] for k in self.history[: -order - 1 : -1]])
        self.call(t, slot, STATE, eps, t, t - self.stride, x=STATE if order == 1 else ANCHOR)


def pndm(
    schedule: Schedule,
    steps: int,
    *,
    skip_prk_steps: bool = False,
    spacing: str = "leading",
    steps_offset: int = 0,
    set_alpha_to_one: bool = False,
    prediction: str = "eps",
) -> Plan:
    """PNDMScheduler.

    With skip_prk_steps n + 1 network calls, the second time of the grid twice; with its Runge-Kutta start n + 9. Its
    quirks: strides of T // n on every grid; where the stride is odd the network is told a time one off the state's
    level; v is combined before it is converted; with set_alpha_to_one=False and steps_offset=0 the last call changes
    nothing. It has no "sample" prediction.

    Raises:
        ValueError: steps outside [1, T], fewer than 4 with the Runge-Kutta start, unknown spacing, a time beyond the
            schedule, alpha = 0 at its end.
    """
    choose("prediction", prediction, ("eps", "v"), FOR)
    if schedule.discrete and schedule.alpha(schedule.last) == 0:
        raise ValueError(f"schedule must end at alpha > 0 for diffusers' PNDM, got {schedule.name}")
    rows = _PNDM(schedule, steps, prediction, spacing, set_alpha_to_one, steps_offset)
    rows.history = []
    if skip_prk_steps:
        rows.multistep(rows.times[0])
        for t in rows.times[1:2]:
            rows.call(t, 1, ANCHOR, (SLOT[0] + SLOT[1]) / 2, t + rows.stride, t)
        for t in rows.times[1:]:
            rows.multistep(t)
        return rows.plan("plms")
    if steps < 4:
        raise ValueError(f"steps must be at least 4 for f-pndm, got {steps}")
    half = rows.stride // 2
    for i, (t, s) in enumerate(pairwise(rows.times[: START_STEPS + 1])):
        for called, slot, base, gradient, to in start_stages(i, (SLOT[i], *(SLOT[k] for k in STAGE_SLOTS))):
            target = (t, t - half if called == BEGIN else s + half, s)[to]
            rows.call((t, s + half, s)[called], slot, base, gradient, t, target, x=base, ends=called == END)
        rows.history.append(i)
    for t in rows.times[START_STEPS:]:
        rows.multistep(t)
    return rows.plan("f-pndm")


def ddim(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "leading",
    steps_offset: int = 0,
    set_alpha_to_one: bool = True,
    eta: float = 0.0,
    prediction: str = "eps",
) -> Plan:
    """DDIMScheduler with clip_sample=False. Its quirk: every step is T // n long, whatever the grid.

    Raises:
        ValueError: steps outside [1, T], unknown spacing, a time beyond the schedule, eta outside [0, 1], "eps" where
            alpha = 0.
    """
    choose("prediction", prediction, ("eps", "x0", "v"), FOR)
    check_eta(eta)
    rows = _Strides(schedule, steps, prediction, spacing, set_alpha_to_one, steps_offset)
    for t in rows.times:
        source, end = rows.level(t), rows.level(t - rows.stride)
        rows.direct(t, source, end, *ancestral(source, end, eta))
    return rows.plan("ddim")


def ddim_inverse(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "leading",
    steps_offset: int = 0,
    set_alpha_to_one: bool = True,
    prediction: str = "eps",
) -> Plan:
    """DDIMInverseScheduler with clip_sample=False. Its quirk: a step to t starts T // n before t, whatever the grid.

    Raises:
        ValueError: as of `ddim`; "x0" with set_alpha_to_one, which says nothing of eps where there is no noise.
    """
    choose("prediction", prediction, ("eps", "x0", "v"), FOR)
    choose("spacing", spacing, ("leading", "trailing"), " for ddim-inverse")
    rows = _Strides(schedule, steps, prediction, spacing, set_alpha_to_one, steps_offset)
    for t in rows.times[::-1]:
        source, end = rows.level(t - rows.stride), rows.level(t)
        rows.direct(t, source, end, end, 0.0)
    return rows.plan("ddim-inverse")
