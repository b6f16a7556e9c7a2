"""Options, thread counts, and what a result says of the machine that it was measured on."""

from __future__ import annotations

import machine
import pytest
import torch

THREADS = torch.get_num_threads()


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="few rounds, no large sizes")
    parser.addoption("--commit", help="what is measured, where there is no repository to ask")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def rounds(request):
    """How often each side of a comparison has its turn."""
    return 7 if request.config.getoption("--quick") else 31


@pytest.fixture
def one_thread():
    """torch and the C++ rows on one thread."""
    torch.set_num_threads(1)
    yield 1
    torch.set_num_threads(THREADS)


@pytest.fixture(params=["1-thread", "all-threads"])
def threads(request):
    """One thread, then torch's default number."""
    if request.param != "1-thread" and THREADS == 1:
        pytest.skip("torch has one thread")
    torch.set_num_threads(1 if request.param == "1-thread" else THREADS)
    yield torch.get_num_threads()
    torch.set_num_threads(THREADS)


def pytest_benchmark_generate_machine_info(config):
    return machine.describe(config.getoption("--commit"))


def pytest_benchmark_generate_commit_info(config):
    return {}
