"""The command line `pndm-fast`: arguments and printing; `jobs` does the work.

Exit codes: 0 done, 1 the model or a write failed, 2 a mistake in the arguments, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.cli.jobs import BATCH, DEMO, DEMO_PSLD, DEMOS, Job, JobError, ModelArgs, Run
from pndm_fast.cli.outputs import UsageError
from pndm_fast.cli.words import find_device, parse_classes, parse_options, parse_shape
from pndm_fast.phase_space import PSLD
from pndm_fast.plan.checks import choose
from pndm_fast.plan.grids import PHASE_SPACINGS, SPACINGS
from pndm_fast.plan.schedule import Schedule
from pndm_fast.runtime.progress import progress_bar
from pndm_fast.solvers import SOLVER_INFO, SOLVERS, source
from pndm_fast.solvers.auto import AUTO, default_solver, settle
from pndm_fast.solvers.grid import GridSpec

SCHEDULES: dict[str, Callable[[], Schedule | PSLD]] = {
    "linear": Schedule.linear,
    "scaled-linear": Schedule.scaled_linear,
    "cosine": Schedule.cosine,
    "sigmoid": Schedule.sigmoid,
    "vp": Schedule.vp,
    "edm": Schedule.edm,
    "flow": Schedule.flow,
    "psld": PSLD,
}


class Commands(TyperGroup):
    """Commands whose mistakes end in one line on stderr and an exit code, without a traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False
        try:
            with _short_warnings():
                code = super().main(*args, **extra)
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except JobError as error:
            code = _fail(1, error)
        except (UsageError, TypeError, ValueError, OverflowError) as error:
            code = _fail(2, error)
        except Exception as error:
            told = getattr(error, "format_message", None)  # typer's own, whose class has no lasting public name
            if told is None:
                raise
            code = _fail(2, told())
        sys.exit(code)


