"""A sampling engine for diffusion models: a sampler is a plan, one fused operation runs any row of any plan."""

from pndm_fast import phase_space, solvers
from pndm_fast.loop.nvtx import nvtx_ranges
from pndm_fast.loop.oracle import probability_flow
from pndm_fast.loop.results import BadSample, Cancel, Cancelled, NonFiniteError, Report, Step
from pndm_fast.loop.wrappers import Guided, Thresholded
from pndm_fast.plan.levels import Level, Levels
from pndm_fast.plan.plan import Plan, Prologue, Row, Store
from pndm_fast.plan.schedule import Schedule
from pndm_fast.row import op as ops
from pndm_fast.runtime.cache import clear
from pndm_fast.runtime.sample import sample
from pndm_fast.runtime.sampler import Sampler
from pndm_fast.solvers import SOLVERS
from pndm_fast.solvers.make import make_plan

__version__ = "0.1.0"

__all__ = [
    "SOLVERS",
    "BadSample",
    "Cancel",
    "Cancelled",
    "Guided",
    "Level",
    "Levels",
    "NonFiniteError",
    "Plan",
    "Prologue",
    "Report",
    "Row",
    "Sampler",
    "Schedule",
    "Step",
    "Store",
    "Thresholded",
    "clear",
    "make_plan",
    "nvtx_ranges",
    "ops",
    "phase_space",
    "probability_flow",
    "sample",
    "solvers",
]
