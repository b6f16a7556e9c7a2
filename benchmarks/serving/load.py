"""What arrives: requests of mixed lengths, solvers and guidance scales at random times, alike for all contestants."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STEPS = (4, 8, 10, 20, 25, 30, 50)
SHORT = 10  # rows at most: whose latency is told apart
SOLVERS = ("ddim", "dpmpp-2m", "unipc", "deis")  # as many network calls as steps, deterministic, on any such grid
SCALES = (1.5, 2.0, 3.0, 4.0, 7.5)


@dataclass(frozen=True)
class Arrival:
    """A request and when it comes.

    Attributes:
        at: in seconds, or in whatever a network call's cost is measured in.
        rows: network calls that it needs.
        scale: of guidance, None without.
        seed: of its noise.
    """

    at: float
    rows: int
    solver: str
    scale: float | None
    seed: int

    @property
    def setting(self) -> tuple[int, str, float | None]:
        """What requests must have in common to be one batch of equal settings."""
        return self.rows, self.solver, self.scale

    @property
    def form(self) -> bool:
        """What they must have in common to be one batch at all: whether the network is called with guidance."""
        return self.scale is not None


@dataclass(frozen=True)
class Mix:
    """What requests are like.

    Attributes:
        solvers: each is as likely as the others; steps too.
        guided: the part of requests that have guidance; its scale is drawn from `SCALES`.
        burst: mean number of requests that arrive at once; 1 is a Poisson process.
    """

    steps: Sequence[int] = STEPS
    solvers: Sequence[str] = SOLVERS
    guided: float = 0.0
    burst: float = 1.0

    @property
    def mean_rows(self) -> float:
        return sum(self.steps) / len(self.steps)


def arrivals(mix: Mix, rate: float, count: int, seed: int) -> list[Arrival]:
    """`count` of them at `rate` in the mean: bursts of geometric size at exponential intervals."""
    return list(_drawn(mix, rate, count, random.Random(seed)))


def _drawn(mix: Mix, rate: float, count: int, draw: random.Random) -> Iterator[Arrival]:
    now = 0.0
    for seed in range(count):
        if draw.random() < 1 / mix.burst:  # else with the one before
            now += draw.expovariate(rate / mix.burst)
        scale = draw.choice(SCALES) if draw.random() < mix.guided else None
        yield Arrival(now, draw.choice(mix.steps), draw.choice(mix.solvers), scale, seed)
