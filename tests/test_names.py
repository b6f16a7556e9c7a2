"""Other libraries' names: each is refused with ours, or with the reason why there is none; `docs/` has them as tables.

`python tests/test_names.py` writes docs/names.md and docs/schedulers.md; tests compare them.
"""

import inspect
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import pndm_fast as pf
from pndm_fast.cli.plans import schedules_of
from pndm_fast.plan.names import GRIDS, HERE, REASONS, SAMPLERS, Name, own_name, plain, separate
from pndm_fast.solvers.compat import COMPAT, SCHEDULERS
from pndm_fast.solvers.foreign import FIXED, REFUSED, SAME_AS

DOCS = Path(__file__).parent.parent / "docs"
TABLES = {"solver": SAMPLERS, "spacing": GRIDS}
# ComfyUI's lists of samplers and schedulers
COMFY = """euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0 exp_heun_2_x0_sde dpm_2
dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m
dpmpp_2m_cfg_pp dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm
lcm ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral res_multistep_ancestral_cfg_pp
gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2 seeds_3 sa_solver sa_solver_pece ddim uni_pc
uni_pc_bh2""".split()
# Forge's: its samplers with AUTOMATIC1111's, DDIM CFG++ of its timesteps among them, and its schedule types
WEBUI = """DPM++ 2M, DPM++ SDE, DPM++ 2M SDE, DPM++ 2M SDE Heun, DPM++ 2S a, DPM++ 3M SDE, Euler a, Euler, LMS, Heun,
DPM2, DPM2 a, DPM fast, DPM adaptive, Restart, DDIM, DDIM CFG++, PLMS, UniPC, LCM, DDPM, HeunPP2, IPNDM, IPNDM_V,
DEIS, DDPM Karras, LCM Karras, DPM++ 2M Turbo, DPM++ 2M SDE Turbo, Res Multistep, Res Multistep Ancestral, Gradient
Estimation, ER SDE, SEEDS 2, SEEDS 3""".replace("\n", " ").split(", ")
WEBUI_GRIDS = """Automatic, Uniform, Karras, Exponential, Polyexponential, SGM Uniform, KL Optimal, Align Your Steps,
Simple, Normal, DDIM, Beta, Turbo""".replace("\n", " ").split(", ")
COMFY_GRIDS = "simple sgm_uniform karras exponential ddim_uniform beta normal linear_quadratic kl_optimal".split()
K_DIFFUSION = """sample_euler sample_euler_ancestral sample_heun sample_dpm_2 sample_dpm_2_ancestral sample_lms
sample_dpm_fast sample_dpm_adaptive sample_dpmpp_2s_ancestral sample_dpmpp_sde sample_dpmpp_2m sample_dpmpp_2m_sde
sample_dpmpp_3m_sde""".split()


def refusal(what, word):
    """What is said of a word, None where it is taken."""
    try:
        pf.make_plan("euler", steps=20, spacing=word) if what == "spacing" else pf.make_plan(word, steps=20)
    except ValueError as error:
        return str(error)
    return None


def test_the_peers_lists_are_whole():
    comfy, k = ({plain(one) for name in SAMPLERS for one in separate(names(name))} for names in
                (lambda name: name.comfy, lambda name: name.k))  # fmt: skip
    assert len(COMFY) == 44 and comfy == set(map(plain, COMFY))
    assert set(map(plain, K_DIFFUSION)) <= k
    here = [len([one for row in table if own_name(what, row) for one in separate(row.comfy)]) for what, table in
            TABLES.items()]  # fmt: skip
    said = f"({here[0]} of ComfyUI's {len(COMFY)} samplers, {here[1]} of its {len(COMFY_GRIDS)} schedulers)"
    assert said in " ".join((DOCS.parent / "README.md").read_text().split())
    assert {plain(name.comfy) for name in GRIDS} - {""} == set(map(plain, COMFY_GRIDS))


@pytest.mark.parametrize(
    "what, word",
    [*(("solver", word) for word in WEBUI), *(("spacing", word) for word in WEBUI_GRIDS)],
)
def test_web_uis_names(what, word):
    """Each is taken, or answered with ours or the reason, with the grid that stands in it."""
    answer = refusal(what, word)
    if answer is None:
        assert plain(word) in HERE[what]
        return
    assert "did you mean" in answer or "it cannot be a plan: " in answer
    for grid, ours in (("Karras", "karras"), ("Turbo", "trailing")):
        assert word == grid or not word.endswith(grid) or f"spacing={ours!r}" in answer


