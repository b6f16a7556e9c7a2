"""When a graph cannot be had: the reason is told, and the call runs in the next best mode."""

import collections
import gc
import itertools
import weakref

import pytest
import torch
from drawing import Reporting, draw
from sampler_case import Conv, Pointwise

import pndm_fast as pf
from pndm_fast.runtime import graphs

SHAPE = (2, 3, 8, 8)
MODES = ("while", "replay")
pytestmark = [pytest.mark.filterwarnings("ignore:the grid starts"), pytest.mark.usefixtures("stand_in")]


def pair(model, plan, graph="while", **arguments):
    """A sampler with graphs, and one without."""
    arguments = {"shape": SHAPE, **arguments}
    return Reporting(model, plan, graph=graph, **arguments), Reporting(model, plan, graph="eager", **arguments)


def counting():
    calls = []

    def network(x, t):
        calls.append(1)
        return x * (1.0 / len(calls))

    return network


def drawing(x, t):
    return x * torch.rand(1)


class Opaque:
    def __eq__(self, other):
        return True

    __hash__ = None


UNFIT = {
    "training": (lambda: Conv().train(), {}, "training mode"),
    "draws": (lambda: drawing, {}, "draws from torch's generator"),
    "counter": (counting, {}, "gives other values at each call"),
    "noises": (Pointwise, {"noise_sampler": lambda index: torch.zeros(SHAPE)}, "noise_sampler is called between rows"),
    "mapping": (
        lambda: lambda x, t, added: x * added["scale"],
        {"cond": {"added": collections.OrderedDict(scale=0.5)}},
        "cond holds a OrderedDict",
    ),
    "opaque": (lambda: lambda x, t, thing: x * 0.5, {"cond": {"thing": pf.Shared(Opaque())}}, "cond holds a Opaque"),
    "rows": (
        lambda: lambda x, t, scale: x * scale,
        {"cond": lambda row: {"scale": 0.1 * row}},
        "cond of each row holds a float",
    ),
}


@pytest.mark.parametrize("kind", sorted(UNFIT))
@pytest.mark.filterwarnings("ignore:the model is in training mode")
def test_unfit_networks_run_eagerly_with_the_reason(kind):
    make, arguments, reason = UNFIT[kind]
    sampler = Reporting(make(), pf.make_plan("ddpm", steps=4), shape=SHAPE)
    for _ in range(2):
        sampler(**arguments)
        assert sampler.report.graph == "eager" and reason in sampler.report.graph_reason
    with pytest.raises(ValueError, match=f"graph 'replay' cannot be had: .*{reason}"):
        Reporting(make(), pf.make_plan("ddpm", steps=4), shape=SHAPE, graph="replay")(**arguments)


def test_a_graph_that_is_not_what_the_network_does_is_refused(stand_in):
    """A host branch, or a tensor that the network replaces, is frozen as it was: the self-check sees another result."""
    factor = torch.tensor(0.5)

    def frozen(body):
        def run():
            factor.mul_(1.001)
            body()

        return run

    stand_in.recorded = frozen
    sampler = Reporting(lambda x, t: x * factor, pf.make_plan("ddim", steps=4), shape=SHAPE)
    sampler()
    assert sampler.report.graph == "eager"
    assert sampler.report.graph_reason == "the captured graph gives other values than the network does"
    gc.collect()
    assert stand_in.fake.live == {}


def test_networks_that_repeat_themselves_but_for_rounding():
    """Atomic additions make the last bits differ from call to call: no reason to refuse."""
    factors = itertools.cycle([0.5, 0.5 + 1e-6, 0.5 - 1e-6])
    sampler = Reporting(lambda x, t: x * next(factors), pf.make_plan("ddim", steps=4), shape=SHAPE)
    sampler()
    assert sampler.report.graph == "replay"


def test_the_reason_is_the_first_error(stand_in):
    """What breaks a capture is reported again, in other words, when the capture ends."""

    def refuse():
        try:
            raise ValueError("a host read at line 7")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    stand_in.during = refuse
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=3), shape=SHAPE)
    sampler()
    assert sampler.report.graph_reason == "the network cannot be captured: a host read at line 7"


def test_a_loop_that_fails_in_the_check_is_replayed(stand_in, while_first):
    stand_in.fake.fail("cuGraphLaunch", 719)
    sampler, eager = pair(Pointwise(), pf.make_plan("plms", steps=4), "auto")
    assert torch.equal(sampler(), eager()) and sampler.report.graph == "replay"
    assert sampler.report.graph_reason.startswith("while: cuGraphLaunch: CUDA_ERROR_LAUNCH_FAILED")


