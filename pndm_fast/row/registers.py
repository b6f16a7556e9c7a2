"""The registers as tensors: making them, and checking those that somebody else has made."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pndm_fast.row.schema import REGISTERS, Element, Register, Registers, sizes

__all__ = ["ALIGN", "FLOATS", "NEVER", "Registers", "allocate", "check", "check_tensor", "dtypes_of", "padded"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # what a network may take and return
NEVER = 2**31 - 1  # first_bad of a sample that stayed finite
ALIGN = 16  # elements: rows of our buffers start on vector boundaries, so that no backend needs a scalar path


def allocate(
    batch: int,
    n: int,
    slots: int,
    *,
    device: torch.device,
    state: torch.dtype = torch.float32,
    slot: torch.dtype = torch.float32,
    time: torch.dtype = torch.float32,
    network: torch.dtype | None = None,
    cfg_copies: int = 1,
    channels: int = 1,
    given: Mapping[str, Tensor] = MappingProxyType({}),
) -> Registers:
    """Registers that hold anything; `network` is the dtype of a separate network input, None for none.

    Args:
        given: registers that are there already, by name.
    """
    size = sizes(batch, padded(n), slots, n, cfg_copies)
    dtypes = dtypes_of(state=state, slot=slot, time=time, network=network)

    def made(register: Register) -> Tensor | None:
        dtype = dtypes[register.element]
        if dtype is None:
            return None
        make = torch.zeros if register.zeroed else torch.empty
        return make(tuple(map(size.__getitem__, register.shape)), dtype=dtype, device=device)

    tensors: dict[str, Any] = {k: given[k] if k in given else made(register) for k, register in REGISTERS.items()}
    return Registers(**tensors, n=n, channels=channels)


def padded(n: int) -> int:
    """Elements from a sample to the next in our own buffers."""
    return math.ceil(n / ALIGN) * ALIGN


def dtypes_of(
    *, state: torch.dtype, slot: torch.dtype, time: torch.dtype, network: torch.dtype | None
) -> dict[Element, torch.dtype | None]:
    """What each kind of element is in a run."""
    ours: dict[Element, torch.dtype | None] = {"int32": torch.int32, "int64": torch.int64}
    return ours | {"state": state, "slot": slot, "time": time, "network": network}


def check(r: Registers) -> None:
    """Refuse registers whose shapes, dtypes, devices or layouts do not fit together.

    Raises:
        ValueError: naming the first that does not.
    """
    if r.y.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"apply_row: y must be torch.float32 or torch.float64, got {r.y.dtype}")
    size, allowed, device = r.sizes, _allowed(r.y.dtype), r.y.device
    if not 1 <= r.n <= size["stride"]:
        raise ValueError(f"apply_row: n must be in [1, {size['stride']}], got {r.n}")
    if r.channels < 1 or r.n % r.channels:
        raise ValueError(f"apply_row: channels must divide n = {r.n}, got {r.channels}")
    for (name, register), tensor in zip(REGISTERS.items(), r.tensors(), strict=True):
        if tensor is not None:
            shape = tuple(map(size.__getitem__, register.shape))
            check_tensor(name, tensor, shape, allowed[register.element], device)


@functools.cache
def _allowed(state: torch.dtype) -> dict[Element, tuple[torch.dtype, ...]]:
    return {
        "state": (state,),
        "slot": (*FLOATS, state),
        "time": (torch.float32, torch.int64, state),
        "network": (*FLOATS, state),
        "int32": (torch.int32,),
        "int64": (torch.int64,),
    }


def check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    """Refuse a tensor that is not dense, of that shape, on that device, in one of the dtypes."""
    if tensor.shape != shape:
        raise ValueError(f"apply_row: {name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype not in dtypes:
        wanted = " or ".join(dict.fromkeys(map(str, dtypes)))
        raise ValueError(f"apply_row: {name} must be {wanted}, got {tensor.dtype}")
    if not tensor.is_contiguous():
        raise ValueError(f"apply_row: {name} must be contiguous, got strides {tuple(tensor.stride())}")
    if tensor.device != device:
        raise ValueError(f"apply_row: {name} must be on {device}, got {tensor.device}")
