"""From names and numbers to a `Plan`, with every mistake named before anything runs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, get_origin, get_type_hints

import pndm_fast.solvers.foreign  # noqa: F401  # its reasons are told of classes that have no plan
from pndm_fast.plan.checks import check_type, choose, shown
from pndm_fast.plan.hints import hint
from pndm_fast.plan.matrix2 import Coefficient, coefficient
from pndm_fast.plan.numbers import is_number
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.schedule import Schedule
from pndm_fast.plan.stability import warn_of_divergence
from pndm_fast.plan.warn import warn
from pndm_fast.solvers import SOLVER_INFO, SOLVERS
from pndm_fast.solvers.auto import AUTO, default_solver, settle
from pndm_fast.solvers.compat import COMPAT
from pndm_fast.solvers.grid import GridSpec, steps_of
from pndm_fast.solvers.phase.conjugate import FRAMES
from pndm_fast.solvers.phase.program import DENOISE

OF_LOOPS = ("prediction", "begin", "timesteps", "sigmas")  # which `plan_like` gives, and no option is
CHOICES = {"frame": FRAMES, "denoise": DENOISE}  # of options whose default stands for one of these words


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
        times: the grid itself: n + 1 decreasing times for n steps, the end among them.
        sigmas: the same as noise levels sigma / alpha; on flow schedules sigma, after any shift. What lies above the
            schedule's noisiest level, or below its last, by float32's rounding (1e-6 of it) or because it was printed
            to four digits or more, is taken for that level. So is a first time for the schedule's last, and one below
            that by float32's rounding.
        spacing: how the grid is spread: leading, trailing, linspace, quadratic, logsnr, karras, exponential, beta or
            dpm-fast, in phase space uniform or quadratic; `plan.grids.make_grid` has the formulas. Or one of other
            programs' grids and published tables, such as sgm-uniform or ays-sdxl: `plan.named_grids`, whose
            `plan.named_grid` has their options. Default: the schedule's, or else the solver's own.
        final: where the grid ends: "zero", the default, at sigma = 0; "min" at t_min. With times or sigmas, "min" says
            that an end above sigma = 0 is meant.
        t_min: the earliest time at which the network is called, for linspace to beta, and on flow for trailing, whose
            grid is stretched to it; default `schedule.floor`.
        t_start: a time; the grid's noisier points are left out, for a call that starts from an image or a state. The
            plan is a fresh one for the points that are left, its warm-up included.
        strength: as t_start, given as the part of the steps that is kept, the last ones: more than 0, at most 1.
        clip: clamp every estimate of x_0 to [-clip, clip].
        integer_times: call the network at whole times alone, for one that has learnt those alone: the grid's are
            rounded, and those between them are the nearest inside a step; coefficients follow.
        prediction: what the network predicts: "eps", the default, "v", "x0", "flow", or "edm" (EDM's raw network).
        compat: "diffusers" for a plan equal to its scheduler, whose configuration's names are then options.
        options: keyword arguments of the solver's function, such as eta: `help(SOLVERS["ddim"])`.

    Multistep solvers that have the option lower_order_final end on lower orders where it is true, or, by default, where
    there are fewer than 15 steps. (Of other libraries, DPM-Solver's code does so below 10, or 15 by its text, UniPC's
    always, k-diffusion never; compat takes diffusers'.) A step to sigma = 0 is of order 1 whatever it says.

    Warns:
        UserWarning: the plan diverges on Gaussian data, see `plan.stability.gaussian_spread`; times or sigmas end above
            sigma = 0; the grid leaves out the schedule's alpha = 0; an option has no effect on this plan.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    grid = GridSpec(steps, nfe, times, sigmas, spacing, final, t_min, t_start, strength, integer_times)
    name = choose("solver", default_solver(schedule) if solver is None else solver, [*sorted(SOLVERS), AUTO])
    if schedule is None:
        schedule = PSLD() if name in SOLVER_INFO and SOLVER_INFO[name].space == "phase" else Schedule.linear()
    if not isinstance(schedule, (Schedule, PSLD)):
        raise TypeError(f"schedule must be a Schedule or a PSLD, got {shown(schedule)}")
    prediction = "eps" if prediction is None else prediction
    if compat is not None:
        return _compatible(compat, name, schedule, grid, clip, prediction, options)
    if name == AUTO:
        name, grid, options = settle(schedule, grid, options)
    _check_space(name, schedule)
    if nfe is not None and SOLVER_INFO[name].calls_by in options:
        raise ValueError(
            f"nfe cannot go with {SOLVER_INFO[name].calls_by}, by which {name} has other calls: give steps"
        )
    function, own = SOLVERS[name], _options(SOLVERS[name], name, options)
    times = grid.points(name, schedule)
    plan = function(schedule, times, **own, prediction=prediction)
    grid.warn(name, schedule, times, plan.times[0])
    _warn_of_quiet(plan, own)
    if solver != AUTO:  # which chooses the options itself
        _warn_of_idle(plan, own, function, schedule, times, prediction=prediction)
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
            reason = "clipping is another, plan.with_clip is ours" if argument == "clip" else "grid is its own"
            raise ValueError(f"{argument} cannot go with compat={compat!r}: its {reason}")
    if grid.spacing is not None:
        options = {**options, "spacing": grid.spacing}
    own = _options(solvers[name], name, options)
    return solvers[name](schedule, steps_of(name, grid.steps, grid.nfe), **own, prediction=prediction)


def _options(function: Callable[..., Plan], name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The function's options, of the types that its signature names."""
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in OF_LOOPS]
    checked = {}
    for option in options:
        if option not in known:
            _unknown_option(name, option, known)
        checked[option] = _checked(option, options[option], get_type_hints(function)[option])
    return checked


