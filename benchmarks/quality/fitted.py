"""The packaged plans that were fitted by `pndm-fast tune`, beside the best named ones of as many calls.

`python benchmarks fitted --data DIR` (idx files of MNIST) writes results/quality/fitted.json, .md and pictures, part by
part, and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from machine import describe
from quality.ablation import ablation, black_box, overhead
from quality.fitted_report import picture, text
from quality.judge import Judge, train_judge
from quality.phase import frechet
from quality.plan_studio import NETWORKS, PlanStudio
from torch import Tensor

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.plan.atomic import atomic_path
from pndm_fast.tuning.named import finalists, rounds
from pndm_fast.tuning.teacher import digest
from pndm_fast.tuning.tuned import TunedPlan

OUT = Path(__file__).parents[1] / "results" / "quality"
RIVALS = 8
RESAMPLES = 2000
FRECHETS = 500  # resamplings of Frechet distances, which cost more
SHOWN = 16  # digits of a picture
JUDGED_FROM = 10_000  # pairs that no fit has seen
WITHIN = (0.025, 0.975)
FACTS = ("iterations", "fit_seconds", "pairs", "teacher", "held_out", "named")  # of a fit


def packaged() -> dict[str, TunedPlan]:
    """The packaged plans by their names."""
    return {plan_name(network, plan): plan for network in NETWORKS for plan in demo.plans_of(network)}


def plan_name(network: str, plan: TunedPlan) -> str:
    """As the file is called."""
    scale = scale_of(plan)
    return f"{network}-{plan.nfe}" + ("" if scale == 1 else f"-guidance-{scale:g}")


def scale_of(plan: pf.Plan) -> float:
    """Guidance, the same in all rows."""
    return float(plan.rows[0].guidance)


def named_plans(network: str, nfe: int) -> dict[str, pf.Plan]:
    """All that a fit of so many calls has as rivals, but those that have the same rows as one before."""
    unet, found = NETWORKS[network](), dict[str, pf.Plan]()
    assert isinstance(unet.schedule, pf.Schedule) and unet.prediction is not None
    for name, plan in finalists(unet.schedule, unet.prediction, nfe).items():
        if all(plan.rows != other.rows for other in found.values()):
            found[name] = plan
    return found


def rivals(studio: PlanStudio, plans: dict[str, pf.Plan]) -> dict[str, pf.Plan]:
    """The best of them on training pairs, best first, by the rounds of a fit; more than one are left at the end."""
    sums, left = dict.fromkeys(plans, 0.0), list(plans)
    for many, part in rounds(len(plans), 1024):
        left = left[: max(many, RIVALS)]
        for name in left:
            distances = studio.distances(plans[name], part)
            sums[name] += float(distances.nan_to_num(nan=1e9, posinf=1e9).sum())
        left.sort(key=lambda name: sums[name])
    return {name: plans[name] for name in left[:RIVALS]}


def figures(distances: Tensor) -> dict[str, float]:
    """Of each image's distance: RMS, mean and median."""
    own = {"rms": distances.square().mean().sqrt(), "mean": distances.mean(), "median": distances.median()}
    return {name: round(float(value), 5) for name, value in own.items()}


def ratios(fitted: Tensor, named: Tensor) -> dict[str, list[float]]:
    """Of RMS, mean and median: the ratio, and its 95 % interval over images drawn anew, both plans' together."""
    n = len(fitted)
    drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(0))
    of: dict[str, Callable[[Tensor], Tensor]] = {
        "rms": lambda x: x.square().mean(-1).sqrt(),
        "mean": lambda x: x.mean(-1),
        "median": lambda x: x.median(-1).values,
    }
    found = {}
    for name, figure in of.items():
        spread = (figure(fitted[drawn]) / figure(named[drawn])).double()
        low, high = torch.quantile(spread, torch.tensor(WITHIN, dtype=torch.float64)).tolist()
        found[name] = [round(value, 4) for value in (float(figure(fitted) / figure(named)), low, high)]
    return found


