"""The programs of `examples/` around diffusers' pipelines draw what they say."""

import importlib

import pytest

pytest.importorskip("diffusers", reason="the pipelines are diffusers'")
pytest.importorskip("transformers", reason="diffusers' pipelines with text import it")
import tiny_pipelines as tiny  # noqa: E402
import torch  # noqa: E402
from golden_data import relative  # noqa: E402

from pndm_fast import demo  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of its deprecations
OTHERS = {"stable_diffusion": "unipc", "stable_diffusion_3": "dpmpp-2m", "wan": "shift 5"}  # which differ


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux", "wan"])
def test_the_same_images(name, monkeypatch):
    module = importlib.import_module(name)
    monkeypatch.setattr(module, name, getattr(tiny, name).__wrapped__)  # whose scheduler is then another
    drawn = module.main()
    first = drawn.pop("diffusers")
    assert first.isfinite().all() and {"one call", "plan"} <= drawn.keys()
    for case, made in drawn.items():
        far = relative(made.double(), first.double())
        assert far > 1e-3 if case == OTHERS.get(name) else far < 1e-5, case
        assert made.isfinite().all() and made.shape == first.shape


def test_a_digit():
    """The pipeline's picture, by the packaged network from the same noise."""
    import digits

    import pndm_fast as pf

    pipe = digits.pipeline(7)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(num_inference_steps=8, generator=torch.Generator().manual_seed(0), output_type="np").images[0, :, :, 0]
    noise = torch.randn((1, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    plan = pf.make_plan("auto", steps=8)
    want = pf.Sampler(demo.mnist_unet(), plan)(start=pf.Noise(noise), cond={"class_labels": torch.tensor([7])})
    assert (torch.from_numpy(made) - (want[0, 0] / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-4
