"""The table and the plot of `survey.py`'s results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quality.solvers import BUDGETS, GRIDS, LINES, REFERENCES

from pndm_fast.plan.atomic import atomic_path
from pndm_fast.solvers import SOLVER_INFO

One = dict[str, Any]
EARNS = 0.9  # of the best plan's distance, at most, at two budgets: then A-FloPS would be worth a second kernel
SHOWN = {  # line of the plot: color
    "ddim": "#555555",
    "s-pndm": "#e07b00",
    "f-pndm": "#c1121f",
    "ipndm": "#b5a000",
    "deis 3": "#7b4bb7",
    "dpmpp-2m": "#1f77b4",
    "dpmpp-3m": "#17a2b8",
    "unipc 2": "#2a9d3a",
    "unipc 3": "#0b5d1e",
    "a-flops": "#d63384",
}
GRID_COLORS = ("#555555", "#1f77b4", "#17a2b8", "#e07b00", "#b5a000", "#7b4bb7", "#c1121f", "#8c564b", "#2a9d3a")


def text(tree: One) -> str:
    """The results in Markdown."""
    parts = [_head(tree), _finals(tree), _verdict(tree)]
    parts.append("## Everything\n\nRMS / median; the best RMS of a column over all tables is bold.")
    best = {nfe: min((one["rms"] for one in _drawn(tree, nfe)), default=None) for nfe in BUDGETS}
    found = {(one["line"], one["grid"], one["nfe"]): one for one in tree["results"]}
    for grid in GRIDS:
        rows = [[line, *(_cell(found.get((line, grid, nfe)), best[nfe]) for nfe in BUDGETS)] for line in LINES]
        parts.append(f"### {grid}\n\n{table(['solver', *map(str, BUDGETS)], rows)}")
    return "\n\n".join(parts) + "\n"


def _head(tree: One) -> str:
    setting, floor, machine = tree["setting"], tree["floor"], tree["machine"]
    fine = ", ".join(f"{name} ({how['steps']} steps, {how['spacing']})" for name, how in REFERENCES.items())
    remark = f"\n- {tree['remark']}" if tree["remark"] else ""
    noisy = ", ".join(name for name, info in sorted(SOLVER_INFO.items()) if info.stochastic and info.space != "phase")
    return f"""# Quality for a number of network calls

`python benchmarks quality` makes this page, on the packaged MNIST network (class-conditional, the digits in turn, no
guidance, float32). Written on {machine["cpu"]}, torch {machine["torch"]}.

A number is the distance of an image to the fine solution from the same noise: the RMS over its pixels, whose range is
[-1, 1]; then RMS and median over {setting["images"]} images. Few images decide an RMS at the fine end, where one that
tips into another shape is all of it: hence the median, and the second drawing below, of {setting["finals"]} others.

- Fine solutions: {fine}. The first is
  what all are compared with; the second is {floor["rms"]:.4f} from it (RMS; median {floor["median"]:.4f}):
  distances near that are not resolved.
- Columns are network calls, exactly. Blank: the solver cannot make that many on that grid. "-": not tried, because
  at the budget before it was farther than {setting["hopeless"]:g}, which is another image.
- "to 10" ends with the last call at t = 10, the others at the grid's own end; then a step to sigma = 0.
- `ddim` stands for euler, dpm-solver-1, and lms and deis of order 1, which take the same step; `lms` of order 3 for
  deis in rho. exponential is logsnr.
- Stochastic solvers have no fine solution from the same noise and are not here: {noisy}.
  Nor is ddim-inverse.{remark}"""


def _finals(tree: One) -> str:
    setting, best, rows = tree["setting"], tree["setting"]["finalists"], []
    for nfe in BUDGETS:
        for place, one in enumerate(_sorted(one for one in tree["finals"] if one["nfe"] == nfe)):
            low, high = one["rms_90"]
            name = f"**{one['line']}**" if place == 0 else one["line"]
            spread = f"{low:.4f} to {high:.4f}"
            rows.append([str(nfe), name, one["grid"], f"{one['rms']:.4f}", spread, f"{one['median']:.4f}"])
    head = ["calls", "solver", "grid", "RMS", "90 % of resamplings of the images", "median"]
    return f"""## The best of each budget, drawn again

The {best["rms"]} best of each budget by RMS and the {best["median"]} best by median, on {setting["finals"]} images from
other noise. `solver="auto"` takes these winners; a test compares.

