"""What a fit is asked for, checked: the network, the pairs, and the figures of plans and tables on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pndm_fast.loop.fitted import fingerprint
from pndm_fast.loop.guidance import Guidance
from pndm_fast.loop.request import Request
from pndm_fast.plan.coefficients import level
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import LARGEST
from pndm_fast.plan.schedule import Schedule
from pndm_fast.plan.warn import Notice
from pndm_fast.runtime.progress import progress_bar
from pndm_fast.runtime.sampler import Sampler
from pndm_fast.tuning.calls import Caller, Pairs
from pndm_fast.tuning.figures import Loss
from pndm_fast.tuning.parameters import Coefficients
from pndm_fast.tuning.rollout import rollout
from pndm_fast.tuning.teacher import Folder, chunks, ends


@dataclass(frozen=True, eq=False)
class Task:
    """Everything that a fit reads and never changes.

    Attributes:
        train, validate, held_out: pairs, each with noise of its own.
        recompute: of `rollout`.
    """

    sampler: Sampler
    caller: Caller
    pairs: Pairs
    schedule: Schedule
    prediction: str
    guidance: Guidance | None
    nfe: int
    teacher: Plan
    loss_name: str
    loss: Loss
    train: range
    validate: range
    held_out: range
    batch: int
    recompute: bool
    folder: Folder | None
    progress: bool

    @cached_property
    def fingerprint(self) -> dict[str, Any] | None:
        """Of the network."""
        return fingerprint(self.caller.network.network)

    @cached_property
    def ends(self) -> Tensor:
        """The teacher's samples of all pairs, on the CPU."""
        everything = range(self.held_out.stop)
        count = len([*chunks(everything, self.batch)])

        def run(indices: range) -> Tensor:
            return self.sampler.run(self.request(self.teacher, indices)).samples.cpu()

        with progress_bar(self.progress, "teacher", count, "batches") as advance:
            return ends(run, self.pairs, everything, self.batch, self.folder, advance)

    def plan_losses(self, plan: Plan, indices: range) -> Tensor:
        """[len(indices)], of the plan as the engine runs it; what is not finite is as large as float32 goes."""
        values = []
        for chunk in chunks(indices, self.batch):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Notice)  # of a rival that no guidance reaches, say
                made = self.sampler.run(self.request(plan, chunk, on_nan="ignore")).samples
            with torch.no_grad():
                values.append(self.loss(made, self.ends[list(chunk)].to(made.device)))
        return torch.cat(values).cpu().double().nan_to_num(nan=LARGEST, posinf=LARGEST)

    def request(self, plan: Plan, indices: range, on_nan: str = "raise") -> Request:
        """A plan on a batch of pairs, by the engine itself."""
        cond, uncond = self.pairs.trees(indices)
        seeds, guidance = self.pairs.seeds(indices), self.guidance
        return Request(plan=plan, seeds=seeds, cond=cond, uncond=uncond, guidance=guidance, on_nan=on_nan)

    def scales(self, times: Sequence[float]) -> list[float] | None:
        """Guidance at calls that stand at these times, None without."""
        guidance = self.guidance
        if guidance is None:
            return None
        assert isinstance(guidance.scale, float)
        if guidance.interval is None:
            return [guidance.scale] * len(times)
        low, high = guidance.interval
        levels = [level(self.schedule, t) for t in times]
        return [guidance.scale if low * at.alpha < at.sigma <= high * at.alpha else 1.0 for at in levels]

    def run(self, numbers: Coefficients, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """`rollout` of a batch of pairs."""
        network = self.caller.bound(self.pairs.trees(indices), self.scales(numbers.times.tolist()))
        noise = self.pairs.noise(indices, self.caller.state)
        return rollout(network, numbers, noise, recompute=self.recompute)

    def losses(self, numbers: Coefficients, indices: Sequence[int]) -> Tensor:
        """[B] of a batch, which a gradient can follow."""
        made, _ = self.run(numbers, indices)
        return self.loss(made, self.ends[list(indices)].to(made))

    def validation(self, numbers: Coefficients) -> float:
        """The mean loss on validation pairs; infinite where one is not finite."""
        with torch.no_grad():
            values = torch.cat([self.losses(numbers, chunk) for chunk in chunks(self.validate, self.batch)])
        mean = float(values.double().mean())
        return mean if mean == mean else float("inf")


def over(parts: Sequence[range], show: bool, text: str, work: Callable[[range], None]) -> None:
    """Do some work for each part, telling how far it is."""
    with progress_bar(show, text, len(parts), "batches") as advance:
        for part in parts:
            work(part)
            advance()
