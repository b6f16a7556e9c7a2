"""python benchmarks COMMAND: one command for everything that is measured here, from the folder above this one."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "speed": ("speed.run", "latencies and ratios on the CPU"),
    "gpu": ("gpu.campaign", "everything that needs a GPU, within a time limit"),
    "smoke": ("gpu.smoke", "one line of the first minute on a GPU"),
    "build": ("gpu.building", "install this tree in place, without a package index"),
    "compare": ("speed.compare", "this version and another by turns"),
    "sweep": ("gpu.sweep", "launch configurations of the Triton row, and what its ticket costs"),
    "profile": ("gpu.profile_sample", "samples for a profiler"),
    "quality": ("quality.survey", "distance to a fine solution for a number of network calls"),
    "fitted": ("quality.fitted", "the packaged plans of few calls beside the best named ones"),
    "phase": ("quality.phase", "the same for phase-space integrators"),
    "serving": ("serving.run", "requests that share a network: batches, and the engine"),
}


def main() -> int:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command not in COMMANDS:
        lines = [f"  {name:<8} {what}" for name, (_, what) in COMMANDS.items()]
        print(__doc__, *lines, "Each has a --help of its own.", sep="\n")
        return 0 if command in ("-h", "--help") else 2
    sys.argv[:2] = [f"{sys.argv[0]} {command}"]
    return importlib.import_module(COMMANDS[command][0]).main() or 0


if __name__ == "__main__":
    sys.exit(main())
