"""What the caller does between rows: conditioning that changes, states that a callback replaces, grey masks."""

import math
from dataclasses import replace

import pytest
import torch
from between_rows_case import SHAPE, bent, by_rows, close
from drawing import Reporting, draw
from golden_data import GUIDED
from sampler_case import Pointwise
from test_image_to_image import SCHEDULE, normal

import pndm_fast as pf
from pndm_fast.plan.row import SAME_X
from pndm_fast.solvers.registry import SOLVER_INFO

pytestmark = pytest.mark.filterwarnings("ignore:the grid starts", "ignore:.* diverges in")
FLAT = sorted(
    name for name, info in SOLVER_INFO.items() if info.space != "phase" and not info.inverts and name not in GUIDED
)
PHASE = sorted(name for name, info in SOLVER_INFO.items() if info.space == "phase")


# ---- conditioning by row


def test_each_row_has_its_own_condition():
    """The network that knows its row has the same bits; a condition is asked for once, before its row's call."""
    plan, events = pf.make_plan("plms", steps=6), []
    shifts = [torch.tensor([0.1 * i, -0.2 * i]) for i in range(plan.nfe)]

    def cond(row):
        events.append(("cond", row))
        return {"shift": shifts[row]}

    def network(x, t, shift):
        events.append(("network", next(i for i, own in enumerate(shifts) if torch.equal(own, shift))))
        return bent(x, t, shift)

    sampler = Reporting(network, plan, shape=SHAPE)
    for _ in range(2):
        events.clear()
        got = sampler(cond=cond, on_step=lambda step: events.append(("step", step.index)))
        assert events == [(what, i) for i in range(plan.nfe) for what in ("cond", "network", "step")]
    rows = iter(range(plan.nfe))
    told = draw(lambda x, t: bent(x, t, shifts[next(rows)]), solver=plan, shape=SHAPE)
    assert torch.equal(got, told)


@pytest.mark.parametrize("calls", ["auto", "separate"])
@pytest.mark.parametrize("interval", [None, (0.5, 5.0)])
@pytest.mark.parametrize("prepared", [None, 4])
def test_rows_conditions_in_guidance_and_filled_up(calls, interval, prepared):
    """Segments with and without guidance, one call or two; a condition of batch 1 is spread, shared ones are not."""
    plan = pf.make_plan("ddpm", steps=8, spacing="trailing")

    def cond(row):
        return {"shift": torch.tensor([0.1 * row, 0.3]), "more": {"a": torch.full((1,), 0.2 * row)}, "scale": 1.0 + row}

    def uncond(row):
        return {"shift": torch.full((1,), -0.1 * row), "scale": pf.Shared(1.0 + row)}

    def network(x, t, shift, more, scale):
        assert len(shift) == len(more["a"]) == len(x)
        return bent(x, t, shift + more["a"]) * (1 + 0.01 * scale)

    guidance = pf.Guidance(2.0, interval, calls=calls)
    sampler = Reporting(network, plan, shape=SHAPE)
    if prepared:
        sampler.prepare([prepared], pf.Request(cond=cond, uncond=uncond, guidance=guidance))
    got = sampler(cond=cond, uncond=uncond, guidance=guidance)
    inside = [interval is None or interval[0] < r.levels.call.sigma / r.levels.call.alpha <= interval[1] for r in plan]
    one = lambda i, x, t: network(x, t, **{**cond(i), "more": {"a": torch.full((2,), 0.2 * i)}})  # noqa: E731
    other = lambda i, x, t: bent(x, t, torch.full((2,), -0.1 * i + 0.2 * i)) * (1 + 0.01 * (1 + i))  # noqa: E731
    rows = iter(range(plan.nfe))

    def guided(x, t):
        i = next(rows)
        return (one(i, x, t) - other(i, x, t)) * 2.0 + other(i, x, t) if inside[i] else one(i, x, t)

    assert torch.allclose(got, draw(guided, solver=plan, shape=SHAPE), rtol=1e-5, atol=1e-5)
    both = 2 if calls == "separate" else 1
    assert sampler.report.calls == sum(both if i else 1 for i in inside)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("mode", ["replay", "while"])
