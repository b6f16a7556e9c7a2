"""The dtype and the device of a network's input: what the network declares, else what all of its tensors have."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pndm_fast.loop.layers import Around, layers

INPUTS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # others, such as float8, only store weights
SAY = "pf.Sampler(model, plan, {}=...) says it"


def dtype_of(model: Any) -> torch.dtype | None:
    """None where nothing says it.

    A computed `model.dtype` is believed: diffusers' is that of the computation where weights are stored in another, and
    leaves out what stays in float32. One that was written down must be what the weights have, as far as they can be
    inputs: it may be older than a `.to()`.

    Raises:
        ValueError: the weights have several, or only one that stores.
    """
    declared, computed = _declared(model, "dtype")
    declared = declared if declared in INPUTS else None
    if declared is not None and computed:
        return declared  # type: ignore[no-any-return]
    found = {tensor.dtype for tensor in _floating(model)}
    dtypes = found.intersection(INPUTS)
    if declared is not None and not dtypes.difference({declared}):
        return declared  # type: ignore[no-any-return]
    if declared is None and len(dtypes) == 1:
        return next(iter(dtypes))
    if not found:
        return None
    weights = " and ".join(_words(dtypes or found))
    why = f"model.dtype {_words([declared])[0]} and weights in {weights}" if declared else f"weights in {weights}"
    raise ValueError(
        f"dtype must be given for a network of several dtypes, or of one that only stores, got {why}: "
        f"{SAY.format('dtype')}"
    )


def device_of(model: Any) -> torch.device | None:
    """None where nothing says it. The meta device is never meant.

    Raises:
        ValueError: the weights are on several, or nowhere.
    """
    for part in layers(model):
        device = _execution_device(getattr(part, "_hf_hook", None))
        if device is not None:
            return device
    declared, computed = _declared(model, "device")
    declared = declared if isinstance(declared, torch.device) and declared.type != "meta" else None
    if declared is not None and computed:
        return declared
    kinds = [{tensor.device for tensor in _of(model, kind)} for kind in ("parameters", "buffers")]
    real = [[device for device in found if device.type != "meta"] for found in kinds]
    devices = real[0] or real[1]
    if declared is not None and all(_same(declared, device) for device in devices):
        return declared
    if declared is None and len(devices) < 2 and (devices or not any(kinds)):
        return devices[0] if devices else None
    if not devices:
        raise ValueError(
            "device must be given for a network whose weights are all on the meta device, got none: it is where they "
            f"are in a call; {SAY.format('device')}"
        )
    where = " and ".join(sorted(map(str, devices)))
    why = f"model.device {declared} and weights on {where}" if declared else f"weights on {where}"
    raise ValueError(f"device must be given for a network on several, got {why}: {SAY.format('device')}")


def _declared(model: Any, name: str) -> tuple[Any, bool]:
    """What the outermost layer with such an attribute of its own says, and whether that is computed."""
    for part in layers(model):
        own = inspect.getattr_static(part, name, None)
        if own is None:
            continue
        try:
            return getattr(part, name), isinstance(own, property)
        except Exception:  # diffusers' has no answer for a module without tensors
            continue
    return None, False


def _of(model: Any, kind: str) -> list[Tensor]:
    """Parameters or buffers of the outermost layer that has any way to tell, tensors of this package's own aside."""
    for part in layers(model):
        tell = None if isinstance(part, Around) else getattr(part, kind, None)
        if callable(tell):
            return [tensor for tensor in tell() if isinstance(tensor, Tensor)]
    return []


def _floating(model: Any) -> list[Tensor]:
    for kind in ("parameters", "buffers"):
        found = [tensor for tensor in _of(model, kind) if tensor.dtype.is_floating_point]
        if found:
            return found
    return []


def _execution_device(hook: Any) -> torch.device | None:
    """Where accelerate's hook moves the input to; of several hooks the first that says it."""
    for one in (hook, *getattr(hook, "hooks", ())):
        device = getattr(one, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return None


def _same(a: torch.device, b: torch.device) -> bool:
    return a.type == b.type and (a.index is None or b.index is None or a.index == b.index)


def _words(dtypes: Iterable[Any]) -> list[str]:
    return sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)
