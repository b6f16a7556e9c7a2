"""Runge-Kutta tableaux of `rk`: the conditions of their orders."""

import numpy as np
import pytest

from pndm_fast.solvers import TABLEAUX

pytestmark = pytest.mark.filterwarnings("ignore:.* diverges in", "ignore:.* has no effect")
ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4, "rk4-38": 4, "dormand-prince-5": 5, "etdrk4-b": 4, "strehmel-weiner": 4}


@pytest.mark.parametrize("name", TABLEAUX)
def test_butcher_s_conditions(name):
    """All of each order; of an exponential method as its step goes to 0."""
    *rows, b = TABLEAUX[name].at(1e-9)
    a, b, c = np.zeros((len(b), len(b))), np.array(b), np.array([0.0, *TABLEAUX[name].c])
    for i, row in enumerate(rows):
        a[i + 1, : len(row)] = row
    trees = [  # by order: the vectors that b meets, and what they must add up to
        [(1 + 0 * c, 1)],
        [(c, 2)],
        [(c**2, 3), (a @ c, 6)],
        [(c**3, 4), (c * (a @ c), 8), (a @ c**2, 12), (a @ a @ c, 24)],
        [(c**4, 5), (c**2 * (a @ c), 10), (c * (a @ c**2), 15), (c * (a @ a @ c), 30), ((a @ c) ** 2, 20),
         (a @ c**3, 20), (a @ (c * (a @ c)), 40), (a @ a @ c**2, 60), (a @ a @ a @ c, 120)],
    ]  # fmt: skip
    order = ORDERS.get(name, 2 if name.endswith("-2") else 3)
    for vector, wanted in sum(trees[:order], []):
        assert b @ vector == pytest.approx(1 / wanted, abs=1e-8)


@pytest.mark.parametrize("c2, c3", [(1 / 3, 0.8), (0.5, 0.75), (0.4, 0.9)])
def test_the_condition_of_order_three(c2, c3):
    """b_2 c_2^2 + b_3 c_3^2 = 1/3 at h = 0 takes g of c_3^2; with c_3^3, as RES4LYF has it, where c_3 = 1 alone."""

    def sums(g):
        last = 0.5 / (g * c2 + c3)
        return g * last * c2**2 + last * c3**2

    assert sums((3 * c3**2 - 2 * c3) / (c2 * (2 - 3 * c2))) == pytest.approx(1 / 3)
    assert abs(sums((3 * c3**3 - 2 * c3) / (c2 * (2 - 3 * c2))) - 1 / 3) > 0.02