class Jury:
    """The classifier, and what it says of samples of the digits in turn."""

    def __init__(self, data: Path) -> None:
        weights, self.real, self.digits = train_judge(data)
        self.judge = Judge()
        self.judge.load_state_dict(weights)
        self.judge.eval()

    def features(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Features, and for each sample whether it is taken for the digit that was asked for."""
        with torch.no_grad():
            features, logits = self.judge(samples.nan_to_num().clamp(-1, 1))
        return features, (logits.argmax(1) == torch.arange(len(samples)) % demo.null_class).float()

    def verdict(self, samples: Tensor) -> dict[str, float]:
        """Frechet distance to the test set, the part recognized, the spread within a digit against the test set's."""
        features, right = self.features(samples)
        labels = torch.arange(len(samples)) % demo.null_class
        spread = _within(features, labels) / _within(self.real, self.digits)
        own = {"frechet": frechet(features, self.real), "recognized": float(right.mean()), "spread": spread}
        return {name: round(value, 4) for name, value in own.items()}

    def differences(self, fitted: Tensor, named: Tensor) -> dict[str, list[float]]:
        """Fitted less named, with its 95 % interval over samples drawn anew, both plans' together."""
        (a, right_a), (b, right_b) = self.features(fitted), self.features(named)
        generator, n = torch.Generator().manual_seed(0), len(a)
        picks = [torch.randint(n, (n,), generator=generator) for _ in range(FRECHETS)]
        of: dict[str, Callable[[Tensor], float]] = {
            "frechet": lambda at: frechet(a[at], self.real) - frechet(b[at], self.real),
            "recognized": lambda at: float(right_a[at].mean() - right_b[at].mean()),
        }
        found = {}
        for name, difference in of.items():
            spread = torch.tensor([difference(at) for at in picks], dtype=torch.float64)
            low, high = torch.quantile(spread, torch.tensor(WITHIN, dtype=torch.float64)).tolist()
            found[name] = [round(value, 4) for value in (difference(torch.arange(n)), low, high)]
        return found


def _within(features: Tensor, labels: Tensor) -> float:
    """The mean over digits of the trace of the features' covariance: how much samples of one digit differ."""
    each = [features[labels == digit].double().var(0).sum() for digit in range(demo.null_class)]
    return float(torch.stack(each).mean())


def compared(name: str, plan: TunedPlan, images: int) -> dict[str, Any]:
    """Distances of one packaged plan and of its rivals from the teacher's samples."""
    network, told = name.split("-")[0], plan.fitted or {}
    plans = named_plans(network, plan.nfe)
    with PlanStudio(network, scale_of(plan)) as studio:
        first = told["pairs"]["train"] + told["pairs"]["validation"]
        held = range(first, first + images)
        named = rivals(studio, plans)
        fitted = studio.distances(plan, held)
        others = {other: studio.distances(one, held) for other, one in named.items()}
    return {
        "calls": plan.nfe,
        "guidance": scale_of(plan),
        "network": network,
        "fit": {key: told.get(key) for key in FACTS},
        "tried": _digest(plans),
        "fitted": figures(fitted),
        "named": {other: figures(own) for other, own in others.items()},
        "ratios": {other: ratios(fitted, own) for other, own in others.items()},
        "judged": {},
    }


def judged(name: str, plan: TunedPlan, tree: dict[str, Any], jury: Jury, sizes: argparse.Namespace) -> Iterator[str]:
    """What the classifier says of samples: of the fitted plan and the best named one, then of the others one by one."""
    pairs, verdicts = range(JUDGED_FROM, JUDGED_FROM + sizes.samples), tree["judged"]
    with PlanStudio(tree["network"], tree["guidance"]) as studio:
        plans = named_plans(tree["network"], plan.nfe)
        best, *others = tree["named"]
        if "differences" not in tree:
            drawn = {"fitted": studio.samples(plan, pairs), best: studio.samples(plans[best], pairs)}
            verdicts |= {who: jury.verdict(own) for who, own in drawn.items()}
            tree["differences"] = jury.differences(*drawn.values())
            shown = {"teacher": studio.samples(studio.teacher, pairs[:SHOWN]), **drawn}
            picture({who: own[:SHOWN] for who, own in shown.items()}, plan.nfe, sizes.out / f"fitted-{name}.png")
            yield best
        for other in others:
            if other not in verdicts:
                verdicts[other] = jury.verdict(studio.samples(plans[other], pairs))
                yield other


class Results:
    """The JSON file, written whole each time that something is added."""

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self.path = path
        old = json.loads(path.read_text()) if path.is_file() else {}
        if old and old.get("setting") != setting:
            print(f"{path.name} is of another setting: measured anew", file=sys.stderr)
            old = {}
        fresh: dict[str, Any] = {"setting": setting, "plans": {}, "teachers": {}, "ablation": {}}
        self.tree = {**fresh, "machine": describe(), **old}

    def keep(self, part: str, name: str | None, values: Any) -> None:
        """Of one part, or of one name in it."""
        if name is None:
            self.tree[part] = values
        else:
            self.tree[part][name] = values
        self.tree["machine"] = describe()
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(self.tree, indent=1) + "\n")


