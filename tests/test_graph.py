"""The graph runtime on the fake driver: what it finds in a captured graph, and what its launches run."""

import threading

import pytest
import torch
from graphcase import CANCELABLE, STREAM, Words, checked_driver, loop

from pndm_fast import _C


@pytest.fixture
def fake():
    yield from checked_driver()


# ---- the node walk


def test_nodes_are_counted_through_child_graphs(fake):
    inner = fake.graph(lambda: None)
    fake.add(inner, "memset")
    middle = fake.graph(lambda: None)
    fake.add(middle, "child graph", child=inner)
    outer = fake.graph()
    for kind in ("kernel", "memcpy", "empty"):
        fake.add(outer, kind)
    fake.add(outer, "child graph", child=middle)
    driver = _C.Driver(fake.path)
    nodes = {"kernel": 3, "memcpy": 1, "memset": 1, "empty": 1, "child graph": 2}
    assert driver.census(outer) == (nodes, "")
    assert _C.Iteration(driver, outer).nodes == nodes
    assert driver.census(fake.graph()) == ({}, "")


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    "kind, name",
    [("host", "host"), ("event wait", "event wait"), ("event record", "event record"), ("mem alloc", "mem alloc"),
     ("mem free", "mem free"), ("conditional", "conditional"), (99, "type 99"), (-1, "type -1")],
)  # fmt: skip
def test_an_obstacle_is_named_and_only_a_loop_minds_it(fake, kind, name, inside):
    graph = fake.graph(lambda: None)
    fake.add(graph, kind)
    if inside and kind in ("mem alloc", "mem free", "conditional"):
        with pytest.raises(ValueError, match="the fake driver refuses"):
            fake.add(fake.graph(), "child graph", child=graph)
        return
    if inside:
        child, graph = graph, fake.graph()
        fake.add(graph, "child graph", child=child)
    driver = _C.Driver(fake.path)
    obstacle = f"a WHILE body cannot hold a {name} node"
    nodes, found = driver.census(graph)
    assert nodes[name] == 1 and found == obstacle
    with pytest.raises(RuntimeError, match=f"^{obstacle}$"):
        _C.Iteration(driver, graph, **Words().addresses)
    _C.Iteration(driver, graph).launch(2, STREAM)


@pytest.mark.parametrize("source, target", [("host", "device"), ("device", "host"), ("host", "host")])
def test_a_copy_of_host_memory_is_an_obstacle(fake, source, target):
    graph = fake.graph()
    fake.add(graph, "memcpy", source=source, target=target)
    assert _C.Driver(fake.path).census(graph)[1] == "a WHILE body cannot hold a memcpy node that touches host memory"


def test_a_copy_on_the_device_is_none(fake):
    graph = fake.graph()
    fake.add(graph, "memcpy")
    words = Words()
    _C.Iteration(_C.Driver(fake.path), graph, **words.addresses).launch(3, STREAM)
    assert words.values[1] == 0


# ---- launches


def test_replay_launches_once_for_each_row(fake):
    order = []
    graph = fake.graph(lambda: order.append("network"), lambda: order.append("row"))
    iteration = _C.Iteration(_C.Driver(fake.path), graph)
    fake.reset()
    iteration.launch(5, STREAM)
    assert order == ["network", "row"] * 5
    assert fake.counts == {"cuGraphLaunch": 5}  # and nothing that waits
    assert fake.stream == STREAM


@pytest.mark.parametrize("budget", [1, 2, 7, 50])
def test_while_launches_once_and_counts_the_budget_down(fake, budget):
    words = Words()
    iteration = loop(fake, words)
    fake.reset()
    iteration.launch(budget, STREAM)
    assert words.ran == budget and words.values[1] == 0
    assert fake.counts == {"cuMemsetD32Async": 1, "cuGraphLaunch": 1}
    assert fake.stream == STREAM


@pytest.mark.parametrize("word, value", [(0, 0), (0, -1), (2, 1), (2, -1)], ids=str)
@pytest.mark.parametrize("after", [1, 3, 6])
def test_while_ends_when_no_sample_is_active_or_somebody_cancels(fake, word, value, after):
    cancelable = word == 2
    words = Words(active=4)

    def body():
        if words.ran == after:
            words.values[word] = value

    iteration = loop(fake, words, body)
    iteration.launch(6, STREAM, cancelable)
    assert words.ran == after and words.values[1] == 6 - after | CANCELABLE * cancelable
    iteration.launch(6, STREAM, cancelable)  # the handle is 1 again, so one row runs before the words are read
    assert words.ran == after + 1


