"""What samplers and grids are called in ComfyUI, k-diffusion, web UIs and diffusers, and what they are called here.

The one table of it: messages look in it, and `docs/names.md` is made of it. Whether a name is here is asked of `HERE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

HERE: dict[str, set[str]] = {"solver": set(), "spacing": set()}
"""The names that there are: solvers and grids put theirs here."""
REASONS: dict[str, str] = {}
"""Why a class of diffusers has no plan: `solvers.foreign` puts them here."""


class Name(NamedTuple):
    """A sampler or a grid, by what it is called elsewhere.

    Attributes:
        ours: its name here, whether it is here yet or not; None where it can be no plan, and `note` says why.
        comfy, k, webui, diffusers: its names in ComfyUI, k-diffusion, AUTOMATIC1111 and Forge, and diffusers, where
            (option=value) picks one of those that a class has; with commas where there are several.
        also: further spellings, of papers and programs.
        options: the solver's, for the same steps.
        note: what differs, or what else must be said.
    """

    ours: str | None
    comfy: str = ""
    k: str = ""
    webui: str = ""
    diffusers: str = ""
    also: str = ""
    options: Mapping[str, Any] = MappingProxyType({})
    note: str = ""

    def spellings(self) -> Iterable[str]:
        """All of them but those with an option."""
        for names in (self.comfy, self.k, self.webui, self.diffusers, self.also):
            yield from (name for name in separate(names) if "(" not in name)


def separate(names: str) -> list[str]:
    """At commas, but for those between parentheses."""
    return [name for name in re.split(r", (?![^(]*\))", names) if name]


_ADAPTIVE = "its steps follow an estimate of their error, and a plan is known before sampling starts"
_EDM = "on Schedule.edm() with prediction='edm'"
_FLOW = "on Schedule.flow(shift)"
_CFG = "guidance is its own: the call's scale is CFG++'s"
_SPLIT = "ComfyUI's on flow schedules has split='flow'"
_MULTISTEP, _SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"

SAMPLERS: tuple[Name, ...] = (
    Name("euler", "euler", "sample_euler", "Euler", "EulerDiscreteScheduler", also="k_euler"),
    Name("euler", diffusers="FlowMatchEulerDiscreteScheduler", note=_FLOW),
    Name("euler", diffusers="EDMEulerScheduler", note=_EDM),
    Name("euler", diffusers="MiniMaxH3Scheduler", note=f"{_FLOW}, whose times run the other way"),
    Name("euler-ancestral", "euler_ancestral", "sample_euler_ancestral", "Euler a", "EulerAncestralDiscreteScheduler",
         also="k_euler_a", note=_SPLIT),
    Name("euler-ancestral", diffusers="LTXEulerAncestralRFScheduler", options={"split": "flow"}, note=_FLOW),
    Name("euler-cfg-pp", "euler_cfg_pp", webui="DDIM CFG++, Euler CFG++", note=_CFG),
    Name("euler-ancestral-cfg-pp", "euler_ancestral_cfg_pp", webui="Euler a CFG++", note=_CFG),
    Name("heun", "heun", "sample_heun", "Heun", "HeunDiscreteScheduler", note="with s_churn it is 'edm'"),
    Name("heun", diffusers="FlowMatchHeunDiscreteScheduler", note=_FLOW),
    Name("edm", diffusers="KarrasVeScheduler", note=_EDM),
    Name("heunpp2", "heunpp2", webui="HeunPP2"),
    Name("exp-heun-2-x0", "exp_heun_2_x0"),
    Name("exp-heun-2-x0-sde", "exp_heun_2_x0_sde"),
    Name("dpm-2", "dpm_2", "sample_dpm_2", "DPM2", "KDPM2DiscreteScheduler", also="k_dpm_2, kdpm_2"),
    Name("dpm-2-ancestral", "dpm_2_ancestral", "sample_dpm_2_ancestral", "DPM2 a", "KDPM2AncestralDiscreteScheduler",
         also="k_dpm_2_a, kdpm_2_a, dpm_2_a", note=_SPLIT),
    Name("lms", "lms", "sample_lms", "LMS", "LMSDiscreteScheduler", also="k_lms"),
    Name("dpm-fast", "dpm_fast", "sample_dpm_fast", "DPM fast"),
    Name(None, "dpm_adaptive", "sample_dpm_adaptive", "DPM adaptive", note=_ADAPTIVE),
    Name("dpmpp-2s-ancestral", "dpmpp_2s_ancestral", "sample_dpmpp_2s_ancestral", "DPM++ 2S a", also="dpmpp_2s_a",
         note=_SPLIT),
    Name("dpmpp-2s-ancestral-cfg-pp", "dpmpp_2s_ancestral_cfg_pp", options={"rule": "comfyui"}, note=_CFG),
    Name("dpmpp-sde", "dpmpp_sde, dpmpp_sde_gpu", "sample_dpmpp_sde", "DPM++ SDE", "DPMSolverSDEScheduler"),
    Name("dpmpp-2m", "dpmpp_2m", "sample_dpmpp_2m", "DPM++ 2M", _MULTISTEP, also="dpmsolver++"),
    Name("dpmpp-2m", diffusers="EDMDPMSolverMultistepScheduler", note=_EDM),
    Name("dpmpp-2m", diffusers=f"{_MULTISTEP}(solver_type='heun')", options={"solver_type": "heun"}),
    Name("dpmpp-3m", diffusers=f"{_MULTISTEP}(solver_order=3)"),
    Name("dpm-solver-1", diffusers=f"{_MULTISTEP}(algorithm_type='dpmsolver', solver_order=1)"),
    Name("dpm-solver-2", diffusers=f"{_MULTISTEP}(algorithm_type='dpmsolver')", also="dpmsolver",
         options={"multistep": True}),
    Name("dpm-solver-3", diffusers=f"{_MULTISTEP}(algorithm_type='dpmsolver', solver_order=3)",
         options={"multistep": True}),
    Name("dpmpp-2s", diffusers=_SINGLESTEP),
    Name("dpmpp-2m-cfg-pp", "dpmpp_2m_cfg_pp", webui="DPM++ 2M CFG++", options={"rule": "comfyui"}, note=_CFG),
    Name("dpmpp-2m-sde", "dpmpp_2m_sde, dpmpp_2m_sde_gpu", "sample_dpmpp_2m_sde", "DPM++ 2M SDE",
         f"{_MULTISTEP}(algorithm_type='sde-dpmsolver++')", also="sde-dpmsolver++"),
    Name("dpmpp-2m-sde", "dpmpp_2m_sde_heun, dpmpp_2m_sde_heun_gpu", "sample_dpmpp_2m_sde(solver_type='heun')",
         "DPM++ 2M SDE Heun", f"{_MULTISTEP}(algorithm_type='sde-dpmsolver++', solver_type='heun')",
         options={"solver_type": "heun"}),
    Name("dpmpp-2m-sde", diffusers="CosineDPMSolverMultistepScheduler", note=_EDM),
    Name("dpmpp-3m-sde", "dpmpp_3m_sde, dpmpp_3m_sde_gpu", "sample_dpmpp_3m_sde", "DPM++ 3M SDE",
         options={"solver_type": "heun", "lower_order_final": False}),
    Name("ddpm", "ddpm", webui="DDPM", diffusers="DDPMScheduler, DDPMParallelScheduler, DDPMWuerstchenScheduler"),
    Name("lcm", "lcm", webui="LCM", diffusers="LCMScheduler"),
    Name("lcm", diffusers="FlowMatchLCMScheduler", note=_FLOW),
    Name("ipndm", "ipndm", webui="IPNDM", diffusers="IPNDMScheduler"),
    Name("ipndm-v", "ipndm_v", webui="IPNDM_V", note="ComfyUI's weights of orders 3 and 4 are others"),
    Name("deis", "deis", webui="DEIS", diffusers="DEISMultistepScheduler",
         note="ComfyUI sums its integrals, diffusers' variable is 'log_rho'"),
    Name("res-2m", "res_multistep", webui="Res Multistep"),
    Name("res-multistep-cfg-pp", "res_multistep_cfg_pp", note=_CFG),
    Name("res-multistep-ancestral", "res_multistep_ancestral", webui="Res Multistep Ancestral", note=_SPLIT),
    Name("res-multistep-ancestral-cfg-pp", "res_multistep_ancestral_cfg_pp", note=_CFG),
    Name("gradient-estimation", "gradient_estimation", webui="Gradient Estimation"),
    Name("gradient-estimation-cfg-pp", "gradient_estimation_cfg_pp", note=_CFG),
    Name("er-sde", "er_sde", webui="ER SDE"),
    Name("seeds-2", "seeds_2", webui="SEEDS 2"),
    Name("seeds-3", "seeds_3", webui="SEEDS 3"),
    Name("sa-solver", "sa_solver", webui="SA Solver", diffusers="SASolverScheduler"),
    Name("sa-solver-pece", "sa_solver_pece", webui="SA Solver PECE"),
    Name("ddim", "ddim", webui="DDIM", diffusers="DDIMScheduler, DDIMParallelScheduler, CogVideoXDDIMScheduler"),
    Name("ddim-inverse", diffusers="DDIMInverseScheduler, DPMSolverMultistepInverseScheduler"),
    Name("unipc", "uni_pc", webui="UniPC",
         options={"order": 3, "variant": "bh1", "lower_order_final": True}),
    Name("unipc", "uni_pc_bh2", options={"order": 3, "lower_order_final": True}),
    Name("unipc", diffusers="UniPCMultistepScheduler"),
    Name("plms", webui="PLMS", diffusers="PNDMScheduler(skip_prk_steps=True)"),
    Name("f-pndm", diffusers="PNDMScheduler", also="pndm", note="with skip_prk_steps=True, as most are saved, 'plms'"),
    Name("tcd", webui="TCD", diffusers="TCDScheduler"),
    Name("tcd", diffusers="SCMScheduler", options={"eta": 1.0}, note="on Schedule.trigflow() with prediction='v'"),
    Name("consistency", diffusers="CMStochasticIterativeScheduler", note=_EDM),
    Name("restart", webui="Restart", note="web UIs' restarts end on levels of the grid, and take (N, 2, 0.1, 2), N = "
         "steps // 4 + 1, from 36 steps on, none below 20"),
)  # fmt: skip

GRIDS: tuple[Name, ...] = (
    Name("karras", "karras", "get_sigmas_karras", "Karras", "use_karras_sigmas", also="k"),
    Name("exponential", "exponential", "get_sigmas_exponential", "Exponential", "use_exponential_sigmas"),
    Name("logsnr", diffusers="use_lu_lambdas", also="time_logsnr"),
    Name("polyexponential", k="get_sigmas_polyexponential", webui="Polyexponential"),
    Name("beta", "beta", webui="Beta", diffusers="use_beta_sigmas",
         note="ComfyUI's quantiles are 1 - i/n, at whole times"),
    Name("normal", "normal", webui="Normal"),
    Name("linspace", webui="Automatic, Uniform", diffusers="timestep_spacing='linspace'"),
    Name("leading", diffusers="timestep_spacing='leading'"),
    Name("trailing", webui="Turbo", diffusers="timestep_spacing='trailing'", also="time_uniform",
         note="of SD-Turbo, SDXL-Turbo, SDXL-Lightning, Hyper-SD and FLUX.1-schnell too"),
    Name("sgm-uniform", "sgm_uniform", webui="SGM Uniform"),
    Name("simple", "simple", webui="Simple"),
    Name("ddim-uniform", "ddim_uniform", webui="DDIM"),
    Name("linear-quadratic", "linear_quadratic"),
    Name("kl-optimal", "kl_optimal", webui="KL Optimal"),
    Name("beta57", also="beta57"),
    Name("bong-tangent", also="bong_tangent"),
    Name("laplace", also="laplace"),
    Name("ays-sd1", webui="Align Your Steps", also="AlignYourStepsScheduler, ays",
         note="'ays-sdxl' for XL, 'ays-svd' for video"),
    Name("gits-sd", also="GITSScheduler"),
    Name("oss-flux", also="OptimalStepsScheduler", note="'oss-wan' for Wan"),
    Name("dmd2-sdxl", also="DMD2", note="1 or 4 steps, with solver 'lcm'"),
    Name("hyper-sdxl", also="Hyper-SDXL", note="1 step, with solver 'lcm'; of more steps 'trailing', with 'tcd'"),
    Name("flux2-turbo", also="FLUX.2-Turbo", note="8 steps"),
    Name("ltx-distilled", also="ltx-distilled", note="8 steps, or 3 of the second stage"),
    Name("fastwan", also="FastWan", note="3 steps, with solver 'lcm'"),
)  # fmt: skip
_TABLES = {"solver": SAMPLERS, "spacing": GRIDS}


def plain(word: str) -> str:
    """A word as its spellings have it in common: "DPM++ 2M" is dpmpp-2m."""
    return word.lower().replace("++", "pp").replace("_", "-").replace(" ", "-")


_ROWS: dict[str, dict[str, Name]] = {
    what: {plain(word): name for name in reversed(table) for word in name.spellings()}
    for what, table in _TABLES.items()
}


def find(what: str, word: str) -> tuple[Name | None, Name | None]:
    """(row, grid) of another library's word for a solver or a spacing; a grid's may stand behind a solver's."""
    rows, text = _ROWS.get(what, {}), plain(word)
    if text in rows or what != "solver":
        return rows.get(text), None
    for grid, row in _ROWS["spacing"].items():
        before = text.removesuffix(f"-{grid}")
        ours = own_name("solver", Name(before))
        if before != text and (before in rows or ours):
            return rows.get(before) or Name(ours), row
    return None, None


def own_name(what: str, name: Name) -> str | None:
    """What it is called here, or None where it is not here."""
    wanted = name.ours and plain(name.ours)
    return next((one for one in sorted(HERE[what]) if plain(one) == wanted), None)


def told(what: str, word: str, known: Iterable[str]) -> str | None:
    """The end of a message about another library's word: what it is called here, or why it has no name.

    None where nothing is known of it, or where it is not among those that are known here.
    """
    row, grid = find(what, word)
    if row is None:
        return f"; {word} has no plan: {REASONS[word]}" if what == "solver" and word in REASONS else None
    if row.ours is None:
        return f"; it cannot be a plan: {row.note}"
    ours = own_name(what, row)
    if ours is None:
        return f"; it is not here yet{f': {row.note}' if row.note else ''}"
    if ours not in known:
        return None
    spacing = own_name("spacing", grid) if grid else None
    missing = f" The grid {grid.webui} is not here yet" if grid and not spacing else ""
    options = {**row.options, **({"spacing": spacing} if spacing else {})}
    more = "".join(f", {option}={value!r}" for option, value in options.items())
    note = f" {row.note}" if row.note else ""
    return f"; did you mean {ours!r}{more}?{note}{missing}"
