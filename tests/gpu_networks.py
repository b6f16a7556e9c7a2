"""Networks for the tests that need a GPU; `DEVICE` is where they run, the CPU under `--fake-device`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import fake_device
import pytest
import torch
from drawing import Reporting
from torch import Tensor, nn

import pndm_fast as pf

DEVICE = fake_device.device
FAKE = DEVICE == "cpu"
SHAPE = (3, 8, 8)
MODES = ("while", "replay")


def pointwise(x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
    """Each sample by itself, element by element: the same bits in every batch and on every device."""
    out = x * 0.5 + (t * 0.001).view(-1, *[1] * (x.dim() - 1))
    return out if shift is None else out + shift.view(-1, *[1] * (x.dim() - 1))


class Conv(nn.Module):
    """Two convolutions, with the time and an optional condition between."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(SHAPE[0], width, 3, padding=1)
        self.last = nn.Conv2d(width, SHAPE[0], 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
        h = self.first(x) + (t * 1e-3).to(x.dtype).view(-1, 1, 1, 1)
        if shift is not None:
            h = h + shift.to(x.dtype).view(-1, 1, 1, 1)
        return self.last(torch.tanh(h))


class Noisy(nn.Module):
    """Draws from torch's generator."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * 0.5 + 0.01 * torch.randn_like(x)


def conv(dtype: torch.dtype = torch.float32, seed: int = 0) -> Conv:
    """Seeded, ready for sampling."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Conv().to(DEVICE, dtype).eval().requires_grad_(False)


def sampler(
    model: Any, graph: str, solver: str = "f-pndm", *, steps: int = 6, batch: int = 3, **options: Any
) -> Reporting:
    """On the GPU, with a plan of few steps."""
    options = {"shape": (batch, *SHAPE), "device": DEVICE} | options
    return Reporting(model, pf.make_plan(solver, steps=steps), graph=graph, **options)


def packaged(model: Any, folder: Path, device: str = DEVICE) -> str:
    """An AOTInductor package of it, for batches of 3."""
    example = torch.zeros(3, *SHAPE, device=device), torch.zeros(3, device=device)
    program = torch.export.export(model, example)
    return torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "network.pt2"))


def slow(x: Tensor, t: Tensor) -> Tensor:
    """About half a millisecond."""
    torch.cuda._sleep(1_000_000)
    return x * 0.5


def cancel_from_another_thread(mode: str) -> None:
    """A call of half a second is cancelled after a tenth, and the sampler is as it was."""
    ours = sampler(slow, mode, "ddim", steps=1000)
    few = pf.make_plan("ddim", steps=5)
    wanted = ours(plan=few)
    assert ours.report.graph == mode
    cancel = pf.Cancel()
    threading.Timer(0.1, cancel.set).start()
    with pytest.raises(pf.Cancelled) as error:
        ours(cancel=cancel)
    assert 0 <= error.value.index < 900
    assert error.value.state.shape == (3, *SHAPE) and torch.isfinite(error.value.state).all()
    assert torch.equal(ours(plan=few, cancel=pf.Cancel()), wanted)


def assert_no_synchronization(ours: Reporting) -> None:
    """In a call, from its arguments to its result, where nobody asks for the check of NaN."""
    wanted = [ours(seeds=seed) for seed in range(2)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = [ours(seeds=seed, on_nan="ignore") for seed in range(2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