def test_what_passes_is_tried_again(stand_in):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    stand_in.during = full
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=3), shape=SHAPE)
    sampler()
    assert sampler.report.graph_reason == "out of memory: CUDA out of memory"
    stand_in.during = lambda: None
    sampler()
    assert sampler.report.graph == "replay"


def test_another_threads_random_numbers_are_not_the_networks():
    draws = iter([True] + [False] * 100)
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=3), shape=SHAPE)
    plain = sampler.model

    class Beside:
        def __call__(self, x, t):
            if next(draws):
                torch.rand(1)
            return plain(x, t)

    sampler = Reporting(Beside(), sampler.plan, shape=SHAPE)
    sampler()
    assert sampler.report.graph == "replay"


def test_a_call_inside_a_call_does_not_wait_for_itself():
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=3), shape=SHAPE)
    wanted, inner = sampler(), []
    assert torch.equal(sampler(on_step=lambda step: inner.append(sampler())), wanted)
    assert len(inner) == 3 and all(torch.equal(result, wanted) for result in inner)
    nested = Reporting(lambda x, t: sampler() * 0 + x * 0.5, pf.make_plan("ddim", steps=3), shape=SHAPE)
    assert torch.isfinite(nested()).all()


def test_sample_captures_what_comes_twice(stand_in):
    network = Pointwise()
    for graph, captures in (("eager", 0), ("replay", 1), ("replay", 1)):
        pf.sample(network, 4, solver="ddim", shape=SHAPE)
        assert stand_in.counts["capture"] == captures, graph
    for _ in range(3):
        pf.sample(lambda x, t: x * 0.5, 4, solver="ddim", shape=SHAPE)
    assert stand_in.counts["capture"] == 1
    draw(lambda x, t: x * 0.5, 4, solver="ddim", shape=SHAPE, graph="replay")
    assert stand_in.counts["capture"] == 2


def test_a_cancel_reaches_its_own_call_alone(stand_in, monkeypatch):
    """The flag is the graph's: a call to which no `Cancel` is linked does not read it, and may still be running."""
    flags, linked, armed = [], pf.Cancel.linked, False

    def noted(self, flag):
        flags.append(flag)
        return linked(self, flag)

    def network(x, t):
        if armed:
            flags[0].fill_(1)
        return x * 0.5

    monkeypatch.setattr(pf.Cancel, "linked", noted)
    sampler = Reporting(network, pf.make_plan("ddim", steps=4), shape=SHAPE, graph="while")
    wanted = sampler(cancel=pf.Cancel())
    stand_in.counts.clear()
    armed = True
    assert torch.equal(sampler(), wanted)
    with pytest.raises(pf.Cancelled):
        sampler(cancel=pf.Cancel())
    armed = False
    assert torch.equal(sampler(cancel=pf.Cancel()), wanted)
    assert stand_in.counts["synchronize"] == 0


def test_a_swap_frees_the_old_weights_everywhere(stand_in):
    network = Conv()
    sampler = Reporting(network, pf.make_plan("ddim", steps=4), shape=SHAPE, graph="while")
    sampler.prepare([1, 2, 4])
    old = weakref.ref(network.first.weight)
    network.load_state_dict(Conv(seed=3).state_dict(), assign=True)
    sampler()
    gc.collect()
    assert old() is None and stand_in.fake.live["exec"] == 1


def test_a_network_that_always_changes_is_left_alone(stand_in):
    network = Conv()
    sampler = Reporting(network, pf.make_plan("ddim", steps=3), shape=SHAPE)
    for i in range(8):
        network.first.count = i
        sampler()
    assert stand_in.counts["capture"] == graphs.MOST_STALE + 1
    assert "change from call to call" in sampler.report.graph_reason


def test_switches_of_torch_belong_to_the_key():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=3, spacing="trailing"), shape=SHAPE)
    sampler()
    with sdpa_kernel(SDPBackend.MATH):
        sampler()
    assert sampler.report.captures == 2
    torch.set_default_dtype(torch.float64)
    try:
        sampler()
    finally:
        torch.set_default_dtype(torch.float32)
    assert sampler.report.captures == 3
    with pytest.raises(AttributeError):
        sampler.model = Conv()


