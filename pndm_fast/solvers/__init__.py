"""Solvers: functions from a schedule to a `Plan`; `SOLVERS` and `SOLVER_INFO` have them by name."""

from pndm_fast.solvers.adams import deis, ipndm_v, lms
from pndm_fast.solvers.dpm import (
    dpm_solver_1,
    dpm_solver_2,
    dpm_solver_3,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from pndm_fast.solvers.fon import fon, fon_rk4
from pndm_fast.solvers.heun import edm, heun
from pndm_fast.solvers.one_step import ddim, ddim_inverse, ddpm, euler, euler_ancestral, lcm
from pndm_fast.solvers.phase.conjugate import conjugate, lambda_ddim
from pndm_fast.solvers.phase.langevin import coba, em, noba, nobab, obab, roba, sscs
from pndm_fast.solvers.phase.splitting import cse, cvv, nse, nvv, rse, rvv
from pndm_fast.solvers.pndm import f_pndm, ipndm, plms, s_pndm
from pndm_fast.solvers.registry import SOLVER_INFO, SOLVERS, Solver, SolverInfo, source
from pndm_fast.solvers.unipc import unipc

__all__ = [
    "SOLVER_INFO",
    "SOLVERS",
    "SolverInfo",
    "Solver",
    "coba",
    "conjugate",
    "cse",
    "cvv",
    "ddim",
    "ddim_inverse",
    "ddpm",
    "deis",
    "dpm_solver_1",
    "dpm_solver_2",
    "dpm_solver_3",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "edm",
    "em",
    "euler",
    "euler_ancestral",
    "f_pndm",
    "fon",
    "fon_rk4",
    "heun",
    "ipndm",
    "ipndm_v",
    "lambda_ddim",
    "lcm",
    "lms",
    "noba",
    "nobab",
    "nse",
    "nvv",
    "obab",
    "plms",
    "roba",
    "rse",
    "rvv",
    "s_pndm",
    "source",
    "sscs",
    "unipc",
]
