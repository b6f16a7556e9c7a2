"""Plans from words, and the list of solvers. Nothing here prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter

import pndm_fast as pf
from pndm_fast.cli.errors import UsageError
from pndm_fast.plan.checks import choose
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.row import PREDICTIONS
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers import SOLVER_INFO, SOLVERS, source
from pndm_fast.solvers.auto import AUTO, default_solver, settle
from pndm_fast.solvers.grid import DEFAULT_STEPS, GridSpec

ENDING = ".json"  # of a plan's file, where a solver's name may stand
OWN = "model"  # the schedule that a network carries, where it has no name here
SCHEDULES: dict[str, Callable[[], Schedule | PSLD]] = {
    "linear": Schedule.linear,
    "scaled-linear": Schedule.scaled_linear,
    "cosine": Schedule.cosine,
    "sigmoid": Schedule.sigmoid,
    "vp": Schedule.vp,
    "edm": Schedule.edm,
    "flow": Schedule.flow,
    "psld": PSLD,
}


class Words(NamedTuple):
    """What a plan is asked for by, as the command line says it; None where it says nothing."""

    solver: str | None = None
    schedule: str | None = None
    prediction: str | None = None
    steps: int | None = None
    nfe: int | None = None
    spacing: str | None = None
    options: Mapping[str, Any] = MappingProxyType({})
    tree: Mapping[str, Any] | None = None  # of a plan's file, in place of all the others but prediction

    @property
    def free(self) -> bool:
        """Whether auto is left every choice but the number of calls."""
        one = (self.steps is None) != (self.nfe is None)
        return self.solver == AUTO and one and self.spacing is None and not self.options

    def check(self) -> Words:
        """Itself, where each word is known.

        Raises:
            ValueError: naming the nearest.
        """
        for what, known in (("schedule", [*SCHEDULES, OWN]), ("prediction", PREDICTIONS)):
            if getattr(self, what) is not None:
                choose(what, getattr(self, what), known)
        if self.solver is not None:
            choose("solver", self.solver, [*sorted(SOLVERS), AUTO])
        return self


LONG_NAME = 26  # more than fits into a table of 80 columns


def from_file(words: Words) -> Words:
    """Words whose solver is a plan's file, with the plan in place of its name; others as they are.

    Raises:
        UsageError: it cannot be read, or there are words that the plan has answered.
        ValueError: it is no plan, or for another prediction.
    """
    if words.solver is None or not words.solver.endswith(ENDING):
        return words
    others = {"option": words.options or None, **words._asdict()}
    for name in ("steps", "nfe", "spacing", "schedule", "option"):
        if others[name] is not None:
            raise UsageError(f"--{name} cannot go with a plan's file")
    try:
        plan = pf.Plan.load(words.solver)
    except OSError as error:
        text = f"--solver must be a plan's file that can be read, got {words.solver!r}: {error.strerror}"
        raise UsageError(text) from error
    return Words(prediction=words.prediction, tree=json.loads(json.dumps(plan.to_json())))


def _read(words: Words) -> NamedPlan:
    plan = pf.Plan.from_json(words.tree)
    if words.prediction not in (None, plan.prediction):
        raise ValueError(f"prediction must be the plan's own, {plan.prediction!r}, got {words.prediction!r}")
    return NamedPlan(plan, {"plan": words.tree}, None)


class NamedPlan(NamedTuple):
    """A plan, the words that make it again, and what to tell of auto's choice."""

    plan: pf.Plan
    recipe: dict[str, Any]
    told: str | None


def schedule_of(words: Words, own: Schedule | PSLD | None = None) -> Schedule | PSLD:
    """The schedule of that name, a network's own where it has the name or none is given, else the solver's."""
    if words.schedule == OWN and own is None:
        raise ValueError("schedule must be a name for a network that carries none, got 'model'")
    if own is not None and words.schedule in (None, OWN, name_of(own)):
        return own
    phase = words.solver in SOLVER_INFO and SOLVER_INFO[str(words.solver)].space == "phase"
    return SCHEDULES[choose("schedule", words.schedule or ("psld" if phase else "linear"), SCHEDULES)]()


def name_of(schedule: Schedule | PSLD) -> str:
    """Its word on the command line."""
    name = "psld" if isinstance(schedule, PSLD) else schedule.name
    return name if name in SCHEDULES else OWN


