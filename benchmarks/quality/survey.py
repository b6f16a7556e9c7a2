"""Quality for a number of network calls: every deterministic solver on several grids, on a packaged network.

`python benchmarks quality --network mnist` writes results/quality/mnist.json, .md and .png; stopped, it resumes where
it was. All are drawn on a few images, the best of each budget and of each line on more, the best of these on many
others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from machine import describe
from quality import noisy
from quality.propose import present
from quality.report import plot, text
from quality.solvers import BUDGETS, NETWORKS, Artist, Key, Network, interval, order_of, plans_of
from quality.studio import Studio, worth

from pndm_fast import demo
from pndm_fast.plan.atomic import atomic_path

OUT = Path(__file__).parents[1] / "results" / "quality"
HOPELESS = 0.3  # of the pixels' range of 2, an image unlike the fine one: the next budget is then not tried
PART = 8  # the best of so many of a budget is drawn on all images of the screen, as is every line on its best grid
FINALISTS = 8  # of each budget, drawn again from other noise
FINAL_SEED = 1000
EVERY = 2.0  # seconds between writes
PARTS = ("results", "finals", "noisy")
Plans = dict[int, tuple[list[Key], dict[Key, Key]]]  # what `plans_of` says of each budget


class ResultFile:
    """The results in their file, which is replaced as a whole."""

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self.path, self.setting, self.written = path, setting, 0.0
        old = json.loads(path.read_text()) if path.is_file() else {}
        kept = old if old.get("setting") == setting else {}
        if old and not kept:
            print(f"{path.name} is of another setting: measured anew", file=sys.stderr)
        fresh = {"setting": setting, "floor": {}, "remark": "", **{part: [] for part in PARTS}}
        self.tree: dict[str, Any] = fresh | kept
        self.tree["machine"] = describe()
        self.found = {part: {key_of(one): one for one in self.tree[part]} for part in PARTS}

    def add(self, part: str, key: Key, values: dict[str, Any]) -> None:
        """Keep one result."""
        one = {"line": key[0], "grid": key[1], "nfe": key[2], **values}
        self.found[part][key] = one
        if time.monotonic() - self.written > EVERY:
            self.write()

    def write(self) -> None:
        """One line for each result."""
        head = {name: value for name, value in self.tree.items() if name not in PARTS}
        lines = json.dumps(head, indent=1).removesuffix("\n}")
        for part in PARTS:
            found = self.found[part]
            self.tree[part] = [found[key] for key in (sorted(found) if part == "noisy" else order_of(found))]
            rows = ",\n  ".join(json.dumps(one) for one in self.tree[part])
            lines += f',\n "{part}": [\n  {rows}\n ]' if rows else f',\n "{part}": []'
        with atomic_path(self.path) as temporary:
            temporary.write_text(lines + "\n}\n")
        self.written = time.monotonic()


def key_of(one: dict[str, Any]) -> Key:
    """What a result is of."""
    return one["line"], one["grid"], one["nfe"]


def hopeless(results: dict[Key, dict[str, Any]], line: str, grid: str, nfe: int) -> bool:
    """Whether it was tried at the budget before and far off."""
    smaller = BUDGETS[: BUDGETS.index(nfe)][-1:]
    tried = [one for budget in smaller if (one := results.get((line, grid, budget))) and measured(one)]
    return any(one["rms"] is None or one["rms"] > HOPELESS for one in tried)


def measured(one: dict[str, Any]) -> bool:
    """Whether it was drawn."""
    return one["note"] not in ("hopeless", "same")


def summary(distances: torch.Tensor, with_interval: bool = False) -> dict[str, Any]:
    """RMS and median over the images; both null where a sample is not finite."""
    rms, median = float(distances.square().mean().sqrt()), float(distances.median())
    if not math.isfinite(rms):
        return {"rms": None, "median": None, "note": "diverged", "images": len(distances)}
    values: dict[str, Any] = {"rms": round(rms, 5), "median": round(median, 5), "note": "", "images": len(distances)}
    if with_interval:
        values["rms_90"] = [round(value, 5) for value in interval(distances)]
    return values


def screen(store: ResultFile, studio: Studio, plans: Plans) -> Iterator[Key]:
    """Budget by budget, everything on a few images and the best on all; equal tables once."""
    found, few, images = store.found["results"], store.setting["few"], store.setting["images"]
    for nfe in BUDGETS:
        keys, same = plans[nfe]
        for key, twin in same.items():
            store.add("results", key, {"rms": None, "median": None, "note": "same", "as": list(twin[:2])})
        new = [key for key in keys if key not in found]
        bad = {key for key in new if hopeless(found, *key)}
        for key in bad:
            store.add("results", key, {"rms": None, "median": None, "note": "hopeless"})
        for key, distances in studio.distances([key for key in new if key not in bad], few):
            values = summary(distances)
            store.add("results", key, {**values, "few": values["rms"]})
            yield key
        better = [key for key in chosen(found, keys) if found[key]["images"] < images]
        for key, distances in studio.distances(better, images):
            store.add("results", key, {**summary(distances, with_interval=True), "few": found[key]["few"]})
            yield key


def chosen(found: dict[Key, dict[str, Any]], keys: list[Key]) -> list[Key]:
    """Of a budget those drawn on all images: the best by the few, and each line on its best grid."""
    tried = [key for key in keys if found[key].get("few") is not None]
    tried.sort(key=lambda key: float(found[key]["few"]))
    of_lines = {key[0]: key for key in reversed(tried)}
    return list(dict.fromkeys([*tried[: math.ceil(len(tried) / PART)], *of_lines.values()]))


def finalists(store: ResultFile, network: str) -> list[Key]:
    """The best of each budget among those drawn on all images of the screen, and what auto takes today."""
    keys: list[Key] = []
    found, images = store.found["results"], store.setting["images"]
    for nfe in BUDGETS:
        entries = [one for key, one in found.items() if key[2] == nfe and one["rms"] and one["images"] == images]
        keys += [key_of(one) for one in sorted(entries, key=lambda one: one["rms"])[:FINALISTS]]
        today = present(network, nfe)
        one = found.get(today) if today else None
        if today and one and one["note"] in ("", "same"):
            keys.append((*one["as"], nfe) if one["note"] == "same" else today)
    return list(dict.fromkeys(keys))


def finals(store: ResultFile, studio: Studio, network: str) -> Iterator[Key]:
    """The best again, from other noise: the screen's own winner was partly lucky."""
    keys = [key for key in finalists(store, network) if key not in store.found["finals"]]
    for key, distances in studio.distances(keys, store.setting["finals"]):
        store.add("finals", key, summary(distances, with_interval=True))
        yield key


