"""The page and the pictures of `fitted.py`'s results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quality.report import table
from torch import Tensor

from pndm_fast.plan.atomic import atomic_path

Tree = Mapping[str, Any]


def text(tree: Tree) -> str:
    """The results in Markdown."""
    parts = [_head(tree)]
    parts += [_plan(name, one, tree["teachers"]) for name, one in tree["plans"].items()]
    if tree["ablation"]:
        parts.append(_ablation(tree["ablation"]))
    if "blackbox" in tree:
        parts.append(_black_box(tree["blackbox"]))
    if "overhead" in tree:
        parts.append(_overhead(tree["overhead"]))
    return "\n\n".join(parts) + "\n"


def _head(tree: Tree) -> str:
    setting, machine = tree["setting"], tree["machine"]
    rows = []
    for name, one in tree["plans"].items():
        best, *_ = one["named"]
        rows.append([name, *[_ratio(one["ratios"][best][figure]) for figure in ("rms", "mean", "median")]])
        rows[-1] += [_change(one["differences"]["frechet"], "{:+.3f}")] if "differences" in one else [""]
    head = ["plan", "RMS", "mean", "median", "Frechet, fitted less named"]
    return f"""# Plans fitted to the packaged networks

`python benchmarks fitted --data DIR` makes this page from the plans in `pndm_fast/demo/plans`, which `pndm-fast tune`
made. Class-conditional, the digits in turn, float32. Written on {machine["cpu"]}, torch {machine["torch"]}.

- Distance of an image to the teacher's from the same noise (`auto`'s plan of 60 calls): the RMS over its pixels, whose
  range is [-1, 1]. Then RMS, mean and median over {setting["images"]} images of noise that no fit has seen.
- The named plans are the eight best of that many calls on the fit's own training noise, of every solver and grid that
  a fit has as rivals; the first is the best, frozen before the others were seen. Intervals hold 95 % of resamplings of
  the images, both plans' together.
- Frechet: of {setting["samples"]} samples, distance of a small classifier's 16 features from the test set's.
  Recognized: the part that it takes for the digit that was asked for. Spread: how much features differ within a digit,
  against the test set (1 is as diverse).
- Fits had one thread of a machine that had other work: their minutes are at most.

## Fitted against the best named plan

{table(head, rows)}"""


def _plan(name: str, one: Tree, teachers: Tree) -> str:
    fit, judged = one["fit"], one["judged"]
    rows = []
    for who, own in {"fitted": one["fitted"], **one["named"]}.items():
        verdict = judged.get(who, {})
        ratio = _ratio(one["ratios"][who]["rms"]) if who in one["ratios"] else ""
        rows.append([f"**{who}**" if who == "fitted" else who, *[f"{own[k]:.4f}" for k in ("rms", "mean", "median")]])
        rows[-1] += [ratio, *_verdict(verdict)]
    if one["guidance"] == 1 and one["network"] in teachers:
        rows.append(["the teacher", "", "", "", "", *_verdict(teachers[one["network"]])])
    head = ["plan", "RMS", "mean", "median", "fitted / it, RMS", "Frechet", "recognized", "spread"]
    lines = [f"## {name}", table(head, rows)]
    told = f"{fit['iterations']} iterations on {fit['pairs']['train']} pairs, {fit['fit_seconds'] / 60:.0f} minutes"
    lines.append(f"The fit: {told}.")
    if "differences" in one:
        change = one["differences"]
        lines[-1] += (
            f" Fitted less named: Frechet {_change(change['frechet'], '{:+.3f}')}, "
            f"recognized {_change(change['recognized'], '{:+.2%}')}."
        )
        lines.append(f"![teacher, fitted, named](fitted-{name}.png)")
    return "\n\n".join(lines)


def _verdict(own: Tree) -> list[str]:
    if not own:
        return ["", "", ""]
    return [f"{own['frechet']:.3f}", f"{own['recognized']:.1%}", f"{own['spread']:.3f}"]


def _ablation(parts: Tree) -> str:
    rows = []
    for name, one in parts.items():
        median = one["fitted"]["median"] / one["named"]["median"]
        rows.append([name, f"{one['ratio']:.3f}", _interval(one["interval"]), f"{median:.3f}"])
    most = max(one["iterations"] for one in parts.values())
    head = ["what is fitted", "mean distance / named", "95 %", "median / named"]
    return f"""## What of a fit does what, at 5 calls

One fit each of {most} iterations on the network of `mnist`, all from the same named plan and judged on the same 256
pairs; intervals are of the pairs, not of the fits. A fit that moves coefficients has its last row by least squares
before the first iteration, one of times alone has not.

{table(head, rows)}"""


def _black_box(one: Tree) -> str:
    held = one["held_out"]
    verdict = "better, and handed out" if one["better"] else "not better, so the named plan was handed out"
    return f"""## Without gradients

`tune` at 5 calls on the network of `mnist` as frozen TorchScript behind a function that carries no gradient:
{one["by"]}, {one["pairs"]["train"]} pairs. Mean distance over the best named plan's
({one["named"]["plan"]}): {held["ratio"]:.3f}, 95 % {_interval(held["interval"])}: {verdict}."""


def _overhead(one: Tree) -> str:
    rows = []
    for name in ("iteration", "validation"):
        own = one[name]
        spread = f"{own['quartiles'][0]:.3f} to {own['quartiles'][1]:.3f}"
        rows.append([name, f"{own['ours_s']:.3f}", f"{own['network_s']:.3f}", f"{own['ratio']:.3f}", spread])
    peaks = ", ".join(f"{how} {mib:.0f} MiB" for how, mib in one["peak_mib"].items())
    head = ["", "a fit's, s", "the network's passes alone, s", "ratio", "quartiles"]
    return f"""## What a fit costs beside the network

An iteration has 24 pairs of 5 calls, forward and backward; a validation 64 pairs forward. The other side is as many
passes of the network alone. Nine turns each, {one["threads"]} threads; medians.

{table(head, rows)}

Memory at most, beyond that of imports and weights: {peaks}."""


def _ratio(three: list[float]) -> str:
    value, low, high = three
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _change(three: list[float], form: str) -> str:
    value, low, high = three
    return f"{form.format(value)} ({form.format(low)} to {form.format(high)})"


def _interval(two: list[float]) -> str:
    return f"{two[0]:.3f} to {two[1]:.3f}"


def picture(rows: Mapping[str, Tensor], calls: int, path: Path) -> None:
    """Samples of several plans from the same noise, one below the other.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("the pictures need matplotlib: pip install 'pndm_fast[bench]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(rows), 1, figsize=(10, 0.75 * len(rows)), layout="constrained")
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        sheet = images.clamp(-1, 1)[:, 0].permute(1, 0, 2).reshape(images.shape[2], -1)
        axis.imshow(sheet, cmap="gray", vmin=-1, vmax=1)
        axis.set_axis_off()
        label = "teacher, 60 calls" if name == "teacher" else f"{name},\n{calls} calls"
        axis.text(-6, images.shape[2] / 2, label, ha="right", va="center", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    plt.close(figure)
