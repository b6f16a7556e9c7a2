"""The rules that a call's arguments must keep, each with its sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pndm_fast.loop import conditioning
from pndm_fast.loop.guidance import Guidance
from pndm_fast.loop.network import Denoiser
from pndm_fast.plan.checks import shown
from pndm_fast.plan.matrix2 import matrix
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.warn import warn
from pndm_fast.row.noise import seed_tensor

FEW_ALPHA, MUCH_ALPHA = 0.1, 0.5  # alpha (of alpha^2 + sigma^2 = 1) where pure noise is a doubtful, a wrong start


def check_shape(shape: Any) -> tuple[int, ...]:
    """(B, *sample shape) as integers.

    Raises:
        TypeError, ValueError: not a sequence of positive integers with at least two entries.
    """
    shape = shape.tolist() if isinstance(shape, np.ndarray) else shape
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence):
        raise TypeError(f"shape must be a sequence such as (16, 3, 32, 32), got {shown(shape)}")
    if any(isinstance(s, bool) or not hasattr(s, "__index__") for s in shape):
        raise TypeError(f"shape must hold integers, got {shown(tuple(shape))}")
    sizes = tuple(int(s) for s in shape)
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"shape must be (batch, ...) with positive sizes, got {sizes}")
    return sizes


def check_sizes(name: str, sizes: Any) -> list[int]:
    """Positive integers, at least one.

    Raises:
        TypeError, ValueError: anything else.
    """
    if isinstance(sizes, (str, bytes)) or not hasattr(sizes, "__iter__"):
        raise TypeError(f"{name} must be a sequence of positive integers, got {shown(sizes)}")
    found = list(sizes)
    for size in found:
        if not is_integer(size):
            raise TypeError(f"{name} must be positive integers, got {shown(size)}")
        if size < 1:
            raise ValueError(f"{name} must be positive, got {size}")
    if not found:
        raise ValueError(f"{name} must have at least one entry, got none")
    return [int(size) for size in found]


def check_seeds(seeds: Any, batch: int | None) -> NDArray[np.int64]:
    """The bits of s, s + 1, ... for `batch` samples; of a sequence its own, which is the batch where that is None.

    Raises:
        TypeError, ValueError: not integers in [0, 2^64), or not `batch` of them.
    """
    if is_integer(seeds):
        first, count = int(seeds), 1 if batch is None else batch
        if 0 <= first <= 2**63 - count:
            return np.arange(first, first + count, dtype=np.int64)
        return seed_tensor(range(first, first + count)).numpy()
    if isinstance(seeds, (str, bytes, bool, Set, Mapping)) or not hasattr(seeds, "__iter__"):
        raise TypeError(f"seeds must be an integer or a sequence of integers, got {shown(seeds)}")
    bits: NDArray[np.int64] = seed_tensor(seeds.tolist() if hasattr(seeds, "tolist") else seeds).numpy()
    if len(bits) == 0 or (batch is not None and len(bits) != batch):
        wanted = "at least one entry" if batch is None else f"one entry for each of the {batch} samples"
        raise ValueError(f"seeds must have {wanted}, got {len(bits)}")
    return bits


def check_tensor(name: str, value: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A finite tensor [B, *shape] as float32, or float64 where it is float64.

    Raises:
        TypeError, ValueError: naming what was got.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {got}")
    if tuple(value.shape[1:]) != shape:
        raise ValueError(f"{name} must have shape (batch, {', '.join(map(str, shape))}), got {tuple(value.shape)}")
    if not len(value):
        raise ValueError(f"{name} must have at least one sample, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{name} must be on {device}, got {value.device}")
    bad = (~value.isfinite()).flatten(1).any(1).nonzero()[:, 0]
    if len(bad):
        raise ValueError(f"{name} must be finite, got NaN or infinity in sample {int(bad[0])}")
    return value.detach() if value.dtype is torch.float64 else value.detach().float()


def check_batches(tensors: Mapping[str, Tensor], batch: int) -> None:
    """All for the same number of samples.

    Raises:
        ValueError: naming the one that is not.
    """
    for name, tensor in tensors.items():
        if len(tensor) != batch:
            raise ValueError(f"{name} must have batch {batch}, as seeds and other tensors, got {len(tensor)}")


def check_plans(plan: Any, default: Plan | None, batch: int) -> tuple[Plan, ...]:
    """One plan for each sample.

    Raises:
        TypeError, ValueError: not plans, or not one for each sample.
    """
    plan = default if plan is None else plan
    if plan is None:
        raise ValueError("plan must be given: the sampler has none of its own")
    if isinstance(plan, Plan):
        return (plan,) * batch
    plans = tuple(plan) if hasattr(plan, "__iter__") and not isinstance(plan, (Set, Mapping)) else (plan,)
    for p in plans:
        if not isinstance(p, Plan):
            raise TypeError(f"plan must be a Plan or one for each sample, got {type(p).__name__}")
    if len(plans) != batch:
        raise ValueError(f"plan must be one Plan or one for each of the {batch} samples, got {len(plans)}")
    return plans


def check_predictions(plans: Sequence[Plan]) -> None:
    """Refuse a batch whose plans take a network's output for different things.

    Raises:
        ValueError: naming them.
    """
    words = sorted({plan.prediction for plan in plans})
    if len(words) > 1:
        raise ValueError(f"plan must be for one prediction in a batch, the network's, got {' and '.join(words)}")


def check_time_dtype(plan: Plan, dtype: torch.dtype | None) -> None:
    """Refuse fractional times for a network that takes integers.

    Raises:
        ValueError: naming the first such time.
    """
    if dtype is torch.int64:
        for t in plan.times:
            if t != int(t):
                raise ValueError(
                    f"times must be integers for time_dtype int64, got {t:g}: on a discrete schedule "
                    "make_plan(integer_times=True) has whole ones, and plan.with_times(round) tells any network such"
                )


def check_start(plan: Plan, given: bool) -> None:
    """Warn, or refuse, where a plan starts pure noise at a level that still holds much of the data.

    Raises:
        ValueError: alpha above one half at the first call.
    """
    start = plan.start.position
    alpha = start.alpha / math.hypot(*start)
    if given or alpha <= FEW_ALPHA:
        return
    hint = "spacing='trailing' starts at the noisiest time"
    if plan.components > 1:
        hint = "begin at t = 1; where it does, beta must be larger"
    text = f"the grid starts pure noise at t = {plan.times[0]:g}, where alpha is {alpha:.3g}: {hint}"
    if alpha > MUCH_ALPHA:
        raise ValueError(f"{text}; or give start=State(...)")
    warn(text)


def check_components(plan: Plan, shape: tuple[int, ...]) -> None:
    """Refuse samples that are not positions and momenta for a plan in phase space.

    Raises:
        ValueError: the first dimension of a sample does not divide into halves.
    """
    if plan.components > 1 and (len(shape) < 2 or shape[1] % plan.components):
        rule = "(batch, positions and momenta, ...) with an even second entry"
        raise ValueError(f"shape must be {rule} for {plan.solver} in phase space, got {shape}")


def check_models(plan: Plan, networks: Sequence[Denoiser], weaker: Denoiser | None) -> None:
    """Refuse a plan that calls a network that there is not, or that stores more of its output than it knows.

    Raises:
        ValueError: naming the index, or the plan's solver.
    """
    if plan.last_model >= len(networks):
        count = len(networks)
        raise ValueError(
            f"the plan calls network {plan.last_model}, but model has {count}: give a sequence of networks"
        )
    partial = [network.momentum_only for network in networks]
    other = weaker is not None and weaker.momentum_only
    if not any(partial) and not other:
        return
    for row in plan:
        called = partial[row.model] or (row.guided and other)
        if called and np.any(matrix(row.store.q)[:, 0]):
            raise ValueError(
                f"schedule must be PSLD(gamma=0, ...).momentum_only() for a network of the momentum alone, but "
                f"{plan.solver}'s plan stores what it predicts of the position"
            )


def check_names(tree: str, keys: Mapping[str, Any], networks: Sequence[Denoiser]) -> None:
    """Refuse conditioning in the place of what the sampler gives.

    Raises:
        ValueError: naming the key.
    """
    for network in networks if keys else ():
        for key in network.time.names.intersection(keys):
            raise ValueError(f"{tree} must not have the key {key!r}: the sampler gives that argument of the network")
        if network.scatters and conditioning.shares_tensors(keys):
            raise ValueError(
                f"{tree} must not share tensors with a DataParallel network, which deals out their entries"
            )


def check_conditioning(
    cond: Any,
    uncond: Any,
    plans: Sequence[Plan],
    batch: int,
    device: torch.device,
    weaker: bool,
    row: int = 0,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Both trees at that row; uncond is None where no row needs a second evaluation. A weaker network may take cond's.

    Raises:
        TypeError, ValueError: what `conditioning.check` refuses, guidance without uncond, or uncond with keys that cond
            lacks.
    """
    with_cond = conditioning.check(*_at_row("cond", cond, row), batch, device)
    guided = any([plan.guided for plan in plans])
    if uncond is None and not weaker:
        if guided:
            raise ValueError("a guided plan must have uncond, the network's arguments without condition")
        return with_cond, None
    without = conditioning.complete(conditioning.check(*_at_row("uncond", uncond, row), batch, device), with_cond)
    return with_cond, without if guided else None


