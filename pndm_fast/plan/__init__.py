"""A sampler as data: schedules, grids, levels, rows and plans. Numbers alone: nothing here imports torch."""

from pndm_fast.plan.levels import Level, Levels, PhaseLevel
from pndm_fast.plan.named_grids import named_grid
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.row import OutputMap, Prologue, Row
from pndm_fast.plan.schedule import Schedule

__all__ = ["PSLD", "Level", "Levels", "OutputMap", "PhaseLevel", "Plan", "Prologue", "Row", "Schedule", "named_grid"]
