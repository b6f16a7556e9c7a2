"""A network as an AOTInductor package, loaded as graphs need it."""

import pytest
import rounding
import torch
from gpu_networks import SHAPE, packaged
from torch import nn

import pndm_fast as pf


class Scaled(nn.Module):
    """Little to compile."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t):
        return x * self.factor + (t * 0.001).view(-1, 1, 1, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_package_samples_what_its_network_does(tmp_path):
    model = Scaled().eval().requires_grad_(False)
    package = torch._inductor.aoti_load_package(packaged(model, tmp_path, "cpu"), run_single_threaded=True)
    samplers = [pf.Sampler(network, pf.make_plan("f-pndm", steps=4), shape=(3, *SHAPE)) for network in (package, model)]
    first, second = (sampler(seeds=5) for sampler in samplers)
    # a compiler may fuse the product and the sum
    atol = rounding.of_samples(lambda net: pf.sample(net, 4, solver="f-pndm", shape=(3, *SHAPE), seeds=5), model)
    torch.testing.assert_close(first, second, rtol=0, atol=atol)
    assert torch.equal(samplers[0](seeds=5), first)
