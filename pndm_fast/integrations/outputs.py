"""What `PlanScheduler.step` returns where diffusers' class returns an estimate of the data too."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from pndm_fast.loop.network import prediction
from pndm_fast.plan.row import Row

ESTIMATING = (  # classes whose output has pred_original_sample
    *("DDIMScheduler", "DDIMInverseScheduler", "DDPMScheduler", "EulerDiscreteScheduler"),
    *("EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverSDEScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
)


class EstimatingOutput(SchedulerOutput):
    """prev_sample, and pred_original_sample, which is made at the first question: few loops ask."""

    _made_of: tuple[Row, Tensor, Tensor, tuple[int, ...]] | None = None
    _estimate: Tensor | None = None

    @classmethod
    def of(cls, prev_sample: Tensor, row: Row, output: Tensor, sample: Tensor) -> EstimatingOutput:
        """Of a row of numbers, what the network said, and the sample that it saw."""
        made = cls(prev_sample=prev_sample)
        made._made_of = row, output, sample, _versions(output, sample)
        return made

    @property
    def pred_original_sample(self) -> Tensor | None:
        """The row's estimate of x_0 from that call, in the sample's dtype; both tensors are kept until it is made.

        Raises:
            ValueError: one of them has changed since.
        """
        if self._estimate is None and self._made_of is not None:
            row, output, sample, versions = self._made_of
            if _versions(output, sample) != versions:
                raise ValueError("pred_original_sample must be read before model_output or sample change, got others")
            self._estimate, self._made_of = estimate(row, prediction(output, sample), sample), None
        return self._estimate

    def __getitem__(self, key: Any) -> Any:
        return self.pred_original_sample if key == "pred_original_sample" else super().__getitem__(key)

    def __reduce__(self) -> Any:
        _ = self.pred_original_sample  # a copy has it, not what it is made of
        reduce: Any = super().__reduce__
        return reduce()

    def to_tuple(self) -> tuple[Any, ...]:
        """(prev_sample, pred_original_sample)."""
        return self.prev_sample, self.pred_original_sample


def _versions(*tensors: Tensor) -> tuple[int, ...]:
    """How often each was changed; those of inference mode do not count."""
    return tuple(-1 if tensor.is_inference() else tensor._version for tensor in tensors)


def estimate(row: Row, output: Tensor, sample: Tensor) -> Tensor:
    """x_0 = a y + b slot, with the slot that the row makes of y and the output; in float32, then the sample's dtype."""
    numbers: Any = (*row.store, *row.preview)  # no matrices: the plan has one component
    p, q, p2, q2, clamp, on_y, on_slot = numbers
    y, out = sample.to(torch.float32), output.to(torch.float32)
    inner = p * y + q * out
    inner = inner.clamp(-clamp, clamp) if math.isfinite(clamp) else inner
    x0: Tensor = on_y * y + on_slot * (p2 * y + q2 * inner)
    return x0.to(sample.dtype)
