"""The options of the commands: their names, types, help texts and completion."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pndm_fast.cli import complete
from pndm_fast.cli.plans import SCHEDULES
from pndm_fast.cli.words import BACKENDS, BATCH, DEMOS, DTYPES, GRAPHS, MOST, ON_NAN
from pndm_fast.plan.grids import PHASE_SPACINGS, SPACINGS
from pndm_fast.plan.named_grids import OTHER_SPACINGS
from pndm_fast.plan.row import PREDICTIONS
from pndm_fast.solvers.compat import COMPAT


def _option(*names: str, help: str, among: tuple[str, ...] = (), **more: Any) -> Any:
    """An option with a help text, and with words to complete it by."""
    return typer.Option(*names, help=help, autocompletion=complete.among(among) if among else None, **more)


Solver = Annotated[
    str | None,
    typer.Option(
        help="A solver, `pndm-fast solvers` lists them; auto; or a plan's .json. Default f-pndm, on psld auto.",
        autocompletion=complete.solver,
    ),
]
Steps = Annotated[int | None, _option(help="Time points, default 50. A solver's calls may be more: see --nfe.")]
Nfe = Annotated[int | None, _option(help="Network calls, in place of --steps.")]
Spacing = Annotated[
    str | None,
    _option(
        help=f"{', '.join((*SPACINGS, *OTHER_SPACINGS))}; "
        f"on psld {', '.join(PHASE_SPACINGS)}; default the solver's own.",
        among=tuple(dict.fromkeys((*SPACINGS, *OTHER_SPACINGS, *PHASE_SPACINGS))),
    ),
]
Prediction = Annotated[
    str | None,
    _option(help=f"What the network predicts: {', '.join(PREDICTIONS)}; default the model's.", among=PREDICTIONS),
]
ScheduleName = Annotated[
    str | None,
    _option(
        "--schedule",
        help=f"{', '.join(SCHEDULES)}; default the model's, or the solver's own.",
        among=tuple(SCHEDULES),
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="A solver's option, such as eta=0.5; repeatable.", autocompletion=complete.option),
]
Compat = Annotated[str | None, _option(help="diffusers, for plans equal to its scheduler.", among=tuple(COMPAT))]
Json = Annotated[bool, _option("--json", help="Print one JSON object on stdout.")]
Model = Annotated[
    str, _option("--model", help=f"{', '.join(DEMOS)}, or package.module:factory with --trust.", among=DEMOS)
]
Trust = Annotated[bool, _option("--trust", help="Allow --model to import and run code.")]
TrustRecipe = Annotated[bool, _option("--trust", help="Allow an image's model to import and run code.")]
Shape = Annotated[str | None, _option(help="C,H,W of a model whose config does not say.")]
Number = Annotated[int, _option("--number", "-n", min=1, max=MOST, help="Pictures.")]
Seed = Annotated[int, _option(help="Picture i has seed + i.")]
Classes = Annotated[
    list[str] | None,
    _option("--class", help="Labels such as 3, 1,4 or 0-9, cycled over the pictures; or none. Repeatable."),
]
Guidance = Annotated[float, _option(help="Scale of classifier-free guidance; 1 is none.")]
NullClass = Annotated[int | None, _option(help="The label that means none, for --guidance with your own model.")]
Batch = Annotated[
    int | None,
    _option(min=1, help=f"Pictures at a time, default {BATCH}. A network may round differently in another."),
]
Device = Annotated[str, _option(help="auto, cpu, cuda or cuda:N.", among=("auto", "cpu", "cuda"))]
Dtype = Annotated[str, _option(help=f"Of the network: {', '.join(DTYPES)}.", among=DTYPES)]
Backend = Annotated[str, _option(help=f"{', '.join(BACKENDS)}.", among=BACKENDS)]
Graph = Annotated[str, _option(help=f"How a GPU is driven: {', '.join(GRAPHS)}.", among=GRAPHS)]
Out = Annotated[str, _option(help="A sheet .png, an array .npz, or a folder for one PNG a seed, which resumes.")]
Force = Annotated[bool, _option("--force", help="Replace what is there.")]
OnNan = Annotated[str, _option(help="raise, mark (black, or left out of a folder) or ignore.", among=ON_NAN)]
Quiet = Annotated[bool, _option("--quiet", help="Print errors and warnings alone.")]
Tuned = Annotated[
    str,
    typer.Argument(
        help=f"{', '.join(DEMOS[:1])}, or package.module:factory with --trust.",
        autocompletion=complete.among(DEMOS[:1]),
    ),
]
Calls = Annotated[int, _option("--nfe", help="Network calls of the plan, 2 to 10.")]
PlanOut = Annotated[str, _option("--out", help="The plan's file; OUT.fit beside it keeps what a fit goes on from.")]
Pairs = Annotated[int | None, _option(min=2, help="Noises that the fit learns from, default 1024.")]
Teacher = Annotated[int | None, _option(help="Calls of the plan that is to be matched, default 60.")]
HeldOut = Annotated[int | None, _option(min=2, help="Noises that the plan is judged by, default 256.")]
FitBatch = Annotated[int | None, _option("--batch", min=1, help="Pairs at a time, default 24.")]
Iterations = Annotated[int | None, _option(min=1, help="Length of the fit, default 800.")]
Minutes = Annotated[float | None, _option(help="Length of the fit in place of --iterations; the teacher comes before.")]
FitSeed = Annotated[int, _option("--seed", help="Pair i has the noise of seed + i.")]
Resume = Annotated[
    bool, _option("--resume", help="Go on from OUT.fit; without it only the teacher's samples are kept.")
]
Named = Annotated[
    str | None, typer.Argument(help="A solver, --list shows them; or auto.", autocompletion=complete.solver)
]
Save = Annotated[str | None, _option(help="Write the plan to this JSON file, replacing it.")]
Listed = Annotated[bool, _option("--list", help="List the solvers.")]
Version = Annotated[bool, _option("--version", help="Print the version.")]
Images = Annotated[list[str], typer.Argument(help="PNG or NPZ files that `pndm-fast sample` has written.")]
Again = Annotated[
    str | None, _option("--out", help="A file, or a folder for several; default NAME-replay beside each image.")
]
