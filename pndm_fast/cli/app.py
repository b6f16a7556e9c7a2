"""The commands and what they print; `plans`, `jobs` and `replays` do the work.

Exit codes: 0 done, 1 the model or a write failed, 2 a mistake in the arguments, 130 Ctrl-C, 141 who reads stdout is
gone, 143 SIGTERM. What needs torch is imported by the commands that need it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

import pndm_fast as pf
from pndm_fast.cli import arguments as given
from pndm_fast.cli import hints
from pndm_fast.cli.errors import JobError, UsageError
from pndm_fast.cli.plans import Words, from_file, make_plan, schedule_of, solver_lines, solver_rows
from pndm_fast.cli.signals import INTERRUPTED, TERMINATED, Terminated, orderly, word_of
from pndm_fast.cli.words import DEMO, parse_classes, parse_options, parse_shape

if TYPE_CHECKING:
    from pndm_fast.cli.jobs import Job

GONE = 128 + signal.SIGPIPE


class GoneError(Exception):
    """Who reads stdout is gone, such as head, which has seen enough: there is nobody to tell."""


class Commands(TyperGroup):
    """Commands whose mistakes end in one line on stderr and an exit code, without a traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False
        with _short_warnings():
            sys.exit(self._code(*args, **extra))

    def _code(self, *args: Any, **extra: Any) -> int:
        try:
            code = super().main(*args, **extra) or 0
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except Terminated:
            code = TERMINATED
        except GoneError:
            return GONE
        except JobError as error:
            return _fail(1, error)
        except MemoryError as error:
            return _fail(1, f"not enough memory: {error}")
        except (UsageError, TypeError, ValueError, OverflowError) as error:
            return _fail(2, error)
        except Exception as error:
            told = getattr(error, "format_message", None)  # typer's own, whose class has no lasting public name
            if told is None:
                raise
            return _fail(2, _hinted(error, told()))
        if code in (INTERRUPTED, TERMINATED):
            _fail(code, word_of(code))
        return int(code)


def _hinted(error: Exception, message: str) -> str:
    """typer's message, and what another program's word is called here."""
    option = getattr(error, "option_name", None)
    if option is None:
        return message.rstrip(".") + hints.for_word(message) if "'" in message or "(" in message else message
    context: Any = getattr(error, "ctx", None)
    known = {name for param in getattr(getattr(context, "command", None), "params", ()) for name in param.opts}
    hint = hints.for_option(str(option), getattr(context, "info_name", None) or "", known)
    return str(getattr(error, "message", message)).rstrip(".") + hint if hint else message


def _fail(code: int, error: object) -> int:
    _tell(f"error: {' '.join(str(error).split())}")
    return code


def _tell(text: str) -> None:
    """A line on stderr, where there is one."""
    with contextlib.suppress(OSError, ValueError):
        typer.echo(text, err=True)


def _say(text: str) -> None:
    """Lines on stdout, which is what the command is for.

    Raises:
        GoneError, JobError: it is closed, or full.
    """
    if sys.stdout is None:
        raise JobError("stdout must be open, got none")
    try:
        print(text, flush=True)
    except OSError as error:
        _drop_stdout()
        if isinstance(error, BrokenPipeError):
            raise GoneError from error
        raise JobError(f"stdout could not be written: {error.strerror}") from error


