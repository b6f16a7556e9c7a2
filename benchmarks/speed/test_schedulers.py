"""`PlanScheduler.step` against the step of the diffusers scheduler that it stands for, on the host."""

from itertools import islice

import diffusers
import pytest
import torch
from speed.harness import Side, Target, contest

from pndm_fast.integrations.diffusers import PlanScheduler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' of numpy
SHAPE, STEPS = (1, 4, 8, 8), 50
SCHEDULERS = {
    "pndm": ("PNDM", {"skip_prk_steps": True}),
    "ddim": ("DDIM", {"clip_sample": False}),
    "ddpm": ("DDPM", {}),
    "euler": ("EulerDiscrete", {}),
    "euler-a": ("EulerAncestralDiscrete", {}),
    "heun": ("HeunDiscrete", {}),
    "2m": ("DPMSolverMultistep", {}),
    "2m-sde": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistep", {}),
    "deis": ("DEISMultistep", {}),
    "lcm": ("LCM", {}),
    "flow-euler": ("FlowMatchEulerDiscrete", {"shift": 3.0}),
}


class Loop:
    """A pipeline's loop around a network that costs nothing."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.start = torch.linspace(-1, 1, 256).view(SHAPE)
        self.output = torch.cos(9 * self.start)

    def begin(self):
        self.scheduler.set_timesteps(STEPS)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)
        torch.manual_seed(0)
        self.x = self.start * getattr(self.scheduler, "init_noise_sigma", 1.0)
        if hasattr(self.scheduler, "scale_model_input"):  # else some warn at each step
            self.scheduler.scale_model_input(self.x, self.scheduler.timesteps[0])
        self.times = iter(list(self.scheduler.timesteps))

    @torch.no_grad()
    def run(self, steps):
        x, step, output = self.x, self.scheduler.step, self.output
        for t in islice(self.times, steps):
            x = step(output, t, x, return_dict=False)[0]
        self.x = x

    def side(self):
        return Side(self.run, self.begin, STEPS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_step_of_a_scheduler(benchmark, rounds, one_thread, name):
    """With `return_dict=False`, as pipelines call it; the first step, which makes registers, is not counted."""
    kind, config = SCHEDULERS[name]
    theirs = Loop(getattr(diffusers, f"{kind}Scheduler")(**config))
    ours = Loop(PlanScheduler.from_config(theirs.scheduler))
    for loop in (ours, theirs):
        loop.begin()
        loop.run(2 * STEPS + 1)  # to its end
    assert (ours.x - theirs.x).abs().max() < 1e-5 * theirs.x.abs().max()
    contest(benchmark, ours.side(), {"diffusers": theirs.side()}, Target(5.0), rounds=rounds)