def cost(network: Network, setting: dict[str, Any], plans: Plans) -> int:
    """Network calls of one image of the screen, without plans of the finals; at most, as if nothing were hopeless."""
    fine = [how["steps"] for how in network.references.values()]
    if not plans:
        return int(setting["finals"]) * (fine[0] + (FINALISTS + 1) * sum(BUDGETS))
    total = int(setting["images"]) * sum(fine[:2])
    for nfe in BUDGETS:
        keys = plans[nfe][0]
        more = math.ceil(len(keys) / PART) + len({key[0] for key in keys})
        total += nfe * (len(keys) * setting["few"] + more * setting["images"])
    return total


def tell_cost(name: str, setting: dict[str, Any], plans: Plans) -> None:
    """What a part takes at most, by a few timed calls."""
    calls, threads = cost(NETWORKS[name], setting, plans), torch.get_num_threads()
    part = "screen" if plans else "finals"
    seconds = worth(Artist(name, 8, 0))
    torch.set_num_threads(threads)
    minutes = calls * seconds / 60
    print(
        f"{part}: at most {calls} calls of one image, {seconds * 1e3:.1f} ms each: {minutes:.0f} minutes of one "
        f"thread, on {threads}",
        file=sys.stderr,
    )


def run(store: ResultFile, name: str, part: str) -> None:
    """The screen or the finals, with its progress on stderr."""
    setting, network = store.setting, NETWORKS[name]
    images, seed = (setting["images"], 0) if part == "results" else (setting["finals"], FINAL_SEED)
    if part == "finals" and all(key in store.found["finals"] for key in finalists(store, name)):
        return
    plans = {nfe: plans_of(network, nfe) for nfe in BUDGETS} if part == "results" else {}
    tell_cost(name, setting, plans)
    studio = Studio(name, images, seed, list(network.references)[: 2 if part == "results" else 1], weights(name))
    if part == "results":
        store.tree["floor"] = summary(studio.floor)
    began, made = time.monotonic(), screen(store, studio, plans)
    try:
        for count, key in enumerate(made if part == "results" else finals(store, studio, name), 1):
            told = f"{key[2]} calls, {key[0]}, {key[1]}: {store.found[part][key]['rms']}"
            print(f"\r{time.monotonic() - began:6.0f} s {count:5}  {told:<70}", end="", file=sys.stderr, flush=True)
    finally:
        print(file=sys.stderr)
        studio.pool.shutdown(cancel_futures=True)
        store.write()


