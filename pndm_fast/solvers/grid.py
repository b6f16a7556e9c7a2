"""The grid that `make_plan` is asked for: from its arguments to the times that a solver steps through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from pndm_fast.plan.checks import check_type, choose, shown
from pndm_fast.plan.grids import (
    FINALS,
    SPACINGS,
    WholeTimes,
    check_levels,
    from_last,
    make_grid,
    noisiest,
    numbers_of,
    snap,
    times_of,
)
from pndm_fast.plan.named_grids import OTHER_SPACINGS, named_grid
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.schedule import Schedule
from pndm_fast.plan.warn import warn
from pndm_fast.solvers.registry import SOLVER_INFO, SOLVERS

DEFAULT_STEPS = 50


@dataclass(frozen=True)
class GridSpec:
    """`make_plan`'s arguments of the grid, None where one is not given.

    Raises:
        ValueError: two that say the same.
    """

    steps: int | None = None
    nfe: int | None = None
    times: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    spacing: str | None = None
    final: str | None = None
    t_min: float | None = None
    t_start: float | None = None
    strength: float | None = None
    integer_times: bool = False

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.steps, self.nfe, self.times, self.sigmas)) > 1:
            raise ValueError("steps, nfe, times and sigmas exclude one another: give one of them")
        check_type("integer_times", self.integer_times, bool)
        if self.t_start is not None and self.strength is not None:
            raise ValueError("t_start and strength exclude each other: give one of them")

    @property
    def explicit(self) -> str | None:
        """The argument that is the grid itself, if there is one."""
        return next((name for name in ("times", "sigmas") if getattr(self, name) is not None), None)

    def points(self, solver: str, schedule: Schedule | PSLD) -> Sequence[float]:
        """The times that the solver steps through; the solver's own builder checks that they decrease.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        times = self._points(solver, schedule)
        check_levels(schedule, times)
        return times

    def _points(self, solver: str, schedule: Schedule | PSLD) -> Sequence[float]:
        times = self._kept(solver, schedule, self._whole(solver, schedule))
        if not self.integer_times:
            return times
        if not schedule.discrete:
            raise ValueError(f"integer_times must have a discrete schedule, got {schedule.name}")
        try:
            return self._snapped(solver, schedule, times)
        except ValueError as error:
            raise ValueError(f"{error}; {self._fewer(solver, schedule)}") from error

    def _snapped(self, solver: str, schedule: Schedule | PSLD, times: Sequence[float]) -> WholeTimes:
        steps = len(times) - 1 - (times[-1] == schedule.first)  # a step to sigma = 0 has no call inside
        return snap(times, min(steps, SOLVER_INFO[solver].inner_steps))

    def _fewer(self, solver: str, schedule: Schedule | PSLD) -> str:
        """What would do in place of a grid that is too crowded for whole times."""
        if self.explicit is not None:
            return f"give other {self.explicit}"
        info, final = SOLVER_INFO[solver], self.final or "zero"
        for steps in range(steps_of(solver, self.steps, self.nfe, final) - 1, info.min_steps - 1, -1):
            fewer = replace(self, steps=steps, nfe=None)
            with suppress(ValueError):
                self._snapped(solver, schedule, fewer._kept(solver, schedule, fewer._whole(solver, schedule)))
                calls = f" ({info.calls(steps, final)} network calls)" if self.nfe else ""
                return f"at most {steps} steps{calls} of this spacing do for {solver}"
        return f"no number of steps of this spacing does for {solver}"

    def _whole(self, solver: str, schedule: Schedule | PSLD) -> Sequence[float]:
        """The grid from the noisiest time on."""
        if self.explicit is not None:
            for name in ("spacing", "t_min"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} and {self.explicit} exclude each other")
            given, fewest = self._given(schedule), SOLVER_INFO[solver].min_steps + 1
            if len(given) < fewest:
                raise ValueError(f"{self.explicit} must be {fewest} or more for {solver}, got {len(given)}")
            self._check_end(schedule, given)
            return given
        final = "zero" if self.final is None else self.final
        steps = steps_of(solver, self.steps, self.nfe, final)
        own = SOLVER_INFO[solver].spacing
        usual = own if own == solver else schedule.spacing or own  # dpm-fast is its grid
        spacing = usual if self.spacing is None else self.spacing
        if isinstance(schedule, Schedule):
            choose("spacing", spacing, (*SPACINGS, *OTHER_SPACINGS))
        if spacing in SPACINGS or not isinstance(schedule, Schedule):
            return make_grid(schedule, steps, spacing, final, self.t_min)
        if self.t_min is not None:
            raise ValueError(f"t_min must be None for {spacing} spacing, got {shown(self.t_min)}")
        return named_grid(spacing, schedule, steps, final)

    def _given(self, schedule: Schedule | PSLD) -> tuple[float, ...]:
        if self.sigmas is not None:
            return times_of(schedule, self.sigmas)
        assert self.times is not None
        return from_last(schedule, numbers_of("times", self.times))

    def _check_end(self, schedule: Schedule | PSLD, times: Sequence[float]) -> None:
        """Of times that are given `final` can only say what they are."""
        if self.final is None:
            return
        choose("final", self.final, FINALS)
        end = "zero" if times[-1] == schedule.first else "min"
        if self.final != end:
            where = "at" if end == "zero" else "above"
            raise ValueError(f"final must be {end!r} where {self.explicit} end {where} sigma = 0, got {self.final!r}")

    def warn(self, solver: str, schedule: Schedule | PSLD, times: Sequence[float], first: float) -> None:
        """Of a grid that ends before the data, or begins after the noise, where nothing says that this is meant.

        Args:
            first: the time of the plan's first call.
        """
        if SOLVER_INFO[solver].inverts:
            return
        if self.explicit is not None and self.final is None and times[-1] > schedule.first:
            _warn_of_end(schedule, times[-1], self.explicit)
        cut = self.t_start is not None or self.strength is not None
        if not isinstance(schedule, Schedule):
            return
        # which start where the caller says, or who published them
        meant = cut or self.spacing in OTHER_SPACINGS or (self.explicit is not None and not schedule.discrete)
        if not meant and times[0] < noisiest(schedule):
            _warn_of_start(solver, schedule, times[0])
        if self.explicit is not None and first < times[0] == schedule.last and schedule.scale == "flow":
            warn(f"{solver} begins at t = {first:.8g}, not at {times[0]:g}, where alpha = 0 has no log-SNR")

    def _kept(self, solver: str, schedule: Schedule | PSLD, times: Sequence[float]) -> Sequence[float]:
        """The points from `t_start` on, or `strength`'s part of the steps.

        Raises:
            TypeError, ValueError: not a number in range, or fewer steps left than the solver takes.
        """
        if self.strength is not None:
            name, value = "strength", self.strength
            check_type(name, value, float)
            if not 0 < value <= 1:
                raise ValueError(f"strength must be in (0, 1], got {value}")
            left = times[len(times) - 1 - int((len(times) - 1) * value + 1e-9) :]
        elif self.t_start is not None:
            name, value = "t_start", self.t_start
            check_type(name, value, float)
            most = max(schedule.last, times[0])
            if not schedule.first <= value <= most:
                raise ValueError(f"t_start must be in [{schedule.first:g}, {most:g}], got {value:g}")
            left = tuple(t for t in times if t <= value)
        else:
            return times
        count, fewest = max(len(left) - 1, 0), SOLVER_INFO[solver].min_steps
        if count < fewest:
            raise ValueError(f"{name} must leave at least {fewest} steps for {solver}, got {count}")
        return left