def warn_of_idle_guidance(cond: Any, uncond: Any) -> None:
    """Where both evaluations of guidance are the same, for all rows."""
    known = cond if isinstance(cond, (dict, Mapping)) else {}
    values = isinstance(uncond, (dict, Mapping)) and conditioning.adds_nothing(uncond, known)
    if values or (uncond is not None and uncond is cond):
        warn("uncond has no effect: each of its values is cond's own, and guidance evaluates the same twice")


def warn_of_idle_interval(plans: Sequence[Plan], guidance: Guidance) -> None:
    """Where guidance is for an interval that no row is called in."""
    scales = guidance.scale if isinstance(guidance.scale, tuple) else (guidance.scale,)
    if guidance.interval is not None and set(scales) != {1.0} and not any([plan.guided for plan in plans]):
        warn(f"guidance has no effect: no row is called within interval {guidance.interval}")


def _at_row(name: str, given: Any, row: int) -> tuple[str, Any]:
    """A tree, and its name: what was given, or what it returns for that row."""
    if given is None or isinstance(given, (dict, Mapping)) or not callable(given):
        return name, given
    tree = given(row)
    if tree is None:
        raise TypeError(f"{name}({row}) must be a dict of the network's keyword arguments, got None")
    return f"{name}({row})", tree


def check_restarts(rows: Sequence[tuple[Plan, int]]) -> None:
    """Refuse another state after rows (plan, index) from which a plan cannot go on from a state alone.

    Raises:
        ValueError: naming the row, and those after which it can.
    """
    for plan, index in rows:
        if plan.restarts[index]:
            continue
        why = "does not end a step"
        if plan.rows[index].ends_step:
            why = "leaves an anchor to later rows, which correct the state by it"
        after = [str(i) for i, fine in enumerate(plan.restarts) if fine]
        listed = ", ".join(after if len(after) <= 8 else [*after[:6], "...", after[-1]])
        raise ValueError(
            f"on_step must return None after row {index} of {plan.solver}, which {why}, got a tensor: the state can be "
            f"changed after rows {listed}"
        )


def check_changed(value: Any, shape: tuple[int, ...], batch: int, device: torch.device) -> Tensor:
    """States [B, *shape] that `on_step` returned.

    Raises:
        TypeError, ValueError: anything else.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"on_step must return None, or the state to go on from as a tensor, got {type(value).__name__}")
    state = check_tensor("the state that on_step returns", value, shape, device)
    if len(state) != batch:
        raise ValueError(f"the state that on_step returns must have batch {batch}, got {len(state)}")
    return state