def _checked(option: str, value: Any, kind: Any) -> Any:
    """The option's value, of its type; a matrix is any two rows of two, and a solver checks its own tuples."""
    if get_origin(kind) is tuple:
        return value
    if kind != Coefficient:
        check_type(option, value, kind)
        return value
    try:
        return coefficient(value)
    except ValueError as error:
        raise TypeError(f"{option} must be a number or two rows of two numbers, got {value!r}") from error


def _unknown_option(name: str, option: str, known: list[str]) -> None:
    ours = [*known, *(p for p in inspect.signature(make_plan).parameters if p != "options")]
    near = difflib.get_close_matches(option, ours, n=1, cutoff=0.6)
    owners = [other for other, function in SOLVERS.items() if option in inspect.signature(function).parameters]
    told = f"; it is one of {', '.join(owners)}" if owners else f"; did you mean {near[0]!r}?" if near else ""
    for peer, named in COMPAT.items():
        if any(option in inspect.signature(function).parameters for function in named.values()) and not owners:
            told = f"; compat={peer!r} has it as an option"
    options = ", ".join(known) or "none"
    raise ValueError(
        f"{option!r} is neither an argument nor an option of {name} (its options: {options}){hint(option) or told}"
    )


def _warn_of_quiet(plan: Plan, options: dict[str, Any]) -> None:
    """Of churn that adds nothing: its window is missed, the schedule ends, or times are whole."""
    churn = inspect.signature(SOLVERS[plan.solver]).parameters.get("churn")
    if churn is not None and options.get("churn", churn.default) and not any(plan.noisy) and not plan.prologue.c0:
        warn(f"{plan.solver} adds no noise on this grid: no step that takes churn has room for it")


def _warn_of_idle(plan: Plan, options: dict[str, Any], function: Callable[..., Plan], *args: Any, **more: Any) -> None:
    """Of each option that may as well have another value, by those that are tried."""
    for option, value in options.items():
        default = inspect.signature(function).parameters[option].default
        same = None
        for other in () if value == default else _others(option, value, default):
            with suppress(ValueError, ArithmeticError):
                if function(*args, **{**options, option: other}, **more).rows != plan.rows:
                    break
                same = other
        else:
            if same is not None:
                text = f"{option}={value!r} has no effect on this plan"
                warn(f"{text} of {plan.solver}: {option}={same!r} makes the same one")


def _others(option: str, value: Any, default: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        words = CHOICES.get(option, ()) if default is None else (default,)
        return [word for word in words if word != value]
    near = [value - 1, value + 1, type(value)(0)] if is_number(value) else []
    return [other for other in (default, *near) if other is not None and other != value]
