"""What a `PlanScheduler` is made of: the configuration that it takes over, its solver and that one's options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers

from pndm_fast.plan.checks import choose
from pndm_fast.solvers import SOLVER_INFO, SOLVERS
from pndm_fast.solvers.auto import AUTO
from pndm_fast.solvers.compat import SCHEDULERS
from pndm_fast.solvers.foreign import REFUSED
from pndm_fast.solvers.like import config_of
from pndm_fast.solvers.make import make_plan

AS_SAVED = "as saved"  # the default of solver: that of a configuration of our own, else None
_GRID = ("clip", "final", "t_min", "integer_times")  # arguments of make_plan that a scheduler may have
# arguments of diffusers' `step` that change nothing at these values; no plan does others
_IDLE: dict[str, tuple[Any, ...]] = {
    "s_churn": (0,),
    "s_tmin": (0,),
    "s_tmax": (float("inf"),),
    "s_noise": (1,),
    "order": (4,),
    "use_clipped_model_output": (False, None),
    "variance_noise": (None,),
    "per_token_timesteps": (None,),
}


def check_idle(others: Mapping[str, Any]) -> None:
    """Refuse arguments of `step` that no plan does, or that no scheduler has.

    Raises:
        TypeError, ValueError: naming the first.
    """
    for name, value in others.items():
        if name not in _IDLE:
            raise TypeError(f"step has no argument {name!r}")
        if not any(value is idle or value == idle for idle in _IDLE[name]):
            raise ValueError(f"{name} must be {_IDLE[name][0]!r}: no plan does another, got {value!r}")


def named(config: Mapping[str, Any], solver: str | None) -> Mapping[str, Any]:
    """The configuration with the name of its class, which that of a scheduler that was not loaded lacks.

    Raises:
        ValueError: its keys are those of no class, or of several, and a plan like it is asked for.
    """
    if "_class_name" in config:
        return config
    keys = {key for key in config if not key.startswith("_")}
    classes = {name: getattr(diffusers, name, None) for name in (*SCHEDULERS, *REFUSED)}
    found = [name for name, cls in classes.items() if cls and {*inspect.signature(cls).parameters} - {"kwargs"} == keys]
    if not found or (solver is None and len(found) > 1):
        of = f"that of {' and '.join(found)}" if found else "none of a class that is known"
        raise ValueError(f"config must have a _class_name where its keys are {of}: give the scheduler itself")
    return {**config, "_class_name": found[0]}


def check_keys(changed: Mapping[str, Any], config: Mapping[str, Any], solver: str | None, known: list[str]) -> None:
    """Refuse what is no option of the solver and no key of the configuration or of its class."""
    like = config_of(named(config, solver))["_class_name"]
    keys = {*config, *inspect.signature(getattr(diffusers, like, None) or check_keys).parameters}
    for name in changed:
        if name not in keys:
            options = f" nor an option of {solver} (its options: {', '.join(known)})" if solver else ""
            raise ValueError(f"{name!r} is no key of the config{options}")


def options_of(solver: str | None) -> list[str]:
    """The options that a scheduler of that solver may have; none of one that does as diffusers does."""
    if solver is None:
        return []
    function = SOLVERS.get(solver, make_plan if solver == AUTO else None)
    names = [] if function is None or function is make_plan else list(inspect.signature(function).parameters)[2:]
    return [*[name for name in names if name != "prediction"], *_GRID]


def check_settings(solver: str | None, spacing: str | None, options: Mapping[str, Any]) -> None:
    """Refuse an unknown solver, or a grid and options of none."""
    if solver is None:
        if spacing is not None or options:
            name = "spacing" if spacing is not None else next(iter(options))
            raise ValueError(f"{name} must go with a solver: without one the config says all, timestep_spacing too")
        return
    choose("solver", solver, [*[name for name in SOLVERS if SOLVER_INFO[name].space != "phase"], AUTO])