def _warn_of_end(schedule: Schedule | PSLD, t: float, given: str) -> None:
    left = ""
    if isinstance(schedule, Schedule):
        left = f", where sigma / alpha is {math.exp(-float(schedule.lam(t))):.3g}"
    last = "0" if given == "sigmas" else f"{schedule.first:g}"
    warn(
        f"the grid ends at t = {t:g}{left}: {given} that end with {last} give clean samples, "
        "final='min' says that this end is meant"
    )


def _warn_of_start(solver: str, schedule: Schedule, t: float) -> None:
    if schedule.alpha(schedule.last) == 0:
        start = repr(t) if float(f"{t:g}") < t else f"{t:g}"  # rounded down it would leave out this point
        other = f" with a solver that can begin there, such as ddim, euler, dpmpp-2m or unipc ({solver} cannot)"
        other = "" if _begins_at_noise(solver, schedule) else other
        warn(
            f"the grid starts at t = {t:g}, where alpha is {schedule.alpha(t):.3g}, and never visits the alpha = 0 of "
            f"{schedule.name}: spacing='trailing' does{other}, t_start={start} says that this start is meant"
        )


def _begins_at_noise(solver: str, schedule: Schedule) -> bool:
    """Whether the solver has a plan from the schedule's last time on, tried with its default options."""
    with suppress(ValueError):
        times = make_grid(schedule, SOLVER_INFO[solver].min_steps + 1, "trailing")
        return bool(SOLVERS[solver](schedule, times, prediction="v"))
    return False


def steps_of(solver: str, steps: int | None, nfe: int | None, final: str = "zero") -> int:
    """How many steps: as given, as many as make nfe network calls, or 50.

    Raises:
        TypeError, ValueError: nfe is no integer, fewer than the solver can make, or not a number that it makes.
    """
    if nfe is None:
        return DEFAULT_STEPS if steps is None else steps
    if not is_integer(nfe):
        raise TypeError(f"nfe must be an integer, got {nfe!r}")
    info = SOLVER_INFO[solver]
    fewest = info.calls(info.min_steps, final)
    if nfe < fewest:
        raise ValueError(f"nfe must be at least {fewest} for {solver}, got {nfe}")
    count = info.steps(int(nfe), final)
    if info.calls(count, final) != nfe:
        near = f"{info.calls(count, final)} or {info.calls(count + 1, final)}"
        raise ValueError(f"nfe must be {info.formula(final)} for {solver}, such as {near}, got {nfe}")
    return count
