"""From the configuration of a diffusers scheduler to a plan: `plan_like`, and its schedule alone: `schedule_of`.

A configuration is a mapping with `_class_name`; nothing here imports diffusers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pndm_fast.plan.checks import check_type, choose
from pndm_fast.plan.grids import numbers_of
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import SAME_X
from pndm_fast.plan.schedule import Schedule
from pndm_fast.plan.warn import warn
from pndm_fast.solvers import SOLVERS
from pndm_fast.solvers.compat import SCHEDULERS
from pndm_fast.solvers.compat.grids import SIGMA_SPACINGS, given_sigmas, shifted, stretched
from pndm_fast.solvers.foreign import (
    BETAS,
    BETAS_OF,
    CLIP_DEFAULT,
    CLIPS_ALL,
    FIXED,
    FLOWS,
    REFUSED,
    SAME_AS,
    WORDS,
    ZERO_SNR,
    other_class,
)
from pndm_fast.solvers.make import make_plan

PREDICTIONS = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x0",
    "original_sample": "x0",
    "flow_prediction": "flow",
}


def config_of(scheduler: Any) -> dict[str, Any]:
    """The configuration of a diffusers scheduler, or of one that was saved, as a dict with `_class_name`.

    Raises:
        TypeError, ValueError: it is neither, or of a class that is none of diffusers'.
    """
    config = getattr(scheduler, "config", scheduler)
    if not isinstance(config, Mapping):
        raise TypeError(f"scheduler must be a diffusers scheduler or its config, got {type(scheduler).__name__}")
    found = dict(config)
    if config is not scheduler:
        found["_class_name"] = type(scheduler).__name__
    name = found.get("_class_name")
    plan = found.pop("_plan", None)
    if isinstance(plan, Mapping) and name not in (*SCHEDULERS, *REFUSED, *SAME_AS):  # our own: what it was made from
        found["_plan"], name = plan, plan["like"]
    if not isinstance(name, str):
        raise ValueError(f"scheduler must have a _class_name, such as 'DDIMScheduler', got {name!r}")
    found["_class_name"] = SAME_AS.get(name, name)
    return found


def schedule_of(scheduler: Any, *, mu: float | None = None) -> tuple[Schedule, str]:
    """(schedule, prediction) of a diffusers scheduler or of its config: its betas, or its flow with the shift.

    Args:
        mu: of use_dynamic_shifting, which needs it: the shift is exp(mu), or mu where time_shift_type is linear.
            Without that option it has no effect, as in diffusers.

    Raises:
        TypeError, ValueError: naming what is none of diffusers', or has no equal here.
    """
    config = config_of(scheduler)
    name = config["_class_name"]
    if name not in SCHEDULERS and name not in BETAS_OF:
        raise ValueError(other_class(name))
    flow = name.startswith("FlowMatch")
    word = config.get("prediction_type", "flow_prediction" if flow else "epsilon")
    prediction = "flow" if flow else PREDICTIONS[choose("prediction_type", word, PREDICTIONS)]
    if _on_flow(config):
        return Schedule.flow(_shift(config, "shift" if flow else "flow_shift", mu), _length(config)), prediction
    schedule = _from_betas(config, BETAS_OF.get(name, BETAS))
    rescaled = name in ZERO_SNR and config.get("rescale_betas_zero_snr")
    return schedule.zero_terminal_snr() if rescaled else schedule, prediction


def _on_flow(config: Mapping[str, Any]) -> bool:
    name = config["_class_name"]
    return name.startswith("FlowMatch") or bool(name in FLOWS and config.get("use_flow_sigmas"))


def _length(config: Mapping[str, Any]) -> int:
    count = config.get("num_train_timesteps", 1000)
    if not is_integer(count):
        raise TypeError(f"num_train_timesteps must be an integer, got {count!r}")
    return int(count)


def _shift(config: Mapping[str, Any], name: str, mu: float | None) -> float:
    if not config.get("use_dynamic_shifting"):
        shift = config.get(name, 1.0)
        check_type(name, shift, float)
        return float(shift)
    if mu is None:
        raise ValueError("mu must be given where use_dynamic_shifting is True, got None")
    check_type("mu", mu, float)
    kind = choose("time_shift_type", config.get("time_shift_type", "exponential"), ("exponential", "linear"))
    return math.exp(mu) if kind == "exponential" else float(mu)


def _from_betas(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Schedule:
    length = _length(config)
    betas = config.get("trained_betas")
    if betas is not None:
        if len(betas) != length:
            raise ValueError(f"trained_betas must be as many as num_train_timesteps, {length}, got {len(betas)}")
        return Schedule.from_betas(betas, name="trained_betas")
    kind, start, end = (config.get(key, defaults[key]) for key in ("beta_schedule", "beta_start", "beta_end"))
    choose("beta_schedule", kind, ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"))
    if kind == "squaredcos_cap_v2":
        return Schedule.cosine(length)
    made = {"linear": Schedule.linear, "scaled_linear": Schedule.scaled_linear, "sigmoid": Schedule.sigmoid}[kind]
    return made(length, start, end)


def plan_like(
    scheduler: Any,
    *,
    steps: int | None = None,
    mu: float | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    begin: int = 0,
    eta: float | None = None,
) -> Plan:
    """The plan of a diffusers scheduler: what its pipeline's loop does, its quirks included (`solvers.compat`).

    Args:
        scheduler: the scheduler, or its config: a mapping with `_class_name`. Keys of other classes are left out, as
            diffusers does. Of a `PlanScheduler` that has a solver the plan is that solver's.
        steps: num_inference_steps.
        mu: of use_dynamic_shifting.
        timesteps: the network's times in place of a grid, the end left out: of the classes that take them, and of our
            solvers.
        sigmas: noise levels in place of a grid. On flow, before the shift and the end left out, as pipelines give them;
            elsewhere with the end, of EulerDiscreteScheduler and of our solvers.
        begin: how many of the first calls are left out, as set_begin_index does for an image.
        eta: of DDIMScheduler and TCDScheduler, whose pipelines give it with each call, most of them 0; None is the
            default of their `step`, 0 and 0.3.

    Raises:
        TypeError, ValueError: naming the class, or the option, that no plan does, and why.
    """
    config = config_of(scheduler)
    if steps is None:
        given = timesteps if sigmas is None else sigmas
        if given is None:
            raise ValueError("steps must be given, got None")
        steps = len(given) - (timesteps is None and not _on_flow(config))  # the end is no step
    asked = _Asked(steps, mu, timesteps, sigmas, begin, eta)
    settings = config.get("_plan")
    if isinstance(settings, Mapping) and settings["solver"] is not None:
        return _by_solver(config, settings, asked)
    return _by_class(config, asked)


class _Asked(NamedTuple):
    """`plan_like`'s arguments."""

    steps: int
    mu: float | None
    timesteps: Sequence[float] | None
    sigmas: Sequence[float] | None
    begin: int
    eta: float | None


