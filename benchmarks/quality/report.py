"""The table and the plot of `survey.py`'s results."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quality.propose import ENOUGH, code, propose
from quality.solvers import BUDGETS, GRIDS, LEFT_OUT, LINES, NETWORKS, PROBES

from pndm_fast.plan.atomic import atomic_path
from pndm_fast.solvers import SOLVER_INFO

One = dict[str, Any]
TITLES = {"mnist": "a noise schedule", "mnist_flow": "a flow"}
WORDS = {"mnist": "mnist", "mnist_flow": "flow"}  # of the command line
NEW = {  # lines and grids since the survey of 16 images on the noise schedule
    *(
        "euler-cfg-pp",
        "conjugate 3",
        "ipndm 2",
        "gradient-estimation",
        "dpm-2",
        "dpm-fast",
        "dpmpp-3s",
        "exp-heun-2-x0",
    ),
    *("res-2m", "res-3m", "res-2s", "res-3s", "seeds-2, eta = 0", "seeds-3, eta = 0", "heunpp2", "rk"),
    *("sa-solver, tau = 0", "sa-solver-pece, tau = 0", "unipc 3 bh1"),
    *("kl-optimal", "laplace", "linear-quadratic", "simple", "ddim-uniform", "beta57", "ays-sd1", "gits-sd"),
}
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
    "res-2m": "#8c564b",
    "res-3m": "#c49c94",
    "heun": "#000000",
    "a-flops": "#d63384",
}


def text(tree: One) -> str:
    """The results in Markdown."""
    parts = [_head(tree), _finals(tree), _auto(tree), _solvers(tree), _same(tree)]
    if tree["setting"]["network"] == "mnist":
        parts.append(_verdict(tree))
    parts += [_noisy(tree)] if tree["noisy"] else []
    parts.append(_everything(tree))
    return "\n\n".join(parts) + "\n"


def _everything(tree: One) -> str:
    setting = tree["setting"]
    best = {nfe: min((one["rms"] for one in _drawn(tree, nfe)), default=None) for nfe in BUDGETS}
    found = {(one["line"], one["grid"], one["nfe"]): one for one in tree["results"] if one["note"] != "same"}
    parts = [
        f"## Everything\n\nRMS / median on {setting['images']} images, or on the first {setting['few']} of them (in "
        "parentheses); the best RMS of a column over all tables is bold."
    ]
    for grid in GRIDS:
        lines = [line for line in LINES if any((line, grid, nfe) in found for nfe in BUDGETS)]
        cells = [[_cell(found.get((line, grid, nfe)), best[nfe], setting) for nfe in BUDGETS] for line in lines]
        rows = [[_named(tree, line), *row] for line, row in zip(lines, cells, strict=True)]
        if rows:
            parts.append(f"### {_named(tree, grid)}\n\n{table(['solver', *map(str, BUDGETS)], rows)}")
    return "\n\n".join(parts)


def _named(tree: One, name: str) -> str:
    """A line or a grid, and whether it is new; all of the flow's are."""
    return f"{name} (new)" if name in NEW and tree["setting"]["network"] == "mnist" else name


def _head(tree: One) -> str:
    setting, floor, machine = tree["setting"], tree["floor"], tree["machine"]
    name, network = setting["network"], NETWORKS[setting["network"]]
    fine = ", ".join(f"{name} ({how['steps']} steps, {how['spacing']})" for name, how in setting["references"].items())
    remark = f"\n- {tree['remark']}" if tree["remark"] else ""
    noisy = ", ".join(name for name, info in sorted(SOLVER_INFO.items()) if info.stochastic and info.space != "phase")
    left = "; ".join(f"{line}: {why}" for line, why in (LEFT_OUT | network.without).items())
    return f"""# Quality for a number of network calls: {TITLES[name]}

`python benchmarks quality --network {name}` makes this page, on `demo:{WORDS[name]}` (class-conditional, the digits in
turn, no guidance, float32). Written on {machine["cpu"]}, torch {machine["torch"]}.

A number is the distance of an image to the fine solution from the same noise: the RMS over its pixels, whose range is
[-1, 1]; then RMS and median over the images. All are drawn on {setting["few"]} images; of each budget the best
{1 / setting["part"]:.0%} and every solver on its best grid on {setting["images"]}; the best {setting["finalists"]} of
these on {setting["finals"]} others. Few images decide an RMS at the fine end, where one that tips into another shape is
all of it: hence the median, and the intervals below.

- Fine solutions: {fine}. The first is what all are compared with; the second is {floor["rms"]:.4f} from it (RMS; median
  {floor["median"]:.4f}): distances near that are not resolved.
- Columns are network calls, exactly. Blank: the solver cannot make that many on that grid. "-": not tried, because
  at the budget before it was farther than {setting["hopeless"]:g}, which is another image.
- Every line is tried on its own grid and on {", ".join(network.spacings)}; {", ".join(PROBES)} also on
  {", ".join(network.more)}. "to 10" ends with the last call at t = 10; then a step to sigma = 0.
- Not here: {left}.
- Stochastic solvers have no fine solution from the same noise, `--part noisy` compares distributions:
  {noisy}.{remark}"""


