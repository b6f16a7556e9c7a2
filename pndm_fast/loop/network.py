"""What the engine knows of a denoiser: how to read its device, dtype, shape and result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pndm_fast.plan.warn import warn


class Identity:
    """A network as a key: equal to itself alone, and kept alive, so that no other takes its place."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other._network is self._network

    def __hash__(self) -> int:
        return id(self._network)


def parameter(model: Any) -> Tensor | None:
    """The model's first floating-point parameter or buffer, for its device and dtype."""
    for kind in ("parameters", "buffers"):
        tensors: Any = getattr(model, kind, None)
        for tensor in () if tensors is None else tensors():
            if isinstance(tensor, Tensor) and tensor.dtype.is_floating_point:
                return tensor
    return None


def config_shape(model: Any) -> tuple[int, ...] | None:
    """(C, H, W) from `model.config`: in_channels and sample_size, as diffusers and `pndm_fast.demo` write them."""
    config = getattr(model, "config", None)
    if isinstance(config, Mapping):
        channels, size = config.get("in_channels"), config.get("sample_size")
    else:
        channels, size = getattr(config, "in_channels", None), getattr(config, "sample_size", None)
    if not isinstance(channels, int):
        return None
    if isinstance(size, int):
        return channels, size, size
    if isinstance(size, (tuple, list)) and all(isinstance(s, int) for s in size):
        return channels, *size
    return None


def result_tensor(result: Any) -> Tensor:
    """The prediction in what a network returned: a tensor, the first of a tuple, `sample` of a dict or an object.

    Raises:
        TypeError: none of these.
    """
    if isinstance(result, Tensor):
        return result
    if isinstance(result, (tuple, list)) and result and isinstance(result[0], Tensor):
        return result[0]
    if isinstance(result, Mapping):
        found = result.get("sample", next(iter(result.values())) if len(result) == 1 else None)
    else:
        found = getattr(result, "sample", None)
    if isinstance(found, Tensor):
        return found
    raise TypeError(
        "the network must return a tensor, a tuple that starts with one, a dict or an object with 'sample', "
        f"got {type(result).__name__}"
    )


def prediction(result: Any, x: Tensor) -> Tensor:
    """What a network said about x: of one that learned its variance too, the mean, which is the first half of channels.

    Nichol & Dhariwal 2021, arXiv:2102.09672. The half is copied, dense and in the same layout.
    """
    out = result_tensor(result)
    if out.shape == x.shape or out.dim() < 3 or out.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
        return out
    half = out[:, : x.shape[1]]
    if out.is_contiguous():
        return half.contiguous()
    return half.movedim(1, -1).contiguous().movedim(-1, 1)


def in_training(model: Any) -> bool:
    """Whether a module is in training mode. An exported program says so too, but has no such mode, nor `.eval()`."""
    return getattr(model, "training", False) is True and "eval" not in getattr(model, "__dict__", {})


def check_model(model: Any, name: str = "model") -> None:
    """Refuse what cannot be called, and warn of training mode.

    Raises:
        TypeError: model is not callable.
    """
    if not callable(model) or isinstance(model, type):
        raise TypeError(f"{name} must be callable as {name}(x, t, **cond), got {model!r}")
    if in_training(model):
        warn(f"the {name} is in training mode: call .eval() for dropout and batch norm")


def knows_momentum_only(model: Any) -> bool:
    """Whether the network, or the one inside `nn.DataParallel`, says that it predicts eps of the momentum alone."""
    return any(getattr(net, "momentum_only", False) is True for net in (model, getattr(model, "module", None)))


def networks_of(model: Any) -> tuple[Callable[..., Any], ...]:
    """One network, or a sequence of them.

    Raises:
        TypeError, ValueError: something in it is not callable, or it is empty.
    """
    several = isinstance(model, (tuple, list))
    if several and not model:
        raise ValueError("model must be a network or a sequence of networks, got none")
    for network in model if several else (model,):
        check_model(network)
    return tuple(model) if several else (model,)


def check_dtype(name: str, dtype: Any, allowed: tuple[torch.dtype, ...]) -> torch.dtype | None:
    """None or one of the allowed dtypes.

    Raises:
        TypeError: anything else.
    """
    if dtype is not None and dtype not in allowed:
        names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
        raise TypeError(f"{name} must be one of {names}, got {dtype!r}")
    return dtype  # type: ignore[no-any-return]
