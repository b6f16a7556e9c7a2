"""Any explicit Runge-Kutta method, exponential or not, from its Butcher tableau."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pndm_fast.plan.checks import choose, shown
from pndm_fast.plan.coefficients import combine
from pndm_fast.plan.grids import with_log_snr
from pndm_fast.plan.numbers import is_integer, is_number
from pndm_fast.plan.plan import MAX_ROWS, Plan
from pndm_fast.plan.row import ANCHOR, MAX_SLOTS, SLOT, STATE
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder
from pndm_fast.solvers.exponential_rk import first_order, phi, step
from pndm_fast.solvers.registry import solver

Term = tuple[float, int, float]
Entry = float | tuple[Term, ...]
_LENGTHS = (0.3, 2.0)  # of steps at which a tableau's rows are added up


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: stage i is at the part c_i of a step, by the slopes before it and a_i; b ends it.

    An entry is a number, or of an exponential method terms (w, k, c): sum w phi_k(-c h), phi_k(-h) = int_0^1
    exp(-h (1 - u)) u^(k - 1)/(k - 1)! du. Hochbruck & Ostermann 2010, Acta Numerica 19, section 2.

    Attributes:
        a: of the stages after the first, row i of i entries.
        b: of the end, one entry a stage.
        c: of the stages after the first, in (0, 1].

    Raises:
        TypeError, ValueError: lengths that do not fit, c outside (0, 1], an entry of another form, a row that does not
            add up to c (or c phi_1(-c h)).
    """

    a: tuple[tuple[Entry, ...], ...]
    b: tuple[Entry, ...]
    c: tuple[float, ...]

    def __post_init__(self) -> None:
        stages = len(self.b)
        if not 1 <= stages <= MAX_SLOTS:
            raise ValueError(f"a tableau must have 1 to {MAX_SLOTS} stages, got {stages}")
        if [len(row) for row in self.a] != list(range(1, stages)) or len(self.c) != stages - 1:
            raise ValueError(
                f"a tableau of {stages} stages must have rows of 1 to {stages - 1} entries and {stages - 1} nodes, "
                f"got rows of {[len(row) for row in self.a]} and {len(self.c)} nodes"
            )
        for node in self.c:
            if not (is_number(node) and 0 < node <= 1):
                raise ValueError(f"nodes of a tableau must be in (0, 1], got {shown(node)}")
        for i, (row, node) in enumerate(zip((*self.a, self.b), (*self.c, 1.0), strict=True)):
            for entry in row:
                _check_entry(entry)
            for h in _LENGTHS:
                total = sum(_value(entry, h) for entry in row)
                wanted = node * phi(1, node * h) if self.exponential else node
                if not abs(total - wanted) <= 1e-9:
                    raise ValueError(f"row {i + 1} of a tableau must add up to {wanted:.10g}, got {total:.10g}")

    @property
    def exponential(self) -> bool:
        """Whether an entry is a function of the step's length."""
        return any(isinstance(entry, tuple) for row in (*self.a, self.b) for entry in row)

    def at(self, h: float) -> list[list[float]]:
        """The rows of all stages after the first, and of the end, for a step of length h in lam."""
        return [[_value(entry, h) for entry in row] for row in (*self.a, self.b)]


def _check_entry(entry: object) -> None:
    terms = entry if isinstance(entry, tuple) else ((entry, 1, 1.0),)
    for term in terms:
        if not (
            isinstance(term, tuple)
            and len(term) == 3
            and is_number(term[0])
            and math.isfinite(term[0])
            and is_integer(term[1])
            and term[1] >= 1
            and is_number(term[2])
            and 0 < term[2] <= 1
        ):
            raise TypeError(f"entries of a tableau must be finite numbers or terms (w, k, c), got {shown(entry)}")


def _value(entry: Entry, h: float) -> float:
    if isinstance(entry, tuple):
        return math.fsum(weight * phi(k, c * h) for weight, k, c in entry)
    return float(entry)


