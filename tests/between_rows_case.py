"""Plans run row by row in plain tensors, with what may be changed between two rows."""

import torch

from pndm_fast.plan.row import MAX_SLOTS
from pndm_fast.row.noise import normals, seed_tensor

SHAPE = (2, 6)


def bent(x, t, shift=None):
    """Not linear, and each element by itself."""
    out = torch.sin(1.3 * x) * 0.5 + (t / 2000).view(-1, *[1] * (x.dim() - 1))
    return out if shift is None else out + shift.view(-1, *[1] * (x.dim() - 1))


def by_rows(plan, network, start, *, seed=0, change=lambda i, y: None, put=lambda i, y, level: y):
    """A plan's rows in float64, from a state: `change` gives another, `put` what parts of a state are to be."""
    n = start[0].numel()

    def z(index):
        return normals(seed_tensor(range(seed, seed + len(start))), index, n).double().view_as(start)

    x = y = plan.prologue.a0 * start + (plan.prologue.c0 * z(1) if plan.prologue.c0 else 0)
    x = y = put(0, y, plan.start)
    slots, seen = [torch.zeros_like(start)] * MAX_SLOTS, []
    for i, row in enumerate(plan.rows):
        out = network(row.in_scale * y, torch.full((len(y),), row.t, dtype=torch.float64))
        s = row.store
        slots[row.slot] = s.p2 * y + s.q2 * (s.p * y + s.q * out).clamp(-s.clamp, s.clamp)
        operands = [x, y, *slots, z(i + 2) if row.noisy else x]
        x, y = (sum(c * o for c, o in zip(form, operands, strict=True) if c) for form in (row.x, row.y))
        x, y = put(i + 1, x, row.levels.x), put(i + 1, y, row.levels.y)
        changed = change(i, y)
        if changed is not None:
            x = y = changed
        seen.append(y)
    return y


def close(got, wanted):
    assert torch.allclose(got.double(), wanted, rtol=1e-9, atol=1e-9)
