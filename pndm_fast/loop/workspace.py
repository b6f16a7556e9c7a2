"""The buffers of one call in flight, and what a first call of the network tells about its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pndm_fast.loop.call import SEEDS, Call
from pndm_fast.plan.levels import AnyLevel
from pndm_fast.plan.matrix2 import Coefficient
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import Prologue, Row
from pndm_fast.row.backends import Backend, BoundRow, Step
from pndm_fast.row.device import upload
from pndm_fast.row.layout import channels_of, describe, elements, flatten, scaled, scaled_each, unflatten
from pndm_fast.row.noise import INITIAL, PROLOGUE
from pndm_fast.row.registers import NEVER, Registers, allocate
from pndm_fast.row.schema import REGISTERS


@dataclass(frozen=True)
class OutputSpec:
    """What the network did with its first input: the form that later outputs must have.

    Attributes:
        dtype: of the output.
        channels: the output's layout: 1 contiguous, C channels-last.
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
    device: torch.device


class Workspace:
    """Registers of one trajectory with the views that the network reads.

    Attributes:
        x_in: the network's input, [H B, *shape]; its memory changes from call to call.
        t: its time input, [H B].
    """

    def __init__(self, spec: BufferSpec) -> None:
        self.spec = spec
        self.registers: Registers = allocate(
            spec.batch,
            elements(spec.shape),
            spec.slots,
            device=spec.device,
            state=spec.state,
            slot=spec.slot,
            time=spec.time,
            network=None if spec.direct else spec.network,
            cfg_copies=spec.cfg_copies,
            channels=spec.channels,
        )
        flat = self.registers.y if self.registers.net_in is None else self.registers.net_in
        self.x_in = unflatten(flat, spec.shape, spec.channels)
        self.t = self.registers.t
        self._x, self._y = (register[:, : self.registers.n] for register in (self.registers.x, self.registers.y))
        self._out_shape = torch.Size(self.x_in.shape)
        self._strides: tuple[int, ...] | None = None
        self._bound: tuple[Tensor, Backend, BoundRow] | None = None

    def snapshot(self) -> Registers:
        """What buffers of another form need to go on from here: copies."""
        r = self.registers
        tensors = zip(REGISTERS, r.tensors(), strict=True)
        own: dict[str, Any] = {name: tensor.clone() for name, tensor in tensors if tensor is not None}
        return replace(r, **own)

    def resume(self, snapshot: Registers, rows: Sequence[Row]) -> None:
        """Take up a state under way, each sample before that row."""
        r = self.registers

        def arranged(values: Tensor) -> Tensor:  # another network may have another layout
            values = values[..., : r.n]
            if snapshot.channels == r.channels:
                return values
            whole = unflatten(values.reshape(-1, r.n), self.spec.shape, snapshot.channels)
            return flatten(whole, r.channels).reshape(values.shape)

        for name in ("seeds", "row", "first_bad", "active"):
            getattr(r, name).copy_(getattr(snapshot, name))
        r.done.zero_()
        kept = min(len(r.slots), len(snapshot.slots))
        r.x[:, : r.n], r.y[:, : r.n] = arranged(snapshot.x), arranged(snapshot.y)
        r.slots[:kept, :, : r.n] = arranged(snapshot.slots[:kept])
        self._next_input(rows)

    def _next_input(self, rows: Sequence[Row]) -> None:
        """The times and the network's input of each sample's next row."""
        r = self.registers
        first = rows[0]
        alike = all(row is first for row in rows)
        if alike:
            r.t.fill_(first.t)
        else:
            r.t.copy_(upload([row.t for row in rows] * r.cfg_copies, r.t.device, torch.float64))
        if r.net_in is not None:
            each = [row.in_scale for row in rows]
            seen = scaled(self._y, first.in_scale) if alike else scaled_each(self._y, each)
            r.net_in.copy_(seen if r.cfg_copies == 1 else seen.repeat(r.cfg_copies, 1))

    def begin(
        self, call: Call, first_rows: Sequence[int], rows: Sequence[Row], table: Tensor, backend: Backend
    ) -> None:
        """Write the prologue, the first network input and the counters; `first_rows` are places in the table."""
        r = self.registers
        r.seeds.copy_(call.seeds)
        native = self._bind(table, backend).begin if backend.begins else None
        scale = _scale_of_seeds(call)
        if native is None:
            self._count(call, first_rows)
        else:
            native(first_rows, call.real, scale)
        if native is None or scale is None:
            self._y.copy_(self._start(call, backend))
            if call.origin.known is not None:
                call.origin.known.put(self._shaped(r.y), call.first_noise, [plan.start for plan in call.plans])
            self._x.copy_(self._y)
        if native is None or r.net_in is not None:
            self._next_input(rows)

    def _count(self, call: Call, first_rows: Sequence[int]) -> None:
        r = self.registers
        if len(set(first_rows)) == 1:
            r.row.fill_(first_rows[0])
        else:
            r.row.copy_(upload(first_rows, r.row.device, torch.int32))
        r.first_bad.fill_(NEVER)
        r.done.zero_()
        r.active.fill_(call.real)

    def _start(self, call: Call, backend: Backend) -> Tensor:
        r = self.registers

        def normal(index: int) -> Tensor:
            if call.noise is not None:
                return flatten(call.noise(index), r.channels)
            normals = backend.normals(r, index)
            return normals if normals.dtype is r.y.dtype else normals.to(r.y.dtype)

        def way(plan: Plan) -> tuple[Prologue, AnyLevel | None]:
            return plan.prologue, None if call.origin.image is None else plan.entry

        ways = dict.fromkeys([way(plan) for plan in call.distinct])
        if len(ways) == 1:
            return self._prologue(call, *next(iter(ways)), normal)
        result = torch.empty(r.batch, r.n, dtype=r.y.dtype, device=r.y.device)
        for one in ways:
            members = upload([b for b, plan in enumerate(call.plans) if way(plan) == one], r.y.device)
            result[members] = self._prologue(call, *one, normal)[members]
        return result

    def _prologue(
        self, call: Call, prologue: Prologue, entry: AnyLevel | None, normal: Callable[[int], Tensor]
    ) -> Tensor:
        origin, channels = call.origin, self.spec.channels
        if origin.state is not None:
            y = flatten(origin.state, channels)
        else:
            noise = normal(INITIAL) if origin.noise is None else flatten(origin.noise, channels)
            y = scaled(noise, prologue.p0 if entry is None else entry.sigma)
        if entry is not None and origin.image is not None:
            y = scaled(flatten(origin.image, channels), entry.alpha) + y
        y = scaled(y, prologue.a0)
        return y + scaled(normal(PROLOGUE), prologue.c0) if prologue.c0 else y

    def put_known(self, call: Call, done: Sequence[Row], following: Sequence[Row]) -> None:
        """After rows `done`: the known part, at the levels that they led to, and the next input from it."""
        assert call.origin.known is not None
        call.origin.known.put(self._shaped(self.registers.y), call.first_noise, [row.levels.y for row in done])
        self._next_input(following)

    def _shaped(self, flat: Tensor) -> Tensor:
        """A view of a register, [B, *shape]."""
        r = self.registers
        return unflatten(flat[:, : r.n], self.spec.shape, r.channels)

    def bind(self, table: Tensor, backend: Backend) -> Step:
        """The row operation on these buffers and that table."""
        return self._bind(table, backend).step

    def _bind(self, table: Tensor, backend: Backend) -> BoundRow:
        if self._bound is None or self._bound[0] is not table or self._bound[1] is not backend:
            self._bound = table, backend, backend.bind(self.registers, table, self.spec.out)
        return self._bound[2]

    def fits(self, out: Tensor) -> bool:
        """Whether an output has the spec's shape, dtype, device and layout: no tensor operation, no copy."""
        if out.dtype is not self.spec.out or out.shape != self._out_shape or out.device != self.spec.device:
            return False
        if out.stride() != self._strides:
            if channels_of(out) != self.spec.channels:  # strides of size-1 dimensions may differ and mean nothing
                return False
            self._strides = out.stride()
        return True

    def difference(self, out: Tensor) -> str:
        """How an output that does not fit differs, in a sentence."""
        layout = "contiguous" if self.spec.channels == 1 else "channels_last"
        return (
            f"the network's output must stay {self.spec.out} {tuple(self._out_shape)} on {self.spec.device}, {layout}, "
            f"as its first one was, got {out.dtype} {tuple(out.shape)} on {out.device}, {describe(out)}"
        )

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
        return {"device": str(spec.device), "network_dtype": str(spec.network).removeprefix("torch."), "layout": layout}

    @cached_property
    def bytes(self) -> int:
        """Memory of the registers."""
        return sum(tensor.nbytes for tensor in self.registers.tensors() if tensor is not None)


def _scale_of_seeds(call: Call) -> float | None:
    """What the seeds' normals are multiplied by, where nothing else makes the start."""
    if call.noise is not None or call.origin is not SEEDS:
        return None
    prologue = call.distinct[0].prologue
    plain = prologue.a0 == 1.0 and not prologue.c0
    alike = len(call.distinct) == 1 or all(plan.prologue == prologue for plan in call.distinct)
    return float(prologue.p0) if plain and alike and not isinstance(prologue.p0, tuple) else None
