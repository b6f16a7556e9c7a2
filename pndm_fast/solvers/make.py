"""From names and numbers to a `Plan`, with every mistake named before anything runs."""

from __future__ import annotations

import difflib
import inspect
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args, get_type_hints

from pndm_fast.plan.grids import FINALS, PHASE_SPACINGS, SPACINGS, make_grid, snap, times_of
from pndm_fast.plan.matrix2 import Coefficient, coefficient
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.row import PREDICTIONS
from pndm_fast.plan.schedule import Schedule
from pndm_fast.plan.stability import warn_of_divergence
from pndm_fast.solvers import SOLVER_INFO, SOLVERS
from pndm_fast.solvers.auto import AUTO, DEFAULT_STEPS, default_solver, settle
from pndm_fast.solvers.compat import COMPAT

# diffusers' words for what a network predicts
_PEERS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}


def choose(what: str, name: Any, known: Iterable[str]) -> str:
    """`name` if it is known.

    Raises:
        ValueError: it is not; the message offers the nearest one.
    """
    names = sorted(known)
    if name in names:
        return str(name)
    near = [_PEERS.get(str(name)), *difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)]
    hint = next((f"; did you mean {word!r}?" for word in near if word in names), "")
    raise ValueError(f"{what} must be one of {', '.join(names)}, got {name!r}{hint}")


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
    start: float | None = None,
    strength: float | None = None,
    clip: float | None = None,
    integer_times: bool = False,
    prediction: str = "eps",
    compat: str | None = None,
    **options: Any,
) -> Plan:
    """The plan of a solver; with a warning where it would diverge on Gaussian data, see `stability.gaussian_spread`.

    Args:
        solver: a name of `SOLVERS`, default f-pndm; or auto, default on a PSLD: solver, options and grid by the number
            of calls, see `auto`. A grid that is given stands. The plan's `solver` is the one chosen.
        schedule: default `Schedule.linear()`; for the solvers in phase space a `PSLD`, default `PSLD()`.
        steps: time points of the grid, default 50; or `nfe`, network calls; or the n + 1 points themselves, decreasing,
            as `times` or as `sigmas` (sigma / alpha; on flow schedules sigma).
        spacing: a name of `grids.SPACINGS`; default the schedule's, or else the solver's own.
        final, t_min: of the grid, see `grids.make_grid`.
        start: a time: leave out the grid's points before it, for a call with `init` or `state`; or `strength`, the part
            of the steps that is kept, the last ones. The plan is a fresh one for those points, its warm-up included.
        clip: clamp every estimate of x_0 to [-clip, clip], see `Plan.with_clip`.
        integer_times: round times to integers, coefficients following.
        prediction: what the network predicts: eps, v, x0, flow, or edm (EDM's raw network).
        compat: "diffusers" for plans equal to its scheduler, whose configuration's names are then options.
        options: keyword arguments of the solver's function, such as eta.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    name = choose("solver", default_solver(schedule) if solver is None else solver, [*SOLVERS, AUTO])
    if schedule is None:
        schedule = PSLD() if name in SOLVER_INFO and SOLVER_INFO[name].space == "phase" else Schedule.linear()
    if not isinstance(schedule, (Schedule, PSLD)):
        raise TypeError(f"schedule must be a Schedule or a PSLD, got {type(schedule).__name__}")
    _check_space(name, schedule)
    choose("prediction", prediction, PREDICTIONS)
    if sum(value is not None for value in (steps, nfe, times, sigmas)) > 1:
        raise ValueError("steps, nfe, times and sigmas exclude one another: give one of them")
    form: dict[str, Any] = {"spacing": spacing, "final": final, "t_min": t_min}
    points = {"steps": steps, "nfe": nfe, "times": times, "sigmas": sigmas}
    later = {"start": start, "strength": strength}
    if compat is not None and isinstance(schedule, PSLD):
        raise ValueError(f"compat={compat!r} cannot go with {schedule.name}: diffusers has no phase space")
    if name == AUTO:
        rest = {"integer_times": integer_times, "prediction": prediction, "compat": compat, "clip": clip}
        name, words = settle(schedule, {**points, **form, **later, **rest, **options})
        return make_plan(name, schedule, **words)
    if compat is not None:
        assert isinstance(schedule, Schedule)
        alone: dict[str, Any] = {"times": times, "sigmas": sigmas, "integer_times": integer_times or None}
        alone |= {"final": final, "t_min": t_min, "clip": clip, **later}
        return _compatible(compat, name, schedule, steps, nfe, spacing, alone, prediction, options)
    function = SOLVERS[name]
    times = _times(name, schedule, steps, nfe, times, sigmas, form)
    times = _later(name, times, start, strength)
    if integer_times:
        if not schedule.discrete:
            raise ValueError(f"integer_times must have a discrete schedule, got {schedule.name}")
        times = snap(times)
        if "integer_times" in inspect.signature(function).parameters:
            options = {**options, "integer_times": True}
    plan = _call(function, name, options, schedule, times, prediction=prediction)
    warn_of_divergence(plan)
    if clip is None:
        return plan
    _check_type("clip", clip, float)
    return plan.with_clip(clip)


def _check_space(name: str, schedule: Schedule | PSLD) -> None:
    """Refuse a solver of phase space on a schedule of numbers, and the reverse."""
    space = "phase" if isinstance(schedule, PSLD) else "scalar"
    if name != AUTO and SOLVER_INFO[name].space not in (space, "both"):
        names = ", ".join(sorted(other for other, info in SOLVER_INFO.items() if info.space in (space, "both")))
        raise ValueError(f"solver must be one of {names} on {schedule.name}, got {name!r}")


def _times(
    name: str,
    schedule: Schedule | PSLD,
    steps: int | None,
    nfe: int | None,
    times: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    form: dict[str, Any],
) -> Sequence[float]:
    if times is None and sigmas is None:
        return _grid(name, schedule, steps, nfe, **form)
    for argument, value in form.items():
        if value is not None:
            raise ValueError(f"{argument} and {'sigmas' if times is None else 'times'} exclude each other")
    if sigmas is not None:
        if isinstance(schedule, PSLD):
            raise ValueError("sigmas cannot go with a phase space, whose noise is no number: give times")
        return times_of(schedule, sigmas)
    if times is None or isinstance(times, str) or not hasattr(times, "__iter__"):
        raise TypeError(f"times must be a decreasing sequence of numbers, got {times!r}")
    return times


def _grid(
    name: str,
    schedule: Schedule | PSLD,
    steps: int | None,
    nfe: int | None,
    spacing: str | None,
    final: str | None,
    t_min: Any,
) -> tuple[float, ...]:
    info = SOLVER_INFO[name]
    known = PHASE_SPACINGS if isinstance(schedule, PSLD) else SPACINGS
    spacing = choose("spacing", spacing or schedule.spacing or info.spacing, known)
    final = "zero" if final is None else choose("final", final, FINALS)
    if t_min is not None:
        _check_type("t_min", t_min, float)
    count = steps_of(name, steps, nfe, final)
    if is_integer(count) and count < info.min_steps:
        raise ValueError(f"steps must be at least {info.min_steps} for {name}, got {count}")
    return make_grid(schedule, count, spacing, final, t_min)


def _later(name: str, times: Sequence[float], start: Any, strength: Any) -> Sequence[float]:
    """The grid from a time, or a part of its steps, on.

    Raises:
        TypeError, ValueError: not a number in range, or fewer steps left than the solver takes.
    """
    if start is None and strength is None:
        return times
    if start is not None and strength is not None:
        raise ValueError("start and strength exclude each other: give one of them")
    told = "start" if strength is None else "strength"
    value = start if strength is None else strength
    _check_type(told, value, float)
    times = tuple(times)
    if strength is not None:
        if not 0 < strength <= 1:
            raise ValueError(f"strength must be in (0, 1], got {strength}")
        left = times[len(times) - 1 - int((len(times) - 1) * strength + 1e-9) :]
    else:
        left = tuple(t for t in times if t <= start)
    count, min_steps = max(len(left) - 1, 0), SOLVER_INFO[name].min_steps
    if count < min_steps:
        raise ValueError(f"{told} must leave at least {min_steps} steps for {name}, got {count}")
    return left


def steps_of(name: str, steps: int | None, nfe: int | None, final: str = "zero") -> int:
    """Steps, from either number.

    Raises:
        ValueError: nfe is smaller than the solver's min_steps, or not a number of calls that it makes.
    """
    if nfe is None:
        return DEFAULT_STEPS if steps is None else steps
    if not is_integer(nfe):
        raise TypeError(f"nfe must be an integer, got {nfe!r}")
    info = SOLVER_INFO[name]
    min_steps = info.calls(info.min_steps, final)
    if nfe < min_steps:
        raise ValueError(f"nfe must be at least {min_steps} for {name}, got {nfe}")
    count = info.steps(int(nfe), final)
    if info.calls(count, final) != nfe:
        near = f"{info.calls(count, final)} or {info.calls(count + 1, final)}"
        raise ValueError(f"nfe must be {info.formula(final)} for {name}, such as {near}, got {nfe}")
    return count


def _compatible(
    compat: str,
    name: str,
    schedule: Schedule,
    steps: int | None,
    nfe: int | None,
    spacing: str | None,
    alone: dict[str, Any],
    prediction: str,
    options: dict[str, Any],
) -> Plan:
    solvers = COMPAT[choose("compat", compat, COMPAT)]
    if name not in solvers:
        raise ValueError(f"solver must be one of {', '.join(sorted(solvers))} for compat={compat!r}, got {name!r}")
    for argument, value in alone.items():
        if value is not None:
            raise ValueError(f"{argument} cannot go with compat={compat!r}: its grid is its own")
    if spacing is not None:
        options = {**options, "spacing": spacing}
    return _call(solvers[name], name, options, schedule, steps_of(name, steps, nfe), prediction=prediction)


def _call(function: Callable[..., Plan], name: str, options: dict[str, Any], *args: Any, prediction: str) -> Plan:
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
        _check_type(option, value, kind)
        return value
    try:
        return coefficient(value)
    except ValueError as error:
        raise TypeError(f"{option} must be a number or two rows of two numbers, got {value!r}") from error


def _check_type(option: str, value: Any, kind: Any) -> None:
    kinds = get_args(kind) or (kind,)
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if type(value) in kinds or (number and float in kinds) or (is_integer(value) and int in kinds):
        return
    names = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
    raise TypeError(f"{option} must be {names}, got {value!r}")


def _unknown_option(name: str, option: str, known: list[str]) -> None:
    if option == "generator":
        raise ValueError("generator is no argument here: seeds= gives each sample its own reproducible noise")
    near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    options = ", ".join(known) or "none"
    raise ValueError(f"{option!r} is neither an argument nor an option of {name} (its options: {options}){hint}")
