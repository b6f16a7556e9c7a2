"""The C++ row operation on tensors, and the threads that it runs on.

Those are torch's own: a second pool would fight the network's for the cores.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pndm_fast.row.layout import name_of
from pndm_fast.row.reference import SEEDS_ALONE, Sources
from pndm_fast.row.registers import Registers
from pndm_fast.row.schema import REGISTERS


def apply_row(r: Registers, table: Tensor, out: Tensor, uncond: Tensor | None, z: Tensor | None) -> None:
    """`reference.apply_row`, in one pass over the memory."""
    run = _row_op(r, table, out.dtype)
    if not run(out.data_ptr(), _address(uncond), _address(z)):
        apply_row(r, table, out.clone(), None if uncond is None else uncond.clone(), z)


def begin(r: Registers, table: Tensor, lines: Tensor, sources: Sources) -> None:
    """`reference.begin`."""
    _begin(_row_op(r, table, torch.float32), lines, sources)


def _begin(operation: Any, lines: Tensor, sources: Sources) -> None:
    if sources is SEEDS_ALONE:
        operation.begin(lines.data_ptr())
    elif not operation.begin(lines.data_ptr(), *map(_address, sources)):  # they lie in our own memory: take copies
        _begin(operation, lines, Sources(*[None if source is None else source.clone() for source in sources]))


def bind(r: Registers, table: Tensor, out_dtype: torch.dtype) -> tuple[Callable[..., None], Callable[..., None]]:
    """step(out, uncond, z) and begin(lines, sources) on buffers that the caller keeps alive.

    They are checked once here, of a step only where its outputs lie.
    """
    operation = _row_op(r, table, out_dtype)
    run = operation.__call__  # the method and not the object, whose call would look it up each time
    half = 0 if r.cfg_copies == 1 else r.batch * r.n * out_dtype.itemsize

    def step(out: Tensor, uncond: Tensor | None, z: Tensor | None) -> None:
        first, second = out.data_ptr(), 0 if uncond is None else uncond.data_ptr()
        if half:
            first, second = first + half, first
        if not run(first, second, 0 if z is None else z.data_ptr()):
            # the network answered in our own memory: take a copy
            step(out.clone(), None if uncond is None else uncond.clone(), z)

    return step, partial(_begin, operation)


@functools.cache
def _native() -> Any:
    """The extension, which a package without a compiler may lack."""
    from pndm_fast import _C

    return _C


def arguments(r: Registers, table: Tensor, out_dtype: torch.dtype, threads: int) -> dict[str, Any]:
    """What `_C.RowOp` takes."""
    return dict(
        registers={k: 0 if v is None else v.data_ptr() for k, v in zip(REGISTERS, r.tensors(), strict=True)},
        table=table.data_ptr(),
        batch=r.batch,
        n=r.n,
        stride=r.y.shape[1],
        n_slots=r.slots.shape[0],
        table_rows=table.shape[0],
        table_width=table.shape[1],
        channels=r.channels,
        cfg_copies=r.cfg_copies,
        out_dtype=name_of(out_dtype),
        slot_dtype=name_of(r.slots.dtype),
        net_dtype=name_of(torch.float32 if r.net_in is None else r.net_in.dtype),
        time_dtype=name_of(r.t.dtype),
        threads=threads,
    )


def _row_op(r: Registers, table: Tensor, out_dtype: torch.dtype) -> Any:
    return _native().RowOp(**arguments(r, table, out_dtype, torch.get_num_threads()))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@functools.cache
def share_threads() -> bool:
    """Hand the OpenMP runtime that torch has loaded to the C++ extension; without one, rows run on one thread."""
    native = _native()
    torch.get_num_threads()  # loads the runtime
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:  # not Linux
        return False
    for path in sorted(set(re.findall(r"/\S*/lib(?:g|i|)omp[^/\s]*\.so\S*", maps))):
        runtime = ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        if all(hasattr(runtime, name) for name in names):
            native.use_pool(*(ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value or 0 for name in names))
            return True
    return False
