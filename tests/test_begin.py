"""What comes before the first row: the same bits in C++, Triton and the reference, and what the formula says."""

import gc
import sys

import numpy as np
import pytest
import torch
from rowcase import assert_same, clone
from torch.utils._python_dispatch import TorchDispatchMode

import pndm_fast as pf
from pndm_fast.loop.call import resolve
from pndm_fast.loop.workspace import OutputSpec, Workspace
from pndm_fast.row import cpp, reference
from pndm_fast.row import table as columns
from pndm_fast.row.backends import choose_backend
from pndm_fast.row.control import Control
from pndm_fast.row.noise import INITIAL, PROLOGUE, normals
from pndm_fast.row.reference import Sources
from pndm_fast.row.registers import NEVER, allocate
from pndm_fast.row.schema import REGISTERS
from pndm_fast.row.table import NARROW, PHASE, WIDE
from pndm_fast.runtime import graphs

CPU = torch.device("cpu")
SOURCES = {
    "seeds": (),
    "noise": ("noise",),
    "state": ("state",),
    "image": ("image",),
    "image and noise": ("image", "noise"),
    "state and z": ("state", "z"),
    "all drawn elsewhere": ("image", "noise", "z"),
}
SIZES = [(1, 1), (3, 7), (2, 784), (1, 2100)]


def lines_of(rng, layout, count=4):
    """Starts and rows, of which some coefficients are zero, one, or multiples of the identity."""
    components = layout.components
    table = np.zeros((2 * count, layout.width), dtype=np.float32)
    for line in table:
        for first in range(columns.COEFFICIENTS, columns.COEFFICIENTS + 5):
            matrix = np.eye(components) * rng.choice([1.0, rng.uniform(-2, 2)])
            if components > 1 and rng.random() < 0.6:
                matrix = rng.uniform(-2, 2, (2, 2)) * (rng.random((2, 2)) < 0.7)
            at = layout.column(first)
            line[at : at + components**2] = matrix.reshape(-1) * (first != columns.C0 or rng.random() < 0.5)
    return torch.from_numpy(table)


@pytest.mark.slow
@pytest.mark.parametrize("given", SOURCES)
@pytest.mark.parametrize("batch, n", SIZES)
@pytest.mark.parametrize("form", ["scalar", "wide-guided-bf16", "channels-last-fp16", "blocks", "blocks-guided"])
def test_all_backends_begin_with_the_same_bits(form, batch, n, given):
    layout = PHASE if "blocks" in form else WIDE if "wide" in form else NARROW
    components = layout.components
    n = n + n % 2 if components > 1 else n
    channels = 7 if "last" in form and n % 7 == 0 else 1
    network = {"wide-guided-bf16": torch.bfloat16, "channels-last-fp16": torch.float16, "blocks-guided": torch.float32}
    rng = np.random.default_rng([n, len(given), components])
    table = lines_of(rng, layout)
    copies = 2 if "guided" in form else 1
    r = allocate(batch, n, 1, device=CPU, network=network.get(form), cfg_copies=copies, channels=channels)
    for tensor in r.tensors():
        if tensor is not None and tensor.dtype.is_floating_point:
            tensor.fill_(float("nan"))
    r.seeds.copy_(torch.from_numpy(rng.integers(-(2**63), 2**63, batch)))
    r.first_bad.fill_(NEVER), r.active.fill_(batch)
    lines = torch.tensor([b % 4 for b in range(batch)], dtype=torch.int32)
    r.row.copy_(torch.tensor([4 + (b + 1) % 4 for b in range(batch)]))
    values = {name: torch.from_numpy(rng.standard_normal((batch, n), dtype=np.float32)) for name in Sources._fields}
    sources = Sources(**{name: values[name] for name in SOURCES[given]})
    results = []
    for backend in ("reference", "cpp", "triton"):
        own = clone(r)
        choose_backend(backend, CPU, torch.float32).begin(own, table, lines, sources)
        results.append(own)
    for other in results[1:]:
        assert_same(results[0], other, pads=False)
    assert results[0].y[:, :n].isfinite().all()