def weights(name: str) -> str:
    """The first digits of the SHA-256 of the network's file: results of another are not gone on with."""
    return hashlib.sha256((Path(demo.__file__).parent / f"{name}.safetensors").read_bytes()).hexdigest()[:16]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="mnist")
    parser.add_argument("--part", choices=("screen", "finals", "noisy"), help="default: the screen, then the finals")
    parser.add_argument("--few", type=int, default=8, help="images on which all are drawn, the digits in turn")
    parser.add_argument("--images", type=int, default=32, help="on which the best of each budget and of each line are")
    parser.add_argument("--finals", type=int, default=256, help="others, on which the best of each budget are compared")
    parser.add_argument("--data", type=Path, help="folder of MNIST's idx files, for --part noisy")
    parser.add_argument("--samples", type=int, default=500, help="of --part noisy")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which --part noisy begins nothing more")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true", help="write .md and .png anew from the .json alone")
    arguments = parser.parse_args()
    if not 0 < arguments.few <= arguments.images or arguments.finals < 1:
        parser.error("--few must be in [1, --images] and --finals positive")
    if arguments.part == "noisy" and arguments.data is None and not arguments.report:
        parser.error("--data must be given for --part noisy")
    if arguments.report and not (arguments.out / f"{arguments.network}.json").is_file():
        parser.error(f"--out must hold {arguments.network}.json, got {arguments.out}")
    return arguments


def measure(store: ResultFile, arguments: argparse.Namespace) -> None:
    """What was asked for."""
    if arguments.part in (None, "screen"):
        run(store, arguments.network, "results")
    if arguments.part in (None, "finals"):
        run(store, arguments.network, "finals")
    if arguments.part == "noisy":
        noisy.run(store, arguments.network, arguments.data, arguments.samples, arguments.minutes)


def main() -> int:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.network}.json"
    sizes = {"few": arguments.few, "images": arguments.images, "finals": arguments.finals}
    rules = {"hopeless": HOPELESS, "part": PART, "finalists": FINALISTS, "final_seed": FINAL_SEED}
    about = {"network": arguments.network, "weights": weights(arguments.network)}
    setting = {**about, **sizes, **rules, "references": NETWORKS[arguments.network].references}
    if arguments.report:
        setting = json.loads(path.read_text())["setting"]
    store = ResultFile(path, setting)
    if not arguments.report:
        try:
            measure(store, arguments)
        except KeyboardInterrupt:
            print("stopped; what was measured is kept", file=sys.stderr)
            return 130
    with atomic_path(path.with_suffix(".md")) as temporary:
        temporary.write_text(text(store.tree))
    plot(store.tree, path.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
