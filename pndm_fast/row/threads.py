"""Torch's own threads for the C++ row: a second pool would fight the network's for the cores."""

from __future__ import annotations

import ctypes
import functools
import os
import re
from pathlib import Path

import torch


@functools.cache
def share_threads() -> bool:
    """Hand the OpenMP runtime that torch has loaded to the C++ extension; without one, rows run on one thread."""
    from pndm_fast import _C

    torch.get_num_threads()  # loads the runtime
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:  # not Linux
        return False
    for path in sorted(set(re.findall(r"/\S*/lib(?:g|i|)omp[^/\s]*\.so\S*", maps))):
        runtime = ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        if all(hasattr(runtime, name) for name in names):
            _C.use_pool(*(ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value or 0 for name in names))
            return True
    return False
