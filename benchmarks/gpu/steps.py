"""What `make gpu` runs, in order of need: steps of processes."""

from __future__ import annotations

import glob
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from gpu.runner import ROOT, SITE, Task
from speed.run import settings

PYTHON = [sys.executable, "-P"]  # the folder kernels/ must not become importable as `kernels`
COMMAND = [*PYTHON, str(ROOT / "benchmarks")]
# no option that a plugin which may be lacking would have to know; who times a test out is gpu/runner.py
PYTEST = [*PYTHON, "-m", "pytest", "-o", "addopts=", "--strict-markers", "-rf", "--continue-on-collection-errors"]
PYTEST += [
    "-W",
    "ignore::pytest.PytestConfigWarning",
    "-p",
    "gpu.pytest_journal",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:timeout",
]
TIMED = ["--benchmark-enable", "--benchmark-quiet", "--benchmark-disable-gc"]
RESTARTS = 3
WHOLE = 525  # seconds: with a machine's start and the last lines, one command of ten minutes

ROWS, NETWORKS = "tests/test_gpu.py", "tests/test_gpu_networks.py"
GRAPHS = sorted({f"tests/{path.name}" for path in ROOT.glob("tests/test_gpu_*.py")} - {NETWORKS})
# lines of the first minutes, and seconds for each: a process compiles its kernels, which takes about ten; what comes
# before the small networks has its time however slow the rest is
SMOKE = {
    "kernel-replay": 30,
    "kernel-while": 30,
    "rows": 45,
    "cifar": 45,
    "small-replay": 30,
    "small-while": 30,
    "small-auto": 30,
}
PROFILED = "test_what_runs_between_network_calls"
WANTED = "(cifar-B1] or small-B1]) and not first_request"  # of whole samples, what has a target
SANITIZED = {  # files, and which of their tests
    "rows": ([ROWS], "test_triton_is_the_reference"),
    "replay": (
        GRAPHS,
        "replay and (test_graph_is_eager and ddpm and fp32 or test_guided_graph_is_eager and f-pndm and bf16)",
    ),
    "while": (GRAPHS, "while and test_graph_is_eager and ddpm and fp32"),
}


@dataclass(frozen=True)
class Step:
    """Processes, one after another.

    Attributes:
        limit: seconds for all.
        built: whether they need the package.
        asked: run only where it is named.
    """

    name: str
    limit: float
    tasks: list[Task]
    built: bool = True
    asked: bool = False


def smoke(line: str, limit: float, device: str, commit: str | None = None) -> Task:
    more = [f"--commit={commit}"] * bool(commit)
    return Task(line, limit, [*COMMAND, "smoke", line, "--device", device, *more])


def tests(name: str, limit: float, *arguments: str, each: float = 60, under: tuple[str, ...] = ()) -> Task:
    command = [*under, *PYTEST, f"--test-limit={each}", *arguments]
    return Task(name, limit, command, RESTARTS, needs=("pytest", "hypothesis"))


def suite(name: str, limit: float, file: str, chosen: str, refused: str) -> Task:
    command = [*PYTEST, "--test-limit=120", *TIMED, file, *(["-k", chosen] if chosen else [])]
    needs = ("pytest", "pytest_benchmark")
    return Task(name, limit, command, RESTARTS, needs, refused, settings("cuda"))


def sanitized(name: str, dry: bool) -> Task:
    """memcheck of named tests; refused API calls are no memory errors, the tests see those themselves."""
    found = glob.glob("/usr/local/cuda*/bin/compute-sanitizer") + glob.glob("/opt/nvidia/*/*/compute-sanitizer")
    tool = shutil.which("compute-sanitizer") or next(iter(found), "compute-sanitizer")
    under = (tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9")
    files, chosen = SANITIZED[name]
    task = tests(f"memcheck-{name}", 75, *files, "-m", "gpu", "-k", chosen, each=70, under=under)
    refused = "no device" if dry else "" if shutil.which(tool) else "lacks compute-sanitizer"
    return replace(task, restarts=0, refused=refused)


def kernels(refused: str) -> Task:
    """The row and the noise against the reference, compiled for this device."""
    chosen = ("-m", "not machine_code and not stress", "tests/test_triton.py", "tests/test_noise.py")
    return replace(tests("kernels", 90, *chosen), refused=refused)


def wheels() -> Task:
    """What travelled."""
    found = sorted(map(str, Path(ROOT / ".whl").glob("*.whl")))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    return Task("wheels", 15, [*pip, "--target", str(SITE), *found])


def steps(dry: bool = False, commit: str | None = None) -> list[Step]:
    """`dry`: on a CPU and a fake driver; what only a device can tell is then refused."""
    device, refused = ("cpu", "no device") if dry else ("cuda", "")
    gpu = ["-m", "gpu", *["--fake-device"] * dry]
    sweep = [*COMMAND, "sweep", "--budget=40", *[f"--commit={commit}"] * bool(commit)]
    sample, rest = "benchmarks/gpu/test_gpu_sample.py", f"not ({WANTED})"
    travelled = [wheels()] if glob.glob(str(ROOT / ".whl" / "*.whl")) else []
    launches = [replace(smoke(f"launches-{mode}", 30, device), refused=refused) for mode in ("replay", "while")]
    profiled = tests("profiled", 50, *GRAPHS, *gpu, "-k", PROFILED)
    return [
        Step("versions", 30, [smoke("versions", 30, device, commit)], built=False),
        Step("build", 165, [*travelled, Task("build", 150, [*COMMAND, "build"])], built=False),
        Step("smoke", 150, [smoke(line, limit, device) for line, limit in SMOKE.items()]),
        Step(
            "tests",
            180,
            [
                tests("engine", 75, ROWS, *gpu, each=30),
                tests("replay", 60, *GRAPHS, *gpu, "-k", f"not while and not {PROFILED}", each=30),
                tests("while", 60, *GRAPHS, *gpu, "-k", f"while and not {PROFILED}", each=30),
                tests("networks", 90, NETWORKS, *gpu),
            ],
        ),
        Step("gpu_speed", 85, [suite("gpu_speed", 85, "benchmarks/gpu/test_gpu_speed.py", "", refused)]),
        Step("sweep", 60, [Task("sweep", 60, sweep, refused=refused)]),
        Step(
            "gpu_sample",
            WHOLE,
            [
                suite("gpu_sample", WHOLE, sample, WANTED, refused),
                suite("gpu_sample-more", WHOLE, sample, rest, refused),
            ],
        ),
        Step("memcheck", 150, [sanitized(name, dry) for name in ("rows", "replay")]),
        Step("memcheck-while", 150, [sanitized("while", dry)], asked=True),  # memcheck errs on conditional nodes
        Step("kernels", 90, [kernels(refused)]),
        Step("profiler", 110, [*launches, profiled]),
    ]
