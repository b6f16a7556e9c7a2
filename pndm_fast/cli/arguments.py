"""The options of the commands: their names, types and help texts."""

from __future__ import annotations

from typing import Annotated

import typer

from pndm_fast.cli.jobs import BATCH
from pndm_fast.cli.models import DEMOS
from pndm_fast.cli.plans import SCHEDULES
from pndm_fast.plan.grids import PHASE_SPACINGS, SPACINGS

Solver = Annotated[
    str | None,
    typer.Option(help="A solver, `pndm-fast solvers` lists them; auto chooses one. Default f-pndm, on psld auto."),
]
Steps = Annotated[int | None, typer.Option(help="Time points, default 50.")]
Nfe = Annotated[int | None, typer.Option(help="Network calls, in place of --steps.")]
Spacing = Annotated[
    str | None,
    typer.Option(help=f"{', '.join(SPACINGS)}; on psld {', '.join(PHASE_SPACINGS)}; default the solver's own."),
]
Prediction = Annotated[str, typer.Option(help="What the network predicts: eps, v, x0, flow or edm.")]
ScheduleName = Annotated[
    str | None, typer.Option("--schedule", help=f"{', '.join(SCHEDULES)}; default the model's, or the solver's own.")
]
Options = Annotated[list[str] | None, typer.Option("--option", help="A solver's option, such as eta=0.5; repeatable.")]
Compat = Annotated[str | None, typer.Option(help="diffusers, for plans equal to its scheduler.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Model = Annotated[str, typer.Option(help=f"{', '.join(DEMOS)}, or package.module:factory with --trust.")]
Trust = Annotated[bool, typer.Option("--trust", help="Allow --model to import and run code.")]
Shape = Annotated[str | None, typer.Option(help="C,H,W of a model whose config does not say.")]
Number = Annotated[int, typer.Option("--number", "-n", min=1, help="Pictures.")]
Seed = Annotated[int, typer.Option(help="Picture i has seed + i.")]
Classes = Annotated[
    list[str] | None,
    typer.Option("--class", help="Labels such as 3, 1,4 or 0-9, cycled over the pictures; or none. Repeatable."),
]
Guidance = Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")]
NullClass = Annotated[int | None, typer.Option(help="The label that means none, for --guidance with your own model.")]
Batch = Annotated[
    int | None, typer.Option(min=1, help=f"Pictures at a time, default {BATCH}. It does not change them.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="Of the network: fp32, fp16 or bf16.")]
Backend = Annotated[str, typer.Option(help="auto, cpp, triton or reference.")]
Graph = Annotated[str, typer.Option(help="How a GPU is driven: auto, while, replay or eager.")]
Out = Annotated[str, typer.Option(help="A sheet .png, an array .npz, or a folder for one PNG a seed, which resumes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
OnNan = Annotated[str, typer.Option(help="raise, mark (black, or left out of a folder) or ignore.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors and warnings alone.")]
Named = Annotated[str | None, typer.Argument(help="A solver, --list shows them; or auto.")]
Save = Annotated[str | None, typer.Option(help="Write the plan to this JSON file, replacing it.")]
Listed = Annotated[bool, typer.Option("--list", help="List the solvers.")]
Version = Annotated[bool, typer.Option("--version", help="Print the version.")]