def test_a_capture_that_fails_again_and_again_is_not_tried_for_ever(stand_in):
    def refuse():
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")

    stand_in.during = refuse
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=3), shape=SHAPE)
    wanted = draw(Pointwise(), 3, solver="ddim", shape=SHAPE, graph="eager")
    for _ in range(5):
        assert torch.equal(sampler(), wanted)
    assert stand_in.counts["capture"] == graphs.TRIES == 3
    assert sampler.report.graph_reason == (
        "the network cannot be captured: CUDA error: operation not permitted when stream is capturing"
    )


@pytest.mark.parametrize("function", ["cuGraphInstantiateWithFlags", "cuGraphGetNodes", "cuModuleGetFunction"])
def test_a_driver_that_fails_is_named(stand_in, while_first, function):
    stand_in.fake.fail(function, 2)
    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=3), shape=SHAPE)
    sampler()
    assert sampler.report.graph == "replay"
    assert function in sampler.report.graph_reason and "CUDA_ERROR_OUT_OF_MEMORY" in sampler.report.graph_reason


@pytest.mark.parametrize("mode", MODES)
def test_an_accident_in_a_capture_passes(stand_in, mode):
    """Another thread that synchronizes the device spoils a capture; failures count only where nothing came between."""

    def spoilt():
        raise RuntimeError("CUDA error: operation would make the legacy stream depend on a capturing blocking stream")

    sampler = Reporting(Pointwise(), pf.make_plan("ddim", steps=3), shape=SHAPE, graph=mode)
    for _ in range(3):  # of as many swaps of weights
        stand_in.during = spoilt
        for _ in range(graphs.TRIES - 1):
            with pytest.raises(ValueError, match="cannot be captured: CUDA error: operation would make"):
                sampler()
        stand_in.during = lambda: None
        sampler()
        assert sampler.report.graph == mode and sampler.report.graph_reason == ""
        sampler.cache.graphs = type(sampler.cache.graphs)()
    stand_in.during = spoilt
    for _ in range(graphs.TRIES):
        with pytest.raises(ValueError, match="cannot be captured"):
            sampler()
    stand_in.during = lambda: None
    with pytest.raises(ValueError, match="cannot be captured"):
        sampler()
    sampler.reset()
    sampler()


def test_a_package_that_cannot_be_captured_is_told_how(stand_in):
    """torch's own class calls what stands for the package's runner, which queries an event."""
    from torch.export.pt2_archive._package import AOTICompiledModel
    from torch.utils import _pytree as pytree

    class Runner:
        capturing = False

        def get_call_spec(self):
            inputs = pytree.tree_flatten(((torch.zeros(1), torch.zeros(1)), {}))[1]
            return pytree.treespec_dumps(inputs), pytree.treespec_dumps(pytree.tree_flatten(torch.zeros(1))[1])

        def boxed_run(self, inputs):
            if self.capturing:
                raise RuntimeError("run_func_(...) API call failed at model_container_runner.cpp, line 145")
            return [inputs[0] * 0.5]

    package = AOTICompiledModel(Runner())

    def capture():
        package.loader.capturing = True
        try:
            package(torch.zeros(SHAPE), torch.zeros(2))
        finally:
            package.loader.capturing = False

    stand_in.during = capture
    sampler = Reporting(package, pf.make_plan("ddim", steps=3), shape=SHAPE)
    sampler()
    assert sampler.report.graph == "eager"
    assert sampler.report.graph_reason == (
        "the network cannot be captured: run_func_(...) API call failed at model_container_runner.cpp, line 145 "
        "(in an AOTInductor package: load it with run_single_threaded=True)"
    )


def test_a_default_device_of_torch_is_not_meant(stand_in):
    """Helper tensors of the host and of the device are made where they belong."""
    network, plan = Conv(), pf.make_plan("ddpm", steps=4)
    arguments = {"seeds": [3, 9], "cond": {"labels": torch.tensor([1, 7])}}
    wanted = Reporting(network, plan, shape=SHAPE, graph="eager")(**arguments)
    for graph in ("eager", *MODES):
        with torch.device("meta"):
            sampler = Reporting(network, plan, shape=SHAPE, graph=graph)
            results = [sampler(**arguments) for _ in range(2)]
        assert all(torch.equal(result, wanted) for result in results)
        assert sampler.report.graph == graph


def test_a_loop_without_the_drivers_compiler(stand_in):
    stand_in.fake.fail("cuModuleLoadDataEx", 218)
    captured, eager = pair(Pointwise(), pf.make_plan("plms", steps=4))
    assert torch.equal(captured(), eager()) and captured.report.graph == "while"
    assert stand_in.counts["assemble"] == 1
