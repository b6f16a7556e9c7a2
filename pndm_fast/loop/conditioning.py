"""Conditioning trees: what the network is called with besides x and t, and the batch [uncond; cond] of guidance.

What belongs to a sample is never guessed: once a tree was checked, its tensors are [B, ...] but for those without
dimensions, and whatever else follows the batch, or must not, has a mark.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pndm_fast.plan.checks import shown

# leaves besides tensors whose value a captured graph may hold fast: they cannot change in place
CONSTANTS = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, enum.Enum, np.number, np.bool_)

# dtypes that torch copies many tensors of in one kernel
_TOGETHER = {torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.bool}


class CannotBatch(Exception):
    """Two values that no single call can carry; guidance then takes two calls."""


@dataclass(frozen=True, eq=False)
class Shared:
    """In `cond` or `uncond`: a value that is the same for all samples. The network gets it as it is.

    It may be anything: a tensor of any shape, an array, an object. It is never filled up, cut, spread or joined; where
    cond's and uncond's are not the same, guidance takes two calls. A captured graph keeps a copy of a tensor, which
    each call fills; it holds numbers and words fast, and cannot hold an object of another type. Tensors in it must be
    on the sampler's device, as all of conditioning.
    """

    value: Any


@dataclass(frozen=True, eq=False)
class PerSample:
    """In `cond` or `uncond`: one entry for each sample, of whatever kind, such as texts or tensors of several lengths.

    The network gets a list of as many entries as its batch has: of [uncond; cond] those of both; where the batch is
    filled up, the first entry stands behind the others too.

    Raises:
        TypeError: neither a list nor a tuple.
    """

    entries: Sequence[Any]

    def __post_init__(self) -> None:
        if not isinstance(self.entries, (list, tuple)):
            got = type(self.entries).__name__
            raise TypeError(f"PerSample must be a list or a tuple with one entry for each sample, got {got}")
        object.__setattr__(self, "entries", tuple(self.entries))


MARKS = (Shared, PerSample)


def check(name: str, tree: Mapping[str, Any] | None, batch: int, device: torch.device) -> dict[str, Any]:
    """A tree for that batch: tensors of batch 1 are spread over it.

    Raises:
        TypeError: not a mapping with names as keys, or a value of which it is not known whether samples share it.
        ValueError: a tensor on another device, or for another number of samples.
    """
    if tree is None:
        return {}
    if not isinstance(tree, (dict, Mapping)):
        raise TypeError(f"{name} must be a dict of the network's keyword arguments, got {type(tree).__name__}")
    for key in tree:
        if not isinstance(key, str):
            raise TypeError(f"{name} must have words as keys, got {shown(key)}")
    return {key: _checked(f"{name}[{key!r}]", value, batch, device) for key, value in tree.items()}


def _checked(path: str, value: Any, batch: int, device: torch.device) -> Any:
    if isinstance(value, Tensor):  # first, for abstract classes are slow to ask
        _check_device(path, value, device)
        return _of_batch(path, value, batch)
    if isinstance(value, CONSTANTS):
        return value
    if isinstance(value, MARKS):
        return _checked_mark(path, value, batch, device)
    if isinstance(value, (tuple, list)):
        return _like(value, [_checked(f"{path}[{i}]", v, batch, device) for i, v in enumerate(value)])
    if isinstance(value, (dict, Mapping)):
        return _like(value, {key: _checked(f"{path}[{key!r}]", v, batch, device) for key, v in value.items()})
    raise TypeError(
        f"{path} must be a tensor, a number, a word or marked: pf.Shared(value) is the same for all samples, "
        f"pf.PerSample(values) has one for each, got {type(value).__name__}"
    )


def _check_device(path: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{path} must be on {device}, got {tensor.device}")


def _of_batch(path: str, tensor: Tensor, batch: int) -> Tensor:
    """An unmarked tensor, [B, ...], or without dimensions."""
    if not tensor.is_nested and tensor.layout is not torch.strided:
        raise TypeError(f"{path} must be a dense tensor, got {tensor.layout}: pf.Shared(value) is given as it is")
    if not tensor.dim() or tensor.size(0) == batch:
        return tensor
    if tensor.size(0) == 1 and not tensor.is_nested:
        with torch.no_grad():
            return torch.cat([tensor] * batch)
    listed = path.endswith("]") and not path.endswith("']")
    got = f"{tensor.size(0)} nested entries" if tensor.is_nested else f"shape {tuple(tensor.shape)}"
    raise ValueError(
        f"{path} must have one entry for each of the {batch} samples, or 1 for all, in its first dimension, got {got}: "
        f"pf.Shared(value) is given as it is{', a list marked by pf.PerSample one entry to a sample' * listed}"
    )


def _checked_mark(path: str, mark: Shared | PerSample, batch: int, device: torch.device) -> Shared | PerSample:
    if isinstance(mark, PerSample) and len(mark.entries) != batch:
        raise ValueError(f"{path} must have one entry for each of the {batch} samples, got {len(mark.entries)}")
    for inner, leaf in _leaves(path, mark.value if isinstance(mark, Shared) else mark.entries):
        if isinstance(leaf, MARKS):
            raise TypeError(f"{inner} must be marked once, got pf.{type(leaf).__name__} inside another mark")
        if isinstance(leaf, Tensor):
            _check_device(inner, leaf, device)
    return mark


def complete(uncond: dict[str, Any], cond: dict[str, Any]) -> dict[str, Any]:
    """uncond with the keys that it lacks taken from cond.

    Raises:
        ValueError: uncond has a key that cond lacks.
    """
    for key in uncond:
        if key not in cond:
            raise ValueError(f"uncond must have keys of cond alone, got {key!r}")
    return {**cond, **uncond}


def adds_nothing(uncond: Any, cond: Any) -> bool:
    """Whether every value in uncond is cond's own, the same object, or an equal constant. No tensor is read."""
    if uncond is cond:
        return True
    if isinstance(uncond, (dict, Mapping)):
        own = cond if isinstance(cond, (dict, Mapping)) else {}
        return all(key in own and adds_nothing(value, own[key]) for key, value in uncond.items())
    if isinstance(uncond, Shared) and isinstance(cond, Shared):
        return adds_nothing(uncond.value, cond.value)
    if isinstance(uncond, PerSample) and isinstance(cond, PerSample):
        return adds_nothing(uncond.entries, cond.entries)
    if isinstance(uncond, (tuple, list)) and isinstance(cond, type(uncond)) and len(uncond) == len(cond):
        return all(map(adds_nothing, uncond, cond))
    return _equal_constants(uncond, cond)


