"""What the engine knows of a denoiser: how it is called, where and in which dtype, and how its result is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pndm_fast.loop.layers import Around, innermost, layers
from pndm_fast.loop.tensors import Weights, device_of, dtype_of, same_device
from pndm_fast.loop.time_argument import TimeArgument, time_argument
from pndm_fast.plan.warn import warn


class Identity:
    """A network as a key: equal to itself alone, and kept alive, so that no other takes its place."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other._network is self._network

    def __hash__(self) -> int:
        return id(self._network)


@dataclass(frozen=True, eq=False)
class Denoiser:
    """What is known of one network, asked once.

    Attributes:
        network: as it was given; it is called through all that it is wrapped in.
        call: (x, t, **cond) -> what the network returns; time: how it is told the time.
        dtype: of its input, None where nothing says it: the state's; device: where its input is, None likewise.
        momentum_only: whether it predicts eps of the momentum alone.
        scatters: whether it deals every tensor's first dimension out to several devices.
    """

    network: Callable[..., Any]
    call: Callable[..., Any]
    time: TimeArgument
    dtype: torch.dtype | None
    device: torch.device | None
    momentum_only: bool
    scatters: bool


def with_time(network: Callable[..., Any], keyword: str | None) -> Callable[..., Any]:
    """The network, called as network(x, t, **cond)."""
    return network if keyword is None else ByName(network, keyword)


@dataclass(frozen=True, eq=False)
class ByName:
    """A network that is told the time by name."""

    network: Callable[..., Any]
    keyword: str

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        """What the network returns."""
        return self.network(x, **{self.keyword: t}, **cond)


def denoiser_of(
    network: Any, dtype: torch.dtype | None = None, device: torch.device | None = None, name: str = "model"
) -> Denoiser:
    """What is known of a network: dtype and device as they are given, else as it says.

    Raises:
        TypeError, ValueError: it cannot be called as `Sampler` does, or its dtype or device is in doubt.
    """
    weights, time = Weights(network), time_argument(network, name)
    return Denoiser(
        network=network,
        call=with_time(network, time.keyword),
        time=time,
        dtype=dtype or dtype_of(network, weights, name),
        device=device or device_of(network, weights, name),
        momentum_only=any(getattr(part, "momentum_only", False) is True for part in layers(network)),
        scatters=any(isinstance(part, nn.DataParallel) and len(part.device_ids) > 1 for part in layers(network)),
    )


def explain(error: RuntimeError, denoiser: Denoiser, dtype: torch.dtype) -> None:
    """Note at a network's own error, where it speaks of types, that the input's dtype may be the cause."""
    if "type" not in str(error).lower():
        return
    own = None
    with contextlib.suppress(ValueError):
        own = dtype_of(denoiser.network, Weights(denoiser.network))
    if own == dtype:
        return
    told = "which the network does not say" if own is None else f"the network says {own}, maybe since a later change"
    error.add_note(f"its input is {dtype}; {told}: pf.Sampler(model, plan, dtype=...) says another")


class Wrapped(Around):
    """A network around another, in the other's mode and with its config."""

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        check_model(model)
        self.model, self.config = model, getattr(innermost(model), "config", None)
        self._keyword = time_argument(model).keyword
        self.train(in_training(innermost(model)))

    def ask(self, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """The inner network's prediction."""
        return prediction(with_time(self.model, self._keyword)(x, t, **cond), x)


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
    if in_training(innermost(model)):
        warn_of_training(name)


def warn_of_training(name: str = "model") -> None:
    """Samples are mostly meant to be of a network that is not being trained."""
    warn(f"the {name} is in training mode: call .eval() for dropout and batch norm")


def denoisers(
    model: Any,
    dtype: torch.dtype | None,
    device: torch.device | None,
    ask: Callable[[Any, torch.dtype | None, torch.device | None, str], Denoiser] = denoiser_of,
) -> tuple[Denoiser, ...]:
    """One network, or a sequence of them; what `ask` says of each.

    Raises:
        TypeError, ValueError: as `denoiser_of`, or it is empty.
    """
    several = isinstance(model, (tuple, list))
    if several and not model:
        raise ValueError("model must be a network or a sequence of networks, got none")
    networks = tuple(model) if several else (model,)
    for network in networks:
        check_model(network)
    names = [f"model[{i}]" if several else "model" for i in range(len(networks))]
    return tuple([ask(network, dtype, device, name) for network, name in zip(networks, names, strict=True)])


def check_device(device: Any) -> torch.device | None:
    """None or a device that computes, with its index.

    Raises:
        TypeError, ValueError: it is no device, or none that torch can use here.
    """
    if device is None:
        return None
    try:
        found = torch.empty(0, device=device).device
    except TypeError as error:
        raise TypeError(f"device must be a device such as 'cpu' or 'cuda:0', got {device!r}") from error
    except Exception as error:
        raise ValueError(f"device must be one that torch can use here, got {device!r}: {error}") from error
    if found.type == "meta":
        raise ValueError("device must be one that computes, got meta")
    return found


def device_of_all(networks: Sequence[Denoiser]) -> torch.device:
    """The one that all of them are on, as far as they say so; else the CPU.

    Raises:
        ValueError: they are on several.
    """
    told = [network.device for network in networks if network.device is not None] or [torch.device("cpu")]
    if not all(same_device(device, told[0]) for device in told):
        where = " and ".join(sorted(set(map(str, told))))
        raise ValueError(f"model must be networks on one device, got {where}: device= says where their input goes")
    return check_device(told[0]) or told[0]


def check_dtype(name: str, dtype: Any, allowed: tuple[torch.dtype, ...]) -> torch.dtype | None:
    """None or one of the allowed dtypes.

    Raises:
        TypeError: anything else.
    """
    if dtype is not None and dtype not in allowed:
        names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
        raise TypeError(f"{name} must be one of {names}, got {dtype!r}")
    return dtype  # type: ignore[no-any-return]
