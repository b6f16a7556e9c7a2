"""What the engine asks of torch.cuda: streams, events, capture, copies that do not wait."""

from __future__ import annotations

import contextlib
import functools
import gc
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pndm_fast.row.device import stream_of


class Captured(Protocol):
    """A graph that torch captured, and owns, with the memory pool that it works in."""

    def raw_cuda_graph(self) -> int: ...
    def reset(self) -> None: ...


class Event(Protocol):
    """A point in a stream."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def wait(self) -> None: ...
    def synchronize(self) -> None: ...


class Cuda:
    """One CUDA device. Tests put a stand-in here, to run the graph modes without one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._spoilt: list[Any] = []

    @functools.cached_property
    def driver(self) -> Any:
        """The driver's functions for graphs.

        Raises:
            RuntimeError: no usable driver, with the reason.
        """
        from pndm_fast import _C

        return _C.Driver()

    def stream(self) -> int:
        """The caller's current stream."""
        return stream_of(self.device)

    def event(self) -> Event:
        """A new event for the current stream."""
        event: Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        return event

    def flag(self) -> Tensor:
        """One int32 that host and device both see."""
        return torch.zeros(1, dtype=torch.int32, device="cpu").pin_memory()

    def random_state(self) -> Tensor:
        """Of the device's default generator; it moves when somebody draws."""
        return torch.cuda.get_rng_state(self.device)

    @functools.cached_property
    def _side(self) -> torch.cuda.Stream:
        """One for all captures: torch has but 32, which others use too."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Work on a stream of its own, after the current stream's work and before what comes there."""
        side = self._side
        side.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(side):
                yield
        finally:
            torch.cuda.current_stream(self.device).wait_stream(side)

    def capture(self, body: Callable[[], None]) -> tuple[Captured, int]:
        """Capture what body launches on the current stream; also the bytes that its memory pool took.

        cuBLAS gets workspaces in that pool and leaves them there: others would be shared with other work of the stream,
        and freed by whoever clears them.
        """
        graph, pool = torch.cuda.CUDAGraph(keep_graph=True), torch.cuda.graph_pool_handle()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch._C._cuda_clearCublasWorkspaces()
        before = torch.cuda.memory_reserved(self.device)
        with _no_collection():
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                body()
            finally:
                try:
                    graph.capture_end()
                except RuntimeError:
                    self._mend(graph, pool)
                    raise
                finally:
                    torch._C._cuda_clearCublasWorkspaces()
        return graph, torch.cuda.memory_reserved(self.device) - before

    def assemble(self, ptx: str) -> bytes:
        """Machine code for this device, without the driver's compiler.

        Raises:
            RuntimeError: there is no assembler, or it refuses.
        """
        return assembled(ptx, torch.cuda.get_device_capability(self.device))

    def _mend(self, graph: Any, pool: Any) -> None:
        """Without pytorch/pytorch#180395, a capture that fails in its end leaves torch in capture mode."""
        try:
            torch._C._cuda_endAllocateToPool(self.device.index, pool)
        except RuntimeError:  # torch has ended it
            return
        torch._C._cuda_releasePool(self.device.index, pool)
        self._spoilt.append(graph)  # the pinned memory's allocator cannot be told, and goes on asking it
        good = torch.cuda.CUDAGraph()  # one that succeeds resets the generator
        good.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=self.device)
        good.capture_end()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """What Python's collector frees could be device memory, which ends a capture."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def assembled(ptx: str, capability: tuple[int, int]) -> bytes:
    """PTX as machine code, by the assembler that Triton brings along.

    Raises:
        RuntimeError: there is none, or it refuses.
    """
    from triton import knobs

    target = "sm_{}{}".format(*capability)
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "source.ptx"), Path(folder, "binary.cubin")
        source.write_text(ptx.strip())
        command = [knobs.nvidia.ptxas.path, f"-arch={target}", str(source), "-o", str(binary)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"Triton's ptxas refuses it for {target}: {done.stderr.strip()}")
        return binary.read_bytes()


@functools.cache
def cuda_of(device: torch.device) -> Cuda | None:
    """The CUDA device, None for another."""
    return Cuda(device) if device.type == "cuda" else None
