"""Quality for a number of network calls: every deterministic solver on every grid, on the packaged MNIST network.

`python benchmarks quality` writes results/quality/mnist.json, .md and .png; stopped, it resumes where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from machine import describe
from quality.report import plot, text
from quality.solvers import BUDGETS, GRIDS, LINES, REFERENCES, Artist, distance, interval

from pndm_fast.plan.atomic import atomic_path

OUT = Path(__file__).parents[1] / "results" / "quality"
HOPELESS = 0.3  # of the pixels' range of 2, an image unlike the fine one: the next budget is then not tried
FINALISTS = {"rms": 8, "median": 4}  # of each budget by either, drawn again from other noise
FINAL_SEED = 1000
EVERY = 2.0  # seconds between writes

Key = tuple[str, str, int]


class ResultFile:
    """The results in their file, which is replaced as a whole."""

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self.path, self.setting, self.written = path, setting, 0.0
        old = json.loads(path.read_text()) if path.is_file() else {}
        kept = old if old.get("setting") == setting else {}
        if old and not kept:
            print(f"{path.name} is of another setting: measured anew", file=sys.stderr)
        fresh = {"setting": setting, "floor": {}, "remark": "", "results": [], "finals": []}
        self.tree: dict[str, Any] = fresh | kept
        self.tree["machine"] = describe()
        self.found = {part: {key_of(one): one for one in self.tree[part]} for part in ("results", "finals")}

    def add(self, part: str, key: Key, values: dict[str, Any]) -> None:
        """Keep one result."""
        one = {"line": key[0], "grid": key[1], "nfe": key[2], **values}
        self.found[part][key] = one
        if time.monotonic() - self.written > EVERY:
            self.write()

    def write(self) -> None:
        """One line for each result."""
        head = {name: self.tree[name] for name in ("setting", "machine", "floor", "remark")}
        lines = json.dumps(head, indent=1).removesuffix("\n}")
        for part in ("results", "finals"):
            self.tree[part] = sorted(self.found[part].values(), key=_place)
            rows = ",\n  ".join(json.dumps(one) for one in self.tree[part])
            lines += f',\n "{part}": [\n  {rows}\n ]' if rows else f',\n "{part}": []'
        with atomic_path(self.path) as temporary:
            temporary.write_text(lines + "\n}\n")
        self.written = time.monotonic()


def key_of(one: dict[str, Any]) -> Key:
    """What a result is of."""
    return one["line"], one["grid"], one["nfe"]


def _place(one: dict[str, Any]) -> tuple[int, ...]:
    return BUDGETS.index(one["nfe"]), list(LINES).index(one["line"]), list(GRIDS).index(one["grid"])


def hopeless(results: dict[Key, dict[str, Any]], line: str, grid: str, nfe: int) -> bool:
    """Whether it was tried at the budget before and far off."""
    smaller = BUDGETS[: BUDGETS.index(nfe)][-1:]
    tried = [one for budget in smaller if (one := results.get((line, grid, budget))) and one["note"] != "hopeless"]
    return any(one["rms"] is None or one["rms"] > HOPELESS for one in tried)


def summary(distances: torch.Tensor, with_interval: bool = False) -> dict[str, Any]:
    """RMS and median over the images; both null where a sample is not finite."""
    rms, median = float(distances.square().mean().sqrt()), float(distances.median())
    if not math.isfinite(rms):
        return {"rms": None, "median": None, "note": "diverged"}
    values: dict[str, Any] = {"rms": round(rms, 5), "median": round(median, 5), "note": ""}
    if with_interval:
        values["rms_90"] = [round(value, 5) for value in interval(distances)]
    return values


class Studio:
    """One single-threaded process for each core, and the fine references; the first is what all is compared with."""

    def __init__(self, images: int, first_seed: int, references: list[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(torch.get_num_threads(), context, _open, (images, first_seed))
        fine = [one.result() for one in [self.pool.submit(_reference, name) for name in references]]
        self.reference, *others = map(torch.from_numpy, fine)
        self.floor = summary(distance(others[0], self.reference)) if others else None

    def distances(self, keys: list[Key]) -> Iterator[tuple[Key, torch.Tensor | None]]:
        """Of each image from the reference, as they come; None where nothing takes exactly that many calls."""
        jobs = {self.pool.submit(_draw, key): key for key in keys}
        for job in as_completed(jobs):
            samples = job.result()
            yield jobs[job], None if samples is None else distance(torch.from_numpy(samples), self.reference)


_artist: Artist


def _open(images: int, first_seed: int) -> None:
    global _artist
    _artist = Artist(images, first_seed)


def _reference(name: str) -> Any:
    return _artist.reference(name).numpy()


def _draw(key: Key) -> Any:
    samples = _artist.draw(LINES[key[0]], *key[1:])
    return None if samples is None else samples.numpy()


def survey(store: ResultFile, studio: Studio) -> Iterator[Key]:
    """Everything, budget by budget."""
    found = store.found["results"]
    for nfe in BUDGETS:
        keys = [key for key in ((line, grid, nfe) for line in LINES for grid in GRIDS) if key not in found]
        bad = [key for key in keys if hopeless(found, *key)]
        for key, distances in studio.distances([key for key in keys if key not in bad]):
            if distances is not None:
                store.add("results", key, summary(distances))
                yield key
        for key in bad:
            store.add("results", key, {"rms": None, "median": None, "note": "hopeless"})


def finals(store: ResultFile, studio: Studio) -> Iterator[Key]:
    """The best of each budget again, from other noise: the survey's own winner was partly lucky."""
    keys: list[Key] = []
    for nfe in BUDGETS:
        entries = [one for key, one in store.found["results"].items() if key[2] == nfe and one["rms"] is not None]
        for by, count in FINALISTS.items():
            keys += [key_of(one) for one in sorted(entries, key=lambda one: one[by])[:count]]
    for key, distances in studio.distances([key for key in dict.fromkeys(keys) if key not in store.found["finals"]]):
        assert distances is not None
        store.add("finals", key, summary(distances, with_interval=True))
        yield key


