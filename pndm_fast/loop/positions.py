"""How far a running call has come: every sample stands at a row of its own plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import Row


class Kind(NamedTuple):
    """How rows call the network.

    Attributes:
        model: which one, of a sampler's.
        guided: whether it is evaluated twice, for guidance.
    """

    model: int
    guided: bool


class Positions:
    """The row that each sample executes next, as the host knows it; a sample that has ended stands behind its last.

    Args:
        plans: one for each sample.
        at: where each begins.
    """

    def __init__(self, plans: Sequence[Plan], at: Sequence[int]) -> None:
        self.plans, self.at = tuple(plans), list(at)
        self.run = 0  # rows that the call has executed

    def ahead(self) -> tuple[Kind, int] | None:
        """How the samples under way call the network next, and for how many rows that stays so; None at the end.

        Raises:
            ValueError: they call different networks at one row.
        """
        under_way = {(id(plan), i): (plan, i) for plan, i in zip(self.plans, self.at, strict=True) if i < plan.nfe}
        kind, count = None, 0
        while live := [(plan, i + count) for plan, i in under_way.values() if i + count < plan.nfe]:
            here = self._kind(live, count)
            if kind is not None and here != kind:
                break
            kind, count = here, count + min(plan.run_ends[i] - i for plan, i in live)
        return None if kind is None else (kind, count)

    def _kind(self, live: list[tuple[Plan, int]], count: int) -> Kind:
        kinds = [plan.kinds[i] for plan, i in live]
        models = sorted({model for model, _ in kinds})
        if len(models) > 1:
            raise ValueError(f"plans of one batch must call the same network at row {self.run + count}, got {models}")
        return Kind(models[0], any(guided for _, guided in kinds))

    def advance(self, count: int) -> None:
        """So many rows were executed."""
        self.run += count
        self.at = [min(i + count, plan.nfe) for plan, i in zip(self.plans, self.at, strict=True)]

    def rows(self) -> tuple[Row | None, ...]:
        """Each sample's next row, None once it has ended."""
        return tuple([plan.rows[i] if i < plan.nfe else None for plan, i in zip(self.plans, self.at, strict=True)])

    def left(self) -> list[float]:
        """Of each sample's rows the fraction that is still to come."""
        return [(plan.nfe - i) / plan.nfe for plan, i in zip(self.plans, self.at, strict=True)]

    def next_rows(self) -> list[Row]:
        """Each sample's next row; of one that has ended its last."""
        return next_rows(self.plans, self.at)


def next_rows(plans: Sequence[Plan], at: Sequence[int]) -> list[Row]:
    """The row that each plan has there; behind its end its last."""
    return [plan.rows[min(i, len(plan.rows) - 1)] for plan, i in zip(plans, at, strict=True)]


def segments_of(plans: Sequence[Plan]) -> tuple[tuple[Kind, int], ...]:
    """How samples that begin together call the network, and for how many rows each time.

    Raises:
        ValueError: they call different networks at one row.
    """
    if len(plans) == 1:
        return tuple([(Kind(*kind), count) for kind, count in plans[0].runs])
    positions, found = Positions(plans, [0] * len(plans)), []
    while (ahead := positions.ahead()) is not None:
        found.append(ahead)
        positions.advance(ahead[1])
    return tuple(found)