def _by_class(config: Mapping[str, Any], asked: _Asked) -> Plan:
    """What a class of diffusers does."""
    name = config["_class_name"]
    if name not in SCHEDULERS:
        raise ValueError(other_class(name))
    schedule, prediction = schedule_of(config, mu=asked.mu)
    function = SCHEDULERS[name]
    known = inspect.signature(function).parameters
    options = _options(config, function)
    eta = asked.eta if asked.eta or "eta" in known else None
    for argument, value in (("timesteps", asked.timesteps), ("sigmas", asked.sigmas), ("eta", eta)):
        if value is not None:
            if argument not in known:
                raise ValueError(f"{argument} must not be given for {name}, which takes none, got {value!r}")
            options[argument] = value
    if asked.begin and "begin" in known:
        options["begin"] = check_begin(asked.begin, asked.steps + 1)
    plan = function(schedule, asked.steps, prediction=prediction, **options)
    clip = _clip(config)
    plan = plan if clip is None else plan.with_clip(clip)
    return plan if not asked.begin or "begin" in known else without_first(plan, asked.begin)


def _by_solver(config: Mapping[str, Any], settings: Mapping[str, Any], asked: _Asked) -> Plan:
    """A solver of ours on the schedule of a configuration."""
    name = settings["solver"]
    schedule, prediction = schedule_of(config, mu=asked.mu)
    options = {**settings["options"], "prediction": prediction}
    if asked.eta:
        if name not in SOLVERS or "eta" not in inspect.signature(SOLVERS[name]).parameters:
            raise ValueError(f"eta must be 0 for {name}, which has none, got {asked.eta!r}")
        options.setdefault("eta", asked.eta)
    options = _grid(config, schedule, settings["spacing"], asked) | options
    plan = make_plan(name, schedule, **options)
    begin = check_begin(asked.begin, plan.nfe)
    if not begin:
        return plan
    start = plan.times[begin]
    with suppress(ValueError):  # too few steps are left, or calls lie in between
        left = make_plan(name, schedule, **options, t_start=start)
        if left.times == plan.times[begin:]:
            return left
    raise ValueError(
        f"begin must be a call that {plan.solver} can start at, and no plan of it from t = {start:g} on makes the last "
        f"{plan.nfe - begin} calls of {plan.nfe}, got {begin}"
    )


