"""`draw`: one call with any argument of `make_plan`, `Sampler` or `Request`, where `pf.sample` has the common ones."""

from __future__ import annotations

import inspect

import pndm_fast as pf

SAMPLER, REQUEST = (set(inspect.signature(kind).parameters) - {"plan"} for kind in (pf.Sampler, pf.Request))


def draw(model, steps=None, *, solver=None, shape=None, **arguments):
    """The samples."""
    of_sampler = {name: arguments.pop(name) for name in SAMPLER & arguments.keys()}
    of_request = {name: arguments.pop(name) for name in REQUEST & arguments.keys()}
    if isinstance(solver, pf.Plan):
        assert not arguments and steps is None
        plan = solver
    else:
        plan = pf.make_plan(solver, steps=steps, **arguments)
    return pf.Sampler(model, plan, shape=shape or shape_of(of_request), **of_sampler)(**of_request)


def shape_of(fields):
    """The start's."""
    start = fields.get("start")
    for name in ("values", "x0"):
        if hasattr(start, name):
            return tuple(getattr(start, name).shape)
    return None


class Reporting(pf.Sampler):
    """A sampler that keeps the report of its last call."""

    def run(self, request):
        result = super().run(request)
        self.report = result.report
        return result
