"""Grids by other programs' names: each against its formula written once more, and published tables as they are used."""

import math

import numpy as np
import pytest
from scipy import stats

import pndm_fast as pf
from pndm_fast.plan.grids import SPACINGS, make_grid
from pndm_fast.plan.named_grids import FEW, GITS, NAMED, OTHER_SPACINGS, TABLES, named_grid

LATENT, EDM, FLOW = pf.Schedule.scaled_linear(), pf.Schedule.edm(), pf.Schedule.flow(3.0, 1000)
SCHEDULES = {"latent": LATENT, "vp": pf.Schedule.vp(), "edm": EDM, "flow": FLOW}
COUNTS = [2, 5, 10, 20]


def rho(schedule, times):
    """sigma / alpha; of a flow sigma."""
    sigma = schedule.sigma(np.array(times))
    return sigma if schedule.scale == "flow" else sigma / schedule.alpha(np.array(times))


def ends(schedule):
    """Least and largest: of a flow the shifted 1/1000 and 1."""
    if schedule.scale == "flow":
        return schedule.shift / (1000 + schedule.shift - 1), 1.0
    return tuple(rho(schedule, [schedule.floor, schedule.last]))


def near(got, wanted):
    assert np.array(got) == pytest.approx(np.array(wanted), rel=1e-10, abs=1e-12)


LEVELS = {
    "karras": lambda u, low, high: (high ** (1 / 7) + u * (low ** (1 / 7) - high ** (1 / 7))) ** 7,
    "polyexponential": lambda u, low, high: math.exp((1 - u) * (math.log(high) - math.log(low)) + math.log(low)),
    "kl-optimal": lambda u, low, high: math.tan(u * math.atan(low) + (1 - u) * math.atan(high)),
    "laplace": lambda u, low, high: min(
        max(math.exp(-0.5 * np.sign(0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-5)), low), high
    ),
}


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", LEVELS)
def test_levels_by_formula(name, schedule, n):
    if (name, schedule.scale) == ("laplace", "flow"):
        return  # refused: golden/errors.txt
    for final in ("zero", "min"):
        points = n + (final == "min")
        wanted = [LEVELS[name](i / (points - 1), *ends(schedule)) for i in range(points)]
        near(rho(schedule, named_grid(name, schedule, n, final)), [*wanted, *[0.0] * (final == "zero")])


@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), pf.Schedule.flow(3.0, 1000)], ids=str)
@pytest.mark.parametrize("name", ["karras", "polyexponential", "kl-optimal", "linear-quadratic"])
def test_the_ends_are_the_schedule_s(name, schedule):
    """To the bit, as `make_grid` has them: a flow's 1 - 1e-16 has a log-SNR, and plans from there are noise."""
    low = make_grid(schedule, 5, "karras")[-2]
    for n in COUNTS:
        times = named_grid(name, schedule, n)
        assert times[0] == schedule.last and times[-1] == schedule.first
        if n > 1 and name != "linear-quadratic":
            assert times[-2] == low and named_grid(name, schedule, n, "min")[-1] == low


def test_karras_and_exponential_are_ours():
    for schedule in (LATENT, EDM, pf.Schedule.vp()):
        near(named_grid("karras", schedule, 9), make_grid(schedule, 9, "karras"))
        near(named_grid("polyexponential", schedule, 9), make_grid(schedule, 9, "exponential"))


def test_options():
    near(
        rho(EDM, named_grid("karras", EDM, 3, "min", rho=3.0)),
        [80.0, *((80 ** (1 / 3) + u * (0.002 ** (1 / 3) - 80 ** (1 / 3))) ** 3 for u in (1 / 3, 2 / 3)), 0.002],
    )
    for one in (1e-3, 0.05):  # 80^(1 / rho) is beyond float64
        steep = rho(EDM, named_grid("karras", EDM, 3, "min", rho=one))
        near(steep, [80.0, 80 * (2 / 3) ** one, 80 * (1 / 3) ** one, 0.002])
    bent = rho(EDM, named_grid("polyexponential", EDM, 3, rho=2.0))
    near(bent, [80.0, 0.002 * 40000**0.25, 0.002, 0.0])
    low, high = ends(LATENT)
    near(rho(LATENT, named_grid("laplace", LATENT, 3, mu=0.3, beta=0.2))[1], math.exp(0.3))


