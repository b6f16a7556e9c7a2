"""diffusers' schedulers that step by T // n whatever their grid: PNDM and DDIM."""

from __future__ import annotations

from itertools import pairwise

from pndm_fast.plan.checks import choose
from pndm_fast.plan.coefficients import ADAMS_BASHFORTH, Transfer, ancestral, combine, level, preview
from pndm_fast.plan.levels import Level, Levels
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import ANCHOR, NOISE, SLOT, STATE, Form, Row
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import check_eta
from pndm_fast.solvers.compat.grids import model_times
from pndm_fast.solvers.pndm import BEGIN, END, STAGE_SLOTS, START_STEPS, start_stages


class _DiffusersPNDM:
    """Rows of diffusers 0.42 `PNDMScheduler`: strides of T // N whatever the grid, alpha-bar of the told times."""

    def __init__(
        self, schedule: Schedule, steps: int, prediction: str, spacing: str, set_alpha_to_one: bool, offset: int
    ) -> None:
        choose("prediction", prediction, ("eps", "v"), " for compat='diffusers'")
        self.schedule, self.prediction = schedule, prediction
        self.times = [int(t) for t in model_times(schedule, steps, spacing, offset, False).round()]
        self.steps, self.stride = len(self.times), (int(schedule.last) + 1) // len(self.times)
        self.final = level(schedule, -1.0 if set_alpha_to_one else 0.0)
        self.rows: list[Row] = []
        self.history: list[int] = []

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
    rows = _DiffusersPNDM(schedule, steps, prediction, spacing, set_alpha_to_one, steps_offset)
    rows.multistep(rows.times[0])
    for t in rows.times[1:2]:
        rows.call(t, 1, ANCHOR, (SLOT[0] + SLOT[1]) / 2, t + rows.stride, t)
    for t in rows.times[1:]:
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
    rows = _DiffusersPNDM(schedule, steps, prediction, spacing, set_alpha_to_one, steps_offset)
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
    check_eta(eta)
    rows = _DiffusersPNDM(schedule, steps, prediction, spacing, set_alpha_to_one, steps_offset)
    for t in rows.times:
        reduced, tau = ancestral(rows.level(t), rows.level(t - rows.stride), eta)
        rows.call(t, 0, STATE, SLOT[0], t, t - rows.stride, x=STATE, reduced=reduced, noise=tau)
    return rows.plan("ddim")