@dataclass(frozen=True, eq=False)
class Halves:
    """[uncond; cond] of one call, still apart: a graph copies both to where it reads, an eager call joins them."""

    uncond: Tensor
    cond: Tensor

    def joined(self) -> Tensor:
        """A new tensor [2 B, ...]."""
        return torch.cat([self.uncond, self.cond])


def batched(uncond: Any, cond: Any) -> Any:
    """The tree of one call with 2 B samples: per-sample tensors become `Halves`, lists of entries are joined.

    Raises:
        CannotBatch: tensors differ in more than values, or what samples share is not the same in both.
    """
    if isinstance(cond, (dict, Mapping)) and isinstance(uncond, (dict, Mapping)) and cond.keys() == uncond.keys():
        return _like(cond, {key: batched(uncond[key], cond[key]) for key in cond})
    if isinstance(cond, (tuple, list)) and isinstance(uncond, type(cond)) and len(cond) == len(uncond):
        return _like(cond, [batched(u, c) for u, c in zip(uncond, cond, strict=True)])
    if isinstance(cond, PerSample) and isinstance(uncond, PerSample):
        return PerSample((*uncond.entries, *cond.entries))
    if isinstance(cond, Tensor) and isinstance(uncond, Tensor) and cond.dim() and uncond.dim():
        return _halves(uncond, cond)
    if _is_shared(cond) and _is_shared(uncond) and same(_value(uncond), _value(cond)):
        return cond
    raise CannotBatch(f"{_in_words(uncond)} and {_in_words(cond)}")


