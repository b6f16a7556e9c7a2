"""Without a GPU, Triton kernels run in Triton's interpreter, which must be chosen before the first import."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(2)


@pytest.fixture
def stand_in(monkeypatch):
    """The CPU with a fake CUDA driver: Sampler's graph modes run there."""
    from cuda_stand_in import StandIn
    from fake_cuda import FakeDriver

    from pndm_fast.runtime import executor

    device = StandIn(FakeDriver())
    monkeypatch.setattr(executor, "cuda_of", lambda _: device)
    return device


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
