"""What a user can get wrong: each is refused by name, with what was got, before the first network call.

`golden/errors.txt` has an input a line and below it, indented, what it is answered; "..." stands for anything. A new
line needs no answer: `python tests/test_error_table.py` writes all of them, to be read in review. Each refusal in the
package is reached by a line, or is listed in `UNREACHED` with the reason.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import math  # noqa: F401  # inputs name what is not used here
import re
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np  # noqa: F401
import pytest
import torch
from drawing import REQUEST, SAMPLER, draw
from rowcase import clone, random_case

import pndm_fast as pf
from pndm_fast.phase_space import PSLD, MomentumOnly, Preconditioning, position  # noqa: F401

FILE = Path(__file__).parent / "golden" / "errors.txt"
PACKAGE = Path(pf.__file__).parent

# what the inputs are made of
S, ZERO, VP, EDM, FLOW, PHASE = (
    pf.Schedule.linear(),
    pf.Schedule.linear().zero_terminal_snr(),
    pf.Schedule.vp(),
    pf.Schedule.edm(),
    pf.Schedule.flow(),
    PSLD(),
)
PLAN = pf.make_plan("ddim", steps=5)
FRACTIONAL = PLAN.with_times(lambda t: t + 0.5)
SHAPE = (2, 8)
X = torch.zeros(SHAPE)
TREE = PLAN.to_json()
ANCHORED = list(pf.make_plan("f-pndm", steps=5).rows)
ANCHORED[1] = dataclasses.replace(ANCHORED[1], levels=ANCHORED[1].levels._replace(x=ANCHORED[1].levels.y))
KEEPING = pf.Plan([dataclasses.replace(one, second=7) for one in PLAN.rows])
CASE = random_case(1, 3, 48)

# arguments that the short form does not have
LONG = SAMPLER | REQUEST | inspect.signature(pf.make_plan).parameters.keys()
LONG -= inspect.signature(pf.sample).parameters.keys()


def network(x, t, **cond):
    raise AssertionError("the network was called")


def sample(**arguments):
    """`pf.sample`, or the three that it stands for where it lacks an argument."""
    call = draw if arguments.keys() & LONG else pf.sample
    call(network, **{"steps": 5, "shape": SHAPE, "solver": "ddim", **arguments})


def make(*positional, **arguments):
    """`pf.make_plan` with 5 steps where nothing says how many."""
    told = arguments.keys() & {"times", "sigmas", "nfe"}
    return pf.make_plan(*positional, **(arguments if told else {"steps": 5, **arguments}))


def like(kind, steps=5, plan=None, **arguments):
    """`pf.plan_like` of a configuration: the class's options, `plan_like`'s own arguments, what our scheduler saves."""
    own = arguments.keys() & inspect.signature(pf.plan_like).parameters.keys()
    config = {"_class_name": kind, "_plan": plan} | {k: v for k, v in arguments.items() if k not in own}
    return pf.plan_like(config, steps=steps, **{k: arguments[k] for k in own})


def sampler(plan=PLAN, **options):
    return pf.Sampler(network, plan, **{"shape": SHAPE, **options})


def engine(plan=PLAN, **options):
    return pf.Engine(options.pop("model", network), plan, **{"shape": SHAPE, **options})


def worker(asked=(), bound=None, told=None, wrong=None, **options):
    made = engine(max_queue=bound)
    made.on_begin = told
    for request in asked:
        made.add(request)
    return pf.Worker(wrong or made, **options).close()


def submit(request=pf.Request(), **words):  # noqa: B008
    with pf.Worker(engine()) as made:
        return made.submit(request, **words)


def answering(value):
    """A call of a network that gives that."""
    return pf.Sampler(lambda x, t: value, PLAN, shape=SHAPE)()


class Held(torch.nn.Module):
    """A network whose weights have those dtypes."""

    def __init__(self, dtypes, device):
        super().__init__()
        self.held = torch.nn.ParameterList(torch.zeros(2, 2, device=device).to(one) for one in dtypes)
        self.eval().requires_grad_(False)

    def forward(self, x, t):
        return network(x, t)


def stored(*dtypes, device="cpu"):
    return Held(dtypes, device)


def saying(**facts):
    """A network that says of itself what it is."""
    made = stored(torch.float32)
    for name, fact in facts.items():
        setattr(made, name, fact)
    return made


def unreadable(name):
    """A network with a property of that name, which fails."""
    made = stored(torch.float32)
    made.__class__ = type("Unreadable", (type(made),), {name: property(lambda self: 1 / 0)})
    return made


def row(**changes):
    return pf.Row(**{"t": 1.0, "slot": 0, "y": PLAN.rows[0].y, "levels": PLAN.rows[0].levels, **changes})


def changed(field, value):
    """The tree of a plan whose first row has another value there."""
    return TREE | {"rows": [TREE["rows"][0] | {field: value}, *TREE["rows"][1:]]}


def loaded(text):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(text)
        pf.Plan.load(path)


def apply_row(table=CASE.table, out=CASE.calls[0][0], uncond=None, z=None, **registers):
    pf.ops.apply_row(dataclasses.replace(clone(CASE.registers), **registers), table, out, uncond, z)


class Exit(Exception):
    """The command line's exit code and what it said."""


