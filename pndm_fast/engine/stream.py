"""The stream of a worker's thread, where the device has such."""

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

    def callers(self) -> Any:
        """The caller's current one; None where there are none."""
        return torch.cuda.current_stream(self._device) if self._cuda else None

    def keep(self, tensor: torch.Tensor, reader: Any) -> None:
        """A finished tensor will be read on another stream: its memory is not given on before that is done."""
        if reader is not None:
            tensor.record_stream(reader)

    def finish(self) -> None:
        """Wait for what was launched."""
        if self._cuda:
            torch.cuda.current_stream(self._device).synchronize()