{table(head, rows)}"""


def _verdict(tree: One) -> str:
    rows, gains, wins = [], [], 0
    for nfe in BUDGETS:
        drawn = _sorted(_drawn(tree, nfe))
        own = next((one for one in drawn if one["line"] == "a-flops"), None)
        plain = next((one for one in drawn if one["line"] == "a-flops, c = 0"), None)
        rival = next((one for one in drawn if not one["line"].startswith("a-flops")), None)
        if own is None or plain is None or rival is None:
            continue
        gains.append(own["rms"] / plain["rms"])
        wins += own["rms"] <= EARNS * rival["rms"]
        rows.append([str(nfe), _told(own), _told(plain), _told(rival), f"{own['rms'] / rival['rms']:.2f}"])
    word = "It earns a place." if wins >= 2 else "Left out."
    low, high = min(gains, default=1), max(gains, default=1)
    head = ["calls", "a-flops", "the same, c = 0", "best plan", "a-flops / best plan"]
    return f"""## A-FloPS

A-FloPS (arXiv:2509.00036) is no plan: its coefficient depends on the samples, so it would need a second kernel between
network calls. Here it is a plain loop (`aflops`) with its coefficient guarded, |c dt| <= 1, and second-order
Adams-Bashforth in the same variable (c = 0) where the guard trips; each at its best grid, RMS on the survey's images:

{table(head, rows)}

**Verdict: {word}** To be worth a second kernel it had to be {1 - EARNS:.0%} nearer than the best plan at two budgets;
it is at {wins}. With c = 0 it would be a plan; its coefficient makes it {low:.2f} to {high:.2f} times as far."""


def _told(one: One) -> str:
    line = "" if one["line"].startswith("a-flops") else f"{one['line']}, "
    return f"{one['rms']:.4f} ({line}{one['grid']})"


def _drawn(tree: One, nfe: int) -> list[One]:
    return [one for one in tree["results"] if one["nfe"] == nfe and one["rms"] is not None]


def _sorted(entries: Iterable[One]) -> list[One]:
    return sorted(entries, key=lambda one: one["rms"])


def _cell(one: One | None, best: float | None) -> str:
    if one is None:
        return ""
    if one["rms"] is None:
        return "-" if one["note"] == "hopeless" else one["note"]
    if one["rms"] >= 10:
        return "> 10"
    number = f"{one['rms']:.3f}" if one["rms"] >= 0.1 else f"{one['rms']:.4f}"
    cell = f"{number} / {one['median']:.4f}"
    return f"**{cell}**" if one["rms"] == best else cell


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(tree: One, path: Path) -> None:
    """Each solver on its best grid, and each grid with its best solver, log-log.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("the plot needs matplotlib: pip install 'pndm_fast[bench]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), sharey=True, layout="constrained")
    for line in LINES:
        if line not in SHOWN:
            _draw(left, _best(tree, "line", line), "#d9d9d9", 1.0)
    _label(left, [(line, _draw(left, _best(tree, "line", line), color, 2.0), color) for line, color in SHOWN.items()])
    _label(
        right,
        [
            (grid, _draw(right, _best(tree, "grid", grid), color, 2.0), color)
            for grid, color in zip(GRIDS, GRID_COLORS, strict=True)
        ],
    )
    for axes, title in ((left, "Solvers, each on its best grid"), (right, "Grids, each with its best solver")):
        _dress(axes, title, tree["floor"]["rms"])
    left.set_ylabel(f"RMS distance to the fine solution, {tree['setting']['images']} images")
    figure.suptitle("Packaged MNIST network: distance for a number of network calls (gray: the other solvers)")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def _best(tree: One, kind: str, name: str) -> list[tuple[int, float]]:
    points = []
    for nfe in BUDGETS:
        entries = [one["rms"] for one in _drawn(tree, nfe) if one[kind] == name and "a-flops" not in one["line"]]
        if name.startswith("a-flops"):
            entries = [one["rms"] for one in _drawn(tree, nfe) if one["line"] == name]
        if entries:
            points.append((nfe, min(entries)))
    return points


def _draw(axes: Any, points: list[tuple[int, float]], color: str, width: float) -> tuple[int, float]:
    axes.plot(*zip(*points, strict=True), "o-", color=color, linewidth=width, markersize=width * 2)
    return points[-1]


def _label(axes: Any, ends: list[tuple[str, tuple[int, float], str]]) -> None:
    """Names at the ends of lines, moved apart where they would overlap."""
    height = 0.0
    for name, (nfe, rms), color in sorted(ends, key=lambda end: end[1][1]):
        height = max(rms, height * 1.155)
        axes.annotate(
            name,
            (nfe, rms),
            xytext=(BUDGETS[-1] * 1.22, height),
            color=color,
            va="center",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "relpos": (0, 0.5)},
        )


def _dress(axes: Any, title: str, floor: float) -> None:
    axes.set(xscale="log", yscale="log", title=title, xlabel="network calls", xlim=(4.6, 95), ylim=(0.002, 0.4))
    axes.set_xticks(BUDGETS, [str(nfe) for nfe in BUDGETS], minor=False)
    axes.set_xticks([], minor=True)
    axes.grid(True, which="major", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if floor > 0.002:
        axes.axhline(floor, color="#999999", linestyle=":", linewidth=1)