def test_a_graph_is_filled_for_each_row(stand_in, mode, guided):
    """Rows' tensors, marked or not, at one capture; other rows at the next call."""

    def network(x, t, shift, table, each, more):
        assert more is None and table.shape == (3,)
        entries = torch.stack([entry.sum() for entry in each])
        return bent(x, t, shift + entries + table.sum() * 0.1)

    def rows(factor):
        def tree(row):
            table = pf.Shared(torch.arange(3.0) * row)
            each = pf.PerSample([torch.full((2,), factor * row), torch.ones(1)])
            return {"shift": torch.full((1,), 0.1 * row * factor), "table": table, "each": each, "more": None}

        return tree

    plan = pf.make_plan("plms", steps=5)
    captured, eager = (Reporting(network, plan, shape=SHAPE, graph=graph) for graph in (mode, "eager"))
    captured.prepare([2], pf.Request(cond=rows(1.0)))
    for factor in (0.3, 0.7):
        more = {"uncond": rows(-factor), "guidance": 2.0} if guided else {}
        got = captured(cond=rows(factor), **more)
        assert torch.equal(got, eager(cond=rows(factor), **more)) and captured.report.graph == mode
        assert captured.report.guidance == ("batched" if guided else "none")
    assert captured.report.captures == 1 + guided
    interval = {"uncond": rows(0.0), "guidance": pf.Guidance(2.0, (0.5, 5.0))}
    assert torch.equal(captured(cond=rows(0.5), **interval), eager(cond=rows(0.5), **interval))


CHANGED = {
    "shape": (
        {"a": torch.ones(2, 3)},
        {"a": torch.ones(2, 4)},
        "cond(1)['a'] must be float32 of shape (2, 3), as",
    ),
    "dtype": (
        {"a": torch.ones(2)},
        {"a": torch.ones(2).int()},
        "float32 of shape (2,), as for row 0, got int32",
    ),
    "mark": ({"a": torch.ones(2)}, {"a": pf.Shared(torch.ones(2))}, "got pf.Shared float32 of shape (2,)"),
    "kind": ({"a": 1.0}, {"a": "b"}, "must be a number, as for row 0, got str"),
    "missing": ({"a": 1.0, "b": 1}, {"a": 1.0}, "cond(1)['b'] must be a number, as for row 0, got nothing"),
    "more": ({"a": {}}, {"a": {"b": None}}, "cond(1)['a']['b'] must be nothing, as for row 0, got NoneType"),
    "entries": (
        {"a": pf.PerSample([1, 2])},
        {"a": pf.PerSample([1, ""])},
        "['a'][1] must be pf.PerSample a number",
    ),
    "batch": ({"a": torch.ones(2)}, {"a": torch.ones(3)}, "cond(1)['a'] must have one entry for each of the 2 samples"),
    "nothing": ({"a": 1}, None, "cond(1) must be a dict of the network's keyword arguments, got None"),
}


@pytest.mark.parametrize("case", sorted(CHANGED))
def test_later_rows_are_like_the_first(case):
    first, second, message = CHANGED[case]
    calls = []
    sampler = pf.Sampler(lambda x, t, **c: calls.append(1) or x * 0.5, pf.make_plan("ddim", steps=4), shape=SHAPE)
    with pytest.raises((TypeError, ValueError)) as error:
        sampler(cond=lambda row: second if row else first)
    assert message in str(error.value) and len(calls) == 1


def test_rows_that_one_call_cannot_carry():
    """What both halves share may change from row to row, not part."""
    sampler = pf.Sampler(lambda x, t, **c: x * 0.5, pf.make_plan("ddim", steps=4), shape=SHAPE)
    shared = [pf.Shared(torch.tensor([1.0, 2.0, 3.0]) * i) for i in range(5)]
    one = {"cond": lambda row: {"a": shared[row]}, "guidance": 2.0}
    sampler(uncond=lambda row: {"a": shared[row]}, **one)
    with pytest.raises(ValueError, match="cond and uncond of row 2 must fit one call, as row 0's did: Shared Tensor"):
        sampler(uncond=lambda row: {"a": shared[row if row < 2 else 4]}, **one)


def test_an_error_of_the_callers_own_passes_through():
    with pytest.raises(KeyError, match="mine"):
        draw(bent, 4, solver="ddim", shape=SHAPE, cond=lambda row: {} if row < 2 else {}["mine"])


# ---- states that a callback returns


def other(y):
    return torch.cos(2.0 * y)


def at(k, change=other):
    """A callback that returns another state after row k alone."""
    return lambda step: change(step.state) if step.index == k else None


@pytest.mark.parametrize("name", FLAT)
def test_a_plan_goes_on_from_the_returned_state(name):
    """Every solver, against its rows by hand with both registers replaced; elsewhere the refusal says where."""
    schedule = pf.Schedule.edm() if name == "edm" else SCHEDULE
    plan, start = pf.make_plan(name, schedule, steps=6), normal(3, SHAPE)
    for k, allowed in enumerate(plan.restarts):
        call = {"solver": plan, "start": pf.State(start), "on_step": at(k)}
        if allowed and (k % 3 == 0 or k == plan.nfe - 1):
            wanted = by_rows(plan, bent, start, change=lambda i, y, k=k: other(y) if i == k else None)
            close(draw(bent, **call), wanted)
        elif not allowed:
            why = "leaves an anchor" if plan.rows[k].ends_step else "does not end a step"
            with pytest.raises(ValueError, match=f"on_step must return None after row {k} of {name}, which {why}"):
                draw(bent, **call)
    assert plan.restarts[-1]


