"""A sampling engine for diffusion models: a sampler is a plan, one fused operation runs any row of any plan."""

from pndm_fast import ops, phase_space, solvers
from pndm_fast.events import BadSample, Cancel, Cancelled, NonFiniteError, Report, Step
from pndm_fast.levels import Level, Levels
from pndm_fast.make_plan import make_plan
from pndm_fast.memory import clear
from pndm_fast.oneshot import sample
from pndm_fast.oracle import probability_flow
from pndm_fast.plan import Plan, Prologue, Row, Store
from pndm_fast.ranges import nvtx_ranges
from pndm_fast.sampler import Sampler
from pndm_fast.schedule import Schedule
from pndm_fast.solvers import SOLVERS
from pndm_fast.wrappers import Guided, Thresholded

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
