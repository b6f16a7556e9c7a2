"""What `pndm-fast sample` does: check everything, sample in batches, keep what is finished. Nothing here prints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import pndm_fast as pf
from pndm_fast.cli import images
from pndm_fast.cli.errors import JobError, UsageError, told
from pndm_fast.cli.images import Bytes
from pndm_fast.cli.models import DTYPES, Model, ModelArgs, load_model
from pndm_fast.cli.outputs import Draw, Folder, Item, Sheet
from pndm_fast.cli.plans import NamedPlan, Words, make_plan, schedule_of
from pndm_fast.cli.recipes import FORMAT
from pndm_fast.cli.signals import INTERRUPTED, TERMINATED, Terminated
from pndm_fast.cli.words import BATCH
from pndm_fast.loop.checks import check_components, check_start
from pndm_fast.loop.request import ON_NAN
from pndm_fast.loop.told import check_told, completed, told_plan, told_schedule
from pndm_fast.phase_space import position
from pndm_fast.plan.checks import choose, shown
from pndm_fast.plan.plan import Plan
from pndm_fast.row.backends import choose_backend


@dataclass(frozen=True)
class JobSpec:
    """The arguments of `pndm-fast sample`. Image i has seed + i and class classes[i % len(classes)].

    Attributes:
        recipe: what the plan was made from, for the files.
        classes: empty is without condition, None the model's default.
    """

    plan: Plan
    network: ModelArgs
    recipe: dict[str, Any] = field(default_factory=dict)
    number: int = 64
    seed: int = 0
    classes: tuple[int, ...] | None = None
    guidance: float = 1.0
    batch: int | None = None
    on_nan: str = "raise"


class Job:
    """A job's spec, checked: nothing but the network can fail from here on.

    Raises:
        UsageError, TypeError, ValueError: naming the argument.
    """

    def __init__(self, spec: JobSpec, model: Model, target: Folder | Sheet, draws: list[Draw] | None = None) -> None:
        self.spec, self.plan, self.model, self.target, network = spec, spec.plan, model, target, spec.network
        _check_numbers(spec)
        check_start(spec.plan, False)
        self.backend = choose_backend(network.backend, network.device, torch.float32).name
        target.recipe = recipe_of(spec)
        check_components(spec.plan, (1, *self.model.shape))
        check_told(spec.plan, [self.model.net])
        images.to_uint8(self._pictures(torch.zeros(1, *self.model.shape)))  # raises where samples are no pictures
        classes = classes_of(spec.classes, spec.guidance, network, self.model)
        self.draws = self._draws(classes) if draws is None else draws
        self.batch = max((len(draw.items) for draw in self.draws), default=1)
        self.sampler = pf.Sampler(
            self.model.net,
            self.plan,
            shape=(self.batch, *self.model.shape),
            device=network.device,
            dtype=DTYPES[network.dtype],
            backend=network.backend,
            graph=network.graph,
        )
        self.seconds, self.unfinished, self.code = 0.0, True, 0  # code: of the signal that ended it
        self.bad_seeds: list[int] = []
        self.graph: str | None = None  # how the last batch was driven

    @property
    def calls(self) -> int:
        """Network calls, one batch after another."""
        return self.plan.nfe * len(self.draws)

    @property
    def wanted(self) -> int:
        """Pictures to make."""
        return sum(len(draw.kept) for draw in self.draws)

    def _draws(self, classes: tuple[int, ...]) -> list[Draw]:
        """The batches of all pictures in which one is missing: what is resumed has the bytes of an unbroken run."""
        spec = self.spec
        items = [Item(spec.seed + i, classes[i % len(classes)] if classes else None) for i in range(spec.number)]
        todo = set(self.target.missing(items))
        size = min(BATCH if spec.batch is None else spec.batch, spec.number)
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        draws = [Draw(part, [i for i, item in enumerate(part) if item in todo]) for part in parts]
        return [draw for draw in draws if draw.kept]

    def run(self, advance: Callable[[], None] | None = None) -> None:
        """Sample and write. Ctrl-C and SIGTERM end it early; what is finished is kept in any case.

        Raises:
            JobError: the network failed, or a file could not be written.
        """
        try:
            for draw in self.draws:
                pictures, bad = self._sample(draw.items, advance)
                self.bad_seeds += [draw.items[i].seed for i in sorted(bad & {*draw.kept})]
                self._write(self.target.add, draw, pictures, bad)
            self.unfinished = False
        except KeyboardInterrupt:
            self.code = INTERRUPTED
        except Terminated:
            self.code = TERMINATED
        finally:
            self._write(self.target.close)

    def _write(self, work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except Exception as error:
            raise JobError(f"{self.target.path} could not be written: {told(error)}") from error

    def _sample(self, items: Sequence[Item], advance: Callable[[], None] | None) -> tuple[Bytes, frozenset[int]]:
        cond, uncond = self._conditioning(items)
        on_step = None if advance is None else lambda step: advance()
        began = time.perf_counter()
        try:
            result = self.sampler.run(
                pf.Request(
                    seeds=[item.seed for item in items],
                    cond=cond,
                    uncond=uncond,
                    guidance=None if uncond is None or _scales(self.plan) else self.spec.guidance,
                    on_step=on_step,
                    on_nan=self.spec.on_nan,
                )
            )
            samples, self.graph = result.samples.cpu(), result.report.graph
        except pf.NonFiniteError as error:
            first = error.bad[0]
            where = f"seed {items[first.sample].seed} at row {first.row}, t = {first.t:g}"
            raise JobError(f"the network's output was not finite: {where} ({len(error.bad)} in its batch)") from error
        except Exception as error:
            raise JobError(f"the model failed: {told(error)}") from error
        self.seconds += time.perf_counter() - began
        bad = frozenset(one.sample for one in result.bad)
        return images.to_uint8(self._pictures(samples).nan_to_num(nan=-1.0)), bad

    def _pictures(self, samples: torch.Tensor) -> torch.Tensor:
        """What of the samples is the data."""
        return position(samples) if self.plan.components > 1 else samples

    def _conditioning(self, items: Sequence[Item]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        if items[0].label is None:
            return None, None
        labels = torch.tensor([item.label for item in items], device=self.sampler.device)
        if self.spec.guidance == 1.0:
            return {"class_labels": labels}, None
        assert self.model.null is not None
        return {"class_labels": labels}, {"class_labels": torch.full_like(labels, self.model.null)}

    def summary(self) -> dict[str, Any]:
        """What was done, for a table or for JSON."""
        made = self.target.written
        return {
            "solver": self.plan.solver,
            "nfe": self.plan.nfe,
            "steps": self.plan.steps,
            "images": made,
            "skipped": self.spec.number - self.wanted,
            "seconds": round(self.seconds, 4),
            "images_per_second": round(made / self.seconds, 3) if self.seconds else None,
            "device": str(self.sampler.device),
            "dtype": self.spec.network.dtype,
            "backend": self.backend,
            "graph": self.graph,
            "seed": self.spec.seed,
            "guidance": self.spec.guidance,
            "out": str(self.target.path),
            "bad_seeds": self.bad_seeds,
            "interrupted": self.code != 0,
        }


def planned(words: Words, network: ModelArgs, guidance: float = 1.0) -> tuple[Model, NamedPlan]:
    """The network, and a plan that fits what it says of itself; for auto one that was fitted to it, where it has one.

    Raises:
        UsageError, JobError: the network cannot be loaded.
        TypeError, ValueError: naming the argument of the plan.
    """
    words.check()
    model = load_model(network)
    asked = None if words.schedule is None else schedule_of(words, told_schedule(model.net))
    schedule, prediction = completed(model.net, asked, words.prediction)
    if words.free:
        own = told_plan(model.net, words.steps if words.nfe is None else words.nfe, guidance, schedule, prediction)
        if own is not None:
            line = f"auto: the model's own plan of {own.nfe} calls, {own.solver}"
            return model, NamedPlan(own, {"plan": json.loads(json.dumps(own.to_json()))}, line)
    schedule = schedule_of(words) if schedule is None else schedule
    return model, make_plan(words._replace(prediction=prediction), schedule)


def recipe_of(spec: JobSpec) -> dict[str, Any]:
    """What makes a picture what it is, but for class, seed and batch. Device and backend are no part of it."""
    plan, network = spec.plan, spec.network
    numbers = {"solver": plan.solver, "steps": plan.steps, "nfe": plan.nfe, "prediction": plan.prediction}
    model = {"format": FORMAT, "version": pf.__version__, "model": network.name, "dtype": network.dtype}
    given: dict[str, Any] = {"shape": network.shape and list(network.shape), "null_class": network.null_class}
    given["on_nan"] = None if spec.on_nan == "raise" else spec.on_nan  # what is marked is black
    own = {name: value for name, value in given.items() if value is not None}
    return {**model, **own, **numbers, **spec.recipe, "guidance": spec.guidance}


def _scales(plan: Plan) -> set[float]:
    """Those of its rows that are guided already, as a file's may be."""
    return {row.guidance / row.guidance_factor for row in plan if row.guidance != row.guidance_factor}


