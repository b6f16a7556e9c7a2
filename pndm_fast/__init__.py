"""A sampling engine for diffusion models: a sampler is a plan, one fused operation runs any row of any plan.

Each name is imported when it is first asked for: plans and solvers need no torch, and the command line catches Ctrl-C
before anything that takes long.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pndm_fast import phase_space, solvers
    from pndm_fast.engine.engine import Engine
    from pndm_fast.engine.errors import DeadlineMissed, EngineDown, QueueFull
    from pndm_fast.engine.results import Finished
    from pndm_fast.engine.ticket import Preview, Ticket
    from pndm_fast.engine.worker import Worker
    from pndm_fast.loop.conditioning import PerSample, Shared
    from pndm_fast.loop.guidance import Guidance
    from pndm_fast.loop.nvtx import nvtx_ranges
    from pndm_fast.loop.request import Request
    from pndm_fast.loop.results import BadSample, Cancel, Cancelled, NonFiniteError, Report, Result, Step
    from pndm_fast.loop.starts import Image, Inpaint, Noise, State
    from pndm_fast.loop.wrappers import Thresholded
    from pndm_fast.plan import Level, Levels, OutputMap, Plan, Prologue, Row, Schedule
    from pndm_fast.plan.flow import flow_mu, flux2_mu
    from pndm_fast.row import op as ops
    from pndm_fast.runtime.cache import clear
    from pndm_fast.runtime.sample import sample
    from pndm_fast.runtime.sampler import Sampler
    from pndm_fast.solvers import SOLVERS
    from pndm_fast.solvers.like import plan_like, schedule_of
    from pndm_fast.solvers.make import make_plan
    from pndm_fast.tuning.tune import tune
    from pndm_fast.tuning.tuned import TunedPlan

__version__ = "0.2.0.dev0"

_LATER = {
    "SOLVERS": "solvers",
    "BadSample": "loop.results",
    "Cancel": "loop.results",
    "Cancelled": "loop.results",
    "DeadlineMissed": "engine.errors",
    "Engine": "engine.engine",
    "EngineDown": "engine.errors",
    "Finished": "engine.results",
    "Guidance": "loop.guidance",
    "Image": "loop.starts",
    "Inpaint": "loop.starts",
    "Level": "plan",
    "Levels": "plan",
    "Noise": "loop.starts",
    "NonFiniteError": "loop.results",
    "OutputMap": "plan",
    "PerSample": "loop.conditioning",
    "Plan": "plan",
    "Preview": "engine.ticket",
    "Prologue": "plan",
    "QueueFull": "engine.errors",
    "Report": "loop.results",
    "Request": "loop.request",
    "Result": "loop.results",
    "Row": "plan",
    "Sampler": "runtime.sampler",
    "Schedule": "plan",
    "Shared": "loop.conditioning",
    "State": "loop.starts",
    "Step": "loop.results",
    "Thresholded": "loop.wrappers",
    "Ticket": "engine.ticket",
    "TunedPlan": "tuning.tuned",
    "Worker": "engine.worker",
    "clear": "runtime.cache",
    "flow_mu": "plan.flow",
    "flux2_mu": "plan.flow",
    "make_plan": "solvers.make",
    "nvtx_ranges": "loop.nvtx",
    "ops": "row.op",
    "plan_like": "solvers.like",
    "sample": "runtime.sample",
    "schedule_of": "solvers.like",
    "tune": "tuning.tune",
}
_ROOMS = ("phase_space", "plan", "solvers")

__all__ = [
    "SOLVERS",
    "BadSample",
    "Cancel",
    "Cancelled",
    "DeadlineMissed",
    "Engine",
    "EngineDown",
    "Finished",
    "Guidance",
    "Image",
    "Inpaint",
    "Level",
    "Levels",
    "Noise",
    "NonFiniteError",
    "OutputMap",
    "PerSample",
    "Plan",
    "Preview",
    "Prologue",
    "QueueFull",
    "Report",
    "Request",
    "Result",
    "Row",
    "Sampler",
    "Schedule",
    "Shared",
    "State",
    "Step",
    "Thresholded",
    "Ticket",
    "TunedPlan",
    "Worker",
    "clear",
    "flow_mu",
    "flux2_mu",
    "make_plan",
    "nvtx_ranges",
    "ops",
    "phase_space",
    "plan_like",
    "sample",
    "schedule_of",
    "solvers",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_LATER[name]}")
    value = globals()[name] = getattr(module, name, module)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
