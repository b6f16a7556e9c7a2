"""Between host and device: copies that do not wait, and the stream that work goes to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
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


@contextlib.contextmanager
def staged(memory: Tensor) -> Iterator[np.ndarray[Any, Any]]:
    """Bytes [n] of the host, which on leaving are copied to the device's, without waiting."""
    host = torch.empty(memory.shape, dtype=memory.dtype, device="cpu", pin_memory=memory.is_cuda)
    yield host.numpy()
    memory.copy_(host, non_blocking=memory.is_cuda)  # torch keeps pinned memory until the copy is done


class Fetched(NamedTuple):
    """Numbers on their way to the host.

    Attributes:
        wait: waits for them alone, and gives each tensor's as a list; ready: whether they are there.
    """

    wait: Callable[[], list[Any]]
    ready: Callable[[], bool]

    def __call__(self) -> list[Any]:
        """`wait`."""
        return self.wait()


def fetch(*tensors: Tensor) -> Fetched:
    """Begin to read tensors of one device."""
    if tensors[0].device.type != "cuda":
        numbers = [tensor.tolist() for tensor in tensors]
        return Fetched(lambda: numbers, lambda: True)
    pinned = tuple([torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=True) for t in tensors])
    for target, tensor in zip(pinned, tensors, strict=True):
        target.copy_(tensor, non_blocking=True)
    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(tensors[0].device))

    def wait() -> list[Any]:
        event.synchronize()
        return [tensor.tolist() for tensor in pinned]

    return Fetched(wait, lambda: bool(event.query()))