def _halves(uncond: Tensor, cond: Tensor) -> Halves:
    if cond.is_nested or uncond.is_nested:
        raise CannotBatch("nested tensors")
    if cond.shape != uncond.shape:
        raise CannotBatch(f"tensors of shapes {tuple(uncond.shape)} and {tuple(cond.shape)}")
    if cond.dtype != uncond.dtype:
        raise CannotBatch(f"tensors of dtypes {uncond.dtype} and {cond.dtype}")
    return Halves(uncond, cond)


def _is_shared(leaf: Any) -> bool:
    return isinstance(leaf, (Shared, *CONSTANTS)) or (isinstance(leaf, Tensor) and not leaf.dim())


def _value(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, Shared) else leaf


def same(a: Any, b: Any) -> bool:
    """Whether two shared values are one: the same object, equal constants or tensors. Others' == is not asked."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        dense = not (a.is_nested or b.is_nested) and a.layout is b.layout is torch.strided
        return dense and a.dtype == b.dtype and a.shape == b.shape and a.device == b.device and torch.equal(a, b)
    if isinstance(a, (tuple, list)) and type(a) is type(b) and len(a) == len(b):
        return all(map(same, a, b))
    if isinstance(a, Mapping) and type(a) is type(b) and a.keys() == b.keys():
        return all(same(a[key], b[key]) for key in a)
    return _equal_constants(a, b)


def _equal_constants(a: Any, b: Any) -> bool:
    # by their words: NaN is not itself, and 0.0 == -0.0
    return a is b or (isinstance(a, CONSTANTS) and type(a) is type(b) and repr(a) == repr(b))


def _in_words(leaf: Any) -> str:
    if isinstance(leaf, CONSTANTS):
        return shown(leaf)
    return f"Shared {type(leaf.value).__name__}" if isinstance(leaf, Shared) else type(leaf).__name__


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Whatever is no container, with where it stands."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (tuple, list)):
        for i, v in enumerate(value):
            yield from _leaves(f"{path}[{i}]", v)
    elif isinstance(value, (dict, Mapping)):
        for key, v in value.items():
            yield from _leaves(f"{path}[{key!r}]", v)
    else:
        yield path, value


def _like(container: Any, values: Any) -> Any:
    """A container of the same type with other values; an unusual one itself where they are its own."""
    if type(container) in (dict, list):
        return values
    if isinstance(container, Mapping):
        if all(value is container[key] for key, value in values.items()):
            return container
        if not isinstance(container, MutableMapping):
            return type(container)(values)  # type: ignore[call-arg]
        container = copy.copy(container)
        container.update(values)
        return container
    if all(map(lambda new, old: new is old, values, container)):
        return container
    if isinstance(container, list):
        container = copy.copy(container)
        container[:] = values
        return container
    return type(container)(*values) if hasattr(container, "_fields") else type(container)(values)


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with the function's values for leaves, of which marked values are."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, (dict, Mapping)):
        return _like(tree, {key: mapped(function, value) for key, value in tree.items()})
    if isinstance(tree, (tuple, list)):
        return _like(tree, [mapped(function, value) for value in tree])
    return function(tree)


def resized(name: str, tree: dict[str, Any], batch: int, to: int) -> dict[str, Any]:
    """For another number of samples: what belongs to them is cut, or the first one's repeated behind.

    Raises:
        ValueError: a nested tensor, which cannot be.
    """
    if batch == to:
        return tree
    for path, leaf in _leaves(name, tree):
        if isinstance(leaf, Tensor) and leaf.is_nested:
            raise ValueError(
                f"{path} must not be nested where a batch of {batch} is brought to {to}: pf.PerSample takes a list"
            )

    def resize(leaf: Any) -> Any:
        if isinstance(leaf, PerSample):
            entries = tuple(leaf.entries)
            return PerSample((entries + entries[:1] * (to - batch))[:to])
        if not isinstance(leaf, Tensor) or not leaf.dim():
            return leaf
        return leaf[:to] if to < batch else torch.cat([leaf, leaf[:1].expand(to - batch, *leaf.shape[1:])])

    return mapped(resize, tree)  # type: ignore[no-any-return]


def signature(tree: Any, by_row: bool = False) -> Hashable:
    """What a captured graph holds fast: the tree's form, its tensors' forms and all other values.

    Raises:
        TypeError: a leaf of a type that may change in place, or a number or word where rows have their own.
    """
    if type(tree) is dict:  # another mapping may hold more than its items
        return tuple((key, signature(value, by_row)) for key, value in tree.items())
    if isinstance(tree, (tuple, list)):
        return type(tree), *[signature(value, by_row) for value in tree]
    if isinstance(tree, Shared):
        return signature(tree.value, by_row)
    if isinstance(tree, PerSample):
        return signature(list(tree.entries), by_row)
    if isinstance(tree, Halves):
        return 2, signature(tree.cond)
    if isinstance(tree, Tensor):
        if tree.is_nested or tree.layout is not torch.strided:
            raise TypeError("cond holds a tensor that is not dense, which a graph cannot fill")
        return tuple(tree.shape), tree.dtype, tree.device
    if isinstance(tree, CONSTANTS) and (tree is None or not by_row):
        return type(tree), repr(tree)  # not the value: NaN is not itself
    when = " of each row" * by_row
    raise TypeError(f"cond{when} holds a {type(tree).__name__}, whose value a graph would hold fast")


def shares_tensors(tree: Mapping[str, Any]) -> bool:
    """Whether a tensor in it is marked as the same for all samples."""
    return any(True for _ in _tensors([leaf for _, leaf in _leaves("", tree) if isinstance(leaf, Shared)]))


def given(tree: Any) -> Any:
    """What the network takes: without marks, halves joined."""
    if tree is None or all([type(leaf) is Tensor for leaf in tree.values()]):
        return tree

    def take(leaf: Any) -> Any:
        if isinstance(leaf, Halves):
            return leaf.joined()
        return list(leaf.entries) if isinstance(leaf, PerSample) else _value(leaf)

    return mapped(take, tree)


def copied(tree: Any) -> Any:
    """`given`, with tensors of its own."""

    def copies(leaf: Any) -> Any:
        if isinstance(leaf, Halves):
            return leaf.joined()
        if isinstance(leaf, Shared):
            return mapped(copies, leaf.value)
        if isinstance(leaf, PerSample):
            return [mapped(copies, entry) for entry in leaf.entries]
        return leaf.clone() if isinstance(leaf, Tensor) else leaf

    return mapped(copies, tree)


def refill(tree: Any, values: Any) -> None:
    """Copy the values' tensors into those of a tree that was `copied` from one of the same signature.

    One kernel for each dtype, where they are dense.
    """
    pairs: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for own, value in zip(_tensors(tree), _tensors(values), strict=True):
        if isinstance(value, Halves):
            first, second = own.chunk(2)
            pairs.setdefault(own.dtype, []).extend([(first, value.uncond), (second, value.cond)])
        else:
            pairs.setdefault(own.dtype, []).append((own, value))
    for dtype, both in pairs.items():
        if dtype in _TOGETHER:
            targets, sources = zip(*both, strict=True)
            torch._foreach_copy_(targets, sources, non_blocking=True)
            continue
        for target, source in both:
            target.copy_(source, non_blocking=True)


def _tensors(tree: Any) -> Iterator[Any]:
    """Its tensors and halves, also those in marks, in order."""
    if isinstance(tree, (Tensor, Halves)):
        yield tree
    elif isinstance(tree, MARKS):
        yield from _tensors(tree.value if isinstance(tree, Shared) else tree.entries)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from _tensors(value)
    elif isinstance(tree, (dict, Mapping)):
        for value in tree.values():
            yield from _tensors(value)
