"""Which part of the package may import which, and what it imports without."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = (
    "plan",
    "solvers",
    "row",
    "loop",
    "runtime",
    "tuning",
    "engine",
    "integrations",
    "cli",
)  # a room imports from its left alone
# what stands beside the rooms counts as the room that it is made of or made for; "" is `pndm_fast` itself
BESIDE = {"kernels": "row", "_C": "row", "phase_space": "loop", "demo": "cli", "": "cli"}
FOLDERS = {room: ROOT / "pndm_fast" / room for room in ROOMS} | {"row/kernels": ROOT / "kernels"}


def imported(file):
    """(line, module of the package), type checkers' own imports included: who reads a room reads those too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            names = [node.module] if node.module != "pndm_fast" else [f"pndm_fast.{one.name}" for one in node.names]
        else:
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "pndm_fast")


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_to_the_left(folder):
    own = ROOMS.index(folder.split("/")[0])
    for file in sorted(FOLDERS[folder].rglob("*.py")):
        for line, name in imported(file):
            part = name.partition(".")[2].split(".")[0]
            room = part if part in ROOMS else BESIDE.get(part, BESIDE[""])
            assert ROOMS.index(room) <= own, f"{file.relative_to(ROOT)}:{line}: {ROOMS[own]} must not import {name}"


def run_without(modules, code):
    block = f"import sys; sys.modules.update(dict.fromkeys({modules!r}))\n"
    subprocess.run([sys.executable, "-c", block + code], check=True, cwd=ROOT)


def test_plans_need_no_torch():
    run_without(
        ["torch", "triton", "safetensors", "typer", "rich", "PIL"],
        "import pndm_fast.plan, pndm_fast.solvers, pndm_fast as pf\nassert pf.make_plan('f-pndm', steps=5).nfe == 14",
    )


@pytest.mark.slow
def test_sampling_needs_no_extra():
    run_without(
        ["typer", "rich", "PIL", "scipy", "nvtx"],
        """if True:
        import pndm_fast as pf

        words = {"solver": "ddim", "shape": (2, 4)}
        assert pf.sample(lambda x, t: 0.5 * x, 10, **words).shape == (2, 4)
        assert pf.sample(lambda x, t: 0.5 * x, 10, **words, progress=True).shape == (2, 4)
        """,
    )


def test_every_folder_is_packaged():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {str(file.parent.relative_to(ROOT)).replace("/", ".") for file in ROOT.glob("pndm_fast/**/__init__.py")}
    assert folders | {"pndm_fast.kernels"} == set(listed)
