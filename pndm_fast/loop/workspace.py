"""The buffers of one call in flight, and what the first call of the network told about its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pndm_fast.loop.request import Request
from pndm_fast.plan.levels import AnyLevel
from pndm_fast.plan.matrix2 import Coefficient
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.row import Prologue
from pndm_fast.row.backends import Backend, BoundRow
from pndm_fast.row.device import upload
from pndm_fast.row.layout import channels_of, describe, elements, flatten, scaled, scaled_each, unflatten
from pndm_fast.row.noise import FIRST_ROW, INITIAL, PROLOGUE
from pndm_fast.row.registers import ALIGN, FLOATS, NEVER, Registers, allocate
from pndm_fast.row.table import Table


@dataclass(frozen=True)
class Probe:
    """What the network did with its first input: the form that later outputs must have.

    Attributes:
        dtype: of the output.
        channels: the output's layout: 1 contiguous, C channels-last.
        writes_input: whether the network changed its input in place.
        apart: why guidance cannot be one batched call, None where it can.
    """

    dtype: torch.dtype
    channels: int
    writes_input: bool
    apart: str | None = None


@dataclass(frozen=True)
class BufferForm:
    """What two calls must have in common to use the same buffers."""

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


def form_of(
    request: Request,
    probe: Probe,
    slots: int,
    *,
    device: torch.device,
    network: torch.dtype,
    time: torch.dtype,
    cfg_copies: int,
) -> BufferForm:
    """The cheapest buffers: no separate input where the network can read y, narrow slots where that loses nothing."""
    same = network is request.state_dtype and elements(request.shape) % ALIGN == 0
    narrow = request.raw and request.state_dtype is torch.float32
    return BufferForm(
        batch=request.batch,
        shape=request.shape,
        slots=slots,
        cfg_copies=cfg_copies,
        direct=cfg_copies == 1 and request.unscaled and same and not probe.writes_input,
        channels=probe.channels,
        state=request.state_dtype,
        slot=probe.dtype if narrow else request.state_dtype,
        out=probe.dtype,
        network=network,
        time=time,
        device=device,
    )


class Workspace:
    """Registers of one trajectory with the views that the network reads.

    Attributes:
        x_in: the network's input, [H B, *shape]; its memory changes from call to call.
        t: its time input, [H B].
    """

    def __init__(self, form: BufferForm) -> None:
        self.form = form
        self.registers: Registers = allocate(
            form.batch,
            elements(form.shape),
            form.slots,
            device=form.device,
            state=form.state,
            slot=form.slot,
            time=form.time,
            network=None if form.direct else form.network,
            cfg_copies=form.cfg_copies,
            channels=form.channels,
        )
        flat = self.registers.y if self.registers.net_in is None else self.registers.net_in
        self.x_in = unflatten(flat, form.shape, form.channels)
        self.t = self.registers.t
        self._out_shape = torch.Size(self.x_in.shape)
        self._strides: tuple[int, ...] | None = None
        self._bound: tuple[Tensor, BoundRow] | None = None

    def carry(self) -> Registers:
        """What buffers of another form need to go on from here: copies."""
        r = self.registers
        own = {name: getattr(r, name).clone() for name in ("x", "y", "slots", "seeds", "row", "first_bad", "active")}
        return replace(r, **own)

    def resume(self, request: Request, carry: Registers, index: int) -> None:
        """Take up a state under way before the row of that index."""
        r = self.registers

        def arranged(values: Tensor) -> Tensor:  # another network may have another layout
            values = values[..., : r.n]
            if carry.channels == r.channels:
                return values
            whole = unflatten(values.reshape(-1, r.n), self.form.shape, carry.channels)
            return flatten(whole, r.channels).reshape(values.shape)

        for name in ("seeds", "row", "first_bad", "active"):
            getattr(r, name).copy_(getattr(carry, name))
        r.done.zero_()
        kept = min(len(r.slots), len(carry.slots))
        r.x[:, : r.n], r.y[:, : r.n] = arranged(carry.x), arranged(carry.y)
        r.slots[:kept, :, : r.n] = arranged(carry.slots[:kept])
        self._next_input(request, index)

    def _next_input(self, request: Request, index: int) -> None:
        """The time and the network's input of the row of that index; a sample that has ended keeps its last."""
        r = self.registers
        rows = [plan.rows[min(index, plan.nfe - 1)] for plan in request.plans]
        r.t.copy_(upload([row.t for row in rows] * r.cfg_copies, r.t.device, torch.float64))
        if r.net_in is not None:
            seen = scaled_each(r.y[:, : r.n], [row.in_scale for row in rows])
            r.net_in.copy_(seen.repeat(r.cfg_copies, 1))

    def begin(self, request: Request, table: Table, backend: Backend) -> None:
        """Write the prologue, the first network input and the counters."""
        r = self.registers
        r.seeds.copy_(request.seeds)
        r.row.copy_(upload(request.first_rows(table), r.row.device, torch.int32))
        r.first_bad.fill_(NEVER)
        r.done.zero_()
        r.active.fill_(request.real)
        r.y[:, : r.n] = self._start(request, backend)
        if request.known is not None:
            request.known.put(self._shaped(r.y), request.first_noise, [plan.start for plan in request.plans])
        r.x[:, : r.n] = r.y[:, : r.n]
        self._next_input(request, 0)

    def _start(self, request: Request, backend: Backend) -> Tensor:
        r = self.registers

        def normal(index: int) -> Tensor:
            if request.noises is not None:
                return flatten(noise_at(request, index, r.y.device), r.channels)
            return backend.normals(r, index).to(r.y.dtype)

        def way(plan: Plan) -> tuple[Prologue, AnyLevel | None]:
            return plan.prologue, None if request.init is None else plan.entry

        ways = {way(plan) for plan in request.distinct}
        if len(ways) == 1:
            return self._prologue(request, *ways.pop(), normal)
        result = torch.empty(r.batch, r.n, dtype=r.y.dtype, device=r.y.device)
        for one in ways:
            members = upload([b for b, plan in enumerate(request.plans) if way(plan) == one], r.y.device)
            result[members] = self._prologue(request, *one, normal)[members]
        return result

    def _prologue(
        self, request: Request, prologue: Prologue, entry: AnyLevel | None, normal: Callable[[int], Tensor]
    ) -> Tensor:
        if request.state is not None:
            y = flatten(request.state, self.form.channels)
        else:
            noise = normal(INITIAL) if request.noise is None else flatten(request.noise, self.form.channels)
            y = scaled(noise, prologue.p0 if entry is None else entry.sigma)
        if entry is not None and request.init is not None:
            y = scaled(flatten(request.init, self.form.channels), entry.alpha) + y
        y = scaled(y, prologue.a0)
        return y + scaled(normal(PROLOGUE), prologue.c0) if prologue.c0 else y

    def put_known(self, request: Request, index: int) -> None:
        """After the row of that index: the known part, at the level that the row led to, and the next input from it."""
        assert request.known is not None
        rows = [plan.rows[min(index, plan.nfe - 1)] for plan in request.plans]
        request.known.put(self._shaped(self.registers.y), request.first_noise, [row.levels.y for row in rows])
        self._next_input(request, index + 1)

    def _shaped(self, flat: Tensor) -> Tensor:
        """A view of a register, [B, *shape]."""
        r = self.registers
        return unflatten(flat[:, : r.n], self.form.shape, r.channels)

    def bind(self, table: Tensor, backend: Backend) -> BoundRow:
        """The row operation on these buffers and that table."""
        if self._bound is None or self._bound[0] is not table:
            self._bound = table, backend.bind(self.registers, table, self.form.out)
        return self._bound[1]

    def fits(self, out: Tensor) -> bool:
        """Whether an output has the form's shape, dtype, device and layout: no tensor operation, no copy."""
        if out.dtype is not self.form.out or out.shape != self._out_shape or out.device != self.form.device:
            return False
        if out.stride() != self._strides:
            if channels_of(out) != self.form.channels:  # strides of size-1 dimensions may differ and mean nothing
                return False
            self._strides = out.stride()
        return True

    def difference(self, out: Tensor) -> str:
        """How an output that does not fit differs, in a sentence."""
        layout = "contiguous" if self.form.channels == 1 else "channels_last"
        return (
            f"the network's output must stay {self.form.out} {tuple(self._out_shape)} on {self.form.device}, {layout}, "
            f"as its first one was, got {out.dtype} {tuple(out.shape)} on {out.device}, {describe(out)}"
        )

    def state(self) -> Tensor:
        """A contiguous copy of y, [B, *shape]."""
        r = self.registers
        dense = r.y[:, : r.n].clone(memory_format=torch.contiguous_format)
        return unflatten(dense, self.form.shape, r.channels).contiguous()

    def x0(self, seen: Tensor, previews: list[tuple[Coefficient, Coefficient]], slots: list[int]) -> Tensor:
        """preview[0] y + preview[1] slot for each sample, [B, *shape], with the y that the network saw."""
        r = self.registers
        where = upload([slots, range(r.batch)], r.y.device)
        newest = r.slots[where[0], where[1], : r.n].to(r.y.dtype)
        unread = upload([on_slot == 0 for _, on_slot in previews], r.y.device)[:, None]
        newest = newest.masked_fill(unread, 0.0)  # a slot that is not used may hold anything
        estimate = scaled_each(seen[:, : r.n], [on_y for on_y, _ in previews])
        estimate = estimate + scaled_each(newest, [on_slot for _, on_slot in previews])
        return unflatten(estimate, self.form.shape, r.channels).contiguous()

    @property
    def bytes(self) -> int:
        """Memory of the registers."""
        return sum(value.nbytes for value in vars(self.registers).values() if isinstance(value, Tensor))