def make_plan(words: Words, schedule: Schedule | PSLD, compat: str | None = None) -> NamedPlan:
    """`pf.make_plan` from words, on a schedule.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if words.tree is not None:
        return _read(words)
    solver, options, spacing, told = words.solver or default_solver(schedule), dict(words.options), words.spacing, None
    if solver == AUTO and compat is None:
        solver, spacing, options, told = _settled(schedule, words.steps, words.nfe, spacing, options)
    prediction = words.prediction or "eps"
    given: dict[str, Any] = {"prediction": prediction, "spacing": spacing, "compat": compat}
    plan = pf.make_plan(solver, schedule, steps=words.steps, nfe=words.nfe, **given, **options)
    explicit = bool({"sigmas", "times"} & options.keys())
    grid = {name: value for name, value in (("steps", words.steps), ("nfe", words.nfe)) if value is not None}
    recipe = {
        "solver": solver,
        "spacing": None if explicit else spacing or schedule.spacing or SOLVER_INFO[solver].spacing,
        "schedule": name_of(schedule),
        "grid": grid or ({} if explicit else {"steps": DEFAULT_STEPS}),
        "options": options,
    }
    return NamedPlan(plan, recipe, told)


def _settled(
    form: Schedule | PSLD, steps: int | None, nfe: int | None, spacing: str | None, options: dict[str, Any]
) -> tuple[str, str | None, dict[str, Any], str]:
    """Solver, spacing and options as auto chooses, and those in a line."""
    of_grid = {field.name for field in fields(GridSpec)}
    grid = GridSpec(steps, nfe, spacing=spacing, **{name: options[name] for name in of_grid & options.keys()})
    own = {name: value for name, value in options.items() if name not in of_grid and name != "clip"}
    solver, grid, own = settle(form, grid, own)
    given = {name: value for name, value in vars(grid).items() if value not in (None, False)}
    chosen = {"spacing": form.spacing or SOLVER_INFO[solver].spacing, **given, **own}
    line = f"auto: {solver} {' '.join(f'{name}={value}' for name, value in chosen.items())}"
    words = {**options, **given, **own}
    return solver, grid.spacing, {name: words[name] for name in words if name not in ("steps", "nfe", "spacing")}, line


@cache
def schedules_of(solver: str) -> tuple[str, ...]:
    """On which kinds of schedule it makes plans, found by trying."""
    tried: dict[str, tuple[Schedule | PSLD, str]] = {
        "vp": (Schedule.linear(), "eps"),
        "edm": (Schedule.edm(), "x0"),
        "flow": (Schedule.flow(), "flow"),
        "psld": (PSLD(), "eps"),
    }
    found = []
    for kind, (schedule, prediction) in tried.items():
        with suppress(ValueError), catch_warnings():
            simplefilter("ignore")
            pf.make_plan(solver, schedule, steps=max(8, SOLVER_INFO[solver].min_steps), prediction=prediction)
            found.append(kind)
    return tuple(found)


def solver_rows() -> list[dict[str, Any]]:
    """What is known of each solver, by name."""
    return [
        {
            "name": name,
            "order": info.order,
            "stochastic": info.stochastic,
            "min_steps": info.min_steps,
            "calls": info.formula(),
            "spacing": info.spacing,
            "stores": info.stores,
            "schedules": schedules_of(name),
            "slots": pf.make_plan(name, steps=50).n_slots,
            "arxiv": source(name),
            "about": (SOLVERS[name].__doc__ or "").strip().split("\n")[0],
        }
        for name, info in sorted(SOLVER_INFO.items())
    ]


def solver_lines() -> list[str]:
    """The same as a table of plain text: never cut, whatever the terminal's width. A long name has its own line."""
    lines = [["", "", "least", "calls", "", "", "", ""]]
    lines.append(["name", "order", "steps", "n steps", "on", "spacing", "slots", "arXiv"])
    for row in solver_rows():
        order = f"{row['order'] or '-'}{' sde' if row['stochastic'] else ''}"
        first, *others = row["arxiv"].split(", ")
        on = "".join(kind[0] for kind in row["schedules"])
        name = row["name"]
        if len(name) > LONG_NAME:
            lines.append([name])
            name = ""
        cells = (name, order, row["min_steps"], row["calls"], on, row["spacing"], row["slots"], first)
        lines.append([str(cell) for cell in cells])
        lines.extend([*[""] * (len(cells) - 1), paper] for paper in others)
    widths = [max(map(len, column)) for column in zip(*(line for line in lines if len(line) > 1), strict=True)]
    rows = [" ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines]
    return [*rows, "on: v variance-preserving, e EDM, f flow matching, p phase space schedules"]
