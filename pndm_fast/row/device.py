"""Between host and device: copies that do not wait, and the stream that work goes to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def stream_of(device: torch.device) -> int:
    """The current stream, 0 where there are none."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def upload(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Host values on the device, without waiting for it: torch keeps pinned memory until the copy is done."""
    if isinstance(values, Tensor) and values.device == device and dtype in (None, values.dtype):
        return values
    # a default device of torch's is not meant: these are host values
    tensor = torch.as_tensor(values, dtype=dtype, device=None if isinstance(values, Tensor) else "cpu")
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