def check_first_output(out: Tensor, shape: torch.Size, device: torch.device, exact: bool) -> int:
    """The layout of a network's first output, as its channel count.

    Raises:
        ValueError, TypeError: another shape, device or dtype, or a layout with gaps or another order.
    """
    if out.shape != shape:
        raise ValueError(f"the network's output must have shape {tuple(shape)}, got {tuple(out.shape)}")
    if out.device != device:
        raise ValueError(f"the network's output must be on {device}, got {out.device}")
    if out.dtype not in FLOATS and not (exact and out.dtype is torch.float64):
        raise TypeError(f"the network's output must be float32, float16 or bfloat16, got {out.dtype}")
    channels = channels_of(out)
    if channels is None:
        got = describe(out)
        raise ValueError(f"the network's output must be contiguous or channels_last, got {got}: call .contiguous()")
    return channels


def noise_at(request: Request, index: int, device: torch.device) -> Tensor:
    """The caller's standard normal of that index, checked.

    Raises:
        TypeError, ValueError: not a tensor of the samples' shape.
    """
    assert request.noises is not None
    if index in request.drawn:
        return request.drawn[index]
    value = request.noises(index)
    shape = (request.real, *request.shape)
    if not isinstance(value, Tensor):
        raise TypeError(f"noises({index}) must return a tensor, got {type(value).__name__}")
    if tuple(value.shape) != shape:
        raise ValueError(f"noises({index}) must have shape {shape}, got {tuple(value.shape)}")
    value = value.to(device=device, dtype=request.state_dtype)
    if not bool(value.isfinite().all()):
        raise ValueError(f"noises({index}) must be finite, got NaN or infinity")
    if request.batch > request.real:
        value = torch.cat([value, value.new_zeros(request.batch - request.real, *request.shape)])
    if index < FIRST_ROW:
        request.drawn[index] = value
    return value


def row_noise(request: Request, row: int, registers: Registers) -> Tensor | None:
    """z of a row where the caller brings noise: [B, n] in physical order."""
    if request.noises is None or not any(row < p.nfe and p.rows[row].noisy for p in request.distinct):
        return None
    return flatten(noise_at(request, row + FIRST_ROW, registers.y.device), registers.channels).contiguous()