def test_the_refusal_names_rows():
    with pytest.raises(ValueError, match="changed after rows 1, 3, 5, 7, 8$"):
        draw(bent, 5, solver="heun", shape=SHAPE, on_step=at(2))
    with pytest.raises(ValueError, match=r"changed after rows 1, 3, 5, 7, 9, 11, ..., 38$"):
        draw(bent, 20, solver="heun", shape=SHAPE, on_step=at(0))
    with pytest.raises(ValueError, match="after row 0 of unipc, which leaves an anchor to later rows, which correct"):
        draw(bent, 20, solver="unipc", shape=SHAPE, on_step=at(0))


def rest_of(plan, first):
    """The rows from there on; an anchor that none of them reads is said to be where they start."""
    rows = list(plan.rows[first:])
    for i, row in enumerate(rows):
        if row.x != SAME_X:
            break
        rows[i] = replace(row, levels=row.levels._replace(x=rows[0].levels.call))
    return replace(plan, rows=tuple(rows), prologue=pf.Prologue())


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp-2s", "euler", "rse", "nvv", "em"])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_one_step_solvers_are_as_begun_there(name, backend):
    """The rest of the plan run from that state has the same bits, in phase space too."""
    options = {"schedule": pf.phase_space.PSLD()} if name in PHASE else {}
    plan, state = pf.make_plan(name, steps=6, **options), normal(2, (2, 4, 3)).float()
    plan = replace(
        plan, rows=tuple([replace(r, x=(*r.x[:-1], 0.0), y=(*r.y[:-1], 0.0)) for r in plan.rows])
    )  # no noise
    for k in [k for k, allowed in enumerate(plan.restarts[:-1]) if allowed][1:3]:
        rest = rest_of(plan, k + 1)
        got = draw(bent, solver=plan, shape=(2, 4, 3), backend=backend, on_step=at(k, lambda y: state))
        assert torch.equal(got, draw(bent, solver=rest, start=pf.State(state), backend=backend)), k


def test_a_multistep_history_stays():
    """Adams-Bashforth of order 2, written down: the row after a change combines the old slope with the new."""
    plan = pf.make_plan("ipndm", SCHEDULE, steps=5, order=2)
    start, k = normal(1, SHAPE), 2
    rhos = [float(SCHEDULE.sigma(t) / SCHEDULE.alpha(t)) for t in (*plan.times, -1.0)]
    alphas = [float(SCHEDULE.alpha(t)) for t in (*plan.times, -1.0)]
    y, slopes = start, []
    for i, t in enumerate(plan.times):
        slopes.append(bent(y, torch.full((2,), t, dtype=torch.float64)))
        slope = slopes[-1] if i == 0 else 1.5 * slopes[-1] - 0.5 * slopes[-2]
        y = alphas[i + 1] * (y / alphas[i] + (rhos[i + 1] - rhos[i]) * slope)
        y = other(y) if i == k else y
    close(draw(bent, solver=plan, start=pf.State(start), on_step=at(k)), y)


def test_what_is_returned_last_is_the_sample():
    answers = [torch.ones(SHAPE), torch.ones(SHAPE).double(), torch.ones(SHAPE).half(), torch.ones(6, 2).T]
    for answer in answers:
        got = draw(bent, 4, solver="plms", shape=SHAPE, on_step=lambda s, a=answer: a if s.index == 4 else None)
        assert torch.equal(got, torch.ones(SHAPE)) and got.dtype is torch.float32 and got.is_contiguous()
    zero = draw(bent, 4, solver="ddim", shape=SHAPE, on_step=lambda s: s.state.zero_())
    assert not zero.any()
    plain = draw(bent, 4, solver="ddim", shape=SHAPE)
    assert torch.equal(plain, draw(bent, 4, solver="ddim", shape=SHAPE, on_step=lambda s: [s.state.zero_()] and None))
    assert torch.equal(plain, draw(bent, 4, solver="ddim", shape=SHAPE, on_step=lambda s: s.state))