def test_the_start_is_the_prologues_formula():
    """alpha image + sigma noise, a0 of it, and c0 z, in float64."""
    r = allocate(2, 5, 1, device=CPU, state=torch.float64, time=torch.float64, network=torch.float64)
    r.seeds.copy_(torch.tensor([3, 4])), r.row.fill_(1)
    table = torch.zeros(2, NARROW.width, dtype=torch.float64)
    table[0, [columns.P0, columns.ENTRY_SIGMA, columns.ENTRY_ALPHA, columns.A0, columns.C0]] = torch.tensor(
        [9.0, 2.0, 3.0, 0.5, 7.0], dtype=torch.float64
    )
    table[1, columns.IN_SCALE] = 0.25
    noise, z = (normals(r.seeds, index, 5).double() for index in (INITIAL, PROLOGUE))
    image = torch.arange(10.0, dtype=torch.float64).view(2, 5)
    lines = torch.zeros(2, dtype=torch.int32)
    reference.begin(r, table, lines, Sources())
    torch.testing.assert_close(r.y[:, :5], 0.5 * 9 * noise + 7 * z, rtol=1e-14, atol=0)
    reference.begin(r, table, lines, Sources(image=image))
    torch.testing.assert_close(r.x[:, :5], 0.5 * (3 * image + 2 * noise) + 7 * z, rtol=1e-14, atol=1e-14)
    reference.begin(r, table, lines, Sources(state=image, z=noise))
    torch.testing.assert_close(r.y[:, :5], 0.5 * image + 7 * noise, rtol=1e-14, atol=1e-14)
    assert torch.equal(r.net_in, 0.25 * r.y[:, :5])


def begun(sampler, **request):
    call = resolve(pf.Request(**request), sampler.machine.setup)
    [(kind, count)] = call.segments
    evaluation = sampler.machine.evaluations(call)[kind]
    segment = sampler.machine.segment(call, evaluation, call.positions(), kind, count, None)
    workspace = Workspace(segment.buffers(OutputSpec(torch.float32)))
    segment.begin(workspace)
    return segment, workspace


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_samples_in_our_own_memory_are_copied_first(backend):
    sampler = pf.Sampler(lambda x, t: x, pf.make_plan("ddim", steps=4), shape=(2, 7), backend=backend)
    segment, workspace = begun(sampler)
    ours = workspace.registers.x.view(-1)[1:15].view(2, 7).normal_()  # not where it is going to be
    wanted = ours.clone()
    workspace.bind(segment.backend).begin(torch.full((2,), segment.table.start[0], dtype=torch.int32), Sources(ours))
    assert torch.equal(workspace.registers.y[:, :7], wanted)


class Staged:
    """Counts the copies to a device that is none: the CPU's memory is written through staging memory, as a GPU's."""

    def __init__(self, monkeypatch):
        self.bytes = []
        real, ours = torch.empty, self

        def staged(memory):
            class Copy:
                def __enter__(self):
                    self.host = real(memory.shape, dtype=memory.dtype)
                    return self.host.numpy()

                def __exit__(self, *failure):
                    memory.copy_(self.host)
                    ours.bytes.append(memory.numel())

            return Copy()

        monkeypatch.setattr("pndm_fast.row.control.staged", staged)
        made = Control.__init__

        def elsewhere(control, *arguments, **options):
            made(control, *arguments, **options)
            control._host = None

        monkeypatch.setattr(Control, "__init__", elsewhere)


@pytest.mark.parametrize("batch", [1, 5])
def test_numbers_go_up_in_one_copy_and_an_unchanged_table_not_again(batch, monkeypatch):
    copies = Staged(monkeypatch)
    plan, other = pf.make_plan("ddim", steps=4), pf.make_plan("ddpm", steps=9)
    sampler = pf.Sampler(lambda x, t: x * 0.5, plan, shape=(batch, 7))
    plain = pf.Sampler(lambda x, t: x * 0.5, plan, shape=(batch, 7))
    sampler()
    width = 4 * NARROW.width
    copies.bytes.clear()
    small = None
    for plan_of_call, lines in ((plan, 0), (plan, 0), (other, 11), (other, 0), (plan, 6)):
        got = sampler(plan=plan_of_call, seeds=5)
        monkeypatch.undo()
        assert torch.equal(got, plain(plan=plan_of_call, seeds=5))
        copies_now, copies = copies, Staged(monkeypatch)
        [size] = copies_now.bytes
        small = size if small is None else small
        assert size == small + lines * width
    assert small <= 128 * (len(REGISTERS) + 1) + 64 * batch


