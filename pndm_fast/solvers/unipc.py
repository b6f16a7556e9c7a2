"""UniPC: a predictor and a corrector that reads the next call's value, in one row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pndm_fast.plan.checks import choose
from pndm_fast.plan.coefficients import Transfer
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.quadrature import moment
from pndm_fast.plan.row import ANCHOR, SLOT, STATE, Form
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.builder import PlanBuilder, check_order
from pndm_fast.solvers.registry import solver

VARIANTS = ("bh1", "bh2")
PREDICTS = ("x0", "eps")


@solver("unipc", order=3, spacing="trailing", stores="x0")
def unipc(
    schedule: Schedule,
    times: Sequence[float],
    *,
    order: int = 2,
    variant: str = "bh2",
    corrector: bool = True,
    predict: str = "x0",
    lower_order_final: bool | None = None,
    prediction: str = "eps",
) -> Plan:
    """UniPC. Zhao et al. 2023, arXiv:2302.04867, algorithms 1 (UniC-p) and 2 (UniP-p), here on x_0 or eps.

    x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - exp(-h)) D_t + alpha_s B(h) sum_m a_m (D_m - D_t) / r_m, where the a_m
    match the powers of lam; the corrector is the same formula with the value at s added. bh1: B = h; bh2: exp(h) - 1,
    in the signs of the prediction.

    Args:
        order: of the predictor, 1 to 3; the corrector adds one.
        corrector: correct each state with the next call's value, at no further call.
        predict: combine x_0 or eps.
        lower_order_final: end on lower orders; default where there are fewer than 15 steps. A step to sigma = 0 is of
            order 1 in any case.

    Raises:
        ValueError: order outside 1..3, unknown variant or predict, times not decreasing.
    """
    check_order(order, 3)
    choose("variant", variant, VARIANTS)
    choose("predict", predict, PREDICTS)
    rows = _UniPC("unipc", schedule, times, prediction, predict)
    rows.bh1, previous = variant == "bh1", 0
    for i, (t, s) in enumerate(pairwise(rows.times)):
        slots = [SLOT[(i - j) % (order + 1)] for j in range(min(i, order) + 1)]
        finite = sum(math.isfinite(rows.lam(time)) for time in rows.times[max(0, i - order + 1) : i + 1])
        k = min(rows.order_at(i, order, lower_order_final), max(finite, 1))
        state = STATE
        if i > 0 and corrector and math.isfinite(rows.lam(rows.times[i - 1])):
            state = rows.correct(i, ANCHOR, slots, previous)
        previous = k
        if rows.by_data(t, i % (order + 1), s):
            continue
        y = rows.predict(i, state, slots[:k])
        rows.call(t, i % (order + 1), y, s, x=state)
    return rows.plan()


class _UniPC(PlanBuilder):
    """Rows of UniPC; with eps in place of x_0, alpha <-> sigma and lam -> -lam."""

    bh1 = False

    def _signed(self, t: float, s: float) -> tuple[float, float]:
        """h, and the level's part that goes with the network's."""
        h = self.lam(s) - self.lam(t)
        return (h, self.level(s).alpha) if self.kind == "x0" else (-h, self.level(s).sigma)

    def _weights(self, h: float, ratios: Sequence[float]) -> list[float]:
        """The a_m times B(h): sum_m a_m r_m^(k - 1) B(h) = h int_0^1 exp(-h (1 - u)) u^k du, k = 1, 2, ...

        B cancels, but where there is one a: 1/2 for every B, as the paper has it.
        """
        if len(ratios) == 1:
            return [0.5 * (h if self.bh1 else -math.expm1(-h))]
        powers = np.array([[r**k for r in ratios] for k in range(len(ratios))])
        right = [h * moment(h, k) for k in range(1, len(ratios) + 1)]
        return [float(w) for w in np.linalg.solve(powers, right)]

    def _move(self, i: int, base: Form, now: Form, others: Sequence[tuple[float, Form]]) -> Form:
        t, s = self.times[i], self.times[i + 1]
        h, gain = self._signed(t, s)
        total = Transfer(self.level(t), self.level(s), self.kind)(base, now)
        weights = self._weights(h, [r for r, _ in others]) if others else []
        for weight, (r, form) in zip(weights, others, strict=True):
            total = total + gain * weight / r * (form - now)
        return total

    def _ratio(self, i: int, j: int) -> float:
        """(lam_{i-j} - lam_i) / h of the step from i."""
        lam = [self.lam(self.times[k]) for k in (i - j, i, i + 1)]
        return (lam[0] - lam[1]) / (lam[2] - lam[1])

    def predict(self, i: int, state: Form, slots: Sequence[Form]) -> Form:
        """UniP: from the state at i, by the value there and past ones."""
        others = [(self._ratio(i, j), slots[j]) for j in range(1, len(slots))]
        return self._move(i, state, slots[0], others)

    def correct(self, i: int, anchor: Form, slots: Sequence[Form], order: int) -> Form:
        """UniC: the state at i anew, from the anchor at i - 1 by the values there, before and at i."""
        others = [(self._ratio(i - 1, j), slots[j + 1]) for j in range(1, order)]
        return self._move(i - 1, anchor, slots[1], [*others, (1.0, slots[0])])
