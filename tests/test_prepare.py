"""`Sampler.prepare`: requests filled up to a size that is ready, with samples that are halted from the start."""

import pytest
import torch
from drawing import Reporting
from sampler_case import Pointwise

import pndm_fast as pf

SHAPE = (3, 4, 4)
pytestmark = pytest.mark.filterwarnings("ignore:the grid starts")


class Watched(Pointwise):
    """Notes the batch of each call, and what it was given besides x and t."""

    def __init__(self):
        self.batches, self.shifts = [], []

    def __call__(self, x, t, shift=None):
        self.batches.append(len(x))
        self.shifts.append(shift)
        assert len(t) == len(x) and bool(x.isfinite().all())
        return super().__call__(x, t, shift)


def samplers(solver="ddpm", **arguments):
    """A prepared sampler and one that is not."""
    plan = pf.make_plan(solver, steps=5)
    ready, plain = (Reporting(Watched(), plan, shape=(2, *SHAPE), **arguments) for _ in range(2))
    ready.prepare([8, 4])
    return ready, plain


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("solver", ["ddpm", "f-pndm"])
def test_the_next_size_is_used_and_changes_nothing(backend, solver):
    ready, plain = samplers(solver, backend=backend)
    assert ready.model.batches == [8, 4, 1, 4, 8]  # to learn the network's form, the largest first; then to compare
    assert ready.batch_error == 0.0
    for batch, size in ((1, 4), (3, 4), (4, 4), (5, 8), (9, 9)):
        ready.model.batches.clear()
        got, wanted = ready(seeds=range(batch)), plain(seeds=range(batch))
        assert set(ready.model.batches) == {size}
        assert torch.equal(got, wanted) and ready.report.batch == batch


@pytest.mark.parametrize("kind", [pf.Noise, pf.State])
def test_starts_are_filled_up(kind):
    ready, plain = samplers()
    start = kind(torch.randn(3, *SHAPE))
    assert torch.equal(ready(seeds=[4, 5, 6], start=start), plain(seeds=[4, 5, 6], start=start))


def test_noises_are_asked_for_the_samples_alone():
    ready, plain = samplers()

    def noises(index):
        return torch.full((3, *SHAPE), 0.1 * index)

    assert torch.equal(ready(seeds=range(3), noise_sampler=noises), plain(seeds=range(3), noise_sampler=noises))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_conditioning_and_guidance(scale):
    ready, plain = samplers()
    arguments = {"cond": {"shift": torch.arange(3.0)}, "uncond": {"shift": -torch.ones(3)}, "guidance": scale}
    assert torch.equal(ready(seeds=range(3), **arguments), plain(seeds=range(3), **arguments))
    halves = 1 if scale == 1 else 2
    assert len(ready.model.shifts[-1]) == 4 * halves


def test_several_plans():
    ready, plain = samplers()
    plans = [pf.make_plan("ddim", steps=3), pf.make_plan("plms", steps=4), pf.make_plan("ddpm", steps=2)]
    assert torch.equal(ready(seeds=range(3), plan=plans), plain(seeds=range(3), plan=plans))


def test_steps_and_errors_tell_of_the_samples_alone():
    ready, _ = samplers()
    seen = []
    ready(seeds=range(3), on_step=lambda step: seen.append((len(step.rows), step.state.shape[0], step.x0.shape[0])))
    assert set(seen) == {(3, 3, 3)} and len(seen) == 5

    class Broken(Pointwise):
        def __call__(self, x, t, shift=None):
            return super().__call__(x, t) * torch.tensor([1.0, float("nan"), 1.0, float("nan")])[:, None, None, None]

    broken = Reporting(Broken(), ready.plan, shape=(4, *SHAPE))
    broken.prepare([4])
    with pytest.raises(pf.NonFiniteError) as error:
        broken(seeds=range(3))
    assert [bad.sample for bad in error.value.bad] == [1] and len(error.value.samples) == 3


def test_an_example_with_noise_of_its_own_batch():
    sampler = pf.Sampler(Watched(), pf.make_plan("ddpm", steps=3), shape=(4, *SHAPE))
    sampler.prepare([1, 8], pf.Request(noise_sampler=lambda index: torch.zeros(4, *SHAPE)))
    assert sampler.batches == [1, 8] and sum(map(len, sampler.cache.idle.values())) == 2  # buffers stay


def test_an_example_says_what_later_calls_are_like():
    plan = pf.make_plan("ddim", steps=3)
    sampler = Reporting(Watched(), plan, shape=(2, *SHAPE))
    labels = {"shift": torch.tensor([3.0, 4.0])}
    sampler.prepare([1, 2, 4], pf.Request(cond=labels, uncond=labels, guidance=2.0))
    assert sampler.model.batches == [8, 4, 2, 2, 4, 8]
    assert [len(shift) for shift in sampler.model.shifts] == [8, 4, 2, 2, 4, 8]


@pytest.mark.parametrize("sizes, error", [(4, TypeError), ([], ValueError), ([0], ValueError), ([1.5], TypeError)])
def test_bad_sizes(sizes, error):
    sampler = Reporting(Watched(), pf.make_plan("ddim", steps=3), shape=(2, *SHAPE))
    with pytest.raises(error, match="batches"):
        sampler.prepare(sizes)
    assert sampler.model.batches == []
