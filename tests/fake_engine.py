"""An engine without a network: what a worker asks of one, and rows that cost what a test says."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

import pndm_fast as pf

PLAN = {n: pf.make_plan("ddim", steps=n, spacing="trailing") for n in (1, 2, 3, 5, 8, 20, 50)}


def request(rows=5, seeds=0, **more):
    return pf.Request(plan=PLAN[rows], seeds=[seeds] if isinstance(seeds, int) else seeds, **more)


@dataclass(eq=False)
class Running:
    id: int
    priority: int
    call: Any
    done: int = 0


@dataclass(eq=False)
class FakeEngine:
    """First in, first out within a priority; a request's samples are its seeds, [B, 1].

    Attributes:
        network: called with the ids of the requests whose rows are run.
        bad: seeds whose requests end in an ArithmeticError.
        estimates: how many of x_0 were made.
    """

    capacity: int = 4
    network: Any = lambda ids: None
    bad: tuple[int, ...] = ()
    known: dict[int, float] = field(default_factory=dict)
    device: torch.device = torch.device("cpu")
    calls: int = 0
    lane_rows: int = 0
    estimates: int = 0

    def __post_init__(self):
        self.line, self.active, self.fresh, self.cancelled, self.next = [], [], [], [], 0

    @property
    def idle(self):
        return not self.line and not self.active

    def costs(self):
        return self.known

    def checked(self, request):
        if request.plan is None:
            raise ValueError("plan must be given: the engine has none")
        return SimpleNamespace(request=request, nfe=request.plan.nfe, real=len(request.seeds))

    def add(self, call, *, priority=0):
        self.next += 1
        self.line.append(Running(self.next, priority, call))
        return self.next

    def cancel(self, id):
        self.cancelled.append(id)
        before = len(self.line) + len(self.active)
        self.line = [one for one in self.line if one.id != id]
        self.active = [one for one in self.active if one.id != id]
        return len(self.line) + len(self.active) < before

    def begun(self):
        fresh, self.fresh = self.fresh, []
        return fresh

    def done(self, id):
        return next((one.done for one in self.active if one.id == id), 0)

    def x0(self, id):
        self.estimates += 1
        return torch.tensor([[float(seed)] for one in self.active if one.id == id for seed in one.call.request.seeds])

    def step(self):
        self.line.sort(key=lambda one: (-one.priority, one.id))
        used = sum(one.call.real for one in self.active)
        while self.line and used + self.line[0].call.real <= self.capacity:
            self.active.append(self.line.pop(0))
            self.fresh.append(self.active[-1].id)
            used += self.active[-1].call.real
        if not self.active:
            return []
        self.network([one.id for one in self.active])
        self.calls += 1
        self.lane_rows += used
        for one in self.active:
            one.done += 1
        ended = [one for one in self.active if one.done == one.call.nfe]
        self.active = [one for one in self.active if one.done < one.call.nfe]
        return [self._ended(one) for one in ended]

    def _ended(self, one):
        seeds = one.call.request.seeds
        if any(seed in self.bad for seed in seeds):
            return SimpleNamespace(id=one.id, result=None, error=ArithmeticError(f"bad seed {seeds}"))
        samples = torch.tensor([[float(seed)] for seed in seeds])
        return SimpleNamespace(id=one.id, result=pf.Result(samples, None), error=None)