def _fail(code: int, error: object) -> int:
    typer.echo(f"error: {' '.join(str(error).split())}", err=True)
    return code


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    told: set[str] = set()

    def show(message: Warning | str, *args: Any, **extra: Any) -> None:
        if str(message) not in told:
            typer.echo(f"warning: {message}", err=True)
        told.add(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

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


@app.command()
def sample(
    model: Model = DEMO,
    trust: Trust = False,
    shape: Shape = None,
    solver: Solver = None,
    steps: Steps = None,
    nfe: Nfe = None,
    spacing: Spacing = None,
    prediction: Prediction = "eps",
    schedule: ScheduleName = None,
    option: Options = None,
    number: Number = 64,
    seed: Seed = 0,
    classes: Classes = None,
    guidance: Guidance = 1.0,
    null_class: NullClass = None,
    batch: Batch = None,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    backend: Backend = "auto",
    graph: Graph = "auto",
    on_nan: OnNan = "raise",
    out: Out = "digits.png",
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw pictures from a model: pndm-fast sample --solver f-pndm --steps 50 --out digits.png"""
    options = parse_options(option or [])
    schedule, form = find_schedule(schedule, solver, model)
    solver = solver or default_solver(form)
    if solver == AUTO:
        solver, spacing, options = settled(form, steps, nfe, spacing, options, quiet)
    plan = make_plan(solver, form, steps, nfe, spacing, prediction, None, options)
    own = form.spacing or SOLVER_INFO[solver].spacing
    recipe = {"spacing": spacing or own, "schedule": schedule, "options": options}
    place = find_device(device)
    network = ModelArgs(model, trust, parse_shape(shape), null_class, place, dtype, backend, graph)
    wanted = parse_classes(classes)
    run = Run(Job(plan, network, out, recipe, force, number, seed, wanted, guidance, batch, on_nan))
    if device == "auto" and place.type == "cpu" and not quiet:
        typer.echo("no GPU found: sampling on the CPU", err=True)
    execute(run, as_json, quiet)


def execute(run: Run, as_json: bool, quiet: bool) -> None:
    """Sample with a bar, then tell."""
    job, summary = run.job, run.summary()
    if summary["skipped"] and not quiet:
        typer.echo(f"{summary['skipped']} of {job.number} pictures are in {job.out} already: skipped", err=True)
    shown = bool(run.calls) and not quiet and (not as_json or sys.stderr.isatty())
    try:
        with progress_bar(shown, job.plan.solver, run.calls) as advance:
            run.run(advance if shown else None)
    finally:
        summary = run.summary()
        if run.unfinished and summary["images"]:
            typer.echo(f"{summary['images']} finished pictures are kept in {job.out}", err=True)
    if as_json:
        typer.echo(json.dumps(summary))
    elif not quiet:
        print_summary(summary)
    if run.interrupted:
        raise typer.Exit(130)


def print_summary(summary: dict[str, Any]) -> None:
    """A small table; a note for what did not go well."""
    table = Table(show_header=False)
    names = {"images_per_second": "images/s"}
    for name, value in summary.items():
        if name not in ("bad_seeds", "interrupted", "skipped") and value is not None:
            table.add_row(names.get(name, name), Text(f"{value:.4g}" if isinstance(value, float) else str(value)))
    Console().print(table)
    if summary["bad_seeds"]:
        seeds = ", ".join(map(str, summary["bad_seeds"]))
        typer.echo(f"the network's output was not finite for seeds {seeds}", err=True)


@app.command()
def plan(
    solver: Annotated[str | None, typer.Argument(help="A solver, --list shows them; or auto.")] = None,
    steps: Steps = None,
    nfe: Nfe = None,
    spacing: Spacing = None,
    prediction: Prediction = "eps",
    schedule: ScheduleName = None,
    compat: Annotated[str | None, typer.Option(help="diffusers, for plans equal to its scheduler.")] = None,
    option: Options = None,
    as_json: Json = False,
    save: Annotated[str | None, typer.Option(help="Write the plan to this JSON file, replacing it.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the solvers.")] = False,
) -> None:
    """Print a solver's plan: one row for each network call."""
    if listed or solver is None:
        if not listed or solver is not None:
            raise UsageError("plan must be given 'solver' or --list, one of them")
        return list_solvers(as_json)
    options = parse_options(option or [])
    _, form = find_schedule(schedule, solver)
    if solver == AUTO and compat is None:
        solver, spacing, options = settled(form, steps, nfe, spacing, options, as_json)
    made = make_plan(solver, form, steps, nfe, spacing, prediction, compat, options)
    if save is not None:
        try:
            made.save(save)
        except OSError as error:
            raise UsageError(f"--save must be a file that can be written, got {save}: {error.strerror}") from error
    typer.echo(json.dumps(made.to_json()) if as_json else str(made))


@app.command()
def solvers(as_json: Json = False) -> None:
    """List the solvers: order, network calls for n steps, what is stored, source."""
    list_solvers(as_json)


def list_solvers(as_json: bool) -> None:
    """One line for each solver, or one JSON list."""
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "order": info.order,
            "stochastic": info.stochastic,
            "min_steps": info.min_steps,
            "calls": info.formula(),
            "spacing": info.spacing,
            "stores": info.stores,
            "slots": pf.make_plan(name, steps=50).n_slots,
            "arxiv": source(name),
            "about": (SOLVERS[name].__doc__ or "").strip().split("\n")[0],
        }
        for name, info in sorted(SOLVER_INFO.items())
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    lines = [["", "", "fewest", "calls for", "", "", "", ""]]
    lines.append(["name", "order", "steps", "n steps", "spacing", "slots", "stores", "arXiv"])
    for row in rows:
        order = f"{row['order'] or '-'}{' sde' if row['stochastic'] else ''}"
        first, *others = row["arxiv"].split(", ")
        cells = (row["name"], order, *(row[k] for k in ("min_steps", "calls", "spacing", "slots", "stores")), first)
        lines.append([str(cell) for cell in cells])
        lines.extend([*[""] * (len(cells) - 1), paper] for paper in others)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:  # plain text: never cut, whatever the terminal's width
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@app.callback(invoke_without_command=True)
def about(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Sampling of diffusion models: every solver is a table of rows."""
    if version:
        typer.echo(f"pndm-fast {pf.__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def find_schedule(name: str | None, solver: str | None, model: str = "") -> tuple[str, Schedule | PSLD]:
    """The schedule of that name; or else the model's, or the one that the solver is for.

    Raises:
        ValueError: another name.
    """
    phase = model == DEMO_PSLD or (solver in SOLVER_INFO and SOLVER_INFO[str(solver)].space == "phase")
    name = choose("schedule", name or ("psld" if phase else "linear"), SCHEDULES)
    return name, demo.psld if name == "psld" and model == DEMO_PSLD else SCHEDULES[name]()


def make_plan(
    solver: str,
    schedule: Schedule | PSLD,
    steps: int | None,
    nfe: int | None,
    spacing: str | None,
    prediction: str,
    compat: str | None,
    options: dict[str, Any],
) -> pf.Plan:
    """`pf.make_plan` from words.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    words: dict[str, Any] = {"spacing": spacing, "prediction": prediction, "compat": compat}
    return pf.make_plan(solver, schedule, steps=steps, nfe=nfe, **words, **options)


def settled(
    form: Schedule | PSLD, steps: int | None, nfe: int | None, spacing: str | None, options: dict[str, Any], quiet: bool
) -> tuple[str, str | None, dict[str, Any]]:
    """Solver, spacing and options as auto chooses, which it says on stderr."""
    of_grid = {field.name for field in fields(GridSpec)}
    grid = GridSpec(steps, nfe, spacing=spacing, **{name: options[name] for name in of_grid & options.keys()})
    own = {name: value for name, value in options.items() if name not in of_grid and name != "clip"}
    solver, grid, own = settle(form, grid, own)
    given = {name: value for name, value in vars(grid).items() if value not in (None, False)}
    told = {"spacing": form.spacing or SOLVER_INFO[solver].spacing, **given, **own}
    if not quiet:
        typer.echo(f"auto: {solver} {' '.join(f'{k}={v}' for k, v in told.items())}", err=True)
    chosen = {**options, **given, **own}
    return solver, grid.spacing, {k: v for k, v in chosen.items() if k not in ("steps", "nfe", "spacing")}


def main() -> None:
    """The console entry."""
    app(prog_name="pndm-fast")
