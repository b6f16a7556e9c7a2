"""One call of a `Sampler`, checked and completed before the first network call."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pndm_fast import conditioning
from pndm_fast.noise import is_integer, seed_tensor
from pndm_fast.plan import Plan
from pndm_fast.table import Table

ON_NAN = ("raise", "mark", "ignore")
FEW_ALPHA, MUCH_ALPHA = 0.1, 0.5  # alpha (of alpha^2 + sigma^2 = 1) where pure noise is a doubtful, a wrong start


@dataclass(frozen=True)
class Request:
    """Arguments of one call in their final form.

    Attributes:
        shape: of one sample.
        plans: one for each sample.
        seeds: int64 [B] on the sampler's device.
        noise, state: tensors [B, *shape] in the state's dtype, or None.
        noises: callable(index) -> [B, *shape] in place of Philox, or None.
        cond: the network's keyword arguments; uncond: those of its second evaluation, None without guidance.
        state_dtype: float32, or float64 for exact runs.
    """

    shape: tuple[int, ...]
    plans: tuple[Plan, ...]
    seeds: Tensor
    noise: Tensor | None
    state: Tensor | None
    noises: Callable[[int], Tensor] | None
    cond: dict[str, Any]
    uncond: dict[str, Any] | None
    state_dtype: torch.dtype
    drawn: dict[int, Tensor] = field(default_factory=dict)  # noises before the first row: they are asked for once

    @property
    def batch(self) -> int:
        """B."""
        return len(self.plans)

    @property
    def nfe(self) -> int:
        """Network calls of the longest plan."""
        return max(plan.nfe for plan in self.plans)

    @cached_property
    def distinct(self) -> tuple[Plan, ...]:
        """The different plan objects, in order of appearance."""
        return distinct(self.plans)

    @cached_property
    def raw(self) -> bool:
        """Whether every row stores the network's output unchanged and unguided."""
        return self.uncond is None and all(plan.raw for plan in self.distinct)

    @cached_property
    def unscaled(self) -> bool:
        """Whether the network sees y itself in every row."""
        return all(row.in_scale == 1.0 for plan in self.distinct for row in plan.rows)

    def first_rows(self, table: Table) -> list[int]:
        """Where in the table of the distinct plans each sample starts."""
        start = {id(plan): row for plan, row in zip(self.distinct, table.start, strict=True)}
        return [start[id(plan)] for plan in self.plans]


def distinct(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """The different plan objects, in order of appearance; a plan may be large, so none is compared."""
    return tuple({id(plan): plan for plan in plans}.values())


def check_shape(shape: Any) -> tuple[int, ...]:
    """(B, *sample shape) as integers.

    Raises:
        TypeError, ValueError: not a sequence of positive integers with at least two entries.
    """
    shape = shape.tolist() if isinstance(shape, np.ndarray) else shape
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence):
        raise TypeError(f"shape must be a sequence such as (16, 3, 32, 32), got {shape!r}")
    if any(isinstance(s, bool) or not hasattr(s, "__index__") for s in shape):
        raise TypeError(f"shape must hold integers, got {tuple(shape)!r}")
    sizes = tuple(int(s) for s in shape)
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"shape must be (batch, ...) with positive sizes, got {sizes}")
    return sizes


def check_seeds(seeds: Any, batch: int | None) -> Tensor:
    """s -> s, s + 1, ... for `batch` samples; a sequence gives one for each, and the batch where that is None.

    Raises:
        TypeError, ValueError: not integers in [0, 2^64), or not `batch` of them.
    """
    if is_integer(seeds):
        return seed_tensor(range(int(seeds), int(seeds) + (1 if batch is None else batch)))
    if isinstance(seeds, (str, bytes, bool)) or not hasattr(seeds, "__iter__"):
        raise TypeError(f"seeds must be an integer or a sequence of integers, got {seeds!r}")
    tensor = seed_tensor(seeds.tolist() if hasattr(seeds, "tolist") else seeds)
    if len(tensor) == 0 or (batch is not None and len(tensor) != batch):
        wanted = "at least one entry" if batch is None else f"one entry for each of the {batch} samples"
        raise ValueError(f"seeds must have {wanted}, got {len(tensor)}")
    return tensor


