"""The network as a plan's rows call it, guidance and conditioning included, where gradients may pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pndm_fast.loop.conditioning import CONSTANTS, CannotBatch, PerSample, Shared, batched, check, complete, given
from pndm_fast.loop.fitted import near
from pndm_fast.loop.guidance import Guidance, rescaled
from pndm_fast.loop.network import Denoiser, prediction
from pndm_fast.plan.checks import shown
from pndm_fast.row.noise import INITIAL, normals, seed_tensor
from pndm_fast.tuning.rollout import Network

Tree = Mapping[str, Any]
Conditioning = Tree | Callable[[int], Tree] | None

CLOSE = 0.02  # of outputs, relative to the largest: bfloat16 rounds by 2^-9 in each of many layers


@dataclass(frozen=True, eq=False)
class Pairs:
    """What pair i is drawn from: its noise is that of seed + i, as a sampler's with that seed.

    Attributes:
        cond, uncond: the network's arguments, the same for all pairs, or a function of i for one.
    """

    shape: tuple[int, ...]
    seed: int
    cond: Conditioning
    uncond: Conditioning
    device: torch.device

    def seeds(self, indices: Sequence[int]) -> list[int]:
        """Of these pairs."""
        return [self.seed + i for i in indices]

    def noise(self, indices: Sequence[int], dtype: torch.dtype) -> Tensor:
        """[B, *shape]."""
        bits = seed_tensor(self.seeds(indices), self.device)
        return normals(bits, INITIAL, math.prod(self.shape)).view(len(indices), *self.shape).to(dtype)

    def trees(self, indices: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The arguments of a batch of pairs, with and without condition."""
        cond = self._tree("cond", self.cond, indices)
        if self.uncond is None:
            return cond, None
        return cond, complete(self._tree("uncond", self.uncond, indices), cond)

    def _tree(self, name: str, told: Conditioning, indices: Sequence[int]) -> dict[str, Any]:
        if not callable(told) or isinstance(told, Mapping):
            return check(name, told, len(indices), self.device)
        tree: dict[str, Any] = joined(name, [check(f"{name}({i})", told(i), 1, self.device) for i in indices])
        return tree


def joined(name: str, trees: Sequence[Any]) -> Any:
    """The tree of a batch from those of its samples.

    Raises:
        ValueError: their forms differ, or what samples share is not the same.
    """
    first = trees[0]
    if len({type(tree) for tree in trees}) > 1:
        raise ValueError(f"{name} must have one form for all pairs, got {shown([type(t).__name__ for t in trees])}")
    if isinstance(first, Mapping):
        if any(tree.keys() != first.keys() for tree in trees):
            raise ValueError(f"{name} must have the same keys for all pairs, got {shown([sorted(t) for t in trees])}")
        return {key: joined(f"{name}[{key!r}]", [tree[key] for tree in trees]) for key in first}
    if isinstance(first, PerSample):
        return PerSample([entry for tree in trees for entry in tree.entries])
    if isinstance(first, Tensor):
        if first.dim():
            return torch.cat(list(trees))
        if all(torch.equal(first, tree) for tree in trees):
            return first
    elif isinstance(first, (list, tuple)):
        return type(first)([joined(f"{name}[{i}]", list(parts)) for i, parts in enumerate(zip(*trees, strict=True))])
    elif isinstance(first, Shared) or (isinstance(first, CONSTANTS) and all(repr(t) == repr(first) for t in trees)):
        return first
    raise ValueError(f"{name} must be the same for all pairs, or a tensor [1, ...], got several values")


