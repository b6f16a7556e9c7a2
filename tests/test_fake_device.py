"""`--fake-device`: what it runs and what it leaves to a device, and that a wrong test is seen there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from golden_data import FROM_NOISE

HERE = Path(__file__).parent
WRONG = """
import pytest
import torch
from gpu_networks import DEVICE, sampler

pytestmark = pytest.mark.gpu


def test_wrong():
    ours = sampler(lambda x, t: x * 0.5, "replay")
    ours()
    torch.cuda.synchronize()
    assert ours.report.captures == 2


def test_right():
    ours = sampler(lambda x, t: x * 0.5, "while")
    assert ours().device.type == DEVICE and ours.report.graph == "while"


@pytest.mark.gpu(real="floating-point units")
def test_real():
    raise AssertionError


def test_host_read():
    with pytest.raises(ValueError, match="cannot be captured: CUDA error"):
        sampler(lambda x, t: x * (0.5 if t[0].item() > 1 else 0.4), "replay")()
"""


def run(*arguments):
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)]
    return subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)


@pytest.mark.slow
def test_a_wrong_test_is_seen(tmp_path):
    file = tmp_path / "test_of_a_gpu.py"
    file.write_text(WRONG)
    options = ["-c", HERE.parent / "pyproject.toml", "-o", f"pythonpath={HERE}", "-p", "conftest", "-rfs"]
    done = run(*options, "--fake-device", file)
    assert "1 failed, 2 passed, 1 skipped" in done.stdout and "FAILED" in done.stdout, done.stdout + done.stderr
    assert re.search(r"FAILED .*::test_wrong", done.stdout)
    assert "the fake device has no floating-point units" in done.stdout


@pytest.mark.slow
def test_each_captured_test_is_of_one_mode():
    """`make gpu` runs those of `while` in a process of their own, chosen by their names."""
    done = run("--collect-only", "-m", "gpu", "tests/test_gpu_graph.py")
    ids = re.findall(r"^tests/test_gpu_graph.py::(.*)$", done.stdout, re.MULTILINE)
    assert len(ids) > 4 * len(FROM_NOISE)
    for name in ids:
        function, _, parameters = name.partition("[")
        assert ("replay" in parameters) != ("while" in parameters) and "while" not in function, name
