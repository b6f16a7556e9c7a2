"""The table of `solvers/auto.py` from the finals of `survey.py`, by rule."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

from quality.solvers import BUDGETS, GRIDS, LINES, NETWORKS, Key, make_plan, own_grid

from pndm_fast.solvers.auto import Choice, recommend

ENOUGH = 1.05  # times the lowest RMS of a budget: as good
DENSE, MOST = 12, 120  # calls: after the first of a run, and up to which the last choice is tried
TABLES = {"mnist": "MEASURED", "mnist_flow": "MEASURED_ON_FLOW"}


class Run(NamedTuple):
    """Budgets one after another with one choice.

    Attributes:
        first, most: calls from and up to which it is taken.
        rms: of the choice at each budget.
    """

    budgets: tuple[int, ...]
    first: int
    most: float
    line: str
    grid: str
    rms: tuple[float, ...]


def middle(less: int, more: int) -> int:
    """Up to how many calls the lesser of two budgets counts: their geometric middle."""
    return math.isqrt(less * more)


def propose(tree: dict[str, Any]) -> list[Run]:
    """The fewest choices that are each within 5 % of the lowest RMS at all of their budgets, or as near as is resolved.

    Budgets are taken in order, and a choice goes on as long as one is good enough at all of its budgets and makes every
    number of calls there, exactly; of several, that of the lowest product of RMS. What cannot is left out first, so
    that lowest is among those that can.
    """
    rms = {(one["line"], one["grid"], one["nfe"]): one["rms"] for one in tree["finals"]}
    good = good_enough(tree)
    budgets = list(good)
    found: list[tuple[list[int], set[tuple[str, str]]]] = []
    for nfe in budgets:
        left = found[-1][1] & good[nfe] if found else set()
        if left:
            found[-1] = [*found[-1][0], nfe], left
        elif good[nfe]:
            found.append(([nfe], good[nfe]))
    runs = []
    for part, choices in found:
        line, grid = min(sorted(choices), key=lambda one: math.prod(rms[(*one, nfe)] for nfe in part))
        first, most = _bounds(budgets, part[0])[0], _bounds(budgets, part[-1])[1]
        runs.append(Run(tuple(part), first, most, line, grid, tuple(rms[line, grid, nfe] for nfe in part)))
    return runs


def good_enough(tree: dict[str, Any]) -> dict[int, set[tuple[str, str]]]:
    """The lines and grids of each budget of which each would do."""
    finals, name = tree["finals"], tree["setting"]["network"]
    budgets = [nfe for nfe in BUDGETS if any(one["nfe"] == nfe for one in finals)]
    rms = {(one["line"], one["grid"], one["nfe"]): one["rms"] for one in finals if one["rms"] is not None}
    resolved = tree["floor"]["rms"]  # from one fine solution to another
    return {nfe: _good(name, rms, nfe, resolved, *_bounds(budgets, nfe)) for nfe in budgets}


def _bounds(budgets: list[int], nfe: int) -> tuple[int, float]:
    edges = [0, *[middle(*pair) for pair in pairwise(budgets)], math.inf]
    place = budgets.index(nfe)
    return int(edges[place]) + 1, edges[place + 1]


def _good(name: str, rms: dict[Key, float], nfe: int, resolved: float, first: int, most: float) -> set[tuple[str, str]]:
    found: list[Key] = []
    for key in sorted((key for key in rms if key[2] == nfe), key=lambda key: rms[key]):
        if found and rms[key] > max(ENOUGH * rms[found[0]], resolved):
            break
        found += [key] if _makes_all(name, key, first, most) else []
    return {(line, grid) for line, grid, _ in found}


def _makes_all(name: str, key: Key, first: int, most: float) -> bool:
    """Whether there is a plan of each number of calls of a run; of a long one's end, of every ninth."""
    if LINES[key[0]].guard is not None:
        return False
    last = int(min(most, MOST))
    counts = [*range(first, min(first + DENSE, last) + 1), *range(first + DENSE, last + 1, 9), last]
    return all(make_plan(NETWORKS[name], LINES[key[0]], key[1], nfe) is not None for nfe in counts)


def code(name: str, runs: list[Run]) -> str:
    """The table as it stands in `solvers/auto.py`."""
    return "\n".join([f"{TABLES[name]} = (", *[f"    {_choice(name, run)}," for run in runs], ")"])


def _choice(name: str, run: Run) -> str:
    line, (spacing, t_min) = LINES[run.line], GRIDS[run.grid]
    own = NETWORKS[name].schedule.spacing is not None and run.grid == own_grid(NETWORKS[name], line)
    words = [
        "math.inf" if math.isinf(run.most) else str(run.most),
        f'"{line.solver}"',
        "None" if own else f'"{spacing}"',
    ]
    if line.options:
        pairs = ", ".join(f'"{option}": {_literal(value)}' for option, value in line.options.items())
        words.append(f"{{{pairs}}}")
    if t_min is not None:
        words.append("LAST" if line.options else "last=LAST")
    return f"Choice({', '.join(words)})"


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def present(name: str, nfe: int) -> Key | None:
    """What auto takes today for a number of calls, by the names of the survey; None where these have it not."""
    choice = recommend(NETWORKS[name].schedule, nfe)
    return next(((line, grid, nfe) for line in LINES for grid in GRIDS if is_choice(name, choice, line, grid)), None)


def is_choice(name: str, choice: Choice, line: str, grid: str) -> bool:
    """Whether a line on a grid is what auto chooses."""
    one, (spacing, t_min) = LINES[line], GRIDS[grid]
    wanted = choice.spacing or own_grid(NETWORKS[name], one)
    same = (one.solver, one.options, one.guard) == (choice.solver, choice.options, None)
    return same and spacing == wanted and (t_min is None) == (choice.last is None)
