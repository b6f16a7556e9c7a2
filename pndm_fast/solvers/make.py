"""From names and numbers to a `Plan`, with every mistake named before anything runs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from pndm_fast.plan.checks import check_type, choose
from pndm_fast.plan.matrix2 import Coefficient, coefficient
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.schedule import Schedule
from pndm_fast.plan.stability import warn_of_divergence
from pndm_fast.solvers import SOLVER_INFO, SOLVERS
from pndm_fast.solvers.auto import AUTO, default_solver, settle
from pndm_fast.solvers.compat import COMPAT
from pndm_fast.solvers.grid import GridSpec, steps_of


def make_plan(
    solver: str | None = None,
    schedule: Schedule | PSLD | None = None,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    times: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    spacing: str | None = None,
    final: str | None = None,
    t_min: float | None = None,
    t_start: float | None = None,
    strength: float | None = None,
    clip: float | None = None,
    integer_times: bool = False,
    prediction: str | None = None,
    compat: str | None = None,
    **options: Any,
) -> Plan:
    """The plan of a solver on a grid: a table of all that sampling does between two network calls.

    Args:
        solver: a name of `SOLVERS`, default "f-pndm"; or "auto", the default on a PSLD: solver, options and grid by
            the number of network calls, as measured. A grid that is given stands. The plan's `solver` is the chosen.
        schedule: noise against time, default `Schedule.linear()`; for the solvers in phase space a `PSLD`, default
            `PSLD()`.
        steps: how many steps the grid has, default 50. Of steps, nfe, times and sigmas one may be given.
        nfe: how many network calls the plan makes, in place of steps.
        times: the grid itself: n + 1 decreasing times for n steps.
        sigmas: the same as noise levels sigma / alpha; on flow schedules sigma.
        spacing: how the grid is spread: leading, trailing, linspace, quadratic, logsnr, karras, exponential or beta,
            in phase space uniform or quadratic; `plan.grids.make_grid` has the formulas. Default: the schedule's, or
            else the solver's own.
        final: where the grid ends: "zero", the default, at sigma = 0; "min" at t_min.
        t_min: the earliest time at which the network is called, for linspace to beta; default `schedule.floor`.
        t_start: a time; the grid's noisier points are left out, for a call that starts from an image or a state. The
            plan is a fresh one for the points that are left, its warm-up included.
        strength: as t_start, given as the part of the steps that is kept, the last ones: more than 0, at most 1.
        clip: clamp every estimate of x_0 to [-clip, clip].
        integer_times: round the times to integers, coefficients following, for a network that has learnt those alone.
        prediction: what the network predicts: "eps", the default, "v", "x0", "flow", or "edm" (EDM's raw network).
        compat: "diffusers" for a plan equal to its scheduler, whose configuration's names are then options.
        options: keyword arguments of the solver's function, such as eta: `help(SOLVERS["ddim"])`.

    Warns:
        UserWarning: the plan diverges on Gaussian data, see `plan.stability.gaussian_spread`.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    grid = GridSpec(steps, nfe, times, sigmas, spacing, final, t_min, t_start, strength, integer_times)
    name = choose("solver", default_solver(schedule) if solver is None else solver, [*sorted(SOLVERS), AUTO])
    if schedule is None:
        schedule = PSLD() if name in SOLVER_INFO and SOLVER_INFO[name].space == "phase" else Schedule.linear()
    if not isinstance(schedule, (Schedule, PSLD)):
        raise TypeError(f"schedule must be a Schedule or a PSLD, got {type(schedule).__name__}")
    prediction = "eps" if prediction is None else prediction
    if compat is not None:
        return _compatible(compat, name, schedule, grid, clip, prediction, options)
    if name == AUTO:
        name, grid, options = settle(schedule, grid, options)
    _check_space(name, schedule)
    function = SOLVERS[name]
    if integer_times and "integer_times" in inspect.signature(function).parameters:
        options = {**options, "integer_times": True}
    plan = _call(function, name, options, schedule, grid.points(name, schedule), prediction=prediction)
    warn_of_divergence(plan)
    return plan if clip is None else plan.with_clip(clip)


def _check_space(name: str, schedule: Schedule | PSLD) -> None:
    """Refuse a solver of phase space on a schedule of numbers, and the reverse."""
    space = "phase" if isinstance(schedule, PSLD) else "scalar"
    known = sorted(other for other, info in SOLVER_INFO.items() if info.space in (space, "both"))
    choose("solver", name, known, f" on {schedule.name}")


def _compatible(
    compat: str,
    name: str,
    schedule: Schedule | PSLD,
    grid: GridSpec,
    clip: float | None,
    prediction: str,
    options: dict[str, Any],
) -> Plan:
    """The plan of another library's scheduler: of our grids' arguments it takes a length and a spacing alone."""
    solvers = COMPAT[choose("compat", compat, COMPAT)]
    if isinstance(schedule, PSLD):
        raise ValueError(f"compat={compat!r} cannot go with {schedule.name}: diffusers has no phase space")
    choose("solver", name, sorted(solvers), f" for compat={compat!r}")
    for argument, value in {**vars(grid), "clip": clip}.items():
        if value is not None and value is not False and argument not in ("steps", "nfe", "spacing"):
            raise ValueError(f"{argument} cannot go with compat={compat!r}: its grid is its own")
    if grid.spacing is not None:
        options = {**options, "spacing": grid.spacing}
    return _call(solvers[name], name, options, schedule, steps_of(name, grid.steps, grid.nfe), prediction=prediction)


def _call(function: Callable[..., Plan], name: str, options: dict[str, Any], *args: Any, prediction: str) -> Plan:
    """The function's plan, its options of the types that its signature names."""
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "prediction"]
    for option in options:
        if option not in known:
            _unknown_option(name, option, known)
        options = {**options, option: _checked(option, options[option], get_type_hints(function)[option])}
    return function(*args, **options, prediction=prediction)


def _checked(option: str, value: Any, kind: Any) -> Any:
    """The option's value, of its type; a matrix is any two rows of two."""
    if kind != Coefficient:
        check_type(option, value, kind)
        return value
    try:
        return coefficient(value)
    except ValueError as error:
        raise TypeError(f"{option} must be a number or two rows of two numbers, got {value!r}") from error


def _unknown_option(name: str, option: str, known: list[str]) -> None:
    if option == "generator":
        raise ValueError("generator is no argument here: seeds= gives each sample its own reproducible noise")
    near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    options = ", ".join(known) or "none"
    raise ValueError(f"{option!r} is neither an argument nor an option of {name} (its options: {options}){hint}")
