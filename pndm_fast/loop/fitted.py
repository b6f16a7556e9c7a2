"""Whether a plan that was fitted to a network is used with that one, at the guidance that it was fitted for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from torch import Tensor

from pndm_fast.loop.layers import innermost
from pndm_fast.plan.checks import shown
from pndm_fast.plan.numbers import is_number
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.warn import warn

TENSORS, NUMBERS = 16, 4  # of the weights that are looked at, and of each
NEAR = 2.0**-7  # bfloat16 rounds by 2^-9 of a number; weights of another training are further away
LEAST = 2.0**-20  # float16 rounds what is smaller to a few bits


def fingerprint(network: Any) -> dict[str, Any] | None:
    """What tells a network from others, None of one without weights: its configuration, its weights, some of them.

    It is the same in any floating-point dtype, compiled, in `DataParallel` or `DistributedDataParallel`. Of weights
    that are elsewhere, offloaded or in shards, names and shapes are known alone.
    """
    inner = innermost(network)
    weights = _weights(inner)
    if not weights:
        return None
    names = sorted(weights)
    shapes = json.dumps([[name, list(weights[name].shape)] for name in names])
    chosen = [names[i * len(names) // min(TENSORS, len(names))] for i in range(min(TENSORS, len(names)))]
    return {
        "config": _digest(_config(inner)),
        "weights": _digest(shapes),
        "numbers": [_numbers(weights[name]) for name in chosen],
    }


def difference(own: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str | None:
    """In what two fingerprints differ, None where they do not or one is not known."""
    if own is None or other is None:
        return None
    if not isinstance(own, Mapping) or not isinstance(own.get("numbers"), list):  # of a file, where anything may be
        return "a fingerprint, and the plan's is none"
    if own.get("weights") != other.get("weights"):
        return "weights of other names or shapes"
    both = [(a, b) for a, b in zip(own.get("numbers", ()), other.get("numbers", ()), strict=False) if a and b]
    if not all(near(a, b) for a, b in both):
        return "other weights"
    return "another configuration" if own.get("config") != other.get("config") else None


def near(own: Iterable[float], other: Iterable[float], tolerance: float = NEAR) -> bool:
    """Whether numbers are the same but for their rounding."""
    try:
        a, b = torch.tensor([*own], dtype=torch.float64), torch.tensor([*other], dtype=torch.float64)
    except (TypeError, ValueError):  # a file's, which are no numbers
        return False
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * torch.maximum(a.abs(), b.abs()) + LEAST).all())


def warn_of_fit(plan: Plan, networks: Iterable[Any]) -> None:
    """Where a fitted plan meets another network, or another guidance, than it was fitted for."""
    fitted = plan.fitted
    if fitted is None or not fitted.get("better"):
        return
    for network in networks:
        away = difference(fitted.get("network"), fingerprint(network))
        if away is not None:
            warn(f"the plan was fitted to another network: this one has {away}")
    guidance = fitted.get("guidance")
    scales = guidance.get("scales") if isinstance(guidance, Mapping) else None
    if scales is not None and scales != [row.guidance for row in plan]:
        warn(f"the plan was fitted at guidance {_spoken(scales)}, got {_spoken([row.guidance for row in plan])}")


def _spoken(scales: Any) -> str:
    one = isinstance(scales, list) and all(map(is_number, scales)) and len(set(scales)) == 1
    return f"{scales[0]:g}" if one else shown(scales)


def _weights(inner: Any) -> dict[str, Tensor]:
    tell = getattr(inner, "named_parameters", None)
    if not callable(tell):
        return {}
    told = {name.replace("_orig_mod.", ""): tensor for name, tensor in tell()}
    return {name: tensor for name, tensor in told.items() if isinstance(tensor, Tensor) and tensor.numel()}


def _numbers(tensor: Tensor) -> list[float] | None:
    if tensor.device.type == "meta" or hasattr(tensor, "_local_tensor"):
        return None
    count = min(NUMBERS, tensor.numel())
    places = [(2 * k + 1) * tensor.numel() // (2 * count) for k in range(count)]
    own = tensor.detach()
    return [float(own[_index(place, tensor.shape)]) for place in places]  # whatever the memory format


def _index(place: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Of an element by its place in the order of indices."""
    index = []
    for size in reversed(shape):
        place, at = divmod(place, size)
        index.append(at)
    return tuple(reversed(index))


def _config(inner: Any) -> str:
    """The entries that say what the network is; those with an underscore are about files and versions."""
    config: Any = getattr(inner, "config", None)
    if is_dataclass(config) and not isinstance(config, type):
        config = asdict(config)
    elif not isinstance(config, Mapping) and callable(getattr(config, "to_dict", None)):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        return ""
    own = {
        str(k): v for k, v in config.items() if not str(k).startswith("_") and str(k) not in ("dtype", "torch_dtype")
    }
    return json.dumps(own, sort_keys=True, default=str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
