"""Inpainting with grey masks: what is known gives way row by row."""

import pytest
import torch
from between_rows_case import SHAPE, bent, by_rows, close
from drawing import Reporting, draw
from sampler_case import Pointwise
from test_image_to_image import SCHEDULE, normal

import pndm_fast as pf

pytestmark = pytest.mark.filterwarnings("ignore:the grid starts", "ignore:.* diverges in")


@pytest.mark.parametrize("steps", [4, 10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_grey_masks_are_the_loop(steps, dtype):
    """Levin & Fried: a binary mask for each state, in a DDIM loop; after k of n rows m < 1 - k/n is known."""
    known, noise = normal(0, (1, 11)), normal(1, (1, 11))
    mask = torch.tensor([0, 0.1, 0.2, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9, 0.999, 1.0], dtype=dtype)
    plan = pf.make_plan("ddim", SCHEDULE, steps=steps)
    times, y = [*plan.times, -1.0], noise
    drawn_at = []
    for k, t in enumerate(times):
        alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
        is_known = (mask < torch.tensor((steps - k) / steps, dtype=dtype)) | (mask == 0)
        drawn_at.append((~is_known).tolist())
        y = torch.where(is_known, alpha * known + sigma * noise, y)
        if k < steps:
            eps = bent(y, torch.full((1,), t, dtype=torch.float64))
            beta, tau = float(SCHEDULE.alpha(times[k + 1])), float(SCHEDULE.sigma(times[k + 1]))
            y = beta * (y - sigma * eps) / alpha + tau * eps
    close(draw(bent, solver=plan, start=pf.Inpaint(known, mask, pf.Noise(noise))), y)
    assert drawn_at[0] == [False] * 10 + [True] and drawn_at[-1] == [False] + [True] * 10
    if steps == 10:  # a mask of 0.7 is drawn from the fourth row on
        assert [drawn[6] for drawn in drawn_at] == [False] * 3 + [True] * 8


@pytest.mark.parametrize("name", ["heun", "unipc", "dpmpp-2m", "f-pndm", "dpm-solver-3", "ddpm", "plms"])
def test_grey_masks_in_every_kind_of_plan(name):
    """Anchors too are on the path until an element is drawn."""
    plan = pf.make_plan(name, SCHEDULE, steps=6)
    known, noise, mask = (
        normal(0, SHAPE),
        normal(1, SHAPE),
        normal(2, SHAPE).sigmoid(),
    )

    def put(k, y, level):
        is_known = (mask < (plan.nfe - k) / plan.nfe) | (mask == 0)
        return torch.where(is_known, level.alpha * known + level.sigma * noise, y)

    got = draw(bent, solver=plan, start=pf.Inpaint(known, mask, pf.Noise(noise)))
    close(got, by_rows(plan, bent, noise, put=put))


@pytest.mark.parametrize("name", ["ddim", "heun", "unipc"])
def test_binary_masks_in_any_dtype_are_one(name):
    bits = [0, 1, 1, 0, 1, 0]
    x0, plan = normal(4, SHAPE).float(), pf.make_plan(name, steps=4)
    dtypes = (torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64, torch.bfloat16)
    results = [draw(bent, solver=plan, start=pf.Inpaint(x0, torch.tensor(bits).to(dtype))) for dtype in dtypes]
    assert all(torch.equal(results[0], result) for result in results)
    assert torch.equal(results[0][:, torch.tensor(bits) == 0], x0[:, torch.tensor(bits) == 0])


@pytest.mark.parametrize("prepared", [None, 4])
def test_each_sample_counts_its_own_rows(prepared):
    plans, x0 = [pf.make_plan("ddim", steps=n) for n in (3, 7, 5)], normal(5, (3, 6)).float()
    mask = torch.linspace(0, 1, 6)
    sampler = pf.Sampler(bent, shape=(3, 6))
    if prepared:
        sampler.prepare([prepared], pf.Request(plan=plans))
    together = sampler(plan=plans, seeds=[1, 2, 3], start=pf.Inpaint(x0, mask))
    for b, plan in enumerate(plans):
        alone = sampler(plan=plan, seeds=[1 + b], start=pf.Inpaint(x0[b : b + 1], mask))
        assert torch.equal(together[b], alone[0])


@pytest.mark.parametrize("mode", ["replay", "while"])
def test_grey_masks_in_graphs(stand_in, mode):
    x0 = normal(5, (2, 3, 4, 4)).float()
    for plan in (pf.make_plan("heun", steps=5), pf.make_plan("unipc", steps=5)):
        samplers = [Reporting(Pointwise(), plan, shape=tuple(x0.shape), graph=graph) for graph in (mode, "eager")]
        mask = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1))
        captured, eager = (sampler(start=pf.Inpaint(x0, mask)) for sampler in samplers)
        assert torch.equal(captured, eager) and samplers[0].report.graph == mode
