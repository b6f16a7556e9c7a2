"""A Python face of the fake CUDA driver in fake_cuda*.cpp."""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "fake_cuda"  # compiled once for each text of its sources
KINDS = {
    "kernel": 0, "memcpy": 1, "memset": 2, "host": 3, "child graph": 4, "empty": 5, "event wait": 6, "event record": 7,
    "mem alloc": 10, "mem free": 11, "conditional": 13,
}  # fmt: skip
MEMORY = {"host": 1, "device": 2, "array": 3, "unified": 4}
OUT_OF_MEMORY, INVALID_VALUE, LAUNCH_FAILED = 2, 1, 719  # as cuda.h numbers them

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_WORDS = ctypes.c_uint64
_SIGNATURES = {
    "fake_graph": (_WORDS, []),
    "fake_add": (_WORDS, [_WORDS, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p,
                          _WORDS]),
    "fake_copy": (None, [_WORDS, ctypes.c_int, ctypes.c_int]),
    "fake_destroy": (None, [_WORDS]),
    "fake_fail": (None, [ctypes.c_char_p, ctypes.c_int, ctypes.c_int64]),
    "fake_hide": (None, [ctypes.c_char_p]),
    "fake_set": (None, [ctypes.c_int, ctypes.c_bool]),
    "fake_reset": (None, []),
    "fake_report": (ctypes.c_char_p, []),
}  # fmt: skip


@functools.cache
def _library() -> Path:
    # no unique symbols: every copy of the library has a state of its own
    flags = ["-std=c++17", "-O0", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-gnu-unique"]
    flags.append(f"-I{HERE.parent / 'csrc'}")
    extra = os.environ.get("FAKE_CUDA_FLAGS", "").split()  # sanitizers, say
    compiler = os.environ.get("CXX", "g++")
    sources = sorted(HERE.glob("fake_cuda*.cpp"))
    command = [compiler, *flags, *extra, *map(str, sources)]
    read = [*sources, HERE / "fake_cuda.h", *sorted((HERE.parent / "csrc/cuda").glob("*.h"))]
    key = hashlib.sha256(b"\0".join([" ".join(command).encode(), *(file.read_bytes() for file in read)]))
    library = BUILD / f"libfake-{key.hexdigest()[:16]}.so"
    if not library.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            subprocess.run([*command, "-o", f"{folder}/libfake.so"], check=True)
            os.replace(f"{folder}/libfake.so", library)
    return library


@functools.cache
def _copies() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fake_cuda"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class FakeDriver:
    """One driver with a state of its own: `_C.Driver(fake.path)` loads it.

    A graph's kernels are Python callables, run during the launch on the thread that launches. One that raises makes the
    launch fail with CUDA_ERROR_LAUNCH_FAILED; its exception is in `raised`. Callables live as long as this does.
    """

    _numbers = itertools.count()

    def __init__(self, *, version: int = 13000, missing: Sequence[str] = ()) -> None:
        self.path = str(shutil.copy(_library(), _copies() / f"libfake{next(self._numbers)}.so"))
        self._fake = ctypes.CDLL(self.path)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._fake, name)
            function.restype, function.argtypes = result, arguments
        self.raised: list[BaseException] = []
        self._callbacks: list[object] = []
        self._last: dict[int, int] = {}
        self._version = version
        self._fake.fake_set(version, True)
        for name in missing:
            self._fake.fake_hide(name.encode())

    def graph(self, *calls: Callable[[], object]) -> int:
        """A captured graph: a chain of kernels that call these."""
        graph = int(self._fake.fake_graph())
        for call in calls:
            self.add(graph, call=call)
        return graph

    def add(
        self,
        graph: int,
        kind: str | int = "kernel",
        *,
        call: Callable[[], object] | None = None,
        after: Sequence[int] | None = None,
        child: int = 0,
        source: str = "device",
        target: str = "device",
    ) -> int:
        """A node after those of `after`, by default after the last that was added; `child` is cloned into it."""
        if after is None:
            after = [self._last[graph]] if graph in self._last else []
        callback = self._callback(call) if call else None
        node = self._add(graph, kind, after, ctypes.cast(callback, ctypes.c_void_p), None, child)
        if KINDS.get(kind) == KINDS["memcpy"]:
            self._fake.fake_copy(node, MEMORY[source], MEMORY[target])
        return node

    def add_wait(self, graph: int, words: int) -> int:
        """A kernel that sets int32 words[1] and waits, without the interpreter, until words[0] is not 0."""
        return self._add(graph, "kernel", [], ctypes.cast(self._fake.fake_wait, ctypes.c_void_p), words, 0)

    def _add(self, graph, kind, after, callback, argument, child) -> int:
        before = (_WORDS * len(after))(*after)
        kind = kind if isinstance(kind, int) else KINDS[kind]
        node = int(self._fake.fake_add(graph, kind, before, len(after), callback, argument, child))
        if not node:
            raise ValueError(f"the fake driver refuses node {kind} of graph {graph}")
        self._last[graph] = node
        return node

    def _callback(self, call: Callable[[], object]) -> object:
        def run(_: int) -> int:
            try:
                call()
            except BaseException as error:
                self.raised.append(error)
                return LAUNCH_FAILED
            return 0

        self._callbacks.append(_CALLBACK(run))
        return self._callbacks[-1]

    def destroy(self, graph: int) -> None:
        """Destroy a captured graph, as torch does when its CUDAGraph goes."""
        self._fake.fake_destroy(graph)

    def fail(self, name: str, status: int, call: int = 1) -> None:
        """Make the call-th call of a function from now on return a status, once."""
        assert name in self.names
        self._fake.fake_fail(name.encode(), status, call)

    def context(self, exists: bool) -> None:
        """Whether threads have a current context without pushing one."""
        self._fake.fake_set(self._version, exists)

    def reset(self) -> None:
        """Forget counts, planned failures, what was destroyed and raised; handles stay."""
        self._fake.fake_reset()
        self.raised.clear()

    def _report(self, kind: str) -> list[tuple[str, int]]:
        lines = [line.split() for line in self._fake.fake_report().decode().splitlines()]
        return [(name, int(number)) for first, name, number in lines if first == kind]

    @property
    def names(self) -> dict[str, int]:
        """Its functions, and since which version each has the interface that is implemented."""
        return dict(self._report("name"))

    @property
    def counts(self) -> dict[str, int]:
        """Calls by function name."""
        return dict(self._report("count"))

    @property
    def live(self) -> dict[str, int]:
        """Handles that were made through the driver and not destroyed, by kind; contexts pushed and not popped."""
        return {name: number for name, number in self._report("live") if number}

    @property
    def destroyed(self) -> list[str]:
        """Kinds of the handles that were destroyed through the driver, in order."""
        return [name for name, _ in self._report("destroyed")]

    @property
    def stream(self) -> int:
        """The stream of the last launch or memset."""
        return dict(self._report("last"))["stream"]
