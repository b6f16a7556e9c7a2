"""What `pndm-fast replay` does: jobs from the recipes that images carry. Nothing here prints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pndm_fast as pf
from pndm_fast.cli import images
from pndm_fast.cli.errors import UsageError
from pndm_fast.cli.images import Bytes
from pndm_fast.cli.jobs import Job, JobSpec, planned
from pndm_fast.cli.models import Model, ModelArgs
from pndm_fast.cli.outputs import Draw, Folder, Item, Sheet, check_pillow, check_writable, make_folder
from pndm_fast.cli.plans import NamedPlan
from pndm_fast.cli.recipes import Source, read_pixels

Planned = tuple[Model, NamedPlan]


class Copy(NamedTuple):
    """An image, its bytes before anything is written, and where it is made again."""

    source: Source
    pixels: Bytes
    out: Path

    def compared(self) -> dict[str, Any]:
        """How many bytes differ, and by how much at most; None where the image is of another kind now."""
        told: dict[str, Any] = {"image": str(self.source.path), "out": str(self.out), "bytes": self.pixels.size}
        if self.out.suffix.lower() != self.source.path.suffix.lower():
            return {**told, "differing": None, "most": None}
        made = images.read_pixels(self.out)
        if made.shape != self.pixels.shape:
            return {**told, "differing": self.pixels.size, "most": 255}
        away = np.abs(made.astype(np.int16) - self.pixels)
        return {**told, "differing": int(np.count_nonzero(away)), "most": int(away.max(initial=0))}


class Replay(NamedTuple):
    """A job, and the images that it makes again."""

    job: Job
    copies: Sequence[Copy]


def copies_of(sources: Sequence[Source], out: str | None, force: bool) -> list[Copy]:
    """Where each image is made again.

    Raises:
        UsageError: something is there already, two have one name, or a file of that kind cannot be made.
    """
    folder = out is not None and (out.endswith("/") or Path(out).suffix == "" or Path(out).is_dir())
    if out is not None and not folder and len(sources) > 1:
        raise UsageError(f"--out must be a folder for {len(sources)} images, got {out!r}")
    made: dict[Path, Copy] = {}
    for source in sources:
        path = source.path.with_name(f"{source.path.stem}-replay{source.path.suffix}")
        if out is not None:
            path = Path(out) / source.path.name if folder else Path(out)
        if path in made:
            raise UsageError(f"--out must hold each image once, got {made[path].source.path} and {source.path}")
        if path.suffix.lower() not in ((".png",) if source.one else (".png", ".npz")):
            raise UsageError(f"--out must end in .png{'' if source.one else ' or .npz'} for {source.path}, got {path}")
        if path.suffix.lower() == ".png":
            check_pillow()
        if path.exists() and not force:
            raise UsageError(f"--out must be a new file, got {path}: give --force to replace it")
        made[path] = Copy(source, read_pixels(source), path)
    for path in made:
        check_writable(path.parent, there=not folder)
    return list(made.values())


def replays(copies: Sequence[Copy], machine: ModelArgs) -> list[Replay]:
    """A job for each sheet or array, and one for pictures that have all in common but seed, label and place.

    Args:
        machine: where networks run; what they are the recipes say.

    Raises:
        UsageError, JobError, TypeError, ValueError: as a job of these words would.
    """
    groups: dict[str, list[Copy]] = {}
    for copy in copies:
        recipe = {key: value for key, value in copy.source.recipe.items() if key not in ("class", "seed", "place")}
        own = [] if copy.source.one else [str(copy.out)]
        key = json.dumps([recipe, copy.source.recipe["class"] is None, own], sort_keys=True)
        groups.setdefault(key, []).append(copy)
    loaded: dict[str, Planned] = {}
    made = [_replay(group, machine, loaded) for group in groups.values()]
    for copy in copies:
        make_folder(copy.out.parent)
    return made


def _replay(group: list[Copy], machine: ModelArgs, loaded: dict[str, Planned]) -> Replay:
    source = group[0].source
    recipe, shape = source.recipe, source.recipe.get("shape")
    network = dataclasses.replace(
        machine,
        name=recipe["model"],
        dtype=recipe["dtype"],
        shape=None if shape is None else tuple(shape),
        null_class=recipe.get("null_class"),
    )
    key = json.dumps([network.name, network.dtype, shape, network.null_class, source.words], sort_keys=True)
    if key not in loaded:
        loaded[key] = planned(source.words, network)
    model, made = loaded[key]
    labels = recipe["class"] if isinstance(recipe["class"], list) else [copy.source.recipe["class"] for copy in group]
    spec = JobSpec(
        made.plan,
        network,
        made.recipe,
        number=len(group) if source.one else recipe["number"],
        seed=recipe["seed"],
        classes=() if recipe["class"] is None else tuple(labels),
        guidance=float(recipe["guidance"]),
        batch=recipe["batch"],
        on_nan=recipe.get("on_nan") or "raise",
    )
    if source.one:
        return Replay(Job(spec, model, Folder(Path(), force=True), draws_of(group)), group)
    return Replay(Job(spec, model, Sheet(group[0].out, force=True)), group)


def draws_of(group: Sequence[Copy]) -> list[Draw]:
    """Each picture at the place of a batch where it was drawn; what else was there does not matter to it."""
    placed: list[dict[int, Item]] = []
    for copy in group:
        recipe = copy.source.recipe
        free = next((places for places in placed if recipe["place"] not in places), None)
        if free is None:
            placed.append(free := {})
        free[recipe["place"]] = Item(recipe["seed"], recipe["class"], str(copy.out.absolute()))
    size = group[0].source.recipe["batch"]
    return [
        Draw([places.get(i, next(iter(places.values()))) for i in range(size)], sorted(places)) for places in placed
    ]


def version_note(sources: Sequence[Source]) -> str | None:
    """That an image was made by another version, which need not give the same bytes."""
    others = sorted({source.recipe["version"] for source in sources} - {pf.__version__})
    return f"made by pndm_fast {', '.join(others)}; this is {pf.__version__}" if others else None
