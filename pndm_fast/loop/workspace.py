"""The buffers of one call in flight, and what a first call of the network tells about its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pndm_fast.loop.call import SEEDS, Call
from pndm_fast.plan.matrix2 import Coefficient
from pndm_fast.plan.row import Row
from pndm_fast.row.backends import Backend, BoundRow
from pndm_fast.row.control import Control
from pndm_fast.row.device import upload
from pndm_fast.row.layout import channels_of, describe, elements, flatten, name_of, scaled, scaled_each, unflatten
from pndm_fast.row.noise import INITIAL, PROLOGUE
from pndm_fast.row.reference import SEEDS_ALONE, Sources
from pndm_fast.row.registers import NEVER, Registers, allocate, padded
from pndm_fast.row.schema import REGISTERS, sizes
from pndm_fast.row.table import Table


class OutputMisfit(ValueError):
    """An output of another shape than the buffers have, or on another device."""


@dataclass(frozen=True)
class OutputSpec:
    """What the network did with its first input: the form that later outputs have, or are copied to.

    Attributes:
        dtype: of the output.
        channels: the layout of inputs and outputs: 1 contiguous, C channels-last.
        writes_input: whether the network changed its input in place.
        split_reason: why guidance cannot be one batched call, None where it can.
    """

    dtype: torch.dtype
    channels: int = 1
    writes_input: bool = True
    split_reason: str | None = None


class BufferSpec(NamedTuple):
    """What two calls must have in common to use the same buffers.

    Attributes:
        slots: for past outputs; cfg_copies: of the network's input.
        direct: whether the network reads the state itself.
        state, slot, out, network, time: dtypes.
        table: lines that there is room for, and their width.
    """

    batch: int
    shape: tuple[int, ...]
    slots: int
    cfg_copies: int
    direct: bool
    channels: int
    state: torch.dtype
    slot: torch.dtype
    out: torch.dtype
    network: torch.dtype
    time: torch.dtype
    table: tuple[int, int]
    device: torch.device


class Workspace:
    """Registers and table of one trajectory with the views that the network reads.

    Attributes:
        table: lines of its plans, float [rows, width]; its memory stays, what stands there changes with the plans.
        x_in: the network's input, [H B, *shape]; its memory changes from call to call.
        t: its time input, [H B].
        copied: what outputs were like that had to be copied, since the workspace was begun.
    """

    def __init__(self, spec: BufferSpec) -> None:
        self.spec = spec
        n = elements(spec.shape)
        size = sizes(spec.batch, padded(n), spec.slots, n, spec.cfg_copies)
        self._control = Control(size, spec.table, state=spec.state, time=spec.time, device=spec.device)
        self.registers: Registers = allocate(
            spec.batch,
            n,
            spec.slots,
            device=spec.device,
            state=spec.state,
            slot=spec.slot,
            time=spec.time,
            network=None if spec.direct else spec.network,
            cfg_copies=spec.cfg_copies,
            channels=spec.channels,
            given=self._control.registers,
        )
        self.table = self._control.table
        flat = self.registers.y if self.registers.net_in is None else self.registers.net_in
        self.x_in = unflatten(flat, spec.shape, spec.channels)
        self.t = self.registers.t
        self._x, self._y = (register[:, : self.registers.n] for register in (self.registers.x, self.registers.y))
        self._out_shape = torch.Size(self.x_in.shape)
        self._strides: tuple[int, ...] | None = None
        self._bound: tuple[Backend, BoundRow] | None = None
        self.copied: set[str] = set()

    def snapshot(self) -> Registers:
        """What buffers of another form need to go on from here: copies."""
        r = self.registers
        tensors = zip(REGISTERS, r.tensors(), strict=True)
        own: dict[str, Any] = {name: tensor.clone() for name, tensor in tensors if tensor is not None}
        return replace(r, **own)

    def resume(self, snapshot: Registers) -> None:
        """Take over samples of buffers of another form, once `write` has said where they stand."""
        r = self.registers

        def arranged(values: Tensor) -> Tensor:  # another network may have another layout
            values = values[..., : r.n]
            if snapshot.channels == r.channels:
                return values
            whole = unflatten(values.reshape(-1, r.n), self.spec.shape, snapshot.channels)
            return flatten(whole, r.channels).reshape(values.shape)

        r.first_bad.copy_(snapshot.first_bad)
        kept = min(len(r.slots), len(snapshot.slots))
        r.x[:, : r.n], r.y[:, : r.n] = arranged(snapshot.x), arranged(snapshot.y)
        r.slots[:kept, :, : r.n] = arranged(snapshot.slots[:kept])

    @cached_property
    def lanes(self) -> tuple[tuple[Tensor, ...], ...]:
        """For each sample views of all that is its own, in one order for all buffers of a form."""
        return tuple([tuple(self._lane(b)) for b in range(self.spec.batch)])

    def _lane(self, b: int) -> Iterator[Tensor]:
        r = self.registers
        yield from (r.x[b], r.y[b], r.slots[:, b], r.row[b], r.seeds[b], r.first_bad[b])
        for place in range(b, r.cfg_copies * r.batch, r.batch):
            yield r.t[place]
            if r.net_in is not None:
                yield r.net_in[place]

    def put(self, b: int, other: Workspace, sample: int) -> None:
        """In place of sample b one of other buffers, which may be these; they differ in batch and table at most."""
        torch._foreach_copy_(self.lanes[b], other.lanes[sample])

    def put_first(self, count: int, other: Workspace) -> None:
        """In place of the first samples those of other buffers, which differ in batch, cfg_copies and table at most."""
        r, old = self.registers, other.registers
        pairs = [(r.slots[:, :count], old.slots[:, :count])]
        pairs += [
            (own[:count], its[:count])
            for own, its in ((r.x, old.x), (r.y, old.y), (r.row, old.row), (r.seeds, old.seeds))
        ]
        pairs.append((r.first_bad[:count], old.first_bad[:count]))
        for copy in range(0, r.cfg_copies * r.batch, r.batch):
            pairs.append((r.t[copy : copy + count], old.t[:count]))
            if r.net_in is not None and old.net_in is not None:
                pairs.append((r.net_in[copy : copy + count], old.net_in[:count]))
        torch._foreach_copy_([own for own, _ in pairs], [its for _, its in pairs])

    def feed(self, rows: Sequence[Row]) -> None:
        """The network's input for each sample's next row, where the state was not changed by the row operation."""
        r, first = self.registers, rows[0]
        if r.net_in is None:
            return
        alike = all(row is first for row in rows)
        seen = scaled(self._y, first.in_scale) if alike else scaled_each(self._y, [row.in_scale for row in rows])
        r.net_in.copy_(seen if r.cfg_copies == 1 else seen.repeat(r.cfg_copies, 1))

    def write(
        self, seeds: NDArray[np.int64], table: Table, lines: Sequence[int], at: Sequence[int], rows: Sequence[Row]
    ) -> None:
        """All that a call says in numbers: one upload.

        Args:
            lines: of the table, how each sample starts; at: each sample's next, which is `rows`, or its halt row.
        """
        self.copied = set()  # another one: the last call's report may not have read it yet
        times = [row.t for row in rows] * self.spec.cfg_copies
        # the line before a plan's start is its halt row
        under_way = sum([row != start - 1 for row, start in zip(at, lines, strict=True)])
        numbers = {"row": at, "lines": lines, "first_bad": NEVER, "active": under_way, "done": 0}
        numbers |= {"seeds": seeds, "t": times}
        self._control.write(numbers, table)

    def start(self, call: Call, backend: Backend, rows: Sequence[Row]) -> None:
        """The state before the first row, and the network's input from it."""
        self.bind(backend).begin(self._control.lines, self._sources(call))
        if call.origin.known is not None:
            starts, all_of_it = [plan.start for plan in call.plans], [1.0] * call.batch
            call.origin.known.put(self._shaped(self.registers.y), call.first_noise, starts, all_of_it)
            self._x.copy_(self._y)
            self.feed(rows)

    def _sources(self, call: Call) -> Sources:
        """What the seeds do not say."""
        origin, drawn = call.origin, call.noise
        if origin is SEEDS and drawn is None:
            return SEEDS_ALONE
        noise, z = origin.noise, None
        if drawn is not None:
            noise = drawn(INITIAL) if noise is None and origin.state is None else noise
            z = drawn(PROLOGUE) if any(plan.prologue.c0 for plan in call.distinct) else None
        channels = self.spec.channels
        given = [
            None if one is None else flatten(one, channels).contiguous()
            for one in (noise, origin.state, origin.image, z)
        ]
        return Sources(*given)

    def put_known(self, call: Call, done: Sequence[Row], left: list[float], following: Sequence[Row]) -> None:
        """After rows `done`: the known part, at the levels that they led to, and the next input from it."""
        known, noise = call.origin.known, call.first_noise
        assert known is not None
        known.put(self._shaped(self.registers.y), noise, [row.levels.y for row in done], left)
        if known.grey:  # an element that is drawn from now on may need the anchor
            known.put(self._shaped(self.registers.x), noise, [row.levels.x for row in done], left)
        self.feed(following)

    def replace(self, samples: Sequence[int], states: Tensor) -> None:
        """Other states [B, *shape] for some samples. What follows needs no anchor, and its input is to be fed."""
        which = upload(samples, self._y.device)
        self._y.index_copy_(0, which, flatten(states, self.spec.channels).to(self._y.dtype)[which])

    def _shaped(self, flat: Tensor) -> Tensor:
        """A view of a register, [B, *shape]."""
        r = self.registers
        return unflatten(flat[:, : r.n], self.spec.shape, r.channels)

    def bind(self, backend: Backend) -> BoundRow:
        """The row operation on these buffers."""
        if self._bound is None or self._bound[0] is not backend:
            self._bound = backend, backend.bind(self.registers, self.table, self.spec.out)
        return self._bound[1]

    def fits(self, out: Tensor) -> bool:
        """Whether an output has the spec's shape, dtype, device and layout: no tensor operation, no copy."""
        if out.dtype is not self.spec.out or out.shape != self._out_shape or out.device != self.spec.device:
            return False
        if out.is_neg():  # its memory holds the other sign
            return False
        if out.stride() != self._strides:
            if channels_of(out) != self.spec.channels:  # strides of size-1 dimensions may differ and mean nothing
                return False
            self._strides = out.stride()
        return True

    def taken(self, out: Tensor) -> Tensor:
        """An output as the buffers take it: itself, or a copy of their dtype and layout, of which `copied` tells.

        Raises:
            OutputMisfit: it has another shape, or is on another device.
        """
        if self.fits(out):
            return out
        spec = self.spec
        dense = out.dtype.is_floating_point and out.layout is torch.strided
        if out.shape != self._out_shape or out.device != spec.device or not dense:
            wanted = f"dense, of floating point, {tuple(self._out_shape)} on {spec.device}"
            got = f"{out.dtype} {tuple(out.shape)} on {out.device}"
            raise OutputMisfit(f"the network's output must stay {wanted}, as its first one was, got {got}")
        self.copied.add(f"{name_of(out.dtype)}, {describe(out)}")
        return unflatten(flatten(out.resolve_neg().to(spec.out), spec.channels).contiguous(), spec.shape, spec.channels)

    def state(self, count: int | None = None) -> Tensor:
        """A contiguous copy of y, [B, *shape], or of its first samples."""
        y = self._y if count is None or count == self.registers.batch else self._y[:count]
        dense = y.clone(memory_format=torch.contiguous_format)
        whole = unflatten(dense, self.spec.shape, self.spec.channels)
        return whole if self.spec.channels == 1 else whole.contiguous()

    def x0(self, seen: Tensor, previews: list[tuple[Coefficient, Coefficient]], slots: list[int]) -> Tensor:
        """preview[0] y + preview[1] slot for each sample, [B, *shape], with the y that the network saw."""
        r = self.registers
        where = upload([slots, range(r.batch)], r.y.device)
        newest = r.slots[where[0], where[1], : r.n].to(r.y.dtype)
        unread = upload([on_slot == 0 for _, on_slot in previews], r.y.device)[:, None]
        newest = newest.masked_fill(unread, 0.0)  # a slot that is not used may hold anything
        estimate = scaled_each(seen[:, : r.n], [on_y for on_y, _ in previews])
        estimate = estimate + scaled_each(newest, [on_slot for _, on_slot in previews])
        return unflatten(estimate, self.spec.shape, r.channels).contiguous()

    @cached_property
    def words(self) -> dict[str, str]:
        """What a report says of the buffers."""
        spec = self.spec
        layout = "contiguous" if spec.channels == 1 else "channels_last"
        return {"device": str(spec.device), "network_dtype": name_of(spec.network), "layout": layout}

    @cached_property
    def bytes(self) -> int:
        """Memory of the registers."""
        return sum(tensor.nbytes for tensor in self.registers.tensors() if tensor is not None)
