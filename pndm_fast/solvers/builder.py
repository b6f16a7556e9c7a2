"""What the solvers build their plans with: rows over a grid, with levels, stores and previews filled in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pndm_fast.plan.checks import choose
from pndm_fast.plan.coefficients import SPLITS, Transfer, level, log_snr, network_input, preview, to_store
from pndm_fast.plan.grids import WholeTimes, check_times
from pndm_fast.plan.levels import Level, Levels
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import ANCHOR, SLOT, STATE, Form, OutputMap, Prologue, Row
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.registry import SOLVER_INFO

FEW_STEPS = 15


class PlanBuilder:
    """The rows of one plan, one call after another. The slots hold `kind`: eps, x0 or flow.

    The default kind is the slope along which a noiseless path is straight: eps against sigma / alpha, for x / alpha; on
    flow schedules flow = eps - x_0 against t, for x itself.
    """

    def __init__(
        self,
        name: str,
        schedule: Schedule,
        times: Sequence[float],
        prediction: str,
        kind: str | None = None,
    ) -> None:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule for {name}, got {type(schedule).__name__}")
        self.name, self.schedule, self.prediction = name, schedule, prediction
        self.kind = kind or ("flow" if schedule.scale == "flow" else "eps")
        self.times = check_times(schedule, times, SOLVER_INFO[name].min_steps, name)
        self.whole = isinstance(self.times, WholeTimes)
        self.rows: list[Row] = []
        alphas, sigmas = schedule.alpha(self.times), schedule.sigma(self.times)
        self._levels = {t: Level(float(a), float(s)) for t, a, s in zip(self.times, alphas, sigmas, strict=True)}
        self.steps = len(self.times) - 1
        self.start_at(self.times[0])

    def start_at(self, t: float) -> None:
        """The state before the first call is at t; noise is scaled to it where x_t is not of unit variance."""
        self._anchor = self.level(t)
        self.prologue = Prologue(p0=1.0 if self.schedule.scale == "vp" else self._anchor.sigma)

    def order_at(self, i: int, order: int, lower_order_final: bool | None = False) -> int:
        """The order of a multistep's step i: lower while the history is short, 1 to sigma = 0 or where nothing moves.

        Args:
            lower_order_final: whether the last steps are of lower order too; None is where there are fewer than 15
                steps, as the authors of DPM-Solver advise.
        """
        end = self.level(self.times[i + 1])
        if end.sigma == 0 or end == self.level(self.times[i]):
            return 1
        lower = self.steps < FEW_STEPS if lower_order_final is None else lower_order_final
        return min(order, self.history(i), self.steps - i if lower else order)

    def blind(self, t: float) -> bool:
        """Whether the slots hold eps, and t is where alpha = 0: eps is the state itself there, with no x_0 in it."""
        return self.kind == "eps" and self.level(t).alpha == 0

    def history(self, i: int) -> int:
        """How many of the calls up to step i's own a multistep may combine: not the one that was `blind`."""
        return max(i + 1 - self.blind(self.times[0]), 1)

    def by_data(self, t: float, slot: int, s: float) -> bool:
        """A step from where it is `blind`, by the network's x_0, the limit of every first step; whether it was."""
        if self.blind(t):
            move = Transfer(self.level(t), self.level(s), "x0")
            self.call(t, slot, move(STATE, SLOT[slot]), s, kind="x0")
        return self.blind(t)

    def level(self, t: float) -> Level:
        if t not in self._levels:
            self._levels[t] = level(self.schedule, t)
        return self._levels[t]

    def lam(self, t: float) -> float:
        """log(alpha / sigma)."""
        return log_snr(self.level(t))

    def inside(self, t: float, s: float, time: float) -> float:
        """A time at which a step from t to s may call the network: of whole times the nearest inside, halves down.

        Every time that a solver adds to its grid goes through here, and its coefficients follow what comes out.

        Raises:
            ValueError: there is none.
        """
        if not self.whole:
            return time
        if t - s < 2:
            raise ValueError(f"integer_times must leave a whole time inside each step, got {t:g} then {s:g}")
        return float(min(max(math.ceil(time - 0.5), s + 1), t - 1))

    def between(self, t: float, s: float, fraction: float = 0.5) -> tuple[float, float]:
        """The time whose lam divides lam_t .. lam_s in that proportion, and the proportion; see `inside`."""
        return self.toward(t, s, self.level(s), fraction)

    def stage(self, t: float, s: float, lam: float) -> float:
        """The time of a lam inside a step, or s itself, where ancestral steps with eta = 1 have their middle."""
        time = float(self.schedule.time_at(lam))
        return s if math.isclose(time, s, rel_tol=1e-9, abs_tol=1e-9) else self.inside(t, s, time)

    def toward(self, t: float, s: float, end: Level, fraction: float = 0.5) -> tuple[float, float]:
        """As `between`, of the way in lam to a level short of s."""
        start, h = self.lam(t), log_snr(end) - self.lam(t)
        time = self.stage(t, s, start + fraction * h)
        return time, (self.lam(time) - start) / h if self.whole else fraction

    def place(self, at: Level) -> float:
        """The variable in which a noiseless path is straight: sigma / alpha, or sigma / (alpha + sigma) on flow."""
        if self.kind == "flow":
            return at.sigma / (at.alpha + at.sigma)
        return at.sigma / at.alpha if at.alpha > 0 else math.inf

    def check_data(self, t: float) -> None:
        """Refuse a step from alpha = 0, where lam is infinite, for solvers with stages in lam."""
        if self.level(t).alpha == 0:
            raise ValueError(f"times must start where alpha > 0 for {self.name}, got alpha = 0")

    def transfer(self, t: float, s: float) -> Callable[[Form, Form], Form]:
        return Transfer(self.level(t), self.level(s), self.kind)

    def store(self, t: float, kind: str | None = None) -> OutputMap:
        return to_store(kind or self.kind, self.prediction, self.level(t), self.schedule.sigma_data)

    def preview(self, t: float, kind: str | None = None) -> tuple[float, float]:
        """x_0 from the y and the slot of a call at t."""
        return preview(kind or self.kind, self.level(t))

    def call(
        self,
        t: float,
        slot: int,
        y: Form,
        to: float,
        *,
        x: Form = ANCHOR,
        kind: str | None = None,
        store: OutputMap | None = None,
        ends: bool = True,
        model_time: float | None = None,
        second: int | None = None,
        guidance_factor: float = 1.0,
    ) -> None:
        """One row: the network is called at t, then y is at `to`. An x other than ANCHOR keeps the state at t.

        `kind` is what this row's slot holds, where that is not the others'; `model_time` the network's time, where
        that is not t; `second` and `guidance_factor` are `Row`'s.
        """
        assert not self.whole or t == int(t), f"{self.name} calls the network at {t}, which never was `inside`"
        if x is not ANCHOR:
            self._anchor = self.level(t)
        time, in_scale = network_input(self.prediction, t, self.level(t), self.schedule.sigma_data)
        self.rows.append(
            Row(
                t=time if model_time is None else model_time,
                slot=slot,
                x=tuple(x),
                y=tuple(y),
                levels=Levels(self.level(t), self._anchor, self.level(to)),
                store=self.store(t, kind) if store is None else store,
                preview=self.preview(t, kind),
                in_scale=in_scale,
                ends_step=ends,
                second=second,
                guidance_factor=guidance_factor,
            )
        )

    def plan(self) -> Plan:
        return Plan(tuple(self.rows), self.name, self.steps, self.prediction, self.prologue)


def check_order(order: int, most: int) -> None:
    """Refuse an order outside 1 to `most`."""
    if not 1 <= order <= most:
        raise ValueError(f"order must be 1 to {most}, got {order!r}")


def check_split(schedule: Schedule, split: str) -> None:
    """Refuse an unknown split of an ancestral step, or that of flow schedules elsewhere."""
    choose("split", split, SPLITS)
    if split == "flow" and schedule.scale != "flow":
        raise ValueError(f"split must be 'posterior' but on flow schedules, got 'flow' on {schedule.name}")


def check_ancestral(
    schedule: Schedule, eta: float, noise_scale: float, split: str = "posterior", *, above_1: bool = False
) -> None:
    """Refuse what an ancestral step cannot have; `above_1`: it can have more noise than the posterior's."""
    if not above_1:
        check_eta(eta)
    check_at_least_0(eta=eta, noise_scale=noise_scale)
    check_split(schedule, split)


def check_at_least_0(**options: float) -> None:
    """Refuse a negative option, or one that is no finite number."""
    for name, value in options.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or positive, got {value}")


def check_eta(eta: float) -> None:
    """Refuse a stochasticity outside 0 (none) to 1 (the posterior's)."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