def check_tensor(name: str, value: Any, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    """A finite tensor [B, *shape] as float32, or float64 where it is float64.

    Raises:
        TypeError, ValueError: naming what was got.
    """
    if value is None:
        return None
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {got}")
    if tuple(value.shape[1:]) != shape:
        raise ValueError(f"{name} must have shape (batch, {', '.join(map(str, shape))}), got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{name} must be on {device}, got {value.device}")
    bad = (~value.isfinite()).flatten(1).any(1).nonzero()[:, 0]
    if len(bad):
        raise ValueError(f"{name} must be finite, got NaN or infinity in sample {int(bad[0])}")
    return value.detach() if value.dtype is torch.float64 else value.detach().float()


def check_plans(plan: Any, default: Plan, batch: int) -> tuple[Plan, ...]:
    """One plan for each sample.

    Raises:
        TypeError, ValueError: not plans, or not one for each sample.
    """
    if plan is None or isinstance(plan, Plan):
        return (default if plan is None else plan,) * batch
    plans = tuple(plan) if hasattr(plan, "__iter__") else (plan,)
    for p in plans:
        if not isinstance(p, Plan):
            raise TypeError(f"plan must be a Plan or one for each sample, got {type(p).__name__}")
    if len(plans) != batch:
        raise ValueError(f"plan must be one Plan or one for each of the {batch} samples, got {len(plans)}")
    return plans


def check_guidance(guidance: Any) -> float | tuple[float, ...]:
    """A finite scale, or one for each row.

    Raises:
        TypeError, ValueError: not numbers, or not finite.
    """
    if hasattr(guidance, "tolist"):
        guidance = guidance.tolist()
    several = isinstance(guidance, Sequence) and not isinstance(guidance, str)
    for g in guidance if several else (guidance,):
        if isinstance(g, (bool, str)) or not hasattr(g, "__float__"):
            raise TypeError(f"guidance must be a number or one for each row, got {g!r}")
        if not math.isfinite(g):
            raise ValueError(f"guidance must be finite, got {g}")
    return tuple(map(float, guidance)) if several else float(guidance)


def check_time_dtype(plan: Plan, dtype: torch.dtype | None) -> None:
    """Refuse fractional times for a network that takes integers.

    Raises:
        ValueError: naming the first such time.
    """
    if dtype is torch.int64:
        for t in plan.times:
            if t != int(t):
                raise ValueError(f"times must be integers for time_dtype int64, got {t:g}: use integer_times=True")


def check_start(plan: Plan, given: bool) -> None:
    """Warn, or refuse, where a plan starts pure noise at a level that still holds much of the data.

    Raises:
        ValueError: alpha above one half at the first call.
    """
    alpha = plan.start.alpha / math.hypot(*plan.start)
    if given or alpha <= FEW_ALPHA:
        return
    text = (
        f"the grid starts pure noise at t = {plan.times[0]:g}, where alpha is {alpha:.3g}: "
        "spacing='trailing' starts at the noisiest time"
    )
    if alpha > MUCH_ALPHA:
        raise ValueError(f"{text}; or give state=")
    warnings.warn(text, stacklevel=4)


def check_conditioning(
    cond: Mapping[str, Any] | None,
    uncond: Mapping[str, Any] | None,
    plans: tuple[Plan, ...],
    device: torch.device,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Both trees; uncond is None where no row needs a second evaluation.

    Raises:
        ValueError: guidance without uncond, or uncond with keys that cond lacks.
    """
    batch = len(plans)
    with_cond = conditioning.check("cond", cond, batch, device)
    guided = any(row.guidance != 1.0 for plan in distinct(plans) for row in plan.rows)
    if uncond is None:
        if guided:
            raise ValueError("guidance other than 1 must have uncond, the network's arguments without condition")
        return with_cond, None
    without = conditioning.complete(conditioning.check("uncond", uncond, batch, device), with_cond)
    return with_cond, without if guided else None


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of the choices, or ValueError."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return str(value)


def check_callable(name: str, value: Any) -> Any:
    """None or something callable, or TypeError."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r}")
    return value


def complete(
    *,
    default: Plan,
    guided: Callable[[tuple[Plan, ...], Any], tuple[Plan, ...]],
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype | None,
    time_dtype: torch.dtype | None,
    seeds: Any,
    noise: Any,
    state: Any,
    noises: Any,
    cond: Any,
    uncond: Any,
    guidance: Any,
    plan: Any,
) -> Request:
    """Check the arguments of `Sampler.__call__` and complete them. `shape` is (batch, *sample shape).

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if noise is not None and state is not None:
        raise ValueError("noise and state exclude each other: give one of them")
    noise = check_tensor("noise", noise, shape[1:], device)
    state = check_tensor("state", state, shape[1:], device)
    start = noise if state is None else state
    batch = shape[0] if is_integer(seeds) else None
    bits = check_seeds(seeds, batch if start is None else len(start))
    exact = dtype is torch.float64 or (start is not None and start.dtype is torch.float64)
    if exact and device.type != "cpu":
        raise ValueError(f"a float64 network, noise or state must be on the CPU, got {device}")
    state_dtype = torch.float64 if exact else torch.float32
    plans = check_plans(plan, default, len(bits))
    if guidance is not None:
        plans = guided(plans, check_guidance(guidance))
    for p in distinct(plans):
        check_start(p, state is not None)
        check_time_dtype(p, time_dtype)
    with_cond, without = check_conditioning(cond, uncond, plans, device)
    return Request(
        shape=shape[1:],
        plans=plans,
        seeds=bits.to(device),
        noise=None if noise is None else noise.to(state_dtype),
        state=None if state is None else state.to(state_dtype),
        noises=check_callable("noises", noises),
        cond=with_cond,
        uncond=without,
        state_dtype=state_dtype,
    )
