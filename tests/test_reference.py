"""The reference row against the formula of `Row`, written here a second time, in float64."""

import dataclasses

import numpy as np
import pytest
import torch
from rowcase import clone, random_case

import pndm_fast as pf
from pndm_fast.row import reference, table
from pndm_fast.row import registers as memory
from pndm_fast.row.noise import normals
from pndm_fast.row.registers import NEVER

EPS = torch.finfo(torch.float32).eps


def by_hand(case):
    """x, y, slots and row after the first call, in float64 numpy, and the sums of absolute terms behind y.

    Operands are [components, n / components] here, coefficients [components, components].
    """
    r, (out, uncond, z) = case.registers, case.calls[0]
    layout = table.layout_of(case.table)
    components = layout.components
    x, y, slots = (t[..., : r.n].double().numpy().copy() for t in (r.x, r.y, r.slots))
    x, y, slots = (array.reshape(*array.shape[:-1], components, -1) for array in (x, y, slots))
    scale = np.zeros_like(y)
    row, lines = r.row.numpy().copy(), case.table.double().numpy()
    for b in range(r.batch):
        line = lines[row[b]]
        if line[table.HALT]:
            continue
        e = out[b].double().numpy().reshape(components, -1)
        size = np.abs(e)
        if uncond is not None:
            u = uncond[b].double().numpy().reshape(components, -1)
            size = np.abs(u) + abs(line[table.GUIDANCE]) * (np.abs(e) + np.abs(u))
            e = u + line[table.GUIDANCE] * (e - u)
        p, q, p2, q2 = matrices_of(line, table.P, 4, layout)
        clamp = line[table.CLAMP]
        stored = q2 @ np.clip(q @ e + p @ y[b], -clamp, clamp) + p2 @ y[b]
        size = np.abs(q2) @ (np.abs(q) @ size + np.abs(p) @ np.abs(y[b])) + np.abs(p2) @ np.abs(y[b])
        slots[int(line[table.SLOT]), b] = stored
        if layout.second and line[layout.second]:
            slots[int(line[layout.second]) - 1, b] = q2 @ np.clip(q @ u + p @ y[b], -clamp, clamp) + p2 @ y[b]
        index = int(line[table.NOISE])
        noise = np.zeros((components, r.n // components))
        if index:
            drawn = normals(r.seeds[b : b + 1], index, r.n, r.channels)[0] if z is None else z[b]
            noise = drawn.double().numpy().reshape(components, -1)
        operands = [x[b].copy(), y[b].copy(), *slots[:, b], *[None] * (layout.slots - len(slots)), noise]
        forms = {start: matrices_of(line, start, layout.operands, layout) for start in (table.X, layout.y)}
        new_x, new_y = (sum(c @ v for c, v in zip(forms[k], operands, strict=True) if c.any()) for k in forms)
        form = np.abs(forms[layout.y])
        scale[b] = sum(c @ np.abs(v) for c, v in zip(form, operands, strict=True) if c.any())
        scale[b] += form[2 + int(line[table.SLOT])] @ size
        x[b] = new_x if line[table.WRITE_X] else x[b]
        y[b] = new_y if line[table.WRITE_Y] else y[b]
        row[b] += 1
    x, y, slots, scale = (array.reshape(*array.shape[:-2], -1) for array in (x, y, slots, scale))
    return x, y, slots, row, scale


def matrices_of(line, first, count, layout):
    """[count, components, components]: the coefficients of a line from one column on."""
    at, components = layout.column(first), layout.components
    return line[at : at + count * components**2].reshape(count, components, components)


def wide(case):
    """The same case with float64 registers and outputs, slots included."""
    r = case.registers
    doubled = {name: getattr(r, name).double() for name in ("x", "y", "slots")}
    net_in = None if r.net_in is None else r.net_in.double()
    registers = dataclasses.replace(clone(r), **doubled, net_in=net_in, t=r.t.double())
    calls = tuple(tuple(None if v is None else v.double() for v in call) for call in case.calls)
    return dataclasses.replace(case, registers=registers, table=case.table.double(), calls=calls)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "form",
    [
        dict(),
        dict(guidance=True),
        dict(z=True, channels=3),
        dict(components=2),
        dict(guidance=True, z=True, components=2),
        dict(slots=12),
        dict(guidance=True, slots=11, second=True),
        dict(guidance=True, slots=2, second=True, channels=2),
    ],
    ids=str,
)
def test_float64_is_the_formula(seed, form):
    case = wide(random_case(seed, 4, 12, halt_some=True, **form))
    x, y, slots, row, _ = by_hand(case)
    after = clone(case.registers)
    reference.apply_row(after, case.table, *case.calls[0])
    for got, wanted in ((after.x[:, :12], x), (after.y[:, :12], y), (after.slots[..., :12], slots)):
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-13, atol=1e-13)
    assert after.row.tolist() == row.tolist()


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("seed", range(12))
def test_float32_error_is_bounded(seed, components):
    """|error| <= (operations in the longest chain) eps_mach sum |terms|: derived, not tuned."""
    case = random_case(seed, 4, 1000, components=components)
    _, wanted, _, _, scale = by_hand(case)
    after = clone(case.registers)
    reference.apply_row(after, case.table, *case.calls[0])
    error = np.abs(after.y[:, :1000].double().numpy() - wanted)
    chain = components * (6 + table.WIDE.operands)  # guidance and store map, then a product and a sum for each operand
    bound = chain * EPS * (scale + np.abs(wanted)) + 1e-40
    assert (error <= bound).all(), float((error / bound).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_results_are_correctly_rounded(dtype):
    """The next network input is the float64 result rounded once, for at least 99 % of elements."""
    right = total = 0
    for seed in range(10):
        case = random_case(seed, 4, 4096, out_dtype=dtype, net_dtype=dtype)
        narrow, exact = clone(case.registers), wide(case)
        reference.apply_row(narrow, case.table, *case.calls[0])
        registers = dataclasses.replace(clone(exact.registers), net_in=torch.zeros(4, 4096, dtype=torch.float64))
        reference.apply_row(registers, exact.table, *exact.calls[0])
        wanted = registers.net_in.to(dtype)
        right += int((narrow.net_in == wanted).sum())
        total += wanted.numel()
    assert right >= 0.99 * total, right / total


def test_counters():
    """active falls as samples reach their halt row, time stays, first_bad keeps the first row."""
    plans = [pf.make_plan("ddim", steps=n) for n in (1, 3)]
    lines = table.build(plans, torch.float32)
    assert lines.first == (0, 3) and lines.start == (2, 7) and lines.slots == 1
    r = memory.allocate(2, 3, 1, device=torch.device("cpu"))
    r.y.zero_(), r.x.zero_(), r.active.fill_(2), r.first_bad.fill_(NEVER), r.seeds.zero_()
    r.row.copy_(torch.tensor(lines.first)), r.t.copy_(torch.tensor([0.0, 666.0]))
    seen = []
    for i in range(4):
        out = torch.zeros(2, 3)
        out[1, 1] = float("nan") if i == 1 else 0.0
        reference.apply_row(r, lines.data, out)
        seen.append((r.active.item(), r.row.tolist(), r.t.tolist(), r.first_bad.tolist()))
    assert [s[0] for s in seen] == [1, 1, 0, 0]
    assert [s[1] for s in seen] == [[1, 4], [1, 5], [1, 6], [1, 6]]
    assert [s[2] for s in seen] == [[0, 333], [0, 0], [0, 0], [0, 0]]
    assert [s[3] for s in seen] == [[NEVER, NEVER], [NEVER, 4], [NEVER, 4], [NEVER, 4]]


def test_samples_at_neighboring_rows_advance_once():
    lines = table.build([pf.make_plan("ddim", steps=4)], torch.float32)
    r = memory.allocate(3, 2, 1, device=torch.device("cpu"))
    r.y.zero_(), r.x.zero_(), r.active.fill_(3), r.first_bad.fill_(NEVER), r.seeds.zero_(), r.t.zero_()
    r.row.copy_(torch.tensor([0, 1, 2]))
    reference.apply_row(r, lines.data, torch.ones(3, 2))
    assert r.row.tolist() == [1, 2, 3]
    wanted = [row.y[2] for row in pf.make_plan("ddim", steps=4).rows[:3]]
    assert r.y[:, 0].tolist() == pytest.approx(wanted, rel=1e-6)
