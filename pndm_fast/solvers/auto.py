"""`solver="auto"`: which solver, options and grid, from a measured table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pndm_fast.plan.grids import make_grid
from pndm_fast.plan.named_grids import OTHER_SPACINGS, named_grid
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.grid import DEFAULT_STEPS, GridSpec

AUTO = "auto"
LAST = 0.0469  # sigma / alpha at t = 10 of the linear schedule: where the table's "to 10" grids make their last call


@dataclass(frozen=True)
class Choice:
    """What auto takes.

    Attributes:
        most: network calls up to which it is taken.
        last: the noise level sigma / alpha of the last call; None is the grid's own end.
    """

    most: float
    solver: str
    spacing: str | None
    options: dict[str, Any] = field(default_factory=dict)
    last: float | None = None


# By rule of the finals at 5, 8, 10, 15, 20, 30 and 50 calls in benchmarks/results/quality/, mnist.json and
# mnist_flow.json, taken up to the (geometric) middle between one budget and the next; tests/test_auto.py compares.
MEASURED = (
    Choice(6, "ipndm", "leading", {"order": 2}),
    Choice(8, "gradient-estimation", "trailing"),
    Choice(12, "deis", "leading"),
    Choice(24, "sa-solver", "beta57", {"tau": 0.0}),
    Choice(38, "unipc", "beta"),
    Choice(math.inf, "deis", "beta"),
)
MEASURED_ON_FLOW = (
    Choice(6, "gradient-estimation", None),
    Choice(12, "lms", None, {"order": 3}),
    Choice(17, "lms", "beta", {"order": 3}),
    Choice(24, "ipndm", "normal"),
    Choice(38, "ipndm", "beta57"),
    Choice(math.inf, "f-pndm", "beta"),
)
# alpha above which pure noise is no start: leading grids begin late, which pays where alpha is small there
START = 0.05
LATE = Choice(math.inf, "unipc", "trailing")  # near the best of few calls on a grid that begins at the noisiest time
# the best at 10 and 25 calls in benchmarks/results/phase/mnist.json; at 50 and 100 as good as its reference can tell
IN_PHASE_SPACE = Choice(math.inf, "conjugate", None, {"order": 3})
ELSEWHERE = Choice(math.inf, "unipc", None)  # not measured; on the schedule's own grid


def recommend(schedule: Schedule | PSLD, calls: int) -> Choice:
    """The choice for a number of network calls.

    The table is of a network on the linear schedule, and taken for every variance-preserving one; a leading grid only
    where it begins at alpha <= 0.05. Flow has a table of its own. Where a schedule has not the times for a grid: UniPC
    of order 2 on a trailing one. Elsewhere (EDM's sigmas, zero terminal SNR): the same on the schedule's own grid, or
    trailing. In phase space: gDDIM's frame at order 3.
    """
    if isinstance(schedule, PSLD):
        return IN_PHASE_SPACE
    if schedule.scale != "flow" and (schedule.scale != "vp" or schedule.alpha(schedule.last) == 0):
        return ELSEWHERE
    choice = next(one for one in (MEASURED_ON_FLOW if schedule.scale == "flow" else MEASURED) if calls <= one.most)
    return choice if _suits(choice, schedule, calls) else LATE


def _suits(choice: Choice, schedule: Schedule, calls: int) -> bool:
    """Whether the schedule has times enough for the grid, and, of a grid that begins late, is noise there."""
    if choice.spacing != "leading":
        try:
            return choice.spacing not in OTHER_SPACINGS or bool(named_grid(choice.spacing, schedule, calls))
        except ValueError:
            return False
    few = calls < 1 or (schedule.discrete and calls > schedule.last - schedule.first)
    return not few and float(schedule.alpha(make_grid(schedule, calls, "leading")[0])) <= START


def default_solver(schedule: Schedule | PSLD | None) -> str:
    """Where none is named."""
    return AUTO if isinstance(schedule, PSLD) else "f-pndm"


def settle(
    schedule: Schedule | PSLD, grid: GridSpec, options: Mapping[str, Any]
) -> tuple[str, GridSpec, dict[str, Any]]:
    """A solver's name, grid and options for auto's.

    The number of calls decides: nfe, or as many as there are steps, before t_start or strength takes some away. What
    is given of the grid stands, and the solver is the same; where the chosen grid has an end of its own and another is
    given (t_min, final), the grid is beta.

    Raises:
        ValueError: a solver's option.
    """
    for name in options:
        raise ValueError(f"{name!r} cannot go with solver 'auto', which chooses the options: name a solver")
    points: Any = grid.times if grid.sigmas is None else grid.sigmas
    count = len(points) - 1 if hasattr(points, "__len__") and len(points) > 1 else DEFAULT_STEPS
    calls: Any = next((given for given in (grid.nfe, grid.steps) if given is not None), count)
    choice = recommend(schedule, int(calls) if is_integer(calls) else DEFAULT_STEPS)  # another type is refused later
    if choice.spacing is not None and grid.spacing is None and grid.explicit is None:
        fixed = OTHER_SPACINGS if grid.t_min is None else (*OTHER_SPACINGS, "leading", "trailing")
        ends = grid.t_min is not None or grid.final == "min"
        grid = replace(grid, spacing="beta" if ends and choice.spacing in fixed else choice.spacing)
        last = None if grid.final == "min" else choice.last  # min goes to the schedule's own end
        if grid.t_min is None and last is not None and isinstance(schedule, Schedule):
            grid = replace(grid, t_min=round(max(float(schedule.time_at(-math.log(last))), schedule.floor), 6))
    return choice.solver, grid, choice.options
