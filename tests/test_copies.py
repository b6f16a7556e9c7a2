"""Everything public that holds data goes through pickle and deepcopy, as process pools and configurations need it."""

import copy
import dataclasses
import pickle

import pytest
import torch

import pndm_fast as pf
from pndm_fast.phase_space import PSLD, MomentumOnly

PLAN = pf.make_plan("ddim", steps=3, spacing="trailing")
X = torch.arange(16.0).view(2, 8)
BAD = pf.BadSample(sample=1, row=2, t=3.0)


def network(x, t):
    return 0.5 * x


class Half(torch.nn.Module):
    def forward(self, x, t):
        return 0.5 * x


RESULT = pf.Sampler(network, PLAN, shape=(2, 8)).run(pf.Request(seeds=0))

HELD = {
    "BadSample": BAD,
    "Cancelled": pf.Cancelled(3, X, None),
    "DeadlineMissed": pf.DeadlineMissed(2.0, None, 3, 50),
    "EngineDown": pf.EngineDown("the engine is down: RuntimeError: no memory"),
    "Finished": pf.Finished(7, RESULT, None),
    "Guidance": pf.Guidance((2.0, 3.0, 4.0), interval=(0.1, 2.0), rescale=0.5),
    "Image": pf.Image(X, noise=X + 1),
    "Inpaint": pf.Inpaint(X, torch.ones(8), start=pf.Noise(X)),
    "Level": pf.Level(0.6, 0.8),
    "Levels": PLAN.rows[0].levels,
    "Noise": pf.Noise(X),
    "NonFiniteError": pf.NonFiniteError((BAD,), X, RESULT.report),
    "OutputMap": pf.OutputMap(clamp=1.0),
    "PerSample": pf.PerSample(["a", X]),
    "Plan": PLAN,
    "Prologue": pf.Prologue(2.0),
    "Preview": pf.Preview(3, 10, X),
    "QueueFull": pf.QueueFull(9, 8),
    "Report": RESULT.report,
    "Request": pf.Request(plan=PLAN, seeds=(1, 2), start=pf.Noise(X), cond={"y": X}, guidance=2.0),
    "Result": RESULT,
    "Row": PLAN.rows[0],
    "Schedule": pf.Schedule.flow(shift=3.0),
    "Shared": pf.Shared(X),
    "State": pf.State(X),
    "Thresholded": pf.Thresholded(Half().eval(), PLAN),
    "TunedPlan": pf.TunedPlan(PLAN.rows, fitted={"better": False}),
}
# what else is public, and why it is not copied
OTHERS = {
    "Cancel": "an event that another thread sets: a copy would be deaf",
    "Engine": "requests under way and a lock; it is made anew",
    "Sampler": "locks and captured graphs: tests/test_sampler.py",
    "Step": "a look at buffers that move on",
    "Ticket": "a future: who copies it would wait for nobody",
    "Worker": "a thread",
    "SOLVERS": "a registry",
    "clear": "a function",
    "flow_mu": "a function",
    "flux2_mu": "a function",
    "make_plan": "a function",
    "nvtx_ranges": "a function",
    "ops": "a module",
    "phase_space": "a module",
    "plan_like": "a function",
    "sample": "a function",
    "schedule_of": "a function",
    "solvers": "a module",
    "tune": "a function",
}
MORE = {
    "PSLD": PSLD(gamma=0.02),
    "Report of one's own": pf.Report(3, 3, 0.1, 2, "cpu", "float32", "cpp", True, "contiguous", "none", 100),
    "NonFiniteError of one's own": pf.NonFiniteError((), X, None),
    "MomentumOnly": MomentumOnly(Half().eval()),
    **{f"Schedule.{name}": getattr(pf.Schedule, name)() for name in ("linear", "cosine", "vp", "edm")},
    "interpolated": pf.Schedule.linear().interpolate("log_sigma"),
    "zero SNR": pf.Schedule.linear().zero_terminal_snr(),
    "phase plan": pf.make_plan("conjugate", PSLD(), steps=4),
    "guided plan": PLAN.with_guidance(3.0).with_clip(1.0),
}


# dataclasses that hold tensors
RECORDS = (pf.Guidance, pf.Request, pf.Result, pf.Image, pf.Inpaint, pf.Noise, pf.State, pf.Shared, pf.PerSample)
RECORDS += (pf.Preview,)


def same(a, b):
    """Of one type, with equal contents."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, RECORDS):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, Exception):
        return str(a) == str(b) and same(vars(a), vars(b))
    if isinstance(a, torch.nn.Module):
        own = {k: v for k, v in vars(a).items() if not k.startswith("_")}
        theirs = {k: v for k, v in vars(b).items() if not k.startswith("_")}
        return same(own, theirs) and same(dict(a.named_buffers()), dict(b.named_buffers()))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_nothing_public_is_forgotten():
    assert HELD.keys() | OTHERS.keys() == set(pf.__all__) and not HELD.keys() & OTHERS.keys()


@pytest.mark.parametrize("name", [*HELD, *MORE])
def test_copies_are_equal(name):
    value = (HELD | MORE)[name]
    for again in (copy.deepcopy(value), copy.copy(value), pickle.loads(pickle.dumps(value))):
        assert same(again, value)
    assert same(pickle.loads(pickle.dumps([value, value]))[1], value)


def test_preconditioned_processes():
    """Closures do not pickle: their plans, which are all that sampling needs, do."""
    process = PSLD().preconditioned(0.5)
    assert copy.deepcopy(process).name == process.name
    plan = pf.make_plan("conjugate", process, steps=4)
    assert pickle.loads(pickle.dumps(plan)) == plan
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(process)