@dataclass(frozen=True, eq=False)
class Caller:
    """A network and its guidance.

    Attributes:
        guidance: how it is evaluated; None is without.
        weaker: what is known of guidance's other network.
        state: dtype of the states, float64 where the network's is.
    """

    network: Denoiser
    guidance: Guidance | None
    weaker: Denoiser | None
    state: torch.dtype

    def bound(self, trees: tuple[dict[str, Any], dict[str, Any] | None], scales: Sequence[float] | None) -> Network:
        """The network for a batch of pairs; `scales` is guidance row by row, None without."""
        cond, uncond = trees
        uncond = cond if uncond is None and self.weaker is not None else uncond
        alone = given(cond)
        both = self._batched(cond, uncond) if scales is not None and uncond is not None else None
        without = None if uncond is None else given(uncond)

        def call(x: Tensor, told: Tensor, row: int) -> Tensor:
            t = told.to(x.device, self.state).expand(len(x))
            scale = 1.0 if scales is None else scales[row]
            if scale == 1.0 or without is None:
                return self._asked(self.network, x, t, alone)
            if both is not None:
                none, some = self._asked(self.network, torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
            else:
                none = self._asked(self.weaker or self.network, x, t, without)
                some = self._asked(self.network, x, t, alone)
            if self.guidance is not None and self.guidance.rescale:
                return rescaled(some, none, torch.full_like(t, scale), self.guidance.rescale)
            return torch.lerp(none, some, scale)

        return call

    def _batched(self, cond: dict[str, Any], uncond: dict[str, Any]) -> Any:
        if self.weaker is not None or (self.guidance is not None and self.guidance.calls == "separate"):
            return None
        try:
            return given(batched(uncond, cond))
        except CannotBatch:
            return None

    def _asked(self, network: Denoiser, x: Tensor, t: Tensor, tree: Tree) -> Tensor:
        out = prediction(network.call(x.to(network.dtype or self.state), t, **tree), x)
        return out.to(self.state)


class Gradients(NamedTuple):
    """Whether the network's output follows its input and the time it is told, for a gradient; and if not, why."""

    of_x: bool
    of_t: bool
    why: str = ""


def gradients(caller: Caller, pairs: Pairs, t: float) -> Gradients:
    """Ask the network, by one call and its backward pass.

    Raises:
        RuntimeError: the network's own, which is not about gradients: it fails without them too, or memory is short.
    """
    x = pairs.noise([0], caller.state).requires_grad_()
    told = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    call = caller.bound(pairs.trees([0]), None)
    try:
        with torch.enable_grad():
            out = call(x, told, 0)
            if not out.requires_grad:
                return Gradients(False, False, "its output carries none")
            of_x, of_t = torch.autograd.grad(out.sum(), (x, told), allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # no formula for a backward pass, in the words of whoever made the operation
        with torch.no_grad():
            call(x.detach(), told.detach(), 0)
        return Gradients(False, False, str(error).partition("\n")[0])
    return Gradients(of_x is not None, of_t is not None, "" if of_x is not None else "its output does not follow x")


def check_times(caller: Caller, pairs: Pairs, t: float) -> None:
    """Of a network that has failed: refuse one that takes whole times alone, which a fitted plan does not tell.

    Raises:
        ValueError: it does.
    """
    tree, x = given(pairs.trees([0])[0]), pairs.noise([0], caller.state)

    def takes(told: Tensor) -> bool:
        try:
            with torch.no_grad():
                caller.network.call(x.to(caller.network.dtype or x.dtype), told, **tree)
        except Exception:  # of whatever kind: it is the network's
            return False
        return True

    whole = torch.tensor([int(t)], device=x.device)
    if takes(whole.to(x.dtype) + 0.5) or not takes(whole):  # it has failed of something else
        return
    raise ValueError(
        "model must take times that are not whole, as a fitted plan tells them, got one for whole ones alone; "
        "a function around it may round them: then its coefficients are fitted, and its times are not"
    )


def probed(caller: Caller, pairs: Pairs, t: float, scale: float | None = None) -> list[float]:
    """Sixteen numbers of what the network says at the first pair's noise and time t, at a scale of guidance."""
    with torch.no_grad():
        call = caller.bound(pairs.trees([0]), None if scale is None else [scale])
        out = call(pairs.noise([0], caller.state), torch.tensor(t, dtype=torch.float64), 0).flatten()
    places = torch.arange(16) * out.numel() // 16
    return [float(number) for number in out[places.to(out.device)]]


def same_outputs(own: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `probed` has found the same network, in whatever dtype."""
    most = max(map(abs, own), default=0.0) or 1.0
    return near([a / most for a in own], [b / most for b in other], CLOSE)
