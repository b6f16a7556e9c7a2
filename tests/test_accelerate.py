"""`accelerate`: the images of the pipeline itself, from one call of a `Sampler`."""

from unittest import mock

import pytest

diffusers = pytest.importorskip("diffusers", reason="the pipelines are diffusers'")
pytest.importorskip("transformers", reason="diffusers' pipelines with text import it")
import tiny_pipelines as tiny  # noqa: E402
import torch  # noqa: E402
from golden_data import relative  # noqa: E402
from test_pipelines import OF_ONE_CALL, SCHEDULERS, latent, some  # noqa: E402

import pndm_fast as pf  # noqa: E402
from pndm_fast.integrations.diffusers import PlanScheduler, accelerate  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of its deprecations


def check(case, scheduler, *, accelerated=None, **call):
    """Equal images, one run of a sampler, no step of the scheduler."""
    pipeline, arguments = case
    fast = accelerate(pipeline) if accelerated is None else accelerated
    want = tiny.run(pipeline, scheduler, **arguments, **call)
    step, run = type(scheduler).step, pf.Sampler.run
    with (
        mock.patch.object(type(scheduler), "step", autospec=True, side_effect=step) as steps,
        mock.patch.object(pf.Sampler, "run", autospec=True, side_effect=run) as runs,
    ):
        got = tiny.run(fast, scheduler, **arguments, **call)
    assert steps.call_count == 0 and runs.call_count == 1
    assert got.shape == want.shape and got.dtype == want.dtype
    assert relative(got.double(), want.double()) < 1e-5
    return fast


@pytest.mark.parametrize("name", SCHEDULERS)
def test_text_to_image(name):
    check(tiny.stable_diffusion(), latent(name))


@pytest.mark.parametrize("name", some(SCHEDULERS, "PNDM", "2M SDE", "Heun", "Euler"))
def test_image_to_image(name):
    check(tiny.stable_diffusion("Img2Img"), latent(name))


@pytest.mark.parametrize("name", some(OF_ONE_CALL, "DDIM", "2M SDE", "Euler a"))
def test_inpainting(name):
    check(tiny.stable_diffusion("Inpaint"), latent(name))
