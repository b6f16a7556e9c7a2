"""Types of the C++ extension (csrc/bindings.cpp, csrc/cuda/graph_bindings.cpp, csrc/watch.cpp)."""

from collections.abc import Callable, Iterable

columns: dict[str, int]

def column(first: int, components: int) -> int:
    """Where a coefficient begins, given its column in a line of one component."""

layouts: dict[int, dict[str, int | None]]
"""By the width of a line: components, slots, second, y and end, as `pndm_fast.row.table.Layout` has them."""

class RowOp:
    """One row of the table for every sample, on raw pointers that the caller keeps alive.

    `registers` are the addresses by name, 0 where an optional one is missing.
    """

    def __init__(
        self,
        registers: dict[str, int],
        *,
        table: int,
        batch: int,
        n: int,
        stride: int,
        n_slots: int,
        table_rows: int,
        table_width: int,
        channels: int,
        cfg_copies: int,
        out_dtype: str,
        slot_dtype: str,
        net_dtype: str,
        time_dtype: str,
        threads: int = 1,
    ) -> None: ...
    def begin(self, lines: int, noise: int = 0, state: int = 0, image: int = 0, z: int = 0, /) -> bool:
        """Write the start; False, with nothing done, where a source overlaps the run's own memory."""

    def __call__(self, out: int, uncond: int = 0, z: int = 0, /) -> bool:
        """False, with nothing done, where an output overlaps the run's own memory."""

def normals(out: int, seeds: int, batch: int, index: int, n: int, stride: int, channels: int) -> None:
    """Fill float32 [batch, n], rows `stride` apart, with a noise index's normals."""

def use_pool(parallel: int, index: int, size: int) -> None:
    """Run large rows on an OpenMP runtime: addresses of GOMP_parallel, omp_get_thread_num and omp_get_num_threads."""

def slot_offset(slot: int, sample: int, batch: int, stride: int) -> int:
    """Where a sample's slot begins, in elements."""

def instruction_sets(use: str = "") -> tuple[str, ...]:
    """This machine's instruction sets, best first; a name chooses one for all later calls. For tests."""

class Driver:
    """The CUDA driver, found at run time; RuntimeError where it is missing or too old."""

    def __init__(self, library: str = "libcuda.so.1") -> None: ...
    version: int
    @property
    def without_while(self) -> str:
        """Why WHILE nodes cannot be had; empty where they can."""

    def census(self, graph: int) -> tuple[dict[str, int], str]:
        """Nodes of a captured graph by type, and why they cannot stand in a WHILE body, if they cannot."""

class Iteration:
    """A captured iteration: launched for each row, or, with addresses of its control words, once for many.

    `assemble` makes machine code of CONDITION_PTX where the driver refuses to compile it.
    """

    def __init__(
        self,
        driver: Driver,
        graph: int,
        *,
        active: int = 0,
        budget: int = 0,
        cancel: int = 0,
        assemble: Callable[[str], bytes] | None = None,
    ) -> None: ...
    nodes: dict[str, int]
    def launch(self, rows: int, stream: int, cancelable: bool = False) -> int:
        """Enqueue that many rows on a stream; only a cancelable loop reads its cancel word.

        Returns:
            How many launches that took.
        """

    def close(self) -> None:
        """Destroy what the driver holds; nothing may be running."""

class Watch:
    """What objects' attributes were, and what dicts and lists among them held; the objects are not kept alive.

    Attributes named in `unread` must be there, and may change. Plain values may be replaced by equal ones.
    """

    def __init__(self, objects: Iterable[object], unread: set[str]) -> None: ...
    def changed(self) -> bool:
        """Whether anything is another than at the start, or an object is gone; runs no Python code."""

CONDITION_PTX: str