def _drop_stdout() -> None:
    """What is left in the buffer is for nobody; Python would try once more at its end, and fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    told: set[str] = set()

    def show(message: Warning | str, *args: Any, **extra: Any) -> None:
        if str(message) not in told:
            _tell(f"warning: {message}")
        told.add(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


app = typer.Typer(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def sample(
    model: given.Model = DEMO,
    trust: given.Trust = False,
    shape: given.Shape = None,
    solver: given.Solver = None,
    steps: given.Steps = None,
    nfe: given.Nfe = None,
    spacing: given.Spacing = None,
    prediction: given.Prediction = None,
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
    from pndm_fast.cli.jobs import Job, JobSpec, planned
    from pndm_fast.cli.models import ModelArgs, find_device
    from pndm_fast.cli.outputs import open_target

    words = from_file(Words(solver, schedule, prediction, steps, nfe, spacing, parse_options(option or [])))
    wanted, size = parse_classes(classes), parse_shape(shape)
    place = find_device(device)
    network = ModelArgs(model, trust, size, null_class, place, dtype, backend, graph)
    target = open_target(out, force)
    net, made = planned(words, network, guidance)
    if made.told and not quiet:
        _tell(made.told)
    job = Job(JobSpec(made.plan, network, made.recipe, number, seed, wanted, guidance, batch, on_nan), net, target)
    if device == "auto" and place.type == "cpu" and not quiet:
        _tell("no GPU found: sampling on the CPU")
    execute(job, as_json, quiet)
    summary = job.summary()
    if as_json:
        _say(json.dumps(summary))
    elif not quiet and sys.stdout is not None:
        _say(summary_text(summary))
    if summary["bad_seeds"] and not as_json and not quiet:
        _tell(f"the network's output was not finite for seeds {', '.join(map(str, summary['bad_seeds']))}")
    raise typer.Exit(job.code)


def execute(job: Job, as_json: bool, quiet: bool) -> None:
    """Sample, telling how far it is, and what is kept where it ends early."""
    from pndm_fast.runtime.progress import progress_bar

    summary = job.summary()
    if summary["skipped"] and not quiet:
        _tell(f"{summary['skipped']} of {job.spec.number} pictures are in {summary['out']} already: skipped")
    shown = bool(job.calls) and not quiet and (not as_json or (sys.stderr is not None and sys.stderr.isatty()))
    try:
        with orderly(), progress_bar(shown, job.plan.solver, job.calls) as advance:
            job.run(advance if shown else None)
    finally:
        if job.unfinished and job.target.written:
            _tell(f"{job.target.written} finished pictures are kept in {job.target.path}")


def summary_text(summary: dict[str, Any]) -> str:
    """What was done, a line for each fact."""
    names = {"images_per_second": "images/s"}
    told = {name: value for name, value in summary.items() if name not in ("bad_seeds", "interrupted", "skipped")}
    lines = [
        f"{names.get(name, name):<9}  {f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in told.items()
        if value is not None
    ]
    return "\n".join(lines)


@app.command()
def replay(
    image: given.Images,
    out: given.Again = None,
    trust: given.TrustRecipe = False,
    device: given.Device = "auto",
    backend: given.Backend = "auto",
    graph: given.Graph = "auto",
    force: given.Force = False,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Make images again by the recipes they carry: pndm-fast replay digits.png"""
    from pndm_fast.cli.models import ModelArgs, find_device
    from pndm_fast.cli.recipes import read_source
    from pndm_fast.cli.replays import copies_of, replays, version_note

    sources = [read_source(name) for name in image]
    copies = copies_of(sources, out, force)
    note = version_note(sources)
    if note and not quiet:
        _tell(note)
    machine = ModelArgs(trust=trust, device=find_device(device), backend=backend, graph=graph)
    told: list[dict[str, Any]] = []
    code = 0
    for one in replays(copies, machine):
        execute(one.job, as_json, quiet)
        code = one.job.code
        if code:
            break
        told += [copy.compared() for copy in one.copies if copy.out.exists()]
    if as_json:
        _say(json.dumps({"replays": told, "interrupted": code != 0}))
    elif not quiet and sys.stdout is not None:
        _say("\n".join(map(comparison_text, told)))
    raise typer.Exit(code)


def comparison_text(told: dict[str, Any]) -> str:
    """Whether an image came out as it was."""
    if told["differing"] is None:
        return f"{told['out']}: made again from {told['image']}"
    if not told["differing"]:
        return f"{told['out']}: the same pixels as {told['image']}"
    away = f"{told['differing']} of {told['bytes']} bytes differ from {told['image']}, by {told['most']} at most"
    return f"{told['out']}: {away}"


