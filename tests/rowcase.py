"""Random rows and registers on which every `apply_row` must leave the same bits, for the tests of all backends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pndm_fast.row import table as columns
from pndm_fast.row.registers import NEVER, Registers, allocate
from pndm_fast.row.table import NARROW, PHASE, WIDE, Layout

ApplyRow = Callable[[Registers, Tensor, Tensor, Tensor | None, Tensor | None], None]
Call = tuple[Tensor, Tensor | None, Tensor | None]  # out, uncond, z; each [B, n]

_X, _Y, _Z = 0, 1, -1  # positions inside a form


@dataclass(frozen=True)
class Case:
    """Registers at their start, a table of several plans, and what the network says at each call.

    Unwritten slots, pads, the unread anchor and net_in hold NaN.
    """

    registers: Registers
    table: Tensor
    calls: tuple[Call, ...]

    def run(self, apply_row: ApplyRow) -> Registers:
        """The registers after all calls; the case itself is not changed."""
        registers = clone(self.registers)
        for out, uncond, z in self.calls:
            apply_row(registers, self.table, out, uncond, z)
        return registers

    def to(self, device: str | torch.device) -> Case:
        """The same case on another device."""
        calls = tuple((out.to(device), _to(uncond, device), _to(z, device)) for out, uncond, z in self.calls)
        return Case(_map(self.registers, lambda tensor: tensor.to(device)), self.table.to(device), calls)


def random_case(
    seed: int,
    batch: int,
    n: int,
    *,
    slots: int = NARROW.slots,
    slot_dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype = torch.float32,
    net_dtype: torch.dtype | None = None,
    guidance: bool = False,
    channels: int = 1,
    time_dtype: torch.dtype = torch.float32,
    halt_some: bool = False,
    z: bool = False,
    calls: int = 4,
    bad: bool = False,
    components: int = 1,
    second: bool = False,
) -> Case:
    """Plans of random sparsity, clamps, store maps and noise, each sample at a row of its own.

    Args:
        guidance: give unconditional outputs, and two copies to `t` and `net_in`.
        halt_some: let some samples stand at a halt row from the start, or reach one early.
        z: give normals in place of Philox.
        calls: how many rows each sample executes, unless it halts.
        bad: put NaN and infinities into some outputs.
        components: 2 for rows of 2x2 matrices, of which some are multiples of the identity.
        second: let some rows keep the unconditional output too; needs guidance and two slots.
    """
    layout = PHASE if components > 1 else WIDE if second or slots > NARROW.slots else NARROW
    rng = np.random.default_rng(seed)
    anchor = bool(rng.integers(2))  # whether x holds numbers before a row writes it
    lengths = [calls, calls + 1, 1, 2]
    plans = [_random_plan(rng, length, slots, anchor, layout, second) for length in lengths]
    first = np.cumsum([0, *(length + 1 for length in lengths)])
    starts = [*first[:2], *((first[1] - 1, *first[2:4]) if halt_some else ())]
    cfg_copies = 2 if guidance else 1
    r = allocate(
        batch,
        n,
        slots,
        device=torch.device("cpu"),
        slot=slot_dtype,
        time=time_dtype,
        network=net_dtype,
        cfg_copies=cfg_copies,
        channels=channels,
    )
    _fill(r, rng, anchor)
    r.row.copy_(torch.tensor([int(starts[(b + seed) % len(starts)]) for b in range(batch)]))
    table = torch.from_numpy(np.concatenate(plans)).float()
    r.active.fill_(int((table[r.row.long(), columns.HALT] == 0).sum()))

    def out() -> Tensor:
        return _random_out(rng, batch, n, bad).to(out_dtype)

    def one() -> Call:
        return out(), out() if guidance else None, _normal(rng, batch, n) if z else None

    return Case(r, table, tuple(one() for _ in range(calls)))


def clone(registers: Registers) -> Registers:
    """A copy that shares no memory."""
    return _map(registers, Tensor.clone)


def assert_same(a: Registers, b: Registers, *, pads: bool = True, where: str = "") -> None:
    """Every register holds the same bits, any NaN equal to any other; `pads=False` leaves the elements past n out."""
    for field in dataclasses.fields(Registers):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if not isinstance(left, Tensor):
            assert left == right, field.name
            continue
        left, right = left.cpu(), right.cpu()
        if field.name in ("x", "y", "slots") and not pads:
            left, right = left[..., : a.n], right[..., : a.n]
        assert_equal_bits(left, right, where + field.name)


def assert_equal_bits(left: Tensor, right: Tensor, name: str = "tensor") -> None:
    """Same dtype, same shape, same bits; any NaN equals any other."""
    assert left.dtype == right.dtype and left.shape == right.shape, f"{name}: {left.dtype} {right.dtype}"
    same = left == right
    if left.dtype.is_floating_point:
        bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[left.element_size()]
        same = (left.contiguous().view(bits) == right.contiguous().view(bits)) | (left.isnan() & right.isnan())
    if not same.all():
        where = (~same).nonzero()
        at = tuple(where[0].tolist())
        raise AssertionError(f"{name}: {len(where)} of {same.numel()} differ, first at {at}: {left[at]} {right[at]}")


def _map(registers: Registers, change: Callable[[Tensor], Tensor]) -> Registers:
    tensors = {f.name: getattr(registers, f.name) for f in dataclasses.fields(Registers)}
    changed = {name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)}
    return dataclasses.replace(registers, **changed)


def _to(tensor: Tensor | None, device: str | torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def _random_out(rng: np.random.Generator, batch: int, n: int, bad: bool) -> Tensor:
    out = _normal(rng, batch, n)
    flat = out.view(-1)
    specials = [0.0, -0.0, 1e-41, -1e-7, 300.0]
    if bad and rng.integers(2):
        specials += [math.nan, math.inf, -math.inf]
    for value in specials[: max(1, n // 2)] if not bad else specials:
        flat[int(rng.integers(flat.numel()))] = value
    return out


def _fill(r: Registers, rng: np.random.Generator, anchor: bool) -> None:
    for tensor in (r.x, r.y, r.slots, r.t, r.net_in):
        if tensor is not None:
            tensor.fill_(math.nan if tensor.dtype.is_floating_point else -1)
    r.y[:, : r.n] = _normal(rng, r.batch, r.n)
    if anchor:
        r.x[:, : r.n] = _normal(rng, r.batch, r.n)
    seeds = rng.integers(-(2**63), 2**63, r.batch, dtype=np.int64)
    seeds[0] = -1  # the bits of 2^64 - 1
    r.seeds.copy_(torch.from_numpy(seeds))
    r.first_bad.fill_(NEVER)


def _random_plan(
    rng: np.random.Generator, length: int, slots: int, anchor: bool, layout: Layout, second: bool
) -> np.ndarray:
    """[length + 1, width]: rows read only what is written before, and the last line halts."""
    components = layout.components
    out = np.zeros((length + 1, layout.width))
    matrices = out[:, columns.COEFFICIENTS : layout.column(layout.end)].reshape(length + 1, -1, components, components)
    written: set[int] = set()
    for i, (line, own) in enumerate(zip(out, matrices, strict=True)):

        def put(column: int, coefficients: object, own: np.ndarray = own) -> None:
            at = column - columns.IN_SCALE
            for k, c in enumerate(np.atleast_1d(coefficients)):
                own[at + k] = _random_matrix(rng, float(c), components)

        line[columns.T] = rng.integers(1000)
        put(columns.IN_SCALE, rng.choice([1.0, rng.uniform(0.2, 1.5)]))
        if i == length:
            line[columns.HALT] = 1.0
            break
        line[columns.SLOT] = slot = int(rng.integers(slots))
        written.add(slot)
        if second and rng.random() < 0.7:
            other = (slot + int(rng.integers(1, slots))) % slots
            line[layout.second] = 1 + other
            written.add(other)
        line[columns.GUIDANCE] = rng.choice([1.0, 7.5, rng.uniform(-1, 3)])
        *store, line[columns.CLAMP] = _random_store(rng)
        put(columns.P, store)
        readable = [*([_X] if anchor else []), _Y, *(2 + k for k in sorted(written))]
        noisy = rng.random() < 0.4
        if rng.random() < 0.4:
            line[columns.WRITE_X] = 1
            put(columns.X, _random_form(rng, readable, noisy, layout))
            anchor = True
        else:
            own[columns.X - columns.IN_SCALE + _X] = np.eye(components)
        if rng.random() < 0.9:
            line[columns.WRITE_Y] = 1
            put(layout.y, _random_form(rng, readable, noisy, layout))
        else:
            own[layout.y - columns.IN_SCALE + _Y] = np.eye(components)
        line[columns.NOISE] = (i + 2) * noisy
    return out


def _random_matrix(rng: np.random.Generator, c: float, components: int) -> np.ndarray:
    """c times a matrix that is the identity, diagonal, triangular, or full; often with zeros on the diagonal."""
    if components == 1 or rng.random() < 0.2:
        return c * np.eye(components)
    return (
        c
        * rng.uniform(-1.5, 1.5, (components, components))
        * (rng.random((components, components)) < rng.choice([0.5, 1.0]))
    )


def _random_store(rng: np.random.Generator) -> tuple[float, ...]:
    if rng.random() < 0.4:
        return 0.0, 1.0, 0.0, 1.0, math.inf
    p, q, p2, q2 = rng.uniform(-2, 2, 4)
    return p * rng.integers(2), q, p2 * rng.integers(2), q2, rng.choice([0.7, math.inf])


def _random_form(rng: np.random.Generator, readable: list[int], noisy: bool, layout: Layout) -> np.ndarray:
    form = np.zeros(layout.operands)
    form[readable] = rng.uniform(-2, 2, len(readable)) * (rng.random(len(readable)) < rng.uniform(0.2, 1.0))
    form[_Z] = rng.uniform(0.1, 1) * noisy * rng.integers(2)
    return form


def shapes() -> Iterator[tuple[int, int]]:
    """(batch, n): one element, odd sizes, more than one block or tile, a full sample."""
    yield from ((1, 1), (3, 7), (5, 784), (2, 65_537))
