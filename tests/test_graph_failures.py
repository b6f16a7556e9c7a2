"""The graph runtime on the fake driver: every call that can fail, what lives how long, and drivers that lack things."""

import gc
import threading

import pytest
from fake_cuda import INVALID_VALUE, OUT_OF_MEMORY, FakeDriver
from graphcase import STREAM, Words, checked_driver, loop

from pndm_fast import _C
from pndm_fast.runtime.cuda import assembled


@pytest.fixture
def fake():
    yield from checked_driver()


REPLAYED = {"cuGraphGetNodes", "cuGraphNodeGetType", "cuGraphChildGraphNodeGetGraph", "cuGraphMemcpyNodeGetParams",
            "cuCtxGetCurrent", "cuGraphInstantiateWithFlags"}  # fmt: skip
BUILT = REPLAYED | {"cuGraphCreate", "cuGraphAddChildGraphNode", "cuGraphAddKernelNode", "cuGraphAddNode",
                    "cuGraphConditionalHandleCreate", "cuModuleLoadDataEx", "cuModuleGetFunction"}  # fmt: skip
LAUNCHED = {"cuMemsetD32Async", "cuGraphLaunch"}
DESTROYED = {"cuGraphExecDestroy", "cuGraphDestroy", "cuModuleUnload"}
CONTEXT = {"cuCtxPushCurrent", "cuCtxPopCurrent"}
TOLD = {"cuGetErrorName", "cuGetErrorString"}


def every_kind(fake):
    child = fake.graph(lambda: None)
    graph = fake.graph(lambda: None)
    fake.add(graph, "memcpy")
    fake.add(graph, "child graph", child=child)
    return graph


def test_these_are_all_functions(fake):
    assert BUILT | LAUNCHED | DESTROYED | CONTEXT | TOLD | {"cuDriverGetVersion"} == set(fake.names)


@pytest.mark.parametrize(
    "name, call, looped",
    [(name, 1, True) for name in sorted(BUILT)]
    + [(name, 1, False) for name in sorted(REPLAYED)]
    + [("cuGraphGetNodes", 2, True), ("cuGraphGetNodes", 3, True), ("cuGraphNodeGetType", 3, True)],
)
def test_a_failure_while_building_is_named_and_leaks_nothing(fake, name, call, looped):
    driver, graph, words = _C.Driver(fake.path), every_kind(fake), Words()
    fake.fail(name, OUT_OF_MEMORY, call)
    with pytest.raises(RuntimeError, match=rf"^{name}.*: CUDA_ERROR_OUT_OF_MEMORY \(2, of the fake driver\)$"):
        _C.Iteration(driver, graph, **words.addresses if looped else {})
    assert fake.live == {}
    _C.Iteration(driver, graph, **words.addresses if looped else {}).launch(1, STREAM)


def test_the_log_of_a_refused_module_is_told(fake):
    fake.fail("cuModuleLoadDataEx", INVALID_VALUE)
    with pytest.raises(RuntimeError, match=r"cuModuleLoadDataEx of the loop's condition \(fake: this module is refus"):
        loop(fake, Words())


@pytest.mark.parametrize("name, call", [("cuGraphLaunch", 1), ("cuGraphLaunch", 3), ("cuMemsetD32Async", 1)])
def test_a_failure_while_launching_is_named(fake, name, call):
    words = Words()
    driver, graph = _C.Driver(fake.path), fake.graph(words.count)
    iteration = _C.Iteration(driver, graph, **words.addresses if call == 1 else {})
    fake.fail(name, INVALID_VALUE, call)
    with pytest.raises(RuntimeError, match=rf"^{name}: CUDA_ERROR_INVALID_VALUE \(1, of the fake driver\)$"):
        iteration.launch(4, STREAM)
    assert words.ran == call - 1
    iteration.launch(4, STREAM)
    assert words.ran == call + 3


