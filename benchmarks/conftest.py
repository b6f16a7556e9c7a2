"""Options, thread counts, and what a result says of the machine that it was measured on."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch

THREADS = torch.get_num_threads()
ROOT = Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="few rounds, no large sizes")


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
    return {
        "cpu": _cpu(),
        "threads": THREADS,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "triton", "diffusers", "pndm-fast")},
        **_commit(),
        "gpu": _gpu(),
    }


def pytest_benchmark_generate_commit_info(config):
    return {}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> dict[str, Any]:
    """Commit, and whether what is measured differs from it; results themselves do not count."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
        dirty = bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results").strip())
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": dirty}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _gpu() -> dict[str, Any] | None:
    """Name, driver, clocks and power of the first GPU; None without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no library or no driver: all the same to a reader of the result
        return None
    device = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device() if torch.cuda.is_available() else 0)

    def ask(function: Any, *arguments: Any) -> Any:
        try:
            value = function(*arguments)
        except pynvml.NVMLError:
            return None
        return value.decode() if isinstance(value, bytes) else value

    power = ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, device)
    return {
        "name": ask(pynvml.nvmlDeviceGetName, device),
        "driver": ask(pynvml.nvmlSystemGetDriverVersion),
        "sm_clock_mhz": ask(pynvml.nvmlDeviceGetClockInfo, device, pynvml.NVML_CLOCK_SM),
        "sm_clock_max_mhz": ask(pynvml.nvmlDeviceGetMaxClockInfo, device, pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": ask(pynvml.nvmlDeviceGetClockInfo, device, pynvml.NVML_CLOCK_MEM),
        "power_limit_w": None if power is None else power / 1000,
    }
