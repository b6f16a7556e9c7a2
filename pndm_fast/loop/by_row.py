"""Conditioning that the caller gives row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from pndm_fast.loop.conditioning import (
    CannotBatch,
    PerSample,
    Shared,
    given,
    resized,
)

Arguments = dict[str, Any]
Pair = tuple[Arguments, Arguments | None]  # cond, uncond
NUMBERS = (int, float)


class ByRow:
    """The trees of the row that a call is at, asked for once before that row's network call.

    Args:
        ask: row -> cond and uncond, checked, for `given` samples.
        first: row 0's, to whose form the others are held.
        given, batch: samples of those trees, and of the call.
    """

    def __init__(self, ask: Callable[[int], Pair], first: Pair, given: int, batch: int) -> None:
        self._ask, self._first, self._given, self._batch = ask, first, given, batch
        self._forms = tuple(map(_form, first))
        self.row, self.pair = 0, self._fit(first)

    def resized(self, batch: int) -> ByRow:
        """The same for another batch, at row 0."""
        return ByRow(self._ask, self._first, self._given, batch)

    def go(self, row: int) -> None:
        """On to that row.

        Raises:
            ValueError: its trees are not like row 0's.
        """
        pair = self._ask(row)
        for name, tree, wanted in zip(("cond", "uncond"), pair, self._forms, strict=True):
            found = _form(tree)
            for path in (*wanted, *found):
                if found.get(path) != wanted.get(path):
                    had, has = wanted.get(path, "nothing"), found.get(path, "nothing")
                    raise ValueError(f"{name}({row}){path} must be {had}, as for row 0, got {has}")
        self.row, self.pair = row, self._fit(pair)

    def _fit(self, pair: Pair) -> Pair:
        cond, uncond = pair
        sizes = self._given, self._batch
        return resized("cond", cond, *sizes), None if uncond is None else resized("uncond", uncond, *sizes)


class Live(Mapping[str, Any]):
    """The network's arguments at the row that a call is at: made anew where that has changed."""

    def __init__(self, by_row: ByRow, make: Callable[[Any, Any], Any]) -> None:
        self._by_row, self._make, self._row = by_row, make, -1
        self._tree: Mapping[str, Any] = {}

    def marked(self) -> Mapping[str, Any]:
        """The same before it is given to the network.

        Raises:
            ValueError: one call cannot carry both of the row's trees.
        """
        cond, uncond = self._by_row.pair
        try:
            return self._make(uncond, cond)  # type: ignore[no-any-return]
        except CannotBatch as reason:
            row = self._by_row.row
            raise ValueError(f"cond and uncond of row {row} must fit one call, as row 0's did: {reason}") from None

    def _now(self) -> Mapping[str, Any]:
        if self._row != self._by_row.row:
            self._tree, self._row = given(self.marked()), self._by_row.row
        return self._tree

    def __getitem__(self, key: str) -> Any:
        return self._now()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


def marked(tree: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A tree, or a live one's of the row under way."""
    return tree.marked() if isinstance(tree, Live) else tree


def arguments(tree: Mapping[str, Any] | None) -> Any:
    """What the network is called with: a live tree, or what is given of another."""
    return tree if isinstance(tree, Live) else given(tree)


def _form(tree: Any) -> dict[str, str]:
    """What a tree holds, by path: of tensors the form, of numbers, words and objects the kind."""
    found: dict[str, str] = {}

    def walk(path: str, value: Any, mark: str = "") -> None:
        if isinstance(value, Shared):
            walk(path, value.value, "pf.Shared ")
        elif isinstance(value, PerSample):
            walk(path, value.entries, "pf.PerSample ")
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{path}[{key!r}]", inner, mark)
        elif isinstance(value, (tuple, list)):
            for i, inner in enumerate(value):
                walk(f"{path}[{i}]", inner, mark)
        else:
            found[path] = mark + _kind(value)

    walk("", tree)
    return found


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        shape = f"{value.size(0)} nested entries" if value.is_nested else f"shape {tuple(value.shape)}"
        return f"{str(value.dtype).removeprefix('torch.')} of {shape}"
    if isinstance(value, NUMBERS) and not isinstance(value, bool):
        return "a number"
    return type(value).__name__
