"""Conditioning trees: what the network is called with besides x and t, and the batch [uncond; cond] of guidance."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tree = Mapping[str, Any]

# leaves besides tensors whose value a captured graph may hold fast: they cannot change in place
CONSTANTS = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, enum.Enum)


# dtypes that torch copies many tensors of in one kernel
_TOGETHER = {torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.bool}


class CannotBatch(Exception):
    """Two values that no single call can carry; guidance then takes two calls."""


def check(name: str, tree: Tree | None, batch: int, device: torch.device) -> dict[str, Any]:
    """A copy of the tree's top level.

    Raises:
        TypeError: not a mapping with names as keys.
        ValueError: a tensor on another device, or labels for another number of samples.
    """
    if tree is None:
        return {}
    if not isinstance(tree, (dict, Mapping)) or not all(isinstance(key, str) for key in tree):
        raise TypeError(f"{name} must be a dict of the network's keyword arguments, got {type(tree).__name__}")
    for path, leaf in _leaves(name, tree):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.device != device:
            raise ValueError(f"{path} must be on {device}, got {leaf.device}")
        labels = leaf.dim() == 1 and not leaf.dtype.is_floating_point
        if labels and leaf.shape[0] not in (1, batch):
            raise ValueError(f"{path} must have one entry for each of the {batch} samples, got {leaf.shape[0]}")
    return dict(tree)


def _leaves(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Tensor):  # first, for abstract classes are slow to ask
        return [(path, value)]
    if isinstance(value, (tuple, list)):
        return [leaf for i, v in enumerate(value) for leaf in _leaves(f"{path}[{i}]", v)]
    if isinstance(value, (dict, Mapping)):
        return [leaf for key, v in value.items() for leaf in _leaves(f"{path}[{key!r}]", v)]
    return [(path, value)]


def complete(uncond: dict[str, Any], cond: dict[str, Any]) -> dict[str, Any]:
    """uncond with the keys that it lacks taken from cond.

    Raises:
        ValueError: uncond has a key that cond lacks.
    """
    for key in uncond:
        if key not in cond:
            raise ValueError(f"uncond must have keys of cond alone, got {key!r}")
    return {**cond, **uncond}


@dataclass(frozen=True, eq=False)
class Halves:
    """[uncond; cond] of one call, still apart: a graph copies both to where it reads, an eager call joins them."""

    uncond: Tensor
    cond: Tensor

    def joined(self) -> Tensor:
        """A new tensor [2 B, ...]."""
        return torch.cat([self.uncond, self.cond])


def batched(uncond: Any, cond: Any, batch: int) -> Any:
    """The tree of one call with 2 B samples: tensors of batch B become `Halves`.

    Raises:
        CannotBatch: tensors differ in more than values, or other values differ.
    """
    if isinstance(cond, Mapping) and isinstance(uncond, Mapping) and cond.keys() == uncond.keys():
        return {key: batched(uncond[key], cond[key], batch) for key in cond}
    if isinstance(cond, (tuple, list)) and isinstance(uncond, type(cond)) and len(cond) == len(uncond):
        values = [batched(u, c, batch) for u, c in zip(uncond, cond, strict=True)]
        return type(cond)(*values) if hasattr(cond, "_fields") else type(cond)(values)
    if isinstance(cond, Tensor) and isinstance(uncond, Tensor):
        if cond.dim() and cond.shape == uncond.shape and cond.shape[0] == batch and cond.dtype == uncond.dtype:
            return Halves(uncond, cond)
        if cond is uncond or (cond.shape == uncond.shape and torch.equal(cond, uncond)):
            return cond
        raise CannotBatch(f"tensors of shapes {tuple(uncond.shape)} and {tuple(cond.shape)}")
    if cond is uncond or (not isinstance(cond, Tensor) and _equal(uncond, cond)):
        return cond
    raise CannotBatch(f"values {uncond!r} and {cond!r}")


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with the function's values for leaves."""
    if isinstance(tree, Mapping):
        return {key: mapped(function, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        values = [mapped(function, value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return function(tree)


def resized(tree: Any, batch: int, to: int) -> Any:
    """For another number of samples: tensors of that batch are cut, or their first entry repeated behind them."""

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != batch or batch == to:
            return leaf
        return leaf[:to] if to < batch else torch.cat([leaf, leaf[:1].expand(to - batch, *leaf.shape[1:])])

    return mapped(resize, tree)


def signature(tree: Any) -> Hashable:
    """What a captured graph holds fast: the tree's form, its tensors' forms and all other values.

    Raises:
        TypeError: a leaf of a type that may change in place.
    """
    if type(tree) is dict:  # of another mapping a graph's copy would be a dict
        return tuple((key, signature(value)) for key, value in tree.items())
    if isinstance(tree, (tuple, list)):
        return type(tree), *map(signature, tree)
    if isinstance(tree, Halves):
        return 2, signature(tree.cond)
    if isinstance(tree, Tensor):
        return tuple(tree.shape), tree.dtype, tree.device
    if isinstance(tree, CONSTANTS):
        return type(tree), repr(tree)  # not the value: NaN is not itself
    raise TypeError(f"cond holds a {type(tree).__name__}, whose value a graph would hold fast")


def joined(tree: Any) -> Any:
    """With the tensors that a network takes."""
    return mapped(lambda leaf: leaf.joined() if isinstance(leaf, Halves) else leaf, tree)


def copied(tree: Any) -> Any:
    """`joined`, with tensors of its own."""

    def copy(leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, Tensor) else leaf.joined() if isinstance(leaf, Halves) else leaf

    return mapped(copy, tree)


def refill(tree: Any, values: Any) -> None:
    """Copy the values' tensors into those of a tree that was `copied` from one of the same signature.

    One kernel for each dtype, where they are dense.
    """
    pairs: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for (_, own), (_, value) in zip(_leaves("", tree), _leaves("", values), strict=True):
        if isinstance(value, Halves):
            first, second = own.chunk(2)
            pairs.setdefault(own.dtype, []).extend([(first, value.uncond), (second, value.cond)])
        elif isinstance(value, Tensor):
            pairs.setdefault(own.dtype, []).append((own, value))
    for dtype, both in pairs.items():
        if dtype in _TOGETHER:
            targets, sources = zip(*both, strict=True)
            torch._foreach_copy_(targets, sources, non_blocking=True)
            continue
        for target, source in both:
            target.copy_(source, non_blocking=True)


def _equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    same = a == b
    return bool(same.all() if hasattr(same, "all") else same)  # arrays compare element by element
