"""What the commands do: check everything, sample in batches, keep what is finished. Nothing here prints."""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.cli import images
from pndm_fast.cli.images import Bytes
from pndm_fast.cli.outputs import Item, UsageError, open_target
from pndm_fast.loop.checks import check_choice, check_components, check_start
from pndm_fast.loop.network import config_shape
from pndm_fast.loop.request import ON_NAN
from pndm_fast.phase_space import position
from pndm_fast.plan.checks import choose
from pndm_fast.plan.plan import Plan
from pndm_fast.row.backends import choose_backend

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DEMO, DEMO_PSLD = "demo:mnist", "demo:psld"
DEMOS = {DEMO: demo.mnist_unet, DEMO_PSLD: demo.mnist_psld_unet}
BATCH = 64


class JobError(Exception):
    """The model failed, or a file could not be written."""


@dataclass(frozen=True)
class ModelArgs:
    """Which network, and how to run it."""

    name: str = DEMO
    trust: bool = False
    shape: tuple[int, ...] | None = None
    null_class: int | None = None
    device: torch.device = torch.device("cpu")
    dtype: str = "fp32"
    backend: str = "auto"
    graph: str = "auto"


@dataclass(frozen=True)
class Job:
    """The arguments of `pndm-fast sample`. Image i has seed + i and class classes[i % len(classes)].

    Attributes:
        recipe: what the plan was made from, for the files.
        classes: empty is without condition, None the model's default.
        out: a .png contact sheet, a .npz, or a folder for one PNG a seed.
    """

    plan: Plan
    network: ModelArgs
    out: str
    recipe: dict[str, Any] = field(default_factory=dict)
    force: bool = False
    number: int = 64
    seed: int = 0
    classes: tuple[int, ...] | None = None
    guidance: float = 1.0
    batch: int | None = None
    on_nan: str = "raise"


@dataclass(frozen=True)
class Model:
    """A network and what it takes.

    Attributes:
        shape: of one sample.
        classes: labels are 0 ... classes - 1; None where that is not known.
        null: the label that means none, for guidance.
        default: the classes where none are asked for.
    """

    net: Callable[..., Any]
    shape: tuple[int, ...]
    classes: int | None = None
    null: int | None = None
    default: tuple[int, ...] = ()


def load_model(args: ModelArgs) -> Model:
    """The network, on its device and in its dtype.

    Raises:
        UsageError: no such model, or one that may not be imported.
        JobError: its factory failed.
    """
    dtype = DTYPES[args.dtype]
    if args.name in DEMOS:
        if args.shape is not None or args.null_class is not None:
            raise UsageError(f"--shape and --null-class must not be given for {args.name}, which has its own")
        unet, none = DEMOS[args.name](dtype, args.device), demo.null_class  # labels: the digits, then "none"
        shape = unet.config.in_channels, unet.config.sample_size, unet.config.sample_size
        return Model(unet, shape, none, none, tuple(range(none)))
    module, _, factory = args.name.partition(":")
    if module == "demo" or not all(part.isidentifier() for part in (*module.split("."), factory)):
        raise UsageError(f"--model must be {', '.join(DEMOS)} or package.module:factory, got {args.name!r}")
    if not args.trust:
        raise UsageError(f"--model {args.name} runs that module's code: it must be allowed by --trust")
    net = _made(args.name, module, factory)
    if isinstance(net, nn.Module):
        net = net.to(device=args.device, dtype=dtype).eval().requires_grad_(False)
    found = args.shape or config_shape(net)
    if found is None:
        raise UsageError(f"--shape must be given for {args.name}: its config has no in_channels and sample_size")
    config = getattr(net, "config", None)
    embeds = (
        config.get("num_class_embeds") if isinstance(config, Mapping) else getattr(config, "num_class_embeds", None)
    )
    return Model(net, found, embeds if isinstance(embeds, int) else None, args.null_class)


def _made(name: str, module: str, factory: str) -> Callable[..., Any]:
    sys.path.append(os.getcwd())  # a console script does not look there; last, so that it hides no installed package
    try:
        make = getattr(importlib.import_module(module), factory)
    except Exception as error:
        raise UsageError(f"--model {name} must be importable: {_told(error)}") from error
    if not callable(make):
        raise UsageError(f"--model {name} must be a factory, got {type(make).__name__}")
    try:
        net: Callable[..., Any] = make()
    except Exception as error:
        raise JobError(f"the factory of --model {name} failed: {_told(error)}") from error
    if not callable(net):
        raise UsageError(f"--model {name} must make something callable as model(x, t), got {type(net).__name__}")
    return net