def _grid(config: Mapping[str, Any], schedule: Schedule, spacing: str | None, asked: _Asked) -> dict[str, Any]:
    """`make_plan`'s arguments of the grid.

    A flow pipeline gives n uniform sigmas where it is asked for n steps: they are no wish against a spacing. Sigmas of
    flow are shifted, and stretched to shift_terminal, where a spacing's last call is too.
    """
    steps, sigmas = asked.steps, asked.sigmas
    if asked.timesteps is not None:
        if sigmas is not None:
            raise ValueError("timesteps and sigmas exclude each other: give one of them")
        return {"times": [*numbers_of("timesteps", asked.timesteps), schedule.first], "spacing": spacing}
    flow, uniform = schedule.scale == "flow", np.linspace(1.0, 1 / steps, steps)
    if spacing is not None and flow and sigmas is not None and np.allclose(sigmas, uniform, rtol=0, atol=1e-6):
        sigmas = None
    terminal = config.get("shift_terminal") or None
    if flow and spacing is None and (sigmas is not None or terminal):
        levels = uniform if sigmas is None else given_sigmas(sigmas, steps)
        return {"sigmas": np.append(stretched(shifted(levels, schedule.shift), terminal), 0.0)}
    if sigmas is not None:
        return {"sigmas": sigmas, "spacing": spacing}
    last = {"t_min": terminal * schedule.last} if flow and terminal and spacing != "leading" and steps > 1 else {}
    return {"steps": steps, "spacing": spacing, **last}


def check_like(scheduler: Any) -> None:
    """Refuse, before any length is known, what `plan_like` does whatever the length.

    Warns:
        UserWarning: what is done to x_0 there is not done with a solver of ours.

    Raises:
        TypeError, ValueError: as of `plan_like`.
    """
    config = config_of(scheduler)
    schedule_of(config, mu=1.0)
    settings = config.get("_plan")
    if isinstance(settings, Mapping) and settings["solver"] is not None:
        left = "thresholding" if _given(config, "thresholding") else "clip_sample" if _clips(config) else None
        if left is not None and "clip" not in settings["options"]:
            warn(f"{left} of the config is left out with solver={settings['solver']!r}: clip=1.0 clamps every x_0")
        return
    if config["_class_name"] not in SCHEDULERS:
        raise ValueError(other_class(config["_class_name"]))
    _options(config, SCHEDULERS[config["_class_name"]])
    _clip(config)


