"""Buffers that stay while the samples in them come and go."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pndm_fast.engine.lines import Entry
from pndm_fast.loop import lanes
from pndm_fast.loop.conditioning import PerSample
from pndm_fast.loop.evaluation import Evaluation
from pndm_fast.loop.workspace import Workspace
from pndm_fast.row.device import upload
from pndm_fast.row.table import HALT, Table
from pndm_fast.runtime.executor import Held


class Resident:
    """Lanes for `batch` samples, of which the first are under way.

    Attributes:
        workspace: registers; row: executes one row of all.
        evaluation: as the network takes it.
    """

    def __init__(self, held: Held) -> None:
        self.held, self.workspace = held, held.executor.workspace
        self.batch = self.workspace.spec.batch
        self.evaluation: Evaluation = held.executor.segment.evaluation
        self._own = [own for _, own in lanes.parts(self.evaluation.marked, held.trees)]
        self._tensors = [own for own in self._own if isinstance(own, Tensor)]
        self._lists = [own for own in self._own if isinstance(own, list)]
        self._written: set[Entry] = set()
        self.workspace.table[0].zero_()
        self.workspace.table[0, HALT] = 1.0
        self.workspace.registers.row.zero_()
        registers, batch = self.workspace.lanes, self.batch
        self._cond = [
            [own[place] for own in self._tensors for place in range(b, own.size(0), batch)] for b in range(batch)
        ]
        self._all = [[*registers[b], *self._cond[b]] for b in range(batch)]

    def write(self, entry: Entry, table: Table, first: int) -> None:
        """A plan's lines, from where they stand in a table of its own, unless they are there."""
        if entry not in self._written:
            self._written = {other for other in self._written if other.end <= entry.base or other.base >= entry.end}
            lines = table.data[first : first + entry.end - entry.base]
            self.workspace.table[entry.base : entry.end].copy_(upload(lines, self.workspace.spec.device))
            self._written.add(entry)

    def put(self, lane: int, workspace: Workspace, sample: int, values: list[Any], entries: list[Any]) -> None:
        """A sample of other buffers, with its conditioning."""
        torch._foreach_copy_(self._all[lane], [*workspace.lanes[sample], *values])
        self._set(lane, entries)

    def condition(self, lane: int, values: list[Any], entries: list[Any]) -> None:
        """Other conditioning."""
        if values:
            torch._foreach_copy_(self._cond[lane], values)
        self._set(lane, entries)

    def _set(self, lane: int, entries: list[Any]) -> None:
        at = iter(entries)
        for own in self._lists:
            own[lane :: self.batch] = itertools.islice(at, len(own) // self.batch)

    def move(self, to: int, lane: int) -> None:
        """A sample to another lane."""
        torch._foreach_copy_(self._all[to], self._all[lane])
        for own in self._lists:
            own[to :: self.batch] = own[lane :: self.batch]

    def take_over(self, count: int, other: Resident) -> bool:
        """The first samples of other lanes of the group; whether their conditioning came along."""
        self.workspace.put_first(count, other.workspace)
        if (self.evaluation.split_reason is None) != (other.evaluation.split_reason is None):
            return False
        pairs = []
        for own, its in zip(self._tensors, other._tensors, strict=True):
            for copy in range(own.size(0) // self.batch):
                a, b = copy * self.batch, copy * other.batch
                pairs.append((own[a : a + count], its[b : b + count]))
        if pairs:
            torch._foreach_copy_([own for own, _ in pairs], [its for _, its in pairs])
        for entries, theirs in zip(self._lists, other._lists, strict=True):
            for copy in range(len(entries) // self.batch):
                a, b = copy * self.batch, copy * other.batch
                entries[a : a + count] = theirs[b : b + count]
        return True

    def free(self, begin: int, end: int) -> None:
        """Lanes without a sample: they stand at the halt row."""
        self.workspace.registers.row[begin:end].zero_()


def conditioning_of(evaluation: Evaluation, batch: int) -> list[tuple[list[Any], list[Any]]]:
    """For each sample of a request tensors, and entries of lists, in the order of lanes."""
    marked = evaluation.marked
    found = [part for part, _ in lanes.parts(marked, marked)]
    listed = [part for part in found if isinstance(part, PerSample)]
    tensors = [part for part in found if not isinstance(part, PerSample)]

    def of(parts: list[Any], sample: int) -> list[Any]:
        return [value for part in parts for value in lanes.values_of(part, sample, batch)]

    return [(of(tensors, b), of(listed, b)) for b in range(batch)]
