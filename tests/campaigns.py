"""Small campaigns: processes that print, hang, crash or fail, and what is then said of them."""

# ruff: noqa: E402
import json
import os
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("no benchmarks beside the tests", allow_module_level=True)
sys.path.append(str(FOLDER))

from gpu import campaign, steps
from gpu.runner import Task

GRAPH = "test_gpu_graph.py"


def script(name, code, limit=20.0, **more):
    return Task(name, limit, [*steps.PYTHON, "-S", "-c", textwrap.dedent(code)], **more)


def suite(tmp_path, name, code, limit=30.0, each=5.0, restarts=3, file=GRAPH):
    """A test process over one file."""
    path = tmp_path / file
    path.write_text(textwrap.dedent(code))
    options = ["-c", os.devnull, "--rootdir", str(tmp_path), f"--test-limit={each}", str(path)]
    return Task(name, limit, [*steps.PYTEST, *options], restarts, settings={"PYTHONDONTWRITEBYTECODE": "1"})


def held(tmp_path, chosen, total=100.0):
    """A whole campaign. Its status and what it wrote: steps, the table's lines."""
    made = campaign.Campaign(chosen, tmp_path / "logs", tmp_path / "results", tmp_path / "out", total, "c" * 40)
    made.root = tmp_path
    return made.run(), *written(tmp_path / "results" / "gpu")


def written(folder):
    told = json.loads((folder / "steps.json").read_text())["steps"]
    lines = json.loads((folder / "must_show.json").read_text())["shows"]
    return told, {line["what"]: (line["status"], line["got"]) for line in lines}


def outcomes(told, step="tests"):
    return {name.split("::")[-1]: test.get("outcome") for name, test in told[step]["tests"].items()}


def printing(lines):
    """The code of a process that prints these."""
    return "\n".join(f"print('''{json.dumps(line)}''')" for line in lines)
