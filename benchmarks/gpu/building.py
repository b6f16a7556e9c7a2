"""Install this tree where it stands, without a package index: by pip, or else by links to it.

python benchmarks build           # prints a JSON line: which way it went, and why not the other
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu.runner import ROOT, SITE, end

PIP = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--editable", "."]
IN_PLACE = ["setup.py", "build_ext", "--inplace"]
WAYS = {"pip install --editable": (PIP, 60), "setup.py build_ext --inplace": (IN_PLACE, 130)}  # seconds at most
BOTH, LOOKING = 130, 20  # seconds for all ways, and for an import at the end
IMPORT = "import pndm_fast.kernels, pndm_fast._C; print(pndm_fast.__file__)"


def run(arguments: list[str], root: Path, patience: float) -> tuple[bool, str]:
    """Whether a Python succeeds, and what it says. Its compilers end with it, and compete with no later way."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    with process:
        try:
            out, err = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            return False, f"not done in {patience:.0f} s"
        finally:
            end(process)
    return process.returncode == 0, f"{out}\n{err}".strip()


def link(root: Path, site: Path) -> None:
    """A package of links, because `pndm_fast.kernels` lies elsewhere in the tree."""
    package = site / "pndm_fast"
    package.mkdir(parents=True)
    for file in (root / "pndm_fast").iterdir():
        (package / file.name).symlink_to(file)
    (package / "kernels").symlink_to(root / "kernels")


def imported(root: Path) -> tuple[bool, str]:
    """Whether what was built can be imported, and is this tree's: another version may be installed."""
    good, said = run(["-P", "-c", IMPORT], root, LOOKING)
    if not good:
        return False, said
    own = Path(said.splitlines()[-1]).parent
    return (own / "plan").resolve().is_relative_to(root.resolve()), f"{own} is imported"


def build(root: Path, site: Path) -> dict[str, object]:
    """The way that went, and what each before it said."""
    began, failed = time.monotonic(), {}
    for way, (arguments, patience) in WAYS.items():
        shutil.rmtree(site / "pndm_fast", ignore_errors=True)
        left = BOTH - (time.monotonic() - began)
        good, said = run(arguments, root, min(patience, left))
        print(f"== {way}\n{said}", file=sys.stderr, flush=True)
        if good and arguments is not PIP:
            link(root, site)
        good, said = imported(root) if good else (good, said)
        if good:
            return {"how": way, "seconds": round(time.monotonic() - began, 1), "failed": failed}
        failed[way] = said[-300:] or "it said nothing"
    return {"how": None, "seconds": round(time.monotonic() - began, 1), "failed": failed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree")
    parser.add_argument("--site", type=Path, default=SITE, help="the folder for the links")
    arguments = parser.parse_args()
    # whoever ends this process does not reach the session of the one that it has begun
    signal.signal(signal.SIGABRT, lambda *_: sys.exit(128 + signal.SIGABRT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(arguments.site), os.environ.get("PYTHONPATH")]))
    done = build(arguments.root, arguments.site)
    print(json.dumps({"line": "build", "ok": done["how"] is not None, **done}), flush=True)
    if done["how"] is None:
        print("error: no build:", "; ".join(str(said).splitlines()[-1] for said in done["failed"].values()))
    return 0 if done["how"] else 1


if __name__ == "__main__":
    sys.exit(main())
