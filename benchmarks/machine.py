"""What a result says of the machine that it was measured on."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "triton", "diffusers", "pndm-fast")


def describe(commit: str | None = None) -> dict[str, Any]:
    """Processor, versions, commit and GPU; `commit` where there is no repository to ask."""
    return {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        **_commit(commit),
        "gpu": gpu(),
    }


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


def _commit(told: str | None) -> dict[str, Any]:
    """Commit, and whether what is measured differs from it; results themselves do not count."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
        dirty = bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results").strip())
    except (OSError, subprocess.CalledProcessError):
        return {"commit": told, "dirty": None}
    return {"commit": commit, "dirty": dirty}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _nvml() -> tuple[Any, Any] | None:
    """NVML with the current device, None without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml, _handle(pynvml)
    except Exception:  # no package, no library or no driver: all the same to a reader of the result
        return None


def _handle(nvml: Any) -> Any:
    """Of torch's current device: NVML knows nothing of CUDA_VISIBLE_DEVICES, and counts in another order."""
    if not torch.cuda.is_available():
        return nvml.nvmlDeviceGetHandleByIndex(0)
    index = torch.cuda.current_device()
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if uuid is not None:
        try:
            return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except nvml.NVMLError:  # a part of a GPU has a UUID of another form
            pass
    return nvml.nvmlDeviceGetHandleByIndex(index)


def _ask(function: Any, *arguments: Any) -> Any:
    import pynvml

    try:
        value = function(*arguments)
    except pynvml.NVMLError:
        return None
    return value.decode() if isinstance(value, bytes) else value


def gpu() -> dict[str, Any] | None:
    """Name, driver, highest clocks and power of the current GPU; the name alone without NVML, None without a driver."""
    found = _nvml()
    if found is None:
        return {"name": torch.cuda.get_device_name()} if torch.cuda.is_available() else None
    nvml, device = found
    power = _ask(nvml.nvmlDeviceGetEnforcedPowerLimit, device)
    return {
        "name": _ask(nvml.nvmlDeviceGetName, device),
        "driver": _ask(nvml.nvmlSystemGetDriverVersion),
        "sm_clock_max_mhz": _ask(nvml.nvmlDeviceGetMaxClockInfo, device, nvml.NVML_CLOCK_SM),
        "power_limit_w": None if power is None else power / 1000,
        **(clocks() or {}),
    }


def clocks() -> dict[str, Any] | None:
    """The present clocks, power and reasons for throttling: read it right after a measurement."""
    found = _nvml()
    if found is None:
        return None
    nvml, device = found
    power = _ask(nvml.nvmlDeviceGetPowerUsage, device)
    return {
        "sm_clock_mhz": _ask(nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": _ask(nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_MEM),
        "power_w": None if power is None else power / 1000,
        "throttle_reasons": _ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, device),
    }
