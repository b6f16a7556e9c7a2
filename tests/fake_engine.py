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
class Taken:
    """A request that was checked, and then runs."""

    request: pf.Request
    priority: int
    call: Any
    number: int = 0
    done: int = 0
    look: Any = None


@dataclass(eq=False)
class FakeEngine:
    """First in, first out within a priority; a request's samples are its seeds, [B, 1], and so are estimates.

    Attributes:
        network: called with the numbers of the requests whose rows are run.
        bad: seeds whose requests end in an ArithmeticError.
        estimates: how many of x_0 were made.
    """

    capacity: int = 4
    network: Any = lambda numbers: None
    bad: tuple[int, ...] = ()
    costs: dict[int, float] = field(default_factory=dict)
    device: torch.device = torch.device("cpu")
    on_begin: Any = None
    max_queue: int | None = None
    estimates: int = 0

    def __post_init__(self):
        self.line, self.active, self.over, self.next = [], [], [], 0
        self.stats = SimpleNamespace(rows=0, network_calls=0, lane_rows=0)

    @property
    def idle(self):
        return not (self.line or self.active or self.over)

    def checked(self, request, priority):
        if request.plan is None:
            raise ValueError("plan must be given: the engine has none")
        return Taken(request, priority, SimpleNamespace(nfe=request.plan.nfe, real=len(request.seeds)))

    def together(self, taken):
        return self.capacity

    def enter(self, taken):
        self.next += 1
        taken.number = self.next
        self.line.append(taken)
        return taken.number

    def cancel(self, number):
        for place in (self.line, self.active):
            for one in [one for one in place if one.number == number]:
                place.remove(one)
                self.over.append(SimpleNamespace(id=number, result=None, error=pf.Cancelled(one.done - 1, None, None)))
                return True
        return False

    def done(self, number):
        return next((one.done for one in self.active if one.number == number), 0)

    def watch(self, number, look):
        for one in [*self.line, *self.active]:
            if one.number == number:
                one.look = look

    def step(self):
        self.line.sort(key=lambda one: (-one.priority, one.number))
        used = sum(one.call.real for one in self.active)
        while self.line and used + self.line[0].call.real <= self.capacity:
            one = self.line.pop(0)
            self.active.append(one)
            used += one.call.real
            if self.on_begin:
                self.on_begin(one.number)
        if self.active:
            self._row(used)
        over, self.over = self.over, []
        return over

    def _row(self, used):
        try:
            self.network([one.number for one in self.active])
        except Exception as error:
            self.over += [SimpleNamespace(id=one.number, result=None, error=error) for one in self.active]
            self.active = []
            return
        self.stats.rows += 1
        self.stats.network_calls += 1
        self.stats.lane_rows += used
        for one in self.active:
            one.done += 1
            look, one.look = one.look, None
            if look is not None:
                self.estimates += 1
                look(SimpleNamespace(index=one.done - 1, nfe=one.call.nfe, x0=samples(one)))
        self.over += [self._ended(one) for one in self.active if one.done == one.call.nfe]
        self.active = [one for one in self.active if one.done < one.call.nfe]

    def _ended(self, one):
        if any(seed in self.bad for seed in one.request.seeds):
            return SimpleNamespace(id=one.number, result=None, error=ArithmeticError(f"bad: {one.request.seeds}"))
        return SimpleNamespace(id=one.number, result=pf.Result(samples(one), None), error=None)


def samples(one):
    return torch.tensor([[float(seed)] for seed in one.request.seeds])
