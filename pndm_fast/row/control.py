"""The small registers and the table, in one piece of memory that one upload writes before a trajectory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pndm_fast.row.device import staged
from pndm_fast.row.registers import dtypes_of
from pndm_fast.row.schema import REGISTERS, Size
from pndm_fast.row.table import Table

ALIGN = 128  # bytes: fields begin on vector boundaries, whatever the batch


class Control:
    """What a call says in numbers, as opposed to samples.

    Attributes:
        registers: the small ones, by name.
        lines: int32 [batch], the table's line that describes each sample's start.
        table: in the state's dtype [rows, width].
    """

    def __init__(
        self, sizes: Mapping[Size, int], table: tuple[int, int], *, state: torch.dtype, time: torch.dtype, device: Any
    ) -> None:
        dtypes = dtypes_of(state=state, slot=state, time=time, network=None)
        small = {name: register for name, register in REGISTERS.items() if register.small}
        fields = {name: (_numpy(dtypes[r.element]), tuple(sizes[s] for s in r.shape)) for name, r in small.items()}
        fields |= {"lines": (_numpy(torch.int32), (sizes["batch"],)), "table": (_numpy(state), table)}
        self._fields: dict[str, tuple[slice, np.dtype[Any], tuple[int, ...]]] = {}
        end = 0
        for name, (dtype, shape) in fields.items():
            begin = -(-end // ALIGN) * ALIGN
            end = begin + dtype.itemsize * math.prod(shape)
            self._fields[name] = slice(begin, end), dtype, shape
        self._memory = torch.empty(end, dtype=torch.uint8, device=device)
        self._host = self._views(self._memory.numpy()) if self._memory.device.type == "cpu" else None
        views = {name: self._view(name) for name in fields}
        self.lines, self.table = views.pop("lines"), views.pop("table")
        self.registers = views
        self._held: Table | None = None

    def _view(self, name: str) -> Tensor:
        place, dtype, shape = self._fields[name]
        return self._memory[place].view(getattr(torch, dtype.name)).view(shape)

    def _views(self, memory: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        views = {name: memory[place].view(dtype) for name, (place, dtype, _) in self._fields.items()}
        return {name: view.reshape(self._fields[name][2]) if name != "table" else view for name, view in views.items()}

    def write(self, values: Mapping[str, Any], table: Table) -> None:
        """Every small register and `lines`, and the table where it is another than the one held: one copy.

        Values are what numpy takes for the register's shape.
        """
        lines = None if table is self._held else table.flat
        self._held = None
        if self._host is not None:
            _fill(self._host, values, lines)
        else:
            with staged(self._memory[: self._used(lines)]) as memory:
                _fill(self._views(memory), values, lines)
        self._held = table

    def _used(self, lines: np.ndarray[Any, Any] | None) -> int:
        begin: int = self._fields["table"][0].start
        return begin if lines is None else begin + lines.nbytes


def _fill(
    views: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any], lines: np.ndarray[Any, Any] | None
) -> None:
    for name, value in values.items():
        views[name][...] = value
    if lines is not None:
        views["table"][: lines.size] = lines


def _numpy(dtype: torch.dtype | None) -> np.dtype[Any]:
    return np.dtype(str(dtype).removeprefix("torch."))