@pytest.mark.parametrize(
    "what, word", [(what, word) for what, table in TABLES.items() for name in table for word in name.spellings()]
)
def test_a_name_is_refused_with_ours(what, word):
    """Never taken in silence, unless it is spelt as ours is."""
    row = next(row for row in TABLES[what] if word in row.spellings())
    answer = refusal(what, word)
    here = HERE[what]
    if word in here:
        assert row.ours == word or not row.ours
    elif row.ours is None:
        assert "it cannot be a plan: " in answer and row.note in answer
    elif plain(row.ours) in map(plain, here):
        options = "".join(f", {key}={value!r}" for key, value in row.options.items())
        assert f"; did you mean {own_name(what, row)!r}{options}?" in answer
    else:
        assert "; it is not here yet" in answer


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_without_a_plan_is_told_why(name):
    answer = refusal("solver", name)
    assert "did you mean" in answer or "not here yet" in answer or REASONS[name] in answer


@pytest.mark.parametrize(
    "word, said",
    [
        ("DPM++ 2M SDE Karras", "did you mean 'dpmpp-2m-sde', spacing='karras'?"),
        ("DPM++ 2M SDE Heun Exponential", "'dpmpp-2m-sde', solver_type='heun', spacing='exponential'?"),
        ("Euler a Karras", "did you mean 'euler-ancestral', spacing='karras'?"),
        ("sample_dpmpp_3m_sde", "did you mean 'dpmpp-3m-sde', solver_type='heun', lower_order_final=False?"),
        ("uni_pc", "did you mean 'unipc', order=3, variant='bh1', lower_order_final=True?"),
        ("DPM adaptive Karras", "it cannot be a plan: its steps follow an estimate"),
        ("res-3m Karras", "did you mean 'res-3m', spacing='karras'?"),
        ("dpmpp_2s_k", "did you mean 'dpmpp-2s', spacing='karras'?"),
        ("kdpm_2_a", "did you mean 'dpm-2-ancestral'?"),
        ("kdpm_2_a_k", "did you mean 'dpm-2-ancestral', spacing='karras'?"),
    ],
)
def test_what_stands_in_a_name(word, said):
    assert said in refusal("solver", word)


def test_invokeai_s_names():
    """Each is taken, or answered with the solver of its class there, `_k` with Karras' grid."""
    classes = {
        "ddim": "ddim", "ddpm": "ddpm", "deis": "deis", "lms": "lms", "pndm": "f-pndm", "heun": "heun",
        "euler": "euler", "euler_a": "euler-ancestral", "kdpm_2": "dpm-2", "kdpm_2_a": "dpm-2-ancestral",
        "dpmpp_2s": "dpmpp-2s", "dpmpp_2m": "dpmpp-2m", "dpmpp_2m_sde": "dpmpp-2m-sde", "dpmpp_3m": "dpmpp-3m",
        "dpmpp_sde": "dpmpp-sde", "unipc": "unipc", "lcm": "lcm", "tcd": "tcd",
    }  # fmt: skip
    for word, ours in classes.items():
        assert word == ours or f"did you mean {ours!r}" in refusal("solver", word)
        answer = refusal("solver", f"{word}_k")
        assert f"did you mean {ours!r}" in answer and "spacing='karras'" in answer


def test_options_are_ours():
    for row in SAMPLERS:
        solver = own_name("solver", row)
        if solver:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of options without effect
                schedule, prediction = (pf.Schedule.flow(), "flow") if "split" in row.options else (None, "eps")
                words = {"spacing": "trailing", "prediction": prediction}
                pf.make_plan(solver, schedule, steps=20, **words, **row.options)


CLASSES = [
    (row, *re.fullmatch(r"(\w+)(?:\((.*)\))?", one).groups())
    for row in SAMPLERS
    for one in separate(row.diffusers)
    if own_name("solver", row) in COMPAT["diffusers"]
]
CLASSES = [case for case in CLASSES if case[1] in SCHEDULERS]


