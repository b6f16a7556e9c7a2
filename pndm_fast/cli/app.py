"""The commands and what they print; `plans` and `jobs` do the work.

Exit codes: 0 done, 1 the model or a write failed, 2 a mistake in the arguments, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

import pndm_fast as pf
from pndm_fast.cli import arguments as given
from pndm_fast.cli.jobs import Job, JobSpec
from pndm_fast.cli.models import DEMO, JobError, ModelArgs
from pndm_fast.cli.outputs import UsageError
from pndm_fast.cli.plans import make_plan, solver_lines, solver_rows
from pndm_fast.cli.words import find_device, parse_classes, parse_options, parse_shape
from pndm_fast.runtime.progress import progress_bar


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


@app.command()
def sample(
    model: given.Model = DEMO,
    trust: given.Trust = False,
    shape: given.Shape = None,
    solver: given.Solver = None,
    steps: given.Steps = None,
    nfe: given.Nfe = None,
    spacing: given.Spacing = None,
    prediction: given.Prediction = "eps",
    schedule: given.ScheduleName = None,
    option: given.Options = None,
    number: given.Number = 64,
    seed: given.Seed = 0,
    classes: given.Classes = None,
    guidance: given.Guidance = 1.0,
    null_class: given.NullClass = None,
    batch: given.Batch = None,
    device: given.Device = "auto",
    dtype: given.Dtype = "fp32",
    backend: given.Backend = "auto",
    graph: given.Graph = "auto",
    on_nan: given.OnNan = "raise",
    out: given.Out = "digits.png",
    force: given.Force = False,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Draw pictures from a model: pndm-fast sample --solver f-pndm --steps 50 --out digits.png"""
    words: dict[str, Any] = {"steps": steps, "nfe": nfe, "spacing": spacing, "prediction": prediction}
    made = make_plan(solver, schedule, parse_options(option or []), **words, model=model)
    if made.told and not quiet:
        typer.echo(made.told, err=True)
    place = find_device(device)
    network = ModelArgs(model, trust, parse_shape(shape), null_class, place, dtype, backend, graph)
    wanted = parse_classes(classes)
    job = Job(JobSpec(made.plan, network, out, made.recipe, force, number, seed, wanted, guidance, batch, on_nan))
    if device == "auto" and place.type == "cpu" and not quiet:
        typer.echo("no GPU found: sampling on the CPU", err=True)
    execute(job, as_json, quiet)


def execute(job: Job, as_json: bool, quiet: bool) -> None:
    """Sample with a bar, then tell."""
    spec, summary = job.spec, job.summary()
    if summary["skipped"] and not quiet:
        typer.echo(f"{summary['skipped']} of {spec.number} pictures are in {spec.out} already: skipped", err=True)
    shown = bool(job.calls) and not quiet and (not as_json or sys.stderr.isatty())
    try:
        with progress_bar(shown, spec.plan.solver, job.calls) as advance:
            job.run(advance if shown else None)
    finally:
        summary = job.summary()
        if job.unfinished and summary["images"]:
            typer.echo(f"{summary['images']} finished pictures are kept in {spec.out}", err=True)
    if as_json:
        typer.echo(json.dumps(summary))
    elif not quiet:
        print_summary(summary)
    if job.interrupted:
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
    solver: given.Named = None,
    steps: given.Steps = None,
    nfe: given.Nfe = None,
    spacing: given.Spacing = None,
    prediction: given.Prediction = "eps",
    schedule: given.ScheduleName = None,
    compat: given.Compat = None,
    option: given.Options = None,
    as_json: given.Json = False,
    save: given.Save = None,
    listed: given.Listed = False,
) -> None:
    """Print a solver's plan: one row for each network call."""
    if listed or solver is None:
        if not listed or solver is not None:
            raise UsageError("plan must be given 'solver' or --list, one of them")
        return list_solvers(as_json)
    words: dict[str, Any] = {"steps": steps, "nfe": nfe, "spacing": spacing, "prediction": prediction}
    made = make_plan(solver, schedule, parse_options(option or []), **words, compat=compat)
    if made.told and not as_json:
        typer.echo(made.told, err=True)
    if save is not None:
        try:
            made.plan.save(save)
        except OSError as error:
            raise UsageError(f"--save must be a file that can be written, got {save}: {error.strerror}") from error
    typer.echo(json.dumps(made.plan.to_json()) if as_json else str(made.plan))


@app.command()
def solvers(as_json: given.Json = False) -> None:
    """List the solvers: order, network calls for n steps, what is stored, source."""
    list_solvers(as_json)


def list_solvers(as_json: bool) -> None:
    """One line for each solver, or one JSON list."""
    typer.echo(json.dumps(solver_rows()) if as_json else "\n".join(solver_lines()))


@app.callback(invoke_without_command=True)
def about(context: typer.Context, version: given.Version = False) -> None:
    """Sampling of diffusion models: every solver is a table of rows."""
    if version:
        typer.echo(f"pndm-fast {pf.__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
