"""csrc/cuda/cuda_api.h and the versions that csrc/cuda/driver.h asks for agree with every cuda.h found here."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
from fake_cuda import HERE, FakeDriver

SITE = Path(sysconfig.get_paths()["purelib"])
FOLDERS = [
    *sorted(Path("/usr/local").glob("cuda*/include")),
    *sorted(SITE.glob("nvidia/*/include")),
    SITE / "triton/backends/nvidia/include",
]
HEADERS = sorted({(path / "cuda.h").resolve() for path in FOLDERS if (path / "cudaTypedefs.h").exists()})
WHILE_NODES = 12040


def version(header):
    return int(re.search(r"#define CUDA_VERSION (\d+)", header.read_text())[1])


@pytest.mark.parametrize("header", HEADERS or [None], ids=str)
def test_declarations_are_those_of_cuda_h(header):
    if header is None or version(header) < WHILE_NODES:
        pytest.skip("no cuda.h of CUDA 12.4 or newer: neither a toolkit nor NVIDIA's packages are here")
    compiler = [
        os.environ.get("CXX", "g++"),
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-fsyntax-only",
        f"-I{HERE.parent / 'csrc'}",
    ]
    command = [*compiler, "-isystem", header.parent, HERE / "cuda_api.cpp"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode and not done.stderr, done.stderr[-4000:]


@pytest.mark.skipif(not HEADERS, reason="no cuda.h")
def test_the_fake_driver_s_statuses_are_those_of_cuda_h():
    real = dict(re.findall(r"\b(CUDA_(?:SUCCESS|ERROR_\w+))\s*=\s*(\d+)", HEADERS[0].read_text()))
    fake = re.findall(r'\{(\d+), "(CUDA_\w+)"\}', (HERE / "fake_cuda_control.cpp").read_text())
    assert len(fake) > 10 and all(real[name] == number for number, name in fake)


@pytest.mark.slow
def test_the_fake_driver_has_every_function_that_is_asked_for():
    asked = re.findall(r"\bF\((\w+), (\d+), \(", (HERE.parent / "csrc/cuda/driver.h").read_text())
    assert {"cu" + name: int(interface) for name, interface in asked} == FakeDriver().names