@pytest.mark.parametrize("row, kind, config", CLASSES, ids=[f"{kind}-{config}" for _, kind, config in CLASSES])
def test_a_class_and_its_solver_are_one_plan(row, kind, config):
    """Under compat, whose options are the class's own."""
    config = eval(f"dict({config or ''})")
    if config.get("algorithm_type") == "dpmsolver":
        config["final_sigmas_type"] = "sigma_min"  # which it must have
    given = {key: value for key, value in config.items() if key == "solver_type"}
    flow = kind.startswith("FlowMatch")
    theirs = pf.plan_like({"_class_name": kind, "clip_sample": False, **config}, steps=6)
    schedule = pf.schedule_of({"_class_name": kind})[0]
    told = {"prediction": "flow"} if flow else {}
    ours = pf.make_plan(row.ours, schedule, steps=6, compat="diffusers", **told, **given)
    assert ours.rows == theirs.rows and ours.prologue == theirs.prologue


# k-diffusion's loops, from their formulas: sigmas, D the network's x_0, one normal a step


def two_m(x, sigmas, network, noise):
    """DPM-Solver++(2M): lambda = -log sigma, D' = (1 + 1/(2r)) D - D_-1/(2r), x' = s'/s x + (1 - s'/s) D'."""
    before = None
    for i, (s, to) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        d = network(x, s)
        if to == 0:
            return d
        blend = d
        if i:
            r = np.log(sigmas[i - 1] / s) / np.log(s / to)
            blend = d + (d - before) / (2 * r)
        x, before = to / s * x + (1 - to / s) * blend, d
    return x


def sde(x, sigmas, network, noise, order, heun):
    """DPM-Solver++ SDE at eta = 1, with the phi functions of 2 h: order 2 in either form, order 3 in Heun's."""
    past = []
    for i, (s, to) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        past.insert(0, network(x, s))
        if to == 0:
            return past[0]
        h = np.log(s / to)
        x = to / s * np.exp(-h) * x - np.expm1(-2 * h) * past[0]
        phi_2 = np.expm1(-2 * h) / (2 * h) + 1
        phi_3 = phi_2 / (2 * h) - 0.5
        if i and (order == 2 or i == 1):
            slope = (past[0] - past[1]) * h / np.log(sigmas[i - 1] / s)
            x = x + (phi_2 if heun else -np.expm1(-2 * h) / 2) * slope
        elif i:
            r0, r1 = (np.log(sigmas[i - k - 1] / sigmas[i - k]) / h for k in (0, 1))
            first, second = (past[0] - past[1]) / r0, (past[1] - past[2]) / r1
            bent = (first - second) / (r0 + r1)
            x = x + phi_2 * (first + bent * r0) - phi_3 * bent
        x = x + to * np.sqrt(-np.expm1(-2 * h)) * noise(i)
    return x


LOOPS = {
    "sample_dpmpp_2m": two_m,
    "sample_dpmpp_2m_sde": lambda *case: sde(*case, 2, False),
    "sample_dpmpp_2m_sde(solver_type='heun')": lambda *case: sde(*case, 2, True),
    "sample_dpmpp_3m_sde": lambda *case: sde(*case, 3, True),
}


@pytest.mark.parametrize("function", LOOPS)
@pytest.mark.parametrize("steps", [7, 16])
def test_options_make_k_diffusion_s_loop(function, steps):
    torch = pytest.importorskip("torch")
    row = next(row for row in SAMPLERS if row.k == function)
    plan = pf.make_plan(row.ours, pf.Schedule.edm(0.03, 14.6), steps=steps, prediction="x0", **row.options)
    generator = torch.Generator().manual_seed(1)
    normals = torch.randn((steps, 2, 5), dtype=torch.float64, generator=generator)
    start = torch.randn((2, 5), dtype=torch.float64, generator=generator)
    sigmas = [row.levels.call.sigma for row in plan] + [0.0]

    def network(x, sigma):
        return torch.tanh(0.4 * x / (1 + float(sigma)))

    got = pf.Sampler(lambda x, t: network(x, t[0]), plan, shape=(2, 5), dtype=torch.float64)(
        start=pf.State(sigmas[0] * start), noise_sampler=lambda index: normals[max(index - 2, 0)]
    )
    want = LOOPS[function](sigmas[0] * start, sigmas, network, lambda i: normals[i])
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


# the tables


def _cells(*cells):
    return "| " + " | ".join(cells) + " |"


def _code(text):
    return ", ".join(f"`{one}`" for one in separate(text))


def _ours(what, row):
    ours = own_name(what, row)
    if row.ours is None:
        return "none"
    if ours is None:
        return "not here yet"
    options = "".join(f", {key}={value!r}" for key, value in row.options.items())
    return f"`{ours}{options}`"


