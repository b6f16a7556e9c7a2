"""Pipelines beside their accelerated selves."""

import copy
from unittest import mock

import pytest

diffusers = pytest.importorskip("diffusers", reason="the pipelines are diffusers'")
pytest.importorskip("transformers", reason="diffusers' pipelines with text import it")
import tiny_pipelines as tiny  # noqa: E402
from golden_data import relative  # noqa: E402
from test_pipelines import latent  # noqa: E402

import pndm_fast as pf  # noqa: E402
from pndm_fast.integrations.diffusers import accelerate  # noqa: E402


def fresh(kind="", channels=4):
    """A pipeline that a test may change, with a network of its own, and a call's arguments."""
    made, call = tiny.stable_diffusion(kind, channels)
    parts = {**made.components, "unet": copy.deepcopy(made.unet), "scheduler": latent("Euler")}
    return type(made)(**parts, requires_safety_checker=False), dict(call)


def counted(scheduler):
    """(steps of that scheduler, runs of a sampler), as they are made."""
    step, run = type(scheduler).step, pf.Sampler.run
    return (
        mock.patch.object(type(scheduler), "step", autospec=True, side_effect=step),
        mock.patch.object(pf.Sampler, "run", autospec=True, side_effect=run),
    )


def check(case, scheduler, *, tolerance=1e-5, **call):
    """Equal images, one run of a sampler, no step of the scheduler."""
    pipeline, arguments = case
    fast = accelerate(pipeline)
    want = tiny.run(pipeline, scheduler, **arguments, **call)
    stepping, running = counted(scheduler)
    with stepping as steps, running as runs:
        got = tiny.run(fast, scheduler, **arguments, **call)
    assert steps.call_count == 0 and runs.call_count == 1
    assert got.shape == want.shape and got.dtype == want.dtype
    assert relative(got.double(), want.double()) <= tolerance
    return fast


def refused(fast, match, error=ValueError, **call):
    """Before the network is called."""
    networks = [getattr(fast, name) for name in ("unet", "transformer") if hasattr(fast, name)]
    with mock.patch.object(type(networks[0]), "forward") as forward, pytest.raises(error, match=match):
        fast(num_inference_steps=5, **call)
    assert not forward.called


def interrupted(pipe, i, tensors):
    pipe._interrupt = i == 2
    return {"latents": tensors["latents"] + 1}