def _options(config: Mapping[str, Any], function: Any) -> dict[str, Any]:
    """The keyword arguments of a class's function, from its configuration.

    Raises:
        ValueError: an option of the class that no plan does.
    """
    name = config["_class_name"]
    for key, (value, _, why) in FIXED.items():
        given = _given(config, key)
        if given != value:
            raise ValueError(f"{key} must be {value!r} for a plan like {name}, got {given!r}: {why}")
    words = WORDS.get(name, {})
    options: dict[str, Any] = {}
    for key in inspect.signature(function).parameters:
        theirs = "timestep_spacing" if key == "spacing" else key
        if theirs in config and key not in ("eta", "begin", "sigmas", "timesteps"):
            value = config[theirs] or None if key == "shift_terminal" else config[theirs]
            options[key] = words.get(key, {}).get(value, value) if isinstance(value, str) else value
    if "sigma_spacing" in inspect.signature(function).parameters:
        options |= _sigma_spacing(config)
    if name in FLOWS and config.get("use_flow_sigmas"):  # whose grid is its own, whatever these say
        for key in ("spacing", "steps_offset"):
            options.pop(key, None)
    return options


def _given(config: Mapping[str, Any], key: str) -> Any:
    """An option of `FIXED`, at its one value where the class has none such."""
    value, owners, _ = FIXED[key]
    given = config.get(key, value) if config["_class_name"] in owners else value
    return -math.inf if given in ("-inf", "-Infinity") else list(given) if isinstance(given, tuple) else given


def _sigma_spacing(config: Mapping[str, Any]) -> dict[str, str]:
    named = [kind for kind in SIGMA_SPACINGS if config.get(f"use_{kind}_sigmas")]
    if len(named) > 1:
        raise ValueError(f"use_{named[0]}_sigmas and use_{named[1]}_sigmas exclude each other")
    return {"sigma_spacing": named[0]} if named else {}


def _clips(config: Mapping[str, Any]) -> bool:
    name = config["_class_name"]
    has = name in (*CLIPS_ALL, *CLIP_DEFAULT)
    return has and bool(config.get("clip_sample", name in CLIP_DEFAULT))


def _clip(config: Mapping[str, Any]) -> float | None:
    """The limit of x_0, None for none.

    Raises:
        ValueError: of a class that clamps x_0 and steps along the eps of an x_0 that is not clamped.
    """
    if not _clips(config):
        return None
    name = config["_class_name"]
    if name not in CLIPS_ALL:
        raise ValueError(
            f"clip_sample must be False for a plan like {name}, which clamps x_0 but not eps, got True: solver='ddim' "
            "with clip=1.0 clamps both, as use_clipped_model_output does"
        )
    limit = config.get("clip_sample_range", 1.0)
    check_type("clip_sample_range", limit, float)
    return float(limit)


def check_begin(begin: Any, most: int) -> int:
    """How many calls are left out: fewer than there are.

    Raises:
        ValueError: another number.
    """
    if not is_integer(begin) or not 0 <= begin < most:
        raise ValueError(f"begin must be an integer in [0, {most}), got {begin!r}")
    return int(begin)


def without_first(plan: Plan, begin: int) -> Plan:
    """A plan from a later row on, where nothing is taken of the rows before.

    Raises:
        ValueError: a later row reads what an earlier one kept.
    """
    begin = check_begin(begin, plan.nfe)
    if not begin:
        return plan
    reason = f"begin must be a call of {plan.solver} that takes nothing from the calls before it, got {begin}"
    if not plan.restarts[begin - 1]:
        raise ValueError(reason)
    rows = []
    x = plan.rows[begin].levels.call
    for row in plan.rows[begin:]:  # an x that stays stands at the new start
        x = x if row.x == SAME_X else row.levels.x
        rows.append(replace(row, levels=row.levels._replace(x=x)))
    try:
        return replace(plan, rows=tuple(rows), steps=sum(row.ends_step for row in rows))
    except ValueError as error:  # a slot that is not written
        raise ValueError(reason) from error