def run(store: ResultFile, part: str, images: int, first_seed: int) -> None:
    """One part, with its progress on stderr."""
    studio = Studio(images, first_seed, list(REFERENCES)[: 2 if part == "results" else 1])
    store.tree["floor"] = studio.floor or store.tree["floor"]
    began = time.monotonic()
    try:
        for count, key in enumerate((survey if part == "results" else finals)(store, studio), 1):
            told = f"{key[2]} calls, {key[0]}, {key[1]}: {store.found[part][key]['rms']}"
            print(f"\r{time.monotonic() - began:6.0f} s {count:5}  {told:<70}", end="", file=sys.stderr, flush=True)
    finally:
        print(file=sys.stderr)
        studio.pool.shutdown(cancel_futures=True)
        store.write()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16, help="of the survey, the digits in turn")
    parser.add_argument("--finals", type=int, default=60, help="images on which the best of each budget are compared")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true", help="write .md and .png anew from the .json alone")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    sizes = {"images": arguments.images, "finals": arguments.finals}
    rules = {"hopeless": HOPELESS, "finalists": FINALISTS, "final_seed": FINAL_SEED}
    if arguments.report and not (arguments.out / "mnist.json").is_file():
        sys.exit(f"--out must hold mnist.json, got {arguments.out}")
    store = ResultFile(arguments.out / "mnist.json", {**sizes, **rules, "references": REFERENCES})
    if not arguments.report:
        try:
            run(store, "results", arguments.images, 0)
            run(store, "finals", arguments.finals, FINAL_SEED)
        except KeyboardInterrupt:
            print("stopped; what was measured is kept", file=sys.stderr)
            return 130
    with atomic_path(arguments.out / "mnist.md") as temporary:
        temporary.write_text(text(store.tree))
    plot(store.tree, arguments.out / "mnist.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
