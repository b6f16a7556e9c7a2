"""What `pndm-fast tune` does: a plan fitted to a model, and a folder from which it goes on. Nothing here prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pndm_fast as pf
from pndm_fast.cli.errors import JobError, UsageError, told
from pndm_fast.cli.jobs import classes_of
from pndm_fast.cli.models import DTYPES, Model, ModelArgs, load_model
from pndm_fast.cli.outputs import check_writable
from pndm_fast.cli.plans import Words, schedule_of
from pndm_fast.loop.told import completed, told_schedule
from pndm_fast.plan.psld import PSLD


@dataclass(frozen=True)
class FitSpec:
    """The arguments of `pndm-fast tune`. Pair i has the class classes[i % len(classes)]."""

    network: ModelArgs
    nfe: int
    out: str
    words: Words = Words()
    classes: tuple[int, ...] | None = None
    guidance: float = 1.0
    seed: int = 0
    resume: bool = False
    lengths: tuple[
        tuple[str, Any], ...
    ] = ()  # of teacher, pairs, held_out, batch, iterations, minutes those that were given

    @property
    def folder(self) -> Path:
        """Where the teacher's samples and the fit's state are."""
        return Path(f"{self.out}.fit")


def fitted(spec: FitSpec, progress: bool) -> pf.TunedPlan:
    """The plan of a fit, not yet written.

    Raises:
        UsageError, TypeError, ValueError: naming the argument.
        JobError: the model failed, or the folder could not be written.
    """
    if not spec.out or Path(spec.out).is_dir():
        raise UsageError(f"--out must be a file, got {spec.out!r}")
    check_writable(Path(spec.out).parent)
    spec.words.check()
    model = load_model(spec.network)
    asked = None if spec.words.schedule is None else schedule_of(spec.words, told_schedule(model.net))
    schedule, prediction = completed(model.net, asked, spec.words.prediction)
    if isinstance(schedule, PSLD):
        raise UsageError(f"--model must be of a process without momentum, got {spec.network.name}")
    conditioning = _conditioning(spec, model)
    try:
        return pf.tune(
            model.net,
            spec.nfe,
            schedule=schedule,
            prediction=prediction,
            shape=(1, *model.shape),
            **conditioning,
            seed=spec.seed,
            folder=spec.folder,
            resume=spec.resume,
            dtype=DTYPES[spec.network.dtype],
            device=spec.network.device,
            progress=progress,
            **dict(spec.lengths),
        )
    except OSError as error:
        raise JobError(f"{spec.folder} could not be written: {told(error)}") from error
    except (TypeError, ValueError, pf.NonFiniteError):
        raise
    except Exception as error:
        raise JobError(f"the model failed: {told(error)}") from error


def _conditioning(spec: FitSpec, model: Model) -> dict[str, Any]:
    classes = classes_of(spec.classes, spec.guidance, spec.network, model)
    if not classes:
        return {}
    device = spec.network.device

    def label(i: int) -> dict[str, Any]:
        return {"class_labels": torch.tensor([classes[i % len(classes)]], device=device)}

    if spec.guidance == 1.0:
        return {"cond": label}
    none = {"class_labels": torch.tensor([model.null], device=device)}
    return {"cond": label, "uncond": none, "guidance": spec.guidance}
