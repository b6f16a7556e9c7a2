"""What `run.py` found, in Markdown."""

from __future__ import annotations

from typing import Any

One = dict[str, Any]
HEAD = (
    "way", "simulated rate", "measured rate", "measured / simulated", "engine / way", "p50", "p99", "short p50",
    "short p99", "calls", "samples a call",
)  # fmt: skip


def text(tree: One) -> str:
    """The page."""
    parts = [
        f"""# Requests that share a network

`python benchmarks serving` makes this page, or a part of it where scenarios are named.

Requests of one sample arrive by chance and need 4 to 50 network calls, by one of four solvers. A rate is the highest at
which the 99th percentile of latency keeps to the limit: simulated from the costs of calls, and measured, from 0.9 of
that rate up or down in steps of 15 %, with the same arrivals. "engine / way" is the ratio of measured rates, and of
simulated ones. Latencies are of the last rate that kept the limit; "short" ones are of requests of at most 10 calls.
Rates are requests a second, times ms. Static batches are of the size, up to 16, that does best in the simulation. The
engine has {tree["lanes"]} lanes and any batch size up to that. Costs but for the U-Net's are slept.""",
        *map(table, tree["results"]),
    ]
    return "\n\n".join(parts) + "\n"


def table(result: One) -> str:
    """One scenario."""
    costs = ", ".join(f"{size}: {seconds * 1e3:.2f}" for size, seconds in result["costs"].items())
    rows = [HEAD, ["---"] * len(HEAD), *[_row(result, name, one) for name, one in result["contestants"].items()]]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    target, said = result["target"], ""
    if target:
        met = {True: "met", False: "missed", None: "not told"}[target["met"]]
        ratio = "none measured" if target["ratio"] is None else f"{target['ratio']:.2f}"
        said = f"\n\nTarget: at least {target['least']:g} times {target['rival']}; {ratio}, {met}."
    machine, load = result["machine"], result["load"]
    where = f"{machine['cpu']}, torch {machine['torch']}, one thread, commit {(machine['commit'] or 'unknown')[:9]}"
    return f"""## {result["name"]}

On {where}; the machine's load was {load:.1f} before. A call takes, by its batch, in ms: {costs}.
Limit of p99: {result["limit"]:.2f} s.

{lines}{said}"""


def _row(result: One, name: str, one: One) -> list[str]:
    at, rate = one["measured"], one["simulated"]["rate"]
    if at is None:
        worst = min([point["rate"] for point in one["tried"]], default=None)
        word = "too low to measure" if worst is None else f"below {worst:.2f}"
        return [name, f"{rate:.2f}", word, *[""] * (len(HEAD) - 3)]
    times = [f"{at[key] * 1e3:.0f}" for key in ("p50", "p99", "short_p50", "short_p99")]
    ratio, simulated = result["ratios"][name], result["simulated_ratios"][name]
    told = "" if ratio is None else f"{ratio:.2f} ({simulated:.2f})"
    rates = [f"{rate:.2f}", f"{at['rate']:.2f}", f"{at['rate'] / rate:.2f}", told]
    return [name, *rates, *times, str(at["calls"]), f"{at['samples'] / at['calls']:.2f}"]