WRONG = {
    "a list": ([3.0], "on_step must return None, or the state to go on from as a tensor, got list"),
    "whole numbers": (
        torch.ones(SHAPE).int(),
        "that on_step returns must be a floating-point tensor, got torch",
    ),
    "shape": (torch.ones(2, 5), "the state that on_step returns must have shape (batch, 6), got (2, 5)"),
    "batch": (torch.ones(1, 6), "the state that on_step returns must have batch 2, got 1"),
    "none": (torch.ones(0, 6), "must have at least one sample"),
    "device": (torch.ones(SHAPE, device="meta"), "the state that on_step returns must be on cpu, got meta"),
    "infinite": (
        torch.full(SHAPE, math.inf),
        "that on_step returns must be finite, got NaN or infinity in",
    ),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_what_is_no_state_is_refused(case):
    value, message = WRONG[case]
    with pytest.raises((TypeError, ValueError)) as error:
        draw(bent, 4, solver="ddim", shape=SHAPE, on_step=lambda step: value)
    assert message in str(error.value)


@pytest.mark.parametrize("prepared", [None, 8])
def test_samples_that_have_ended_keep_their_states(prepared):
    """Each is as it is alone: neither neighbours nor those that fill up the batch count."""
    plans = [pf.make_plan("ddim", steps=n) for n in (2, 6, 4)]
    sampler = pf.Sampler(bent, shape=(3, 6))
    if prepared:
        sampler.prepare([prepared], pf.Request(plan=plans))

    def change(step):
        return step.state * 1.1 + 0.01

    together = sampler(plan=plans, seeds=[3, 4, 5], on_step=change)
    for b, plan in enumerate(plans):
        assert torch.equal(together[b], sampler(plan=plan, seeds=[3 + b], on_step=change)[0])
    mixed = [pf.make_plan("heun", steps=4), plans[1]]
    with pytest.raises(ValueError, match="after row 0 of heun, which does not end a step"):
        sampler(plan=mixed, seeds=[0, 1], on_step=change)


class Layout(Pointwise):
    """Channels last, and of the state scaled."""

    def __call__(self, x, t, shift=None):
        return super().__call__(x, t, shift).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("network", [Pointwise(), Layout()])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("mode", ["eager", "replay", "while"])
def test_changed_states_in_every_layout_and_graph(stand_in, mode, guided, network):
    """The next row's input is made from it: of one or two halves, scaled or the state itself."""
    shape = (2, 3, 4, 4)
    more = {"cond": {"shift": torch.ones(2)}, "uncond": {"shift": torch.zeros(2)}, "guidance": 2.0} if guided else {}
    for plan in (
        pf.make_plan("heun", steps=4),
        pf.make_plan("euler", pf.Schedule.edm(), steps=4, prediction="edm"),
    ):
        k = 3
        sampler = Reporting(network, plan, shape=shape, graph=mode)
        got = [sampler(on_step=at(k), **more) for _ in range(2)]
        assert torch.equal(*got) and sampler.report.graph == mode
        wanted = pf.Sampler(Pointwise(), plan, shape=shape, backend="reference", graph="eager")(on_step=at(k), **more)
        assert torch.equal(got[0], wanted)
        plain = sampler(**more)
        assert not torch.equal(got[0], plain)


def test_what_is_known_is_put_into_a_changed_state():
    known, noise, mask = normal(0), normal(1), torch.zeros(3, 8)
    mask[:, ::2] = 1
    inpaint = {"solver": "ddim", "steps": 5, "schedule": SCHEDULE, "start": pf.Inpaint(known, mask, pf.Noise(noise))}
    plan = pf.make_plan("ddim", SCHEDULE, steps=5)

    def put(i, y, level):
        return torch.where(mask.bool(), y, level.alpha * known + level.sigma * noise)

    def change(i, y):
        return put(i, other(y), plan.rows[i].levels.y) if i == 2 else None

    close(draw(bent, **inpaint, on_step=at(2)), by_rows(plan, bent, noise, change=change, put=put))
    last = draw(bent, **inpaint, on_step=at(4, torch.zeros_like))
    assert torch.equal(last, torch.where(mask.bool(), 0.0, known))


def test_a_cancelled_step_tells_its_own_state():
    def both(step):
        step.cancel()
        return torch.zeros(SHAPE)

    with pytest.raises(pf.Cancelled) as caught:
        draw(bent, 4, solver="ddim", shape=SHAPE, on_step=both)
    assert caught.value.index == 0 and caught.value.state.any()


@pytest.mark.parametrize("returned", [True, False, 3, 1.5, "shown"])
def test_what_a_callback_returns_by_chance_changes_nothing(returned):
    """As a progress bar's `update` does where it draws."""
    plan = pf.make_plan("ddim", steps=3, spacing="trailing")
    sampler = pf.Sampler(lambda x, t: x * 0.5, plan, shape=(2, 3))
    assert torch.equal(sampler(on_step=lambda step: returned), sampler())


def test_a_step_that_is_over_cannot_cancel():
    """It did nothing, where another thread keeps the last step for its button."""
    steps = []
    draw(lambda x, t: x * 0.5, 4, solver="ddim", spacing="trailing", shape=(1, 4), on_step=steps.append)
    with pytest.raises(RuntimeError, match="Step.cancel must be called inside on_step"):
        steps[0].cancel()
