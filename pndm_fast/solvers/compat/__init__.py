"""Plans that reproduce another library's scheduler to rounding, its quirks included."""

from __future__ import annotations

from collections.abc import Callable

from pndm_fast import solvers
from pndm_fast.plan.plan import Plan
from pndm_fast.solvers.compat import schedulers
from pndm_fast.solvers.compat.pndm import diffusers_ddim, diffusers_f_pndm, diffusers_plms

MULTISTEP = ("dpm-solver-1", "dpm-solver-2", "dpm-solver-3", "dpmpp-2m", "dpmpp-3m", "dpmpp-2m-sde")

COMPAT: dict[str, dict[str, Callable[..., Plan]]] = {
    "diffusers": {
        "plms": diffusers_plms,
        "f-pndm": diffusers_f_pndm,
        "ddim": diffusers_ddim,
        "ddpm": schedulers.ddpm,
        "ddim-inverse": schedulers.ddim_inverse,
        "lcm": schedulers.lcm,
        **{name: schedulers.multistep(name, solvers.SOLVERS[name]) for name in MULTISTEP},
        "dpmpp-2s": schedulers.singlestep(solvers.dpmpp_2s),
        "deis": schedulers.deis,
        "unipc": schedulers.unipc,
        "euler": schedulers.sigma(solvers.euler),
        "euler-ancestral": schedulers.sigma(solvers.euler_ancestral),
        "heun": schedulers.sigma(solvers.heun),
        "lms": schedulers.sigma(solvers.lms),
        "dpmpp-sde": schedulers.sigma(solvers.dpmpp_sde, one_path=False),
    }
}