@app.command()
def plan(
    solver: given.Named = None,
    steps: given.Steps = None,
    nfe: given.Nfe = None,
    spacing: given.Spacing = None,
    prediction: given.Prediction = None,
    schedule: given.ScheduleName = None,
    compat: given.Compat = None,
    option: given.Options = None,
    as_json: given.Json = False,
    save: given.Save = None,
    listed: given.Listed = False,
) -> None:
    """Print the plan of a solver, or of a .json: one row for each network call."""
    if listed or solver is None:
        if not listed or solver is not None:
            raise UsageError("plan must be given 'solver' or --list, one of them")
        return list_solvers(as_json)
    words = from_file(Words(solver, schedule, prediction, steps, nfe, spacing, parse_options(option or []))).check()
    if words.tree is not None and compat is not None:
        raise UsageError("--compat cannot go with a plan's file")
    made = make_plan(words, schedule_of(words), compat)
    if made.told and not as_json:
        _tell(made.told)
    if save is not None:
        write_plan(made.plan, save)
    _say(json.dumps(made.plan.to_json()) if as_json else str(made.plan))


@app.command()
def tune(
    model: given.Tuned = DEMO,
    nfe: given.Calls = 5,
    out: given.PlanOut = "plan.json",
    trust: given.Trust = False,
    shape: given.Shape = None,
    prediction: given.Prediction = None,
    schedule: given.ScheduleName = None,
    classes: given.Classes = None,
    guidance: given.Guidance = 1.0,
    null_class: given.NullClass = None,
    teacher: given.Teacher = None,
    pairs: given.Pairs = None,
    held_out: given.HeldOut = None,
    batch: given.FitBatch = None,
    iterations: given.Iterations = None,
    minutes: given.Minutes = None,
    seed: given.FitSeed = 0,
    resume: given.Resume = False,
    device: given.Device = "auto",
    dtype: given.Dtype = "fp32",
    as_json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Fit a plan of few calls to a model: pndm-fast tune demo:mnist --nfe 5 --minutes 20 --out plan.json"""
    from pndm_fast.cli.fits import FitSpec, fitted
    from pndm_fast.cli.models import ModelArgs, find_device

    network = ModelArgs(model, trust, parse_shape(shape), null_class, find_device(device), dtype)
    counts = {"teacher": teacher, "pairs": pairs, "held_out": held_out, "batch": batch}
    lengths = {**counts, "iterations": iterations, "minutes": minutes}
    told = tuple((name, value) for name, value in lengths.items() if value is not None)
    words = Words(schedule=schedule, prediction=prediction)
    spec = FitSpec(network, nfe, out, words, parse_classes(classes), guidance, seed, resume, told)
    with orderly():
        try:
            plan = fitted(spec, progress=not quiet and not as_json)
        except KeyboardInterrupt:
            _tell(f"no plan yet: {spec.folder} keeps what is done, and --resume goes on from it")
            raise
    write_plan(plan, out, "--out")
    summary = {"out": out, "nfe": plan.nfe, **(plan.fitted or {})}
    if as_json:
        _say(json.dumps(summary))
    elif not quiet and sys.stdout is not None:
        _say(plan.summary())
    raise typer.Exit(INTERRUPTED if summary["interrupted"] else 0)


def write_plan(plan: pf.Plan, path: str, option: str = "--save") -> None:
    """Into a file, whole or not at all.

    Raises:
        UsageError: no such file can be made.
        JobError: it could be made, but not filled.
    """
    try:
        with orderly():
            plan.save(path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
        text = f"{option} must be a file that can be written, got {path!r}: {error.strerror}"
        raise JobError(text) if full else UsageError(text) from error


@app.command()
def solvers(as_json: given.Json = False) -> None:
    """List the solvers: order, network calls for n steps, what is stored, source."""
    list_solvers(as_json)


def list_solvers(as_json: bool) -> None:
    """One line for each solver, or one JSON list."""
    _say(json.dumps(solver_rows()) if as_json else "\n".join(solver_lines()))


@app.callback(invoke_without_command=True)
def about(context: typer.Context, version: given.Version = False) -> None:
    """Sampling of diffusion models: every solver is a table of rows."""
    if version:
        _say(f"pndm-fast {pf.__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        _say(context.get_help())