def test_a_flag_that_nobody_may_set_is_not_read(fake):
    words = Words()
    words.values[2] = 1
    iteration = loop(fake, words)
    iteration.launch(6, STREAM)
    assert words.ran == 6 and words.values[1] == 0
    iteration.launch(6, STREAM, cancelable=True)
    assert words.ran == 7 and words.values[1] == 5 | CANCELABLE
    iteration.launch(3, STREAM)  # the bit does not stay
    assert words.ran == 10 and words.values[1] == 0


def test_a_replay_is_not_cancelable(fake):
    iteration = _C.Iteration(_C.Driver(fake.path), fake.graph())
    with pytest.raises(ValueError, match="launch: cancelable must be False without control words, got True"):
        iteration.launch(2, STREAM, cancelable=True)


def test_chunks_of_a_trajectory(fake):
    words = Words()
    iteration = loop(fake, words)
    iteration.launch(3, STREAM)
    assert words.ran == 3
    iteration.launch(4, STREAM)
    assert words.ran == 7


def test_the_decision_comes_after_the_whole_iteration(fake):
    words = Words(active=4)
    driver = _C.Driver(fake.path)
    graph = fake.graph(words.count)
    first = fake.add(graph, call=lambda: None, after=[])
    fake.add(graph, call=lambda: words.values.__setitem__(0, 0), after=[first])
    _C.Iteration(driver, graph, **words.addresses).launch(9, STREAM)
    assert words.ran == 1 and words.values[1] == 8


def test_a_child_graph_s_kernels_run_in_both_ways(fake):
    words = Words()
    inner = fake.graph(words.count)
    graph = fake.graph()
    fake.add(graph, "child graph", child=inner)
    fake.destroy(inner)  # it was cloned
    driver = _C.Driver(fake.path)
    _C.Iteration(driver, graph).launch(2, STREAM)
    _C.Iteration(driver, graph, **words.addresses).launch(3, STREAM)
    assert words.ran == 5


def test_a_kernel_that_fails_ends_the_launch(fake):
    words = Words()

    def body():
        if words.ran == 3:
            raise ArithmeticError("in the body")

    iteration = loop(fake, words, body)
    with pytest.raises(RuntimeError, match=r"^cuGraphLaunch: CUDA_ERROR_LAUNCH_FAILED \(719"):
        iteration.launch(9, STREAM)
    assert words.ran == 3 and [str(error) for error in fake.raised] == ["in the body"]
    words.ran = 4
    iteration.launch(2, STREAM)
    assert words.ran == 6


def test_a_launch_within_a_launch_is_an_error(fake):
    again = []
    iteration = _C.Iteration(_C.Driver(fake.path), fake.graph(lambda: again[0].launch(1, STREAM)))
    again.append(iteration)
    with pytest.raises(RuntimeError, match="CUDA_ERROR_LAUNCH_FAILED"):
        iteration.launch(1, STREAM)
    assert "cuGraphLaunch: CUDA_ERROR_ILLEGAL_STATE (401" in str(fake.raised[0])
    again.clear()


def test_other_threads_run_during_a_launch(fake):
    words = torch.zeros(2, dtype=torch.int32)
    graph = fake.graph()
    fake.add_wait(graph, words.data_ptr())
    iteration = _C.Iteration(_C.Driver(fake.path), graph)

    def release():
        while not words[1]:
            pass
        words[0] = 1

    other = threading.Thread(target=release, daemon=True)
    other.start()
    iteration.launch(1, STREAM)  # fails with a time-out where `release` cannot run
    other.join()


def test_cancelled_from_another_thread(fake):
    words, started = Words(), threading.Event()
    iteration = loop(fake, words, started.set)

    def cancel():
        started.wait()
        words.values[2] = 1

    other = threading.Thread(target=cancel)
    other.start()
    iteration.launch(1_000_000, STREAM, cancelable=True)
    other.join()
    assert 1 <= words.ran < 1_000_000 and words.values[1] == 1_000_000 - words.ran | CANCELABLE


@pytest.mark.parametrize("rows", [0, -1, 2**30, 2**31])
@pytest.mark.parametrize("looped", [False, True])
def test_rows_out_of_range(fake, rows, looped):
    words = Words()
    iteration = _C.Iteration(_C.Driver(fake.path), fake.graph(words.count), **words.addresses if looped else {})
    with pytest.raises(ValueError, match=rf"launch: rows must be in \[1, 2\^30\), got {rows}"):
        iteration.launch(rows, STREAM)
    assert words.ran == 0