def names_page():
    lines = [
        "# Names",
        "",
        "What samplers and grids of ComfyUI, k-diffusion, AUTOMATIC1111 and Forge, and diffusers are here.",
    ]
    lines += ["`make_plan` refuses the others' names and says ours. Made by `python tests/test_names.py`.", ""]
    lines += ["## Samplers", "", "`pf.make_plan(solver, ...)`; *on*: which schedules it takes, as found by trying.", ""]
    lines += [_cells("ComfyUI", "k-diffusion", "AUTOMATIC1111, Forge", "diffusers", "here", "on", "note")]
    lines += [_cells(*["---"] * 7)]
    for row in SAMPLERS:
        solver = own_name("solver", row)
        on = ", ".join(schedules_of(solver)) if solver else ""
        names = (_code(row.comfy), _code(row.k), row.webui, _code(row.diffusers))
        lines.append(_cells(*names, _ours("solver", row), on, row.note))
    lines += ["", "## Grids", "", "`pf.make_plan(..., spacing=...)`. Any other is given as `sigmas=` or `times=`.", ""]
    lines += [_cells("ComfyUI", "k-diffusion", "AUTOMATIC1111, Forge", "diffusers", "here", "note")]
    lines += [_cells(*["---"] * 6)]
    for row in GRIDS:
        names = (_code(row.comfy), _code(row.k), row.webui, _code(row.diffusers))
        names = names if any(names) else (_code(row.also), "", "", "")
        lines.append(_cells(*names, _ours("spacing", row), row.note))
    return "\n".join([*lines, ""])


def _followed(name):
    from test_like import IDLE, IDLE_IN, class_of

    theirs = inspect.signature(class_of(name).__init__).parameters
    fixed = {key for key, (_, owners, _) in FIXED.items() if name in owners}
    return [key for key in theirs if key not in {"self", *fixed, *IDLE, *IDLE_IN.get(name, ())}]


def _not_followed(name):
    """`option` at its one value, and why; by trying where a class has it by default."""
    found = [f"`{key}` but {value!r}: {why}" for key, (value, owners, why) in FIXED.items() if name in owners]
    try:
        pf.plan_like({"_class_name": name, "clip_sample": True}, steps=5)
    except ValueError as error:
        found.append(f"`clip_sample` but False: {str(error).partition('got True: ')[2]}")
    return "; ".join(found)


def schedulers_page():
    lines = [
        "# diffusers' schedulers",
        "",
        "Every class of diffusers 0.42: taken by `pf.plan_like(scheduler, steps=...)`",
    ]
    lines += [
        "and by `PlanScheduler.from_config(scheduler)`, or refused, and why. Made by `python tests/test_names.py`.",
        "",
    ]
    lines += [
        "## Taken",
        "",
        "The plan makes the same samples; `make_plan(solver, compat='diffusers')` is the same plan.",
        "",
    ]
    lines += [_cells("class", "solver", "options that are followed", "refused")]
    lines += [_cells(*["---"] * 4)]
    taken = {**{name: name for name in SCHEDULERS}, **SAME_AS}
    for name in sorted(taken):
        kind = taken[name]
        solvers = dict.fromkeys(row.ours for row, one, _ in CLASSES if one == kind)
        if name != kind:
            lines.append(_cells(f"`{name}`", f"as `{kind}`", "", ""))
            continue
        options = ", ".join(f"`{key}`" for key in _followed(name))
        lines.append(_cells(f"`{name}`", ", ".join(f"`{one}`" for one in solvers), options, _not_followed(name)))
    lines += ["", "## Refused", "", _cells("class", "why", "a solver here"), _cells(*["---"] * 3)]
    for name in sorted(REFUSED):
        row = next((row for row in SAMPLERS if name in row.spellings()), Name(None))
        solver = own_name("solver", row) if row.ours else None
        note = f", {row.note}" if solver and row.note else ""
        lines.append(_cells(f"`{name}`", REFUSED[name], f"`{solver}`{note}" if solver else ""))
    return "\n".join([*lines, ""])


PAGES = {"names.md": names_page, "schedulers.md": schedulers_page}


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_are_what_the_code_says(page):
    if page == "schedulers.md":
        pytest.importorskip("diffusers", reason="the options are its classes'")
    assert (DOCS / page).read_text() == PAGES[page](), "python tests/test_names.py writes it"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    for file, page in PAGES.items():
        (DOCS / file).write_text(page())
