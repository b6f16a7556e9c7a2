"""Plans from words, and the list of solvers. Nothing here prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.cli.models import DEMO_PSLD
from pndm_fast.phase_space import PSLD
from pndm_fast.plan.checks import choose
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers import SOLVER_INFO, SOLVERS, source
from pndm_fast.solvers.auto import AUTO, default_solver, settle
from pndm_fast.solvers.grid import GridSpec

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


class NamedPlan(NamedTuple):
    """A plan, the words that make it again, and what to tell of auto's choice."""

    plan: pf.Plan
    recipe: dict[str, Any]
    told: str | None


def make_plan(
    solver: str | None,
    schedule: str | None,
    options: dict[str, Any],
    *,
    steps: int | None,
    nfe: int | None,
    spacing: str | None,
    prediction: str,
    compat: str | None = None,
    model: str = "",
) -> NamedPlan:
    """`pf.make_plan` from words; the schedule by default the model's, or else the one that the solver is for.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    phase = model == DEMO_PSLD or (solver in SOLVER_INFO and SOLVER_INFO[str(solver)].space == "phase")
    schedule = choose("schedule", schedule or ("psld" if phase else "linear"), SCHEDULES)
    form = demo.psld if schedule == "psld" and model == DEMO_PSLD else SCHEDULES[schedule]()
    solver, told = solver or default_solver(form), None
    if solver == AUTO and compat is None:
        solver, spacing, options, told = _settled(form, steps, nfe, spacing, options)
    words: dict[str, Any] = {"spacing": spacing, "prediction": prediction, "compat": compat}
    plan = pf.make_plan(solver, form, steps=steps, nfe=nfe, **words, **options)
    own = spacing or form.spacing or SOLVER_INFO[solver].spacing
    return NamedPlan(plan, {"spacing": own, "schedule": schedule, "options": options}, told)


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
            "slots": pf.make_plan(name, steps=50).n_slots,
            "arxiv": source(name),
            "about": (SOLVERS[name].__doc__ or "").strip().split("\n")[0],
        }
        for name, info in sorted(SOLVER_INFO.items())
    ]


def solver_lines() -> list[str]:
    """The same as a table of plain text: never cut, whatever the terminal's width."""
    lines = [["", "", "fewest", "calls for", "", "", "", ""]]
    lines.append(["name", "order", "steps", "n steps", "spacing", "slots", "stores", "arXiv"])
    for row in solver_rows():
        order = f"{row['order'] or '-'}{' sde' if row['stochastic'] else ''}"
        first, *others = row["arxiv"].split(", ")
        cells = (row["name"], order, *(row[k] for k in ("min_steps", "calls", "spacing", "slots", "stores")), first)
        lines.append([str(cell) for cell in cells])
        lines.extend([*[""] * (len(cells) - 1), paper] for paper in others)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
