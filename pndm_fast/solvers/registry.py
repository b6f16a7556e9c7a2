"""The solvers by name, and what a caller may want to know of one before building its plan."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pndm_fast.plan.hints import OPTIONS, OWNERS
from pndm_fast.plan.names import HERE
from pndm_fast.plan.plan import Plan

Solver = Callable[..., Plan]
SOLVERS: dict[str, Solver] = {}


@dataclass(frozen=True)
class SolverInfo:
    """What a caller may want to know of a solver before building its plan.

    Attributes:
        order: observed on an exact model, on uniform times of a smooth interval (`tests/test_order.py`); of a
            stochastic solver, of its deterministic part; 0 where there is none.
        min_steps: the smallest number of steps.
        calls_per_step, extra_calls: network calls for n steps are calls_per_step n + extra_calls.
        final_calls: the calls that a last step to sigma = 0 saves; counted in extra_calls.
        spacing: the grid of its paper, or the best known.
        inner_steps: of how many of its first steps it calls the network inside, between two times of the grid; of a
            step to sigma = 0 in no case.
        stores: what the slots hold.
        stochastic: whether it adds noise by default.
        inverts: whether it runs from data to noise, and so needs start=.
        calls_by: the option that changes the number of calls, which are those of its default.
        space: scalar for solvers on a `Schedule`, phase for those on a phase-space process, both.
    """

    order: int
    min_steps: int = 1
    extra_calls: int = 0
    calls_per_step: int = 1
    final_calls: int = 0
    spacing: str = "leading"
    inner_steps: int = 0
    stores: str = "eps"
    stochastic: bool = False
    inverts: bool = False
    space: str = "scalar"
    calls_by: str | None = None

    def calls(self, steps: int, final: str = "zero") -> int:
        """Network calls for a number of steps."""
        return self.calls_per_step * steps + self.extra_calls + (self.final_calls if final == "min" else 0)

    def steps(self, calls: int, final: str = "zero") -> int:
        """The steps that take a number of network calls, or the next fewer."""
        return (calls - self.calls(0, final)) // self.calls_per_step

    def formula(self, final: str = "zero") -> str:
        """The calls for n steps, in words."""
        extra = self.calls(0, final)
        whole = "n" if self.calls_per_step == 1 else f"{self.calls_per_step} n"
        return f"{whole} {'-' if extra < 0 else '+'} {abs(extra)}" if extra else whole


SOLVER_INFO: dict[str, SolverInfo] = {}


def solver(name: str, **info: Any) -> Callable[[Solver], Solver]:
    """Register a function under a name, with its `SolverInfo`."""

    def register(function: Solver) -> Solver:
        SOLVERS[name], SOLVER_INFO[name] = function, SolverInfo(**info)
        HERE["solver"].add(name)
        options = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
        OPTIONS.update(options - OWNERS.keys())
        return function

    return register


def source(name: str) -> str:
    """The papers that a solver's docstring names."""
    return ", ".join(dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{4,5})", SOLVERS[name].__doc__ or "")))
