"""The processes that draw for `survey.py`, one single-threaded for each core."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality.solvers import NETWORKS, Artist, Key, distance, parts

import pndm_fast as pf
from pndm_fast.plan.atomic import atomic_path

FINE = Path(__file__).parents[2] / "build" / "quality"


class Studio:
    """The pool, and the fine references of all images; the first is what all is compared with.

    Attributes:
        floor: of each image, how far the second reference is from it; None where there is one alone.
    """

    def __init__(self, network: str, images: int, first_seed: int, references: list[str], weights: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(torch.get_num_threads(), context, _open, (network, images, first_seed))
        fine = [self._fine(name, images, [network, weights, first_seed]) for name in references]
        self.reference = fine[0]
        self.floor = distance(fine[1], fine[0]) if len(fine) > 1 else None

    def _fine(self, name: str, images: int, of: list[Any]) -> torch.Tensor:
        """A fine solution, from its file where an earlier run left it."""
        about = [*of, name, NETWORKS[of[0]].references[name], images, torch.__version__]
        path = FINE / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}.npy"
        if path.is_file():
            return torch.from_numpy(np.load(path))
        jobs = [self.pool.submit(_reference, name, piece) for piece in parts(images, Artist.AT_ONCE)]
        samples = np.concatenate([job.result() for job in jobs])
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, samples)
        return torch.from_numpy(samples)

    def distances(self, keys: list[Key], images: int) -> Iterator[tuple[Key, torch.Tensor]]:
        """Of each of the first images from the reference, as they come."""
        jobs = {self.pool.submit(_draw, key, images): key for key in keys}
        for job in as_completed(jobs):
            yield jobs[job], distance(torch.from_numpy(job.result()), self.reference[:images])


_artist: Artist


def _open(network: str, images: int, first_seed: int) -> None:
    global _artist
    _artist = Artist(network, images, first_seed)


def _reference(name: str, images: range) -> Any:
    return _artist.reference(name, images).numpy()


def _draw(key: Key, images: int) -> Any:
    return _artist.draw(key, images).numpy()


def worth(artist: Artist) -> float:
    """Seconds of a network call of one image, of a few of eight."""
    plan = pf.make_plan("ddim", artist.about.schedule, steps=5, prediction=artist.about.prediction)
    artist.run(plan, 8)
    began = time.monotonic()
    artist.run(plan, 8)
    return (time.monotonic() - began) / (5 * 8)
