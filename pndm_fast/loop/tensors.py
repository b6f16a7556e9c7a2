"""The dtype and the device of a network's input: what the network declares, else what all of its tensors have."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, jit, nn

from pndm_fast.loop.layers import Around, layers

INPUTS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # others, such as float8, only store weights
META = {torch.device("meta")}
SAY = "pf.Sampler(model, plan, {}=...) says it"


class Weights:
    """The tensors of a network, looked at when they are asked for: parameters, or buffers where there are none such."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @cached_property
    def _parameters(self) -> list[Tensor]:
        return tensors_in(self._model, "parameters")

    @cached_property
    def _buffers(self) -> list[Tensor]:
        return tensors_in(self._model, "buffers")

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Of the floating-point ones."""
        floating = {tensor.dtype for tensor in self._parameters if tensor.dtype.is_floating_point}
        return floating or {tensor.dtype for tensor in self._buffers if tensor.dtype.is_floating_point}

    @property
    def devices(self) -> set[torch.device]:
        """Real ones; only the meta device where there is no other."""
        found = {tensor.device for tensor in self._parameters}
        if found <= META:
            found |= {tensor.device for tensor in self._buffers}
        return found - META or found


def dtype_of(model: Any, weights: Weights, name: str = "model") -> torch.dtype | None:
    """None where nothing says it.

    A computed `model.dtype` is believed: diffusers' is that of the computation where weights are stored in another, and
    leaves out what stays in float32. One that was written down must be what the weights have, as far as they can be
    inputs: it may be older than a `.to()`.

    Raises:
        ValueError: the weights have several, or only one that stores.
    """
    declared, computed = _declared(model, "dtype")
    declared = declared if isinstance(declared, torch.dtype) and declared in INPUTS else None
    if declared is not None and computed:
        return declared
    found = weights.dtypes
    inputs = found.intersection(INPUTS)
    if declared is not None and inputs <= {declared}:
        return declared
    if declared is None and len(inputs) == 1:
        return inputs.pop()
    if not found:
        return None
    got = f"weights in {_words(inputs or found)}"
    got = got if declared is None else f"model.dtype {_words([declared])} and {got}"
    rule = "whose dtypes are several" if inputs else "whose weights are only stored so"
    raise ValueError(f"dtype must be given for {name}, {rule}, got {got}: {SAY.format('dtype')}")


def device_of(model: Any, weights: Weights, name: str = "model") -> torch.device | None:
    """None where nothing says it. The meta device is never meant.

    Raises:
        ValueError: the weights are on several, or nowhere.
    """
    device = _execution_device(part for part in layers(model) if getattr(part, "_hf_hook", None) is not None)
    if device is not None:
        return device
    declared, computed = _declared(model, "device")
    declared = declared if isinstance(declared, torch.device) and declared not in META else None
    if declared is not None and computed:
        return declared
    found = weights.devices
    if declared is not None and (found <= META or all(same_device(declared, device) for device in found)):
        return declared
    if not found:
        return None
    if found <= META:
        device = _execution_device(layers(model))
        if device is not None:
            return device
        raise ValueError(
            f"device must be given for {name}, whose weights are all on the meta device, got none: "
            f"{SAY.format('device')}, as the one where they are in a call"
        )
    if declared is None and len(found) == 1:
        return found.pop()
    got = f"weights on {' and '.join(sorted(map(str, found)))}"
    got = got if declared is None else f"model.device {declared} and {got}"
    raise ValueError(f"device must be given for {name}, which is on several, got {got}: {SAY.format('device')}")


def _declared(model: Any, name: str) -> tuple[Any, bool]:
    """What the outermost layer with such an attribute of its own says, and whether that is computed."""
    for part in layers(model):
        of_class = next((vars(kind)[name] for kind in type(part).__mro__ if name in vars(kind)), None)
        if of_class is None and name not in getattr(part, "__dict__", ()):
            continue
        try:
            return getattr(part, name), isinstance(of_class, property)
        except Exception:  # diffusers' has no answer for a module without tensors
            continue
    return None, False


def tensors_in(model: Any, kind: str) -> list[Tensor]:
    """Parameters or buffers of the outermost layer that has any way to tell, tensors of this package's own aside."""
    for part in layers(model):
        tell = None if isinstance(part, Around) else getattr(part, kind, None)
        if not callable(tell):
            continue
        plain = isinstance(part, nn.Module) and not isinstance(part, jit.ScriptModule)
        if plain and getattr(type(part), kind) is getattr(nn.Module, kind):
            return [t for module in modules_of(part) for t in getattr(module, f"_{kind}").values() if t is not None]
        told = tell()  # anything, of an object that answers to every name
        return [tensor for tensor in told if isinstance(tensor, Tensor)] if isinstance(told, Iterable) else []
    return []


def modules_of(root: nn.Module) -> list[nn.Module]:
    """It and all inside it: as `nn.Module.modules`, without the names, at a fifth of the time."""
    found, left = {}, [root]
    while left:
        module = left.pop()
        if id(module) not in found:
            found[id(module)] = module
            left.extend([child for child in module._modules.values() if child is not None])
    return list(found.values())


def _execution_device(hooked: Iterable[Any]) -> torch.device | None:
    """Where accelerate's hooks move inputs to: the first that says it, of these networks or of modules in them."""
    parts = [part for one in hooked for part in (modules_of(one) if isinstance(one, nn.Module) else [one])]
    for hook in [part._hf_hook for part in parts if hasattr(part, "_hf_hook")]:
        several = getattr(hook, "hooks", ())
        for one in (hook, *(several if isinstance(several, (tuple, list)) else ())):
            device = getattr(one, "execution_device", None)
            if isinstance(device, (torch.device, str, int)):
                return torch.device(device)
    return None


def same_device(a: torch.device, b: torch.device) -> bool:
    """Whether two devices may be one: without its index, a device is any of its type."""
    return a.type == b.type and (a.index is None or b.index is None or a.index == b.index)


def _words(dtypes: Iterable[Any]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
