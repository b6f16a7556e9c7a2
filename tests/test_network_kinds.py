"""Networks as they come: each kind in one line of user code, against a loop that calls the network itself."""

import diffusers_kinds  # noqa: F401
import pytest
import torch
from network_kinds import KINDS, SLOW

from pndm_fast.row.noise import normals, seed_tensor

pytestmark = pytest.mark.filterwarnings("ignore:.*(deprecated|lr_scheduler|torch.jit)")
STEPS = 3


def noise(shape):
    size = torch.Size(shape[1:])
    return normals(seed_tensor([0, 1]), 0, size.numel()).view(2, *size).double()


def ddim_loop(predict, y, hurry=1.0):
    """Song et al. 2020, arXiv:2010.02502, eq. 12, with eta 0; v = alpha eps - sigma x_0 on the linear betas of DDPM."""
    abar = (1 - torch.linspace(1e-4, 0.02, 1000).double()).cumprod(0)
    levels = [(float(abar[t].sqrt()), float((1 - abar[t]).sqrt())) for t in (999, 749, 499, 249)] + [(1.0, 0.0)]
    for i, t in enumerate((999.0, 749.0, 499.0, 249.0)):
        (alpha, sigma), (to_alpha, to_sigma) = levels[i : i + 2]
        v = predict(y.float(), torch.full((2,), hurry * t)).double()
        y = to_alpha * (alpha * y - sigma * v) + to_sigma * (sigma * y + alpha * v)
    return y


def euler_loop(predict, y, T, hurry=1.0, shift=3.0):
    """dy = v dsigma, v = eps - x_0. Lipman et al. 2023, arXiv:2210.02747."""
    u = [(STEPS - i) / STEPS for i in range(STEPS + 1)]
    sigmas = [shift * one / (1 + (shift - 1) * one) for one in u]
    for t, s in zip(sigmas, sigmas[1:], strict=False):
        y = y + (s - t) * predict(y.float(), torch.full((2,), hurry * t * T)).double()
    return y


CASES = [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in KINDS]


@pytest.mark.parametrize("kind", CASES)
def test_kind(kind):
    if KINDS[kind].__module__ == "diffusers_kinds":
        pytest.importorskip("diffusers")
    samples, predict, rule = KINDS[kind]()
    start = noise(samples.shape)

    def loop(hurry):
        return ddim_loop(predict, start, hurry) if rule == "v" else euler_loop(predict, start, rule, hurry)

    with torch.no_grad():
        wanted, late = loop(1.0), loop(0.7)
    # a call passes on a rounding of its input, or in bfloat16 may round to the neighbour
    eps = 3 * torch.finfo(torch.bfloat16).eps if "bfloat16" in kind else 100 * torch.finfo(torch.float32).eps
    bound = eps * wanted.abs().max()
    assert samples.dtype is torch.float32 and (samples - wanted).abs().max() < bound
    assert (late - wanted).abs().max() > 3 * bound  # another time would have shown
