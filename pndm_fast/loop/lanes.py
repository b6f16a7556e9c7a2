"""Conditioning sample by sample: what of a tree belongs to each, and what all samples of a batch must share."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from torch import Tensor

from pndm_fast.loop.conditioning import Halves, PerSample, Shared, mapped, same
from pndm_fast.row.layout import channels_of

Part = tuple[Any, Any]


class NoLanes(Exception):
    """A tree that another request's samples cannot stand beside in one batch, with the reason."""


class Same:
    """A value as a key: equal where a network cannot tell it from another. Tensors are copied, so that it stays."""

    def __init__(self, value: Any) -> None:
        self.value = mapped(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and same(self.value, other.value)

    def __hash__(self) -> int:
        return hash(type(self.value))


def form(tree: Any, by_row: bool = False, lists: bool = True) -> Hashable:
    """What trees of one batch have in common: their forms for each sample, and the values that samples share.

    Args:
        tree: as `Evaluation.marked`; by_row: whether it changes from row to row.
        lists: whether the network may be given other entries in the same list, which a graph may not.

    Raises:
        NoLanes: samples of several requests cannot share it.
    """
    if isinstance(tree, Halves):
        return "halves", form(tree.cond)
    if isinstance(tree, PerSample):
        if not lists:
            raise NoLanes("a list with an entry for each sample, which a graph would hold fast")
        return "entries"
    if isinstance(tree, Tensor) and tree.is_nested:
        raise NoLanes("a nested tensor")
    if isinstance(tree, Tensor) and tree.dim():
        return type(tree), tuple(tree.shape[1:]), tree.dtype, channels_of(tree)
    if isinstance(tree, Mapping):
        return type(tree), tuple([(key, form(value, by_row, lists)) for key, value in tree.items()])
    if isinstance(tree, (tuple, list)):
        return type(tree), tuple([form(value, by_row, lists) for value in tree])
    if by_row and tree is not None:
        raise NoLanes("a value of each row that samples share")
    return Same(tree.value if isinstance(tree, Shared) else tree)


def parts(tree: Any, own: Any) -> Iterator[Part]:
    """Of a tree, and of one that was `conditioning.copied` from its like, what belongs to samples, in order."""
    if isinstance(tree, (Halves, PerSample)) or (isinstance(tree, Tensor) and tree.dim()):
        yield tree, own
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from parts(value, own[key])
    elif isinstance(tree, (tuple, list)):
        for value, its in zip(tree, own, strict=True):
            yield from parts(value, its)


def values_of(part: Any, sample: int, batch: int) -> list[Any]:
    """One sample's in a part of a request's tree for `batch` samples: two of [uncond; cond]."""
    if isinstance(part, Halves):
        return [part.uncond[sample], part.cond[sample]]
    return list(part.entries[sample::batch]) if isinstance(part, PerSample) else [part[sample]]