def kernels_of(operators):
    """Those that put something on a stream: no views, no bare memory."""

    def is_view(function):
        aliases = [value.alias_info for value in function._schema.returns]
        return any(alias is not None and not alias.is_write for alias in aliases)

    return [str(f) for f in operators if not is_view(f) and "empty" not in str(f)]


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


CONDITIONS = {
    "plain": {},
    "conditional": {"cond": {"text": torch.ones(2, 5), "label": torch.tensor([3, 4])}},
    "guided": {
        "cond": {"text": torch.ones(2, 5), "more": [torch.ones(2, 1)], "label": torch.tensor([3, 4])},
        "uncond": {"text": torch.zeros(2, 5), "more": [torch.zeros(2, 1)], "label": torch.tensor([0, 0])},
        "guidance": 3.0,
    },
}


@pytest.mark.parametrize("image", [False, True], ids=["noise", "image"])
@pytest.mark.parametrize("case", CONDITIONS)
@pytest.mark.parametrize("mode", ["while", "replay"])
def test_a_captured_call_is_one_upload_one_begin_and_a_copy_for_each_dtype_of_conditions(
    mode, case, image, stand_in, monkeypatch
):
    copies, begun, at_launch = Staged(monkeypatch), [], []
    real, launch = cpp._begin, graphs.Graph.launch
    monkeypatch.setattr(cpp, "_begin", lambda *arguments: begun.append(1) or real(*arguments))

    def network(x, t, text=None, label=None, more=()):
        return x * 0.5 if text is None else x * 0.5 + text.mean() + label.view(-1, 1) + sum(more)

    given = dict(CONDITIONS[case], start=pf.Image(torch.ones(2, 7)) if image else None)
    plan = pf.make_plan("f-pndm", steps=50)
    sampler = pf.Sampler(network, plan, shape=(2, 7), graph=mode)
    wanted = sampler(seeds=4, **given)
    copies.bytes.clear(), begun.clear()
    with Operators() as operators:
        monkeypatch.setattr(
            graphs.Graph, "launch", lambda *arguments: at_launch.append(len(operators.seen)) or launch(*arguments)
        )
        got = sampler(seeds=4, **given)
    assert torch.equal(got, wanted)
    assert len(copies.bytes) == len(begun) == len(at_launch) == 1
    before = kernels_of(operators.seen[: at_launch[0]])
    upload, dtypes = ["aten.copy_.default"], 0 if case == "plain" else 2
    copied = ["aten._foreach_copy_.default"] * dtypes + upload
    assert before[-len(copied) :] == copied
    assert before == copied or image  # an image's numbers are looked at first
    after = kernels_of(operators.seen[at_launch[0] :])
    assert after[-2:] == ["aten.clone.default", "aten.sum.default"]


@pytest.mark.parametrize("case, most", [("plain", 420), ("guided", 700)])
def test_what_the_host_does_before_the_first_launch(case, most, stand_in, monkeypatch):
    """Functions entered, of Python and built in, whatever the number of rows: what a GPU waits for, free of clocks."""
    launch, counts = graphs.Graph.launch, []

    def launched(*arguments):
        sys.setprofile(None)
        return launch(*arguments)

    monkeypatch.setattr(graphs.Graph, "launch", launched)

    def network(x, t, text=None, label=None, more=()):
        return x * 0.5

    for rows in (5, 50):
        sampler = pf.Sampler(network, pf.make_plan("ddim", steps=rows), shape=(2, 7), graph="replay")
        for _ in range(2):
            sampler(**CONDITIONS[case])
        seen = []
        gc.collect()  # else what others left may be finalized in between
        sys.setprofile(lambda frame, event, argument, seen=seen: seen.append(event))
        sampler(**CONDITIONS[case])
        counts.append(len([event for event in seen if event in ("call", "c_call")]))
    assert counts[0] == counts[1] <= most