def _check_numbers(spec: JobSpec) -> None:
    if not 0 <= spec.seed <= 2**64 - spec.number:
        raise UsageError(f"--seed must be at least 0, and seed + number at most 2^64, got {spec.seed}")
    pf.Guidance(spec.guidance)
    own = _scales(spec.plan)
    if not all(math.isclose(scale, spec.guidance, rel_tol=1e-12) for scale in own):
        raise UsageError(f"--guidance must be the plan's own, {shown(sorted(own))}, got {spec.guidance:g}")
    choose("on_nan", spec.on_nan, ON_NAN)


def classes_of(asked: tuple[int, ...] | None, guidance: float, network: ModelArgs, model: Model) -> tuple[int, ...]:
    """The labels that are asked for, or the model's own.

    Raises:
        UsageError: the model has no such label, or guidance has none to leave out.
    """
    classes = model.default if asked is None else asked
    for label in classes:
        if model.classes is not None and not label < model.classes:
            raise UsageError(f"--class must be in [0, {model.classes - 1}] for {network.name}, got {label}")
    if guidance != 1.0 and not classes:
        raise UsageError(f"--guidance must be 1 without a class, got {guidance:g}")
    if guidance != 1.0 and model.null is None:
        raise UsageError(f"--null-class must be given for --guidance {guidance:g} with {network.name}")
    return classes
