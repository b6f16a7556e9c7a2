"""Solvers: functions from a schedule to a `Plan`; `SOLVERS` and `SOLVER_INFO` have them by name."""

from pndm_fast.solvers.adams import deis, gradient_estimation, ipndm_v, lms
from pndm_fast.solvers.cfg_pp import (
    dpmpp_2m_cfg_pp,
    dpmpp_2s_ancestral_cfg_pp,
    euler_ancestral_cfg_pp,
    euler_cfg_pp,
    gradient_estimation_cfg_pp,
    res_multistep_ancestral_cfg_pp,
    res_multistep_cfg_pp,
)
from pndm_fast.solvers.consistency import consistency, tcd
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
from pndm_fast.solvers.exponential_rk import (
    dpmpp_2s_ancestral,
    dpmpp_3s,
    exp_heun_2_x0,
    exp_heun_2_x0_sde,
    res_2s,
    res_3s,
    seeds_2,
    seeds_3,
)
from pndm_fast.solvers.fon import fon, fon_rk4
from pndm_fast.solvers.heun import edm, heun, heunpp2
from pndm_fast.solvers.k_diffusion import dpm_2, dpm_2_ancestral, dpm_fast, res_2m, res_3m, res_multistep_ancestral
from pndm_fast.solvers.one_step import ddim, ddim_inverse, ddpm, euler, euler_ancestral, lcm
from pndm_fast.solvers.phase.conjugate import conjugate, lambda_ddim
from pndm_fast.solvers.phase.langevin import coba, em, noba, nobab, obab, roba, sscs
from pndm_fast.solvers.phase.splitting import cse, cvv, nse, nvv, rse, rvv
from pndm_fast.solvers.pndm import f_pndm, ipndm, plms, s_pndm
from pndm_fast.solvers.registry import SOLVER_INFO, SOLVERS, Solver, SolverInfo, source
from pndm_fast.solvers.restart import alphafold_3, restart
from pndm_fast.solvers.runge_kutta import TABLEAUX, Tableau, rk
from pndm_fast.solvers.stochastic import er_sde, sa_solver, sa_solver_pece
from pndm_fast.solvers.unipc import unipc

__all__ = [
    "SOLVERS",
    "SOLVER_INFO",
    "Solver",
    "SolverInfo",
    "TABLEAUX",
    "Tableau",
    "alphafold_3",
    "coba",
    "conjugate",
    "consistency",
    "cse",
    "cvv",
    "ddim",
    "ddim_inverse",
    "ddpm",
    "deis",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_fast",
    "dpm_solver_1",
    "dpm_solver_2",
    "dpm_solver_3",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_3s",
    "dpmpp_sde",
    "edm",
    "em",
    "er_sde",
    "euler",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "euler_cfg_pp",
    "exp_heun_2_x0",
    "exp_heun_2_x0_sde",
    "f_pndm",
    "fon",
    "fon_rk4",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "heun",
    "heunpp2",
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
    "res_2m",
    "res_2s",
    "res_3m",
    "res_3s",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "res_multistep_cfg_pp",
    "restart",
    "rk",
    "roba",
    "rse",
    "rvv",
    "s_pndm",
    "sa_solver",
    "sa_solver_pece",
    "seeds_2",
    "seeds_3",
    "source",
    "sscs",
    "tcd",
    "unipc",
]