def _finals(tree: One) -> str:
    setting, rows = tree["setting"], []
    for nfe in BUDGETS:
        for place, one in enumerate(_sorted(one for one in tree["finals"] if one["nfe"] == nfe and one["rms"])):
            low, high = one["rms_90"]
            name = _named(tree, one["line"])
            spread = f"{low:.4f} to {high:.4f}"
            first = f"**{name}**" if place == 0 else name
            rows.append(
                [str(nfe), first, _named(tree, one["grid"]), f"{one['rms']:.4f}", spread, f"{one['median']:.4f}"]
            )
    head = ["calls", "solver", "grid", "RMS", "90 % of resamplings of the images", "median"]
    return f"""## The best of each budget, drawn again

The {setting["finalists"]} best of each budget by RMS, and what `solver="auto"` took when they were drawn, on
{setting["finals"]} images from other noise.

{table(head, rows)}"""


def _auto(tree: One) -> str:
    rows, runs = [], propose(tree)
    for run in runs:
        calls = f"{run.first} and more" if math.isinf(run.most) else f"{run.first} to {run.most}"
        told = ", ".join(f"{rms:.4f} at {nfe}" for nfe, rms in zip(run.budgets, run.rms, strict=True))
        rows.append([calls, run.line, run.grid, told])
    return f"""## What auto takes

By rule (`quality/propose.py`): budgets in order, one choice as long as it is within {ENOUGH - 1:.0%} of the lowest RMS
of the finals at each, or nearer than the two fine solutions are to each other, among those that make every number of
calls there exactly; up to the geometric middle between two budgets.

{table(["calls", "solver", "grid", "RMS"], rows)}

In `solvers/auto.py`, which `tests/test_auto.py` compares with the finals:

```python
{code(tree["setting"]["network"], runs)}
```"""


def _solvers(tree: One) -> str:
    tried = {(one["line"], one["nfe"]) for one in tree["results"]}

    def cell(line: str, nfe: int) -> str:
        best = _best(tree, "line", line, nfe)
        if best is None:
            return "-" if (line, nfe) in tried else ""
        low, high = best["rms_90"]
        return f"{best['rms']:.4f} ({low:.4f} to {high:.4f}), {best['grid']}"

    lines = [line for line in LINES if any((line, nfe) in tried for nfe in BUDGETS)]
    rows = [[_named(tree, line), *(cell(line, nfe) for nfe in BUDGETS)] for line in lines]
    return f"""## Each solver on its best grid

RMS on {tree["setting"]["images"]} images, with 90 % of resamplings of the images. "-": no image like the fine one.

{table(["solver", *map(str, BUDGETS)], rows)}"""


def _same(tree: One) -> str:
    pairs: dict[tuple[str, str], dict[str, list[int]]] = {}
    for one in tree["results"]:
        if one["note"] == "same":
            line, grid = one["as"]
            here = one["line"] if one["grid"] == grid else f"{one['line']} on {one['grid']}"
            there = line if one["grid"] == grid else f"{line} on {grid}"
            pairs.setdefault((here, there), {}).setdefault(one["grid"], []).append(one["nfe"])
    rows = []
    for (here, there), grids in pairs.items():
        spans: dict[str, list[str]] = {}
        for grid, budgets in grids.items():
            spans.setdefault(", ".join(map(str, budgets)), []).append(grid)
        rows.append([here, there, "; ".join(f"{', '.join(names)} at {span}" for span, names in spans.items())])
    return f"""## Measured once

Plans whose tables are the same numbers to 1e-9, so that every network gives the same samples; the other is drawn.
Few calls leave no room for a high order.

{table(["plan", "is", "grids, calls"], rows)}"""


