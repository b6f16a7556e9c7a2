"""What a call of `Sampler` costs, by its public interface alone: any version's Python can run this file.

A `Case` is made of sides that take turns. `python calls.py` answers `compare.py`: a line of JSON asks for one turn.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pndm_fast as pf
from pndm_fast import demo

TURN = 0.002  # seconds that a turn of short calls lasts: a drifting machine moves all sides of a round alike
MLP = (4, 64)

Network = Callable[[Tensor, Tensor], Tensor]
Seconds = dict[str, float]
Weights = dict[str, dict[str, float]]  # cost: side: its factor


class Mlp(nn.Module):
    """A batch of 64 numbers through 128 hidden ones: a network whose calls cost about as little as a call can."""

    def __init__(self, width: int = MLP[1], hidden: int = 128) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(F.silu(self.first(x) + t[:, None] * 1e-3))


@dataclass(frozen=True)
class Case:
    """What is measured together.

    Attributes:
        sides: each makes one call.
        weights: what is asked for, as sums of the sides' seconds in the same round.
    """

    sides: dict[str, Callable[[], Any]]
    weights: Weights

    def turn(self, repeats: dict[str, int], backwards: bool = False) -> Seconds:
        """Seconds for a call of each side, one after the other, each after an untimed call."""
        return {name: timed(self.sides[name], repeats[name]) for name in sorted(self.sides, reverse=backwards)}

    def repeats(self) -> dict[str, int]:
        """How many calls of each side make a turn."""
        each = {name: min(timed(call, 1) for _ in range(5)) for name, call in self.sides.items()}
        return {name: max(1, round(TURN / seconds)) for name, seconds in each.items()}


def costs(weights: Weights, seconds: Seconds) -> dict[str, float]:
    """Microseconds."""
    return {name: 1e6 * sum(w * seconds[side] for side, w in each.items()) for name, each in weights.items()}


def best(weights: Weights, turns: list[Seconds]) -> dict[str, float]:
    """The costs from each side's quickest turn: on a busy machine, the only ones that tell."""
    return costs(weights, {side: min(turn[side] for turn in turns) for side in turns[0]})


def timed(call: Callable[[], Any], repeats: int) -> float:
    """Seconds for a call, after one that brings memory into the caches."""
    call()
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def free(shape: tuple[int, ...], device: str = "cpu") -> Network:
    """A network that costs nothing."""
    answer = torch.zeros(shape, device=device)
    return lambda x, t: answer


def mlp() -> Network:
    """The small network, with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Mlp().eval().requires_grad_(False)


def call_cost(
    network: Network, shape: tuple[int, ...], solver: str, steps: tuple[int, int], device: str = "cpu"
) -> Case:
    """A call's fixed cost, and a row's beside the network: samplers of few and of many rows, and bare network calls.

    Over rows a call's time is a line. Its slope less a bare network call is what a row adds, its height at no rows
    is the cost of a call.

    Args:
        steps: of the two plans.
    """
    plans = (pf.make_plan(solver, steps=n, spacing="trailing") for n in steps)
    short, long = (pf.Sampler(network, plan, shape=shape, device=device) for plan in plans)
    check(short)
    check(long)
    few, many = short.plan.nfe, long.plan.nfe
    x, t = torch.randn(shape, device=device), torch.full(shape[:1], 500.0, device=device)

    @torch.no_grad()
    def bare() -> None:
        for _ in range(many):
            network(x, t)

    rows = many - few
    weights = {
        "fixed": {"short": 1 + few / rows, "long": -few / rows},
        "row": {"long": 1 / rows, "short": -1 / rows, "bare": -1 / many},
        "call": {"long": 1.0},
        "network": {"bare": 1 / many},
    }
    return Case({"short": lambda: short(seeds=0), "long": lambda: long(seeds=0), "bare": bare}, weights)


def whole(batch: int, steps: int = 5) -> Case:
    """A sample of the packaged MNIST network."""
    sampler = pf.Sampler(demo.mnist_unet(), pf.make_plan("ddim", steps=steps), shape=(batch, 1, 28, 28))
    check(sampler)
    return Case({"sample": lambda: sampler(seeds=0)}, {"sample": {"sample": 1.0}})


def planning(solver: str, steps: int = 50) -> Case:
    """Making a plan."""
    return Case({"plan": lambda: pf.make_plan(solver, steps=steps)}, {"plan": {"plan": 1.0}})


CASES: dict[str, Callable[[], Case]] = {
    "mlp ddim": lambda: call_cost(mlp(), MLP, "ddim", (1, 50)),
    "mlp f-pndm": lambda: call_cost(mlp(), MLP, "f-pndm", (4, 50)),
    "plms 3x32x32 B1": lambda: call_cost(free((1, 3, 32, 32)), (1, 3, 32, 32), "plms", (10, 100)),
    "plms 3x32x32 B16": lambda: call_cost(free((16, 3, 32, 32)), (16, 3, 32, 32), "plms", (10, 100)),
    "plms 4x64x64 B1": lambda: call_cost(free((1, 4, 64, 64)), (1, 4, 64, 64), "plms", (10, 100)),
    "plms 4x64x64 B16": lambda: call_cost(free((16, 4, 64, 64)), (16, 4, 64, 64), "plms", (10, 100)),
    "mnist B1": lambda: whole(1),
    "mnist B4": lambda: whole(4),
    "make_plan ddim": lambda: planning("ddim"),
    "make_plan f-pndm": lambda: planning("f-pndm"),
    "make_plan unipc": lambda: planning("unipc"),
}


def check(sampler: pf.Sampler) -> None:
    """Assert that a sampler's images are those of a plain loop over its plan, to rounding.

    Both start from what the network is first given.
    """
    network, seen = sampler.model, []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.clone())
        out = network(x, t)
        return out if isinstance(out, Tensor) else out.sample

    got = sampler(seeds=0)
    pf.Sampler(watched, sampler.plan, shape=tuple(got.shape), device=got.device)(seeds=0)
    expected = loop(watched, sampler.plan, seen[0])
    assert got.isfinite().all()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def loop(network: Network, plan: pf.Plan, start: Tensor) -> Tensor:
    """The rows of a deterministic plan as `Row` defines them, in plain torch; networks that take y as it is."""
    x = y = start
    slots: dict[int, Tensor] = {}
    for row in plan.rows:
        out = network(y, torch.full((len(y),), row.t, device=y.device))
        slots[row.slot] = row.store[0] * y + row.store[1] * out
        read = [x, y, *(slots.get(k) for k in range(len(row.y) - 3))]
        x, y = (
            sum((c * tensor for c, tensor in zip(form, read, strict=False) if c), torch.zeros_like(y))
            for form in (row.x, row.y)
        )
    return y


def answer() -> None:
    """Serve {"case", "threads", "backwards"} with the seconds of one turn, until the input ends."""
    made: dict[tuple[str, int], tuple[Case, dict[str, int]]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        key = asked["case"], asked["threads"]
        torch.set_num_threads(asked["threads"])
        if key not in made:
            case = CASES[asked["case"]]()
            made[key] = case, case.repeats()
        case, repeats = made[key]
        print(json.dumps({"weights": case.weights, "seconds": case.turn(repeats, asked["backwards"])}), flush=True)


if __name__ == "__main__":
    answer()