@pytest.mark.parametrize("n", COUNTS)
def test_training_times(n):
    """Indices of the 1000 levels, as ComfyUI takes them."""
    near(named_grid("sgm-uniform", LATENT, n), [*np.linspace(999, 0, n + 1)[:-1], -1])
    near(named_grid("normal", LATENT, n), [*np.linspace(999, 0, n), -1])
    near(named_grid("simple", LATENT, n), [*(999 - int(i * 1000 / n) for i in range(n)), -1])
    kept = [999 - int(i * 1000 / n) for i in range(n)]
    table = [3 * u / (1 + 2 * u) for u in np.arange(1, 1001) / 1000]
    near(rho(FLOW, named_grid("simple", FLOW, n)), [*(table[k] for k in kept), 0])
    near(rho(EDM, named_grid("simple", EDM, n)), [*(np.geomspace(0.002, 80, 1000)[k] for k in kept), 0])
    if n != 2:
        near(named_grid("ddim-uniform", LATENT, n), [*range(1 + 1000 // n * (n - 1), 0, -(1000 // n)), -1])


@pytest.mark.parametrize("n", [1, 5, 20])
def test_even_in_a_flow_s_time(n):
    """From 1 to the least level, which is shifted twice: what ComfyUI does."""
    low = ends(FLOW)[0]
    u = np.linspace(1, low, n + 1)
    near(rho(FLOW, named_grid("sgm-uniform", FLOW, n)), [*(3 * u / (1 + 2 * u))[:-1], 0])
    near(rho(FLOW, named_grid("normal", FLOW, n + 1)), [*(3 * u / (1 + 2 * u)), 0])
    near(rho(EDM, named_grid("normal", EDM, n + 1)), [*np.geomspace(80, 0.002, n + 1), 0])


@pytest.mark.parametrize("a, b", [(0.5, 0.7), (0.6, 0.6), (2.0, 3.5)])
def test_beta(a, b):
    for n in (5, 11, 29):  # of even n one is half way between two
        wanted = np.rint(stats.beta.ppf(1 - np.linspace(0, 1, n, endpoint=False), a, b) * 999)
        near(named_grid("beta57", LATENT, n, a=a, b=b), [*wanted, -1])
    assert named_grid("beta57", LATENT, 11) == named_grid("beta57", LATENT, 11, a=0.5, b=0.7)


@pytest.mark.parametrize("n, linear", [(1, None), (2, None), (5, None), (20, None), (20, 7)])
def test_linear_quadratic(n, linear):
    """The two parts and their slopes join."""
    steps, done = linear or n // 2, [0.0]
    if n > 1:
        gap = steps - 0.025 * n
        a, rest = gap / (steps * (n - steps) ** 2), n - steps
        b = 0.025 / steps - 2 * gap / rest**2
        done = [i * 0.025 / steps for i in range(steps)] + [a * i * i + b * i + a * steps**2 for i in range(steps, n)]
        assert a * n * n + b * n + a * steps**2 == pytest.approx(1) and a * steps**2 + b * steps + a * steps**2 == (
            pytest.approx(0.025)
        )
    for schedule in (FLOW, LATENT):
        high = ends(schedule)[1]
        options = {} if linear is None else {"linear_steps": linear}
        near(
            rho(schedule, named_grid("linear-quadratic", schedule, n, **options)), [*(high * (1 - d) for d in done), 0]
        )


@pytest.mark.parametrize("n", [3, 5, 10, 25])
def test_bong_tangent(n):
    def half(count, slope, pivot, start, end):
        curve = [((2 / math.pi) * math.atan(-slope * (i - pivot)) + 1) / 2 for i in range(count)]
        return [(v - curve[-1]) / (curve[0] - curve[-1]) * (start - end) + end for v in curve]

    points = n + 2
    first = int((points * 0.6 + points * 0.6) / 2)
    slope = 0.2 / (points / 40)
    levels = half(first, slope, int(points * 0.6), 1.0, 0.5)[:-1]
    levels += half(points - first, slope, int(points * 0.6) - first, 0.5, 0.0)
    near(rho(FLOW, named_grid("bong-tangent", FLOW, n)), levels)


def test_align_your_steps():
    """The times that its authors publish for the same levels, and log-linear levels for other numbers of steps."""
    published = {
        "ays-sd1": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
        "ays-sdxl": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
    }
    for name, times in published.items():
        assert np.abs(np.array(named_grid(name, LATENT, 10)[:-1]) - times).max() < 0.03
    diffusers = pytest.importorskip("diffusers.schedulers").AysSchedules
    assert published["ays-sd1"] == diffusers["StableDiffusionTimesteps"]
    assert published["ays-sdxl"] == diffusers["StableDiffusionXLTimesteps"]
    near(TABLES["ays-svd"][0], [*diffusers["StableDiffusionVideoSigmas"][:-1], 0.002])
    levels = rho(EDM, named_grid("ays-sdxl", EDM, 20, "min"))
    near(levels[::2], TABLES["ays-sdxl"][0])
    near(levels[1::2] ** 2, levels[:-1:2] * levels[2::2])


@pytest.mark.parametrize("name, n", [("oss-flux", 10), ("oss-wan", 20)])
def test_optimal_steps(name, n):
    near(rho(FLOW, named_grid(name, FLOW, n, "min")), TABLES[name][0])
    near(rho(FLOW, named_grid(name, FLOW, n)), [*TABLES[name][0][:-1], 0.0])
    assert len(named_grid(name, FLOW, 7)) == 8


@pytest.mark.parametrize("n", GITS)
def test_gits(n):
    times = named_grid("gits-sd", LATENT, n)
    near((np.array(times) + 1) / 1000, [*GITS[n][:-1], 0])
    assert named_grid("gits-sd", LATENT, n, "min")[-1] == 0 and len(times) == n + 1


def test_make_plan_takes_their_names():
    """Except for the two that it has already, for whose options `named_grid` is asked."""
    assert set(NAMED) == {*OTHER_SPACINGS, "karras"} and not set(OTHER_SPACINGS) & set(SPACINGS)
    for name in OTHER_SPACINGS:
        schedule = FLOW if name in ("bong-tangent", "oss-flux", "oss-wan") else EDM if name == "ays-svd" else LATENT
        if name == "ays-svd":
            schedule = pf.Schedule.edm(0.002, 700.0)
        steps = 8
        if name in FEW:
            kind, (steps, *_) = FEW[name]
            schedule = FLOW if kind == "flow" else LATENT
        plan = pf.make_plan("euler", schedule, steps=steps, spacing=name, prediction="x0")
        assert plan.times == pytest.approx(named_grid(name, schedule, steps)[:-1], rel=1e-12)
    whole = pf.make_plan("ddim", LATENT, steps=10, spacing="ays-sd1", integer_times=True)
    assert whole.times == (999, 850, 736, 645, 545, 455, 343, 233, 124, 24)


# what the cards of distilled networks call them at: t of 1000 training times, or sigma of a flow
CALLED = [
    ("dmd2-sdxl", LATENT, [999, 749, 499, 249]),
    ("dmd2-sdxl", LATENT, [399]),
    ("hyper-sdxl", LATENT, [800]),
    ("flux2-turbo", FLOW, [1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031]),
    ("ltx-distilled", FLOW, [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875]),
    ("ltx-distilled", FLOW, [0.909375, 0.725, 0.421875]),
    ("fastwan", FLOW, [1.0, 0.757, 0.522]),
    ("trailing", LATENT, [999, 749, 499, 249]),  # SD-Turbo, SDXL-Turbo, SDXL-Lightning, Hyper-SD
    ("trailing", LATENT, [999, 499]),
    ("trailing", pf.Schedule.flow(), [1.0, 0.75, 0.5, 0.25]),  # FLUX.1-schnell
]


@pytest.mark.parametrize("name, schedule, calls", CALLED, ids=str)
def test_where_distilled_networks_are_called(name, schedule, calls):
    plan = pf.make_plan("euler", schedule, steps=len(calls), spacing=name, prediction="v")
    if schedule.scale == "flow":
        assert [row.levels.call.sigma for row in plan] == pytest.approx(calls, abs=1e-12)
    else:
        assert list(plan.times) == calls
    assert plan.rows[-1].levels.y.sigma == 0