def _noisy(tree: One) -> str:
    floor, rows = tree["noisy_floor"], []
    for one in sorted(tree["noisy"], key=lambda one: (one["nfe"], one["frechet"])):
        rows.append([str(one["calls"]), one["line"], f"{one['frechet']:.2f}", f"{one['recognized']:.1%}"])
    return f"""## Solvers that add noise

{floor["samples"]} samples of each on its own grid, beside two that add none: Frechet distance from the test set in the
16 features of a classifier that is trained first, and the part that it takes for the digit that was asked for. As many
images of the test set itself are {floor["mean"]:g} away, give or take {floor["deviation"]:g}.

{table(["calls", "solver", "Frechet", "recognized"], rows)}"""


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
Adams-Bashforth in the same variable (c = 0) where the guard trips; each at its best grid, RMS on the screen's images:

{table(head, rows)}

**Verdict: {word}** To be worth a second kernel it had to be {1 - EARNS:.0%} nearer than the best plan at two budgets;
it is at {wins}. With c = 0 it would be a plan; its coefficient makes it {low:.2f} to {high:.2f} times as far."""


def _told(one: One) -> str:
    line = "" if one["line"].startswith("a-flops") else f"{one['line']}, "
    return f"{one['rms']:.4f} ({line}{one['grid']})"


def _drawn(tree: One, nfe: int) -> list[One]:
    """On all images of the screen."""
    entries = [one for one in tree["results"] if one["nfe"] == nfe and one["rms"] is not None]
    return [one for one in entries if one["images"] == tree["setting"]["images"]]


def _sorted(entries: Iterable[One]) -> list[One]:
    return sorted(entries, key=lambda one: one["rms"])


def _cell(one: One | None, best: float | None, setting: One) -> str:
    if one is None:
        return ""
    if one["rms"] is None:
        return "-" if one["note"] == "hopeless" else one["note"]
    if one["rms"] >= 10:
        return "> 10"
    number = f"{one['rms']:.3f}" if one["rms"] >= 0.1 else f"{one['rms']:.4f}"
    cell = f"{number} / {one['median']:.4f}"
    if one["images"] < setting["images"]:
        return f"({cell})"
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
    _lines(left, tree, "line", {**{line: "#d9d9d9" for line in LINES if line not in SHOWN}, **SHOWN})
    grids = [grid for grid in GRIDS if _points(tree, "grid", grid)]
    _lines(
        right,
        tree,
        "grid",
        {grid: matplotlib.colors.to_hex(plt.get_cmap("tab20")(i % 20)) for i, grid in enumerate(grids)},
    )
    for axes, title in ((left, "Solvers, each on its best grid"), (right, "Grids, each with its best solver")):
        _dress(axes, title, tree["floor"]["rms"])
    left.set_ylabel(f"RMS distance to the fine solution, {tree['setting']['images']} images")
    title = TITLES[tree["setting"]["network"]]
    figure.suptitle(f"Packaged MNIST network of {title}: distance for a number of network calls (gray: other solvers)")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def _lines(axes: Any, tree: One, kind: str, colors: dict[str, str]) -> None:
    """The best of each name at each budget; names of those that are not gray at the ends."""
    ends = []
    for name, color in colors.items():
        points, gray = _points(tree, kind, name), color == "#d9d9d9"
        if points:
            width = 1.0 if gray else 2.0
            axes.plot(*zip(*points, strict=True), "o-", color=color, linewidth=width, markersize=width * 2)
            ends += [] if gray else [(name, points[-1], color)]
    _label(axes, ends)


def _points(tree: One, kind: str, name: str) -> list[tuple[int, float]]:
    entries = [(nfe, _best(tree, kind, name, nfe)) for nfe in BUDGETS]
    return [(nfe, one["rms"]) for nfe, one in entries if one is not None]


def _best(tree: One, kind: str, name: str, nfe: int) -> One | None:
    """The nearest on all images of the screen of a line or a grid; of plans that are another's, that one's."""
    drawn = {(one["line"], one["grid"]): one for one in _drawn(tree, nfe)}
    here = [one for one in tree["results"] if one["nfe"] == nfe and one[kind] == name]
    if kind == "grid":  # A-FloPS is no plan
        here = [one for one in here if not one["line"].startswith("a-flops")]
    keys = [tuple(one["as"]) if one["note"] == "same" else (one["line"], one["grid"]) for one in here]
    return min((drawn[key] for key in keys if key in drawn), key=lambda one: one["rms"], default=None)


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
    axes.set(xscale="log", yscale="log", title=title, xlabel="network calls", xlim=(4.6, 95), ylim=(0.001, 0.4))
    axes.set_xticks(BUDGETS, [str(nfe) for nfe in BUDGETS], minor=False)
    axes.set_xticks([], minor=True)
    axes.grid(True, which="major", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if floor > 0.001:
        axes.axhline(floor, color="#999999", linestyle=":", linewidth=1)
