"""The stream of a worker's thread, where the device has such: others' tensors are waited for, and its own kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


class Stream:
    """One device's; elsewhere than on CUDA there is nothing to do."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Work on it."""
        if not self._cuda:
            yield
            return
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.Stream(self._device)):  # type: ignore[no-untyped-call]
            yield

    def mark(self) -> tuple[Any, Any] | None:
        """What the caller's current stream has to do so far, and that stream."""
        if not self._cuda:
            return None
        stream = torch.cuda.current_stream(self._device)
        return stream.record_event(), stream

    def wait(self, mark: tuple[Any, Any] | None) -> None:
        """Begin what comes after that was done."""
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark[0])

    def hand_over(self, tensor: torch.Tensor, mark: tuple[Any, Any] | None) -> None:
        """A finished tensor goes to who submitted, on whose stream it is read: its memory is not given on before."""
        if mark is not None and tensor.is_cuda:
            torch.cuda.current_stream(self._device).synchronize()
            tensor.record_stream(mark[1])
