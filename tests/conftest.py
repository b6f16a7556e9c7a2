"""Without a GPU, Triton kernels run in Triton's interpreter, which must be chosen before the first import."""

import gc
import os

import pytest

# One thread: a second one costs tiny tensors ten times their arithmetic. Tests of threads say how many.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("quick", max_examples=8, deadline=None)
settings.register_profile("each time", max_examples=20, deadline=None)
settings.register_profile("stress", max_examples=500, deadline=None)
settings.load_profile("each time")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def stand_in(monkeypatch):
    """The CPU with a fake CUDA driver: Sampler's graph modes run there."""
    from cuda_stand_in import StandIn
    from fake_cuda import FakeDriver

    from pndm_fast.runtime import executor

    device = StandIn(FakeDriver())
    monkeypatch.setattr(executor, "cuda_of", lambda _: device)
    return device


@pytest.fixture
def while_first(monkeypatch):
    """`auto` as a measurement would have it that shows `while` to be faster."""
    from pndm_fast.runtime import executor, graphs

    monkeypatch.setattr(executor, "AUTO", graphs.MODES)
    monkeypatch.setattr(executor, "AUTO_REASON", "")


@pytest.fixture
def bars(monkeypatch):
    """The progress bars that diffusers' pipelines show, in order."""
    from bars import Bar

    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    return Bar.made


@pytest.fixture
def gated():
    """A `Worker` whose network waits, and what lets it go on."""
    from fake_engine import FakeEngine
    from worker_case import Gate

    import pndm_fast as pf

    gate = Gate()
    worker = pf.Worker(FakeEngine(network=gate), max_queue=8)
    yield worker, gate
    gate.let()
    worker.close(cancel=True)


def pytest_collection_finish():
    """What importing and collecting left, a million objects, is out of the collector's way: tests collect often."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--fake-device", action="store_true", help="run tests marked gpu on the CPU and the fake driver")


def pytest_configure(config):
    if config.getoption("--fake-device"):
        import fake_device

        fake_device.choose()


@pytest.fixture(autouse=True)
def _fake_device(request, monkeypatch):
    if not (request.config.getoption("--fake-device") and request.node.get_closest_marker("gpu")):
        yield
        return
    import fake_device

    with fake_device.installed(monkeypatch):
        yield


def pytest_collection_modifyitems(config, items):
    fake, found = config.getoption("--fake-device"), torch.cuda.is_available()
    for item in items:
        marker = item.get_closest_marker("gpu")
        real = marker and marker.kwargs.get("real")
        if marker and fake and real:
            item.add_marker(pytest.mark.skip(reason=f"the fake device has no {real}"))
        elif marker and not (fake or found):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def triton_device():
    """Where Triton's kernels run: interpreted where there is no GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def plan():
    """A few rows of every kind that F-PNDM has."""
    import pndm_fast as pf

    return pf.make_plan("f-pndm", steps=6)


@pytest.fixture
def sampler(plan):
    """Of a network that is the same at every batch size; it keeps the report of its last call."""
    from drawing import Reporting
    from sampler_case import SHAPE, Pointwise

    return Reporting(Pointwise(), plan, shape=(4, *SHAPE))