def _told(error: Exception) -> str:
    """An exception in one line, with the place that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"


class Run:
    """A job, checked: nothing but the network can fail from here on.

    Raises:
        UsageError, TypeError, ValueError: naming the argument.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.plan, network = job, job.plan, job.network
        _check_numbers(job)
        check_start(job.plan, False)
        choose("dtype", network.dtype, DTYPES)
        self.backend = choose_backend(network.backend, network.device, torch.float32).name
        self.target = open_target(job.out, recipe_of(job), job.force)
        self.model = load_model(network)
        check_components(job.plan, (1, *self.model.shape))
        images.to_uint8(self._pictures(torch.zeros(1, *self.model.shape)))  # raises where samples are no pictures
        classes = _classes(job, self.model)
        items = [Item(job.seed + i, classes[i % len(classes)] if classes else None) for i in range(job.number)]
        self.todo = self.target.missing(items)
        self.batch = min(BATCH if job.batch is None else job.batch, job.number)
        self.sampler = pf.Sampler(
            self.model.net,
            self.plan,
            shape=(self.batch, *self.model.shape),
            device=network.device,
            dtype=DTYPES[network.dtype],
            backend=network.backend,
            graph=network.graph,
        )
        self.seconds, self.unfinished, self.interrupted = 0.0, True, False
        self.bad_seeds: list[int] = []
        self.graph: str | None = None

    @property
    def calls(self) -> int:
        """Network calls, one batch after another."""
        return self.plan.nfe * -(-len(self.todo) // self.batch)

    def run(self, advance: Callable[[], None] | None = None) -> None:
        """Sample and write. Ctrl-C ends it early; what is finished is kept in any case.

        Raises:
            JobError: the network failed, or a file could not be written.
        """
        try:
            for start in range(0, len(self.todo), self.batch):
                items = self.todo[start : start + self.batch]
                pictures, bad = self._sample(items, advance)
                self.bad_seeds += [items[i].seed for i in sorted(bad)]
                self._write(self.target.add, items, pictures, bad)
            self.unfinished = False
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self._write(self.target.close)

    def _write(self, work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except Exception as error:
            raise JobError(f"{self.job.out} could not be written: {_told(error)}") from error

    def _sample(self, items: list[Item], advance: Callable[[], None] | None) -> tuple[Bytes, frozenset[int]]:
        cond, uncond = self._conditioning(items)
        on_step = None if advance is None else lambda step: advance()
        began = time.perf_counter()
        try:
            result = self.sampler.run(
                pf.Request(
                    seeds=[item.seed for item in items],
                    cond=cond,
                    uncond=uncond,
                    guidance=None if uncond is None else self.job.guidance,
                    on_step=on_step,
                    on_nan=self.job.on_nan,
                )
            )
            samples, self.graph = result.samples.cpu(), result.report.graph
        except pf.NonFiniteError as error:
            first = error.bad[0]
            where = f"seed {items[first.sample].seed} at row {first.row}, t = {first.t:g}"
            raise JobError(f"the network's output was not finite: {where} ({len(error.bad)} in its batch)") from error
        except Exception as error:
            raise JobError(f"the model failed: {_told(error)}") from error
        self.seconds += time.perf_counter() - began
        bad = frozenset(b.sample for b in result.bad)
        return images.to_uint8(self._pictures(samples).nan_to_num(nan=-1.0)), bad

    def _pictures(self, samples: torch.Tensor) -> torch.Tensor:
        """What of the samples is the data."""
        return position(samples) if self.plan.components > 1 else samples

    def _conditioning(self, items: list[Item]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        if items[0].label is None:
            return None, None
        labels = torch.tensor([item.label for item in items], device=self.sampler.device)
        if self.job.guidance == 1.0:
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
            "skipped": self.job.number - len(self.todo),
            "seconds": round(self.seconds, 4),
            "images_per_second": round(made / self.seconds, 3) if self.seconds else None,
            "device": str(self.sampler.device),
            "dtype": self.job.network.dtype,
            "backend": self.backend,
            "graph": self.graph,
            "seed": self.job.seed,
            "guidance": self.job.guidance,
            "out": self.job.out,
            "bad_seeds": self.bad_seeds,
            "interrupted": self.interrupted,
        }


def recipe_of(job: Job) -> dict[str, Any]:
    """What makes a picture what it is, but for class and seed. Batch, device and backend are no part of it."""
    plan, network = job.plan, job.network
    numbers = {"solver": plan.solver, "steps": plan.steps, "nfe": plan.nfe, "prediction": plan.prediction}
    model = {"version": pf.__version__, "model": network.name, "dtype": network.dtype}
    given = {"shape": network.shape and list(network.shape), "null_class": network.null_class}
    own = {name: value for name, value in given.items() if value is not None}
    return {**model, **own, **numbers, **job.recipe, "guidance": job.guidance}


def _check_numbers(job: Job) -> None:
    if not 0 <= job.seed <= 2**64 - job.number:
        raise UsageError(f"--seed must be at least 0, and seed + number at most 2^64, got {job.seed}")
    pf.Guidance(job.guidance)
    check_choice("on_nan", job.on_nan, ON_NAN)


def _classes(job: Job, model: Model) -> tuple[int, ...]:
    classes = model.default if job.classes is None else job.classes
    for label in classes:
        if model.classes is not None and not label < model.classes:
            raise UsageError(f"--class must be in [0, {model.classes - 1}] for {job.network.name}, got {label}")
    if job.guidance != 1.0 and not classes:
        raise UsageError(f"--guidance must be 1 without a class, got {job.guidance:g}")
    if job.guidance != 1.0 and model.null is None:
        raise UsageError(f"--null-class must be given for --guidance {job.guidance:g} with {job.network.name}")
    return classes