TABLEAUX: dict[str, Tableau] = {
    "euler": Tableau((), (1.0,), ()),
    "midpoint": Tableau(((1 / 2,),), (0.0, 1.0), (1 / 2,)),
    "heun-2": Tableau(((1.0,),), (1 / 2, 1 / 2), (1.0,)),
    "ralston-2": Tableau(((2 / 3,),), (1 / 4, 3 / 4), (2 / 3,)),
    "kutta-3": Tableau(((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), (1 / 2, 1.0)),
    "heun-3": Tableau(((1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4), (1 / 3, 2 / 3)),
    "ralston-3": Tableau(((1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), (1 / 2, 3 / 4)),
    "ssprk-3": Tableau(((1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3), (1.0, 1 / 2)),
    "rk4": Tableau(
        ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (1 / 2, 1 / 2, 1.0)
    ),
    "rk4-38": Tableau(
        ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), (1 / 3, 2 / 3, 1.0)
    ),
    "dormand-prince-5": Tableau(
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    ),
    # exponential: Krogstad 2005, order 4, and Strehmel & Weiner 1987, of stiff order 3
    "etdrk4-b": Tableau(
        (
            (((1 / 2, 1, 1 / 2),),),
            (((1 / 2, 1, 1 / 2), (-1.0, 2, 1 / 2)), ((1.0, 2, 1 / 2),)),
            (((1.0, 1, 1.0), (-2.0, 2, 1.0)), 0.0, ((2.0, 2, 1.0),)),
        ),
        (
            ((1.0, 1, 1.0), (-3.0, 2, 1.0), (4.0, 3, 1.0)),
            ((2.0, 2, 1.0), (-4.0, 3, 1.0)),
            ((2.0, 2, 1.0), (-4.0, 3, 1.0)),
            ((-1.0, 2, 1.0), (4.0, 3, 1.0)),
        ),
        (1 / 2, 1 / 2, 1.0),
    ),
    "strehmel-weiner": Tableau(
        (
            (((1 / 2, 1, 1 / 2),),),
            (((1 / 2, 1, 1 / 2), (-1 / 2, 2, 1 / 2)), ((1 / 2, 2, 1 / 2),)),
            (((1.0, 1, 1.0), (-2.0, 2, 1.0)), ((-2.0, 2, 1.0),), ((4.0, 2, 1.0),)),
        ),
        (
            ((1.0, 1, 1.0), (-3.0, 2, 1.0), (4.0, 3, 1.0)),
            0.0,
            ((4.0, 2, 1.0), (-8.0, 3, 1.0)),
            ((-1.0, 2, 1.0), (4.0, 3, 1.0)),
        ),
        (1 / 2, 1 / 2, 1.0),
    ),
}  # fmt: skip


@solver(
    "rk",
    order=4,
    calls_per_step=4,
    extra_calls=-3,
    final_calls=3,
    spacing="trailing",
    inner_steps=MAX_ROWS,
    calls_by="tableau",
)
def rk(schedule: Schedule, times: Sequence[float], *, tableau: str | Tableau = "rk4", prediction: str = "eps") -> Plan:
    """Any explicit Runge-Kutta method, from its Butcher tableau.

    Numbers: for d(x/alpha)/d rho = eps, rho = sigma/alpha, the stages at rho_t + c_i (rho_s - rho_t): the rhoRK of
    DEIS (Zhang & Chen 2023, arXiv:2204.13902), rhoRK3 being kutta-3; on flow schedules for dx/dt = flow. Terms in phi:
    exponential, for x_0 and lam = log(alpha/sigma), the stages at lam_t + c_i h, y_i = (sigma_i/sigma_t) x + alpha_i h
    sum_j a_ij(h) D_j (Hochbruck & Ostermann 2010, Acta Numerica 19). Each stage is a network call; a step to sigma = 0
    has one, and is of order 1.

    Args:
        tableau: a name of `solvers.TABLEAUX`, or a `solvers.Tableau`.

    Raises:
        ValueError: times not decreasing, whole times, an unknown tableau; of an exponential one, times from
            alpha = 0 but on flow, which begins at `noisiest`.
    """
    table = TABLEAUX[choose("tableau", tableau, TABLEAUX)] if isinstance(tableau, str) else tableau
    if table.exponential:
        times = with_log_snr(schedule, times, "rk")
    rows = PlanBuilder("rk", schedule, times, prediction, "x0" if table.exponential else None)
    if rows.whole and any(c < 1 for c in table.c):
        raise ValueError("integer_times must be False for rk, whose stages stand at the nodes of its tableau, got True")
    for t, s in pairwise(rows.times):
        if rows.level(s).sigma == 0:
            first_order(rows, t, s)
        elif table.exponential:
            rows.check_data(t)
            places = [(s, 1.0) if c == 1 else rows.between(t, s, c) for c in table.c]
            step(rows, t, s, places, lambda _, h: table.at(h))
        else:
            if rows.kind == "eps":
                rows.check_data(t)
            _classical(rows, t, s, table)
    return rows.plan()


def _classical(rows: PlanBuilder, t: float, s: float, table: Tableau) -> None:
    """One step: a stage is phi from t to it with the gradient part sum_j a_ij e_j / c_i."""
    high, low = (rows.place(rows.level(time)) for time in (t, s))
    calls = [t]
    for c in table.c:
        place = high + c * (low - high)
        lam = -math.log(place) if rows.kind == "eps" else math.log((1 - place) / place)
        calls.append(s if c == 1 else float(rows.schedule.time_at(lam)))
    for i, (row, c) in enumerate(zip(table.at(0.0), (*table.c, 1.0), strict=True)):
        last = i == len(calls) - 1
        to = s if last else calls[i + 1]
        origin = STATE if i == 0 else ANCHOR
        y = rows.transfer(t, to)(origin, combine([entry / c for entry in row], SLOT[: i + 1]))
        rows.call(calls[i], i, y, to, x=STATE if i == 0 and not last else ANCHOR, ends=last)