@pytest.mark.parametrize("name", sorted(DESTROYED | CONTEXT))
def test_a_failure_while_closing_does_not_keep_the_rest(name):
    fake = FakeDriver()
    iteration = loop(fake, Words())
    fake.fail(name, INVALID_VALUE)
    iteration.close()
    left = {"cuGraphExecDestroy": "exec", "cuGraphDestroy": "graph", "cuModuleUnload": "module"}.get(name)
    assert fake.live == ({left: 1} if left else {"context": 1} if name == "cuCtxPopCurrent" else {})


@pytest.mark.parametrize(
    "name, message",
    [("cuGetErrorName", r"an unknown status \(2, of the fake driver\)"), ("cuGetErrorString", r"OUT_OF_MEMORY \(2\)")],
)
def test_a_status_without_name_or_text(fake, name, message):
    fake.fail("cuGraphCreate", OUT_OF_MEMORY)
    fake.fail(name, INVALID_VALUE)
    with pytest.raises(RuntimeError, match=rf"^cuGraphCreate: .*{message}$"):
        loop(fake, Words())


def test_an_unknown_status(fake):
    fake.fail("cuGraphCreate", 12345)
    with pytest.raises(RuntimeError, match=r"^cuGraphCreate: an unknown status \(12345\)$"):
        loop(fake, Words())


# ---- lifetime


def test_close_destroys_once_and_in_order(fake):
    iteration = loop(fake, Words())
    assert fake.live == {"exec": 1, "graph": 1, "module": 1}
    iteration.close()
    assert fake.destroyed == ["exec", "graph", "module"] and fake.live == {}
    fake.reset()
    iteration.close()
    assert fake.counts == {}
    with pytest.raises(RuntimeError, match="launch: the graph is closed"):
        iteration.launch(1, STREAM)
    del iteration
    assert fake.counts == {}


def test_replay_holds_no_more_than_the_executable(fake):
    iteration = _C.Iteration(_C.Driver(fake.path), fake.graph())
    assert fake.live == {"exec": 1}
    iteration.close()
    assert fake.destroyed == ["exec"]