def cli(*words):
    from typer.testing import CliRunner

    from pndm_fast.cli import app

    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        done = CliRunner().invoke(app.app, list(words))
        assert not done.stdout and not list(Path().iterdir()), "it did something"
    raise Exit(f"{done.exit_code}: {done.stderr}")


def read():
    """(input, answer) for each input of the file."""
    found = []
    for line in FILE.read_text().splitlines():
        if line.startswith("    "):
            found[-1] = (found[-1][0], line.strip())
        elif line and not line.startswith("#"):
            found.append((line, ""))
    return found


@functools.cache
def outcome(text):
    """The exception that an input ends in, and where it and those behind it were raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is refused may be warned of first
        try:
            eval(text, globals())
        except Exception as error:
            raised, at = error, []
            while raised is not None:
                step = raised.__traceback__
                while step.tb_next is not None:
                    step = step.tb_next
                at.append((step.tb_frame.f_code.co_filename, step.tb_lineno))
                raised = raised.__cause__ or raised.__context__
            return type(error).__name__, " ".join(str(error).split()), tuple(at)
    return "nothing", "it was taken", ()


def answer(text):
    kind, message, _ = outcome(text)
    return f"{kind}: {message}"


def agree(got, wanted):
    return re.fullmatch(".*".join(map(re.escape, wanted.split("..."))), got) is not None


TABLE = read()


@pytest.mark.parametrize("text, wanted", TABLE, ids=[text[:60] for text, _ in TABLE])
def test_refused(text, wanted):
    got = answer(text)
    assert agree(got, wanted), f"{text}\n    {got}"


def test_there_are_many():
    assert len(TABLE) >= 400 and len({text for text, _ in TABLE}) == len(TABLE)


# how a refusal may read, and where else than in the first form
FORMS = {
    r" must .*, got ": "<what> must be <rule>, got <value>",
    r" must (be given|come with|have uncond)\b": "something is missing: nothing was got",
    r" exclude (one another|each other)\b": "two arguments that say the same",
    r" cannot go with ": "two arguments that contradict each other",
    r" cannot be had(: |$)": "what was asked for by name, with the reason",
    r" is (an argument|an option|no argument) ": "an argument of something else: of what, or what it is called here",
    r" is neither an argument nor an option of ": "an unknown word, beside those that there are",
    r"^row \d+: (reads|is called|leaves) ": "rows that do not fit together, which are many numbers",
    r"^the (grid starts pure noise|plan calls network) ": "a plan that does not fit what it is used with",
    r" gives no (eps|flow) where ": "an output that says nothing of what is asked",
    r" is not JSON: |^a plan file must ": "a file, which is no value",
    r"^plan must be of one part|^schedule must be PSLD|^jitter must |^calls must be separate": "what was got is a plan",
    r"^--\S+ .* (must be allowed|must not be given|must be importable)": "the command line's: what was got comes first",
    r"^a call's arguments are given by name": "a value without a name",
    r"^(un)?cond\b.* must not (have the key|be nested)": "what must not be there is named: no value is at fault",
    r"^\[Errno \d+\] ": "the system's words about a file",
}


def test_refusals_have_few_forms():
    used = set()
    for text, _ in TABLE:
        kind, message, _ = outcome(text)
        assert kind in ("TypeError", "ValueError", "FileNotFoundError", "Exit"), f"{text}: {kind}: {message}"
        message = re.sub(r"^\d: (error: )?", "", message)
        form = next((form for form in FORMS if re.search(form, message)), None)
        assert form is not None, f"{text}: {message}"
        used.add(form)
        assert len(message) < 1200 and "object at 0x" not in message, f"{text}: {message}"
    assert used == set(FORMS)


ROOMS = ("plan", "solvers", "row", "loop", "runtime", "engine")


def refusals():
    """(file, function, what the message begins with, first and last line) of each ValueError and TypeError."""

    def found(node, file, name):
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, (ast.FunctionDef, ast.ClassDef))
            if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
                kind, given = ast.unparse(child.exc.func), child.exc.args
                if kind in ("ValueError", "TypeError"):
                    begins = ast.unparse(given[0]).lstrip("f").strip("'\"") if given else ""
                    yield file, name, begins, child.lineno, child.end_lineno
            yield from found(child, file, f"{name}.{child.name}".lstrip(".") if named else name)

    for room in ROOMS:
        for file in sorted((PACKAGE / room).rglob("*.py")):
            yield from found(ast.parse(file.read_text()), str(file), "")


# where no line of the table comes, by function and what the message begins with, and why
UNREACHED = {
    "PlanBuilder.inside: integer_times must leave": "`snap` refuses such grids first",
    "check_first: steps must leave the first two": "a corner of diffusers' float32, met by tests/test_peers_law.py",
    "unscaled: plan must be of numbers": "`PlanScheduler` alone calls it, with other plans: tests/test_coordinates.py",
    "check_like: other_class": "`PlanScheduler` alone calls it: tests/test_plan_scheduler.py",
    "_cpp: backend 'cpp' must have the built extension": "it is built where the tests run",
    "_check_triton: ": "whether Triton can run depends on the machine",
    "choose_backend: backend must be one of": "`Sampler` asks first, with the nearest word",
    "choose_backend: backend 'cpp' must have tensors on the CPU": "needs a second device",
    "check_names: {tree} must not share tensors": "needs devices that a DataParallel network deals out to",
    "check_tensor: apply_row: {name} must be on": "needs a second device",
    "_apply: apply_row: uncond must be given": "of the operator's rows alone: tests/test_csrc.py",
    "lines: layout must hold": "`layout_for` has chosen one that does",
    "Live.marked: cond and uncond of row": "what row 0's form lets pass fits one call, but for values of objects",
    "_state_dtype: a float64 network": "needs a second device",
    "_check: the network's output must be on": "needs a second device",
    "device_of_all: model must be networks on one device": "needs a second device",
    "device_of: device must be given for {name}, which is on several": "needs a second device",
    "Machine._weaker.ask: weaker must be on": "needs a second device",
    "signature: cond": "caught: the reason for which a call is not captured",
    "take_executor: graph ": "needs a CUDA device: tests/test_graph_failures.py",
    "hold: graph ": "needs a CUDA device: tests/test_lane_graphs.py",
}


def test_each_refusal_is_reached():
    lines = {at for text, _ in TABLE for at in outcome(text)[2]}
    left, open_ = set(UNREACHED), []
    for file, name, begins, first, last in refusals():
        key = f"{name}: {begins}"
        listed = {known for known in UNREACHED if key.startswith(known)}
        reached = any(file == there and first <= line <= last for there, line in lines)
        left -= set() if reached else listed
        if not reached and not listed:
            open_.append(f"{Path(file).relative_to(PACKAGE)}:{first}: {key}")
    assert not open_, "a line for each in golden/errors.txt, or a reason in UNREACHED:\n" + "\n".join(open_)
    assert not left, f"listed as unreached, but reached or gone: {sorted(left)}"


def write():
    """The file with the answers that are given now, but for those that agree."""
    lines = []
    wanted = dict(TABLE)
    for line in FILE.read_text().splitlines():
        if line.startswith("    "):
            continue
        lines.append(line)
        if line and not line.startswith("#"):
            got = re.sub(r" at 0x[0-9a-f]+", "...", answer(line))
            lines.append(f"    {wanted[line] if wanted[line] and agree(answer(line), wanted[line]) else got}")
    FILE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write()