def plans_part(store: Results, arguments: argparse.Namespace) -> None:
    """Each packaged plan that is not there yet, or was another then: distances first, then what takes longer."""
    found, packed = store.tree["plans"], packaged()
    for name, plan in packed.items():
        if name not in found or not _current(found[name], plan):
            store.keep("plans", name, compared(name, plan, arguments.images))
            print(f"{name}: {found[name]['fitted']}", file=sys.stderr)
    jury = Jury(arguments.data)
    for few in (True, False):  # of every plan what matters most, before the rest of any
        for name, plan in packed.items():
            for who in judged(name, plan, found[name], jury, arguments):
                store.keep("plans", name, found[name])
                print(f"{name}: {who}", file=sys.stderr)
                if few:
                    break
        for network in dict.fromkeys(found[name]["network"] for name in packed):
            teacher_part(store, network, jury, arguments)


def _current(tree: dict[str, Any], plan: TunedPlan) -> bool:
    """Whether results are of this plan and of all named ones that there are today."""
    same = tree["fit"]["held_out"] == (plan.fitted or {})["held_out"]
    return same and tree.get("tried") == _digest(named_plans(tree["network"], plan.nfe))


def _digest(plans: dict[str, pf.Plan]) -> str:
    return digest([plan.to_json() for plan in plans.values()])[:16]


def teacher_part(store: Results, network: str, jury: Jury, arguments: argparse.Namespace) -> None:
    """What the classifier says of the teacher's samples, without guidance."""
    if network not in store.tree["teachers"]:
        with PlanStudio(network, 1.0) as studio:
            samples = studio.samples(studio.teacher, range(JUDGED_FROM, JUDGED_FROM + arguments.samples))
        store.keep("teachers", network, jury.verdict(samples))


PARTS: dict[str, Callable[[Results, argparse.Namespace], None]] = {
    "plans": plans_part,
    "ablation": ablation,
    "blackbox": black_box,
    "overhead": overhead,
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of MNIST's idx files, for the part plans")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="default all; may be repeated")
    parser.add_argument("--images", type=int, default=256, help="held-out pairs of the distances")
    parser.add_argument("--samples", type=int, default=2000, help="judged by the classifier")
    parser.add_argument("--iterations", type=int, default=200, help="of a fit of the ablation")
    parser.add_argument("--pairs", type=int, default=1024, help="of the ablation, at most")
    parser.add_argument("--folder", type=Path, help="where the ablation's teacher is kept; default beside --out")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true", help="write .md anew from the .json alone")
    arguments = parser.parse_args()
    if not arguments.report and "plans" in (arguments.part or PARTS) and arguments.data is None:
        parser.error("--data must be given for the part plans")
    return arguments


def main() -> int:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = ("images", "samples", "iterations", "pairs")
    store = Results(arguments.out / "fitted.json", {name: getattr(arguments, name) for name in names})
    try:
        for part in [] if arguments.report else arguments.part or PARTS:
            PARTS[part](store, arguments)
    except KeyboardInterrupt:
        print("stopped; what was measured is kept", file=sys.stderr)
        return 130
    with atomic_path(arguments.out / "fitted.md") as temporary:
        temporary.write_text(text(store.tree))
    return 0


if __name__ == "__main__":
    sys.exit(main())