def test_collected_without_close(fake):
    words = Words()
    cycle = [loop(fake, words)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert fake.live == {} and fake.destroyed == ["exec", "graph", "module"]


def test_closed_on_a_thread_without_context(fake):
    iteration = loop(fake, Words())
    fake.context(False)
    other = threading.Thread(target=iteration.close)
    other.start()
    other.join()
    assert fake.live == {} and fake.counts["cuCtxPopCurrent"] == 1


def test_built_on_a_thread_without_context(fake):
    fake.context(False)
    with pytest.raises(RuntimeError, match="cuCtxGetCurrent: no context on this thread"):
        loop(fake, Words())


def test_the_captured_graph_may_go_before_the_loop_is_closed(fake):
    words = Words()
    driver, graph = _C.Driver(fake.path), fake.graph(words.count)
    iteration = _C.Iteration(driver, graph, **words.addresses)
    fake.destroy(graph)
    del driver
    gc.collect()
    iteration.launch(2, STREAM)
    assert words.ran == 2
    with pytest.raises(RuntimeError, match="^cuGraphGetNodes: CUDA_ERROR_INVALID_HANDLE"):
        _C.Driver(fake.path).census(graph)


def test_a_thousand_cycles_leave_nothing(fake):
    words = Words()
    driver, graph = _C.Driver(fake.path), fake.graph(words.count)
    for cycle in range(1000):
        iteration = _C.Iteration(driver, graph, **words.addresses if cycle % 2 else {})
        iteration.launch(2, STREAM)
        if cycle % 3:
            iteration.close()
    del iteration
    assert words.ran == 2000 and fake.live == {}


# ---- drivers that cannot


@pytest.mark.parametrize("missing", ["cuGraphAddNode", "cuGraphConditionalHandleCreate", None])
def test_an_old_driver_has_no_while_and_still_replays(missing):
    fake = FakeDriver(missing=[missing]) if missing else FakeDriver(version=12030)
    driver = _C.Driver(fake.path)
    reason = f"the driver lacks {missing}" if missing else "WHILE nodes need a driver of CUDA 12.4, got 12.3"
    assert driver.without_while.startswith(reason)
    with pytest.raises(RuntimeError, match=reason):
        loop(fake, Words())
    assert fake.live == {}
    words = Words()
    _C.Iteration(driver, fake.graph(words.count)).launch(3, STREAM)
    assert words.ran == 3


@pytest.mark.parametrize("version", [12000, 12020, 12040, 12080, 13010])
def test_versions(version):
    driver = _C.Driver(FakeDriver(version=version).path)
    assert driver.version == version and bool(driver.without_while) == (version < 12040)


@pytest.mark.parametrize("names", [["cuGraphLaunch"], ["cuGraphAddKernelNode", "cuCtxGetCurrent"]], ids=str)
def test_missing_functions_are_named(names):
    with pytest.raises(RuntimeError) as error:
        _C.Driver(FakeDriver(missing=names).path)
    assert str(error.value).split(" lacks ")[1].split() == sorted(names)


def test_a_driver_before_cuda_12_lacks_the_kernel_node():
    with pytest.raises(RuntimeError, match="lacks cuGraphAddKernelNode$"):
        _C.Driver(FakeDriver(version=11080).path)


def test_a_driver_that_fails_at_first_is_asked_again():
    fake = FakeDriver()
    fake.fail("cuDriverGetVersion", OUT_OF_MEMORY)
    with pytest.raises(RuntimeError, match="^cuDriverGetVersion: CUDA_ERROR_OUT_OF_MEMORY"):
        _C.Driver(fake.path)
    assert _C.Driver(fake.path).version == 13000


def test_no_library():
    with pytest.raises(RuntimeError, match="^no CUDA driver: /nowhere/libcuda.so.1: cannot open"):
        _C.Driver("/nowhere/libcuda.so.1")


def test_another_library():
    with pytest.raises(RuntimeError, match="^libm.so.6 has no cuGetProcAddress_v2: drivers before CUDA 12 do not$"):
        _C.Driver("libm.so.6")


def test_bad_arguments(fake):
    driver, graph = _C.Driver(fake.path), fake.graph()
    for call in (driver.census, lambda address: _C.Iteration(driver, address)):
        with pytest.raises(ValueError, match="graph must be an address, got 0"):
            call(0)
    with pytest.raises(ValueError, match="active, budget and cancel must be three addresses, or none"):
        _C.Iteration(driver, graph, active=1, cancel=1)
    with pytest.raises(TypeError):
        _C.Iteration(None, graph)
    with pytest.raises(RuntimeError, match="^cuGraphGetNodes: CUDA_ERROR_INVALID_HANDLE"):
        _C.Iteration(driver, graph + 1)


# ---- a driver that does not compile the condition


def refused_condition(fake, assemble):
    words = Words()
    graph = fake.graph(words.count)
    fake.fail("cuModuleLoadDataEx", 218)
    return words, lambda: _C.Iteration(_C.Driver(fake.path), graph, **words.addresses, assemble=assemble)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0), (12, 0)], ids=str)
def test_it_is_assembled_without_the_driver(fake, capability):
    """Triton's own assembler, run here: the driver is given machine code for the device."""
    words, make = refused_condition(fake, lambda ptx: assembled(ptx, capability))
    iteration = make()
    assert fake.counts["cuModuleLoadDataEx"] == 2
    iteration.launch(5, STREAM)
    assert words.ran == 5 and words.values[1] == 0


def test_a_driver_that_compiles_is_not_helped(fake):
    words = Words()
    asked = []
    _C.Iteration(_C.Driver(fake.path), fake.graph(words.count), **words.addresses, assemble=asked.append)
    assert not asked


def test_both_refusals_are_told(fake):
    _, make = refused_condition(fake, lambda ptx: assembled(ptx, (7, 0)))
    with pytest.raises(
        RuntimeError, match=r"CUDA_ERROR_INVALID_PTX.*; assembled: .*Triton's ptxas refuses it for sm_70"
    ):
        make()
    _, make = refused_condition(fake, lambda ptx: b"no machine code")
    with pytest.raises(RuntimeError, match=r"CUDA_ERROR_INVALID_PTX.*; assembled: cuModuleLoadDataEx of the loop's"):
        make()
    assert fake.live == {}
