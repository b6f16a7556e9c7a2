"""Accelerated pipelines on a CUDA device: the loop is captured, and captured once."""

import pytest

pytest.importorskip("diffusers", reason="the pipelines are diffusers'")
pytest.importorskip("transformers", reason="diffusers' pipelines with text import it")
import copy  # noqa: E402

import tiny_pipelines as tiny  # noqa: E402
import torch  # noqa: E402
from golden_data import relative  # noqa: E402
from gpu_networks import DEVICE  # noqa: E402
from test_accelerate_transformers import CASES  # noqa: E402

from pndm_fast.integrations.diffusers import accelerate  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
NAMES = ["SD3", "FLUX guided", "Wan of two networks", "Wan from an image in its place"]


def on_device(value):
    return value.to(DEVICE) if isinstance(value, torch.Tensor) and value.dim() < 4 else value


@pytest.mark.parametrize("mode", ["while", "replay"])
@pytest.mark.parametrize("name", NAMES)
def test_a_loop_in_a_graph(name, mode):
    make, scheduler = CASES[name]
    pipeline, call = make()
    pipeline = copy.deepcopy(pipeline).to(DEVICE)
    call = {word: on_device(value) for word, value in call.items()}
    fast, scheduler = accelerate(pipeline, graph=mode), scheduler()
    want = tiny.run(pipeline, scheduler, **call)
    for _ in range(2):
        got = tiny.run(fast, scheduler, **call)
        assert relative(got.double().cpu(), want.double().cpu()) < 1e-4
    assert fast.report.graph == mode and fast.report.captures == (2 if "two" in name else 1)  # one of each network


@pytest.mark.parametrize("mode", ["while", "replay"])
@pytest.mark.parametrize(
    "make",
    [tiny.stable_diffusion, tiny.stable_diffusion_xl, lambda: tiny.stable_diffusion("Inpaint", 9)],
    ids=["SD", "SDXL", "SD told the mask"],
)
def test_a_module_that_is_replaced(make, mode):
    """As loading adapters does: the next call captures anew."""
    pipeline, call = make()
    pipeline = copy.deepcopy(pipeline).to(DEVICE)
    call = {word: on_device(value) for word, value in call.items()}
    fast, last = accelerate(pipeline, graph=mode), copy.deepcopy(pipeline.unet.conv_out)
    torch.nn.init.zeros_(last.weight)
    for replaced in (False, True):
        pipeline.unet.conv_out = last if replaced else pipeline.unet.conv_out
        want = tiny.run(pipeline, pipeline.scheduler, **call)
        for _ in range(2):
            got = tiny.run(fast, pipeline.scheduler, **call)
            assert relative(got.double().cpu(), want.double().cpu()) < 1e-4
        assert fast.report.graph == mode and fast.report.recaptures == replaced
