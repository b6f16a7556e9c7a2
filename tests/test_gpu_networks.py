"""Which networks are captured on a CUDA device, which are not and why, and what happens when their weights change."""

import pytest
import torch
import triton
import triton.language as tl
import triton.language.extra.cuda as extra
from gpu_networks import DEVICE, MODES, SHAPE, Conv, Noisy, conv, packaged, sampler
from torch import nn

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return packaged(conv(), tmp_path_factory.mktemp("package"))


def exported(model):
    x = torch.zeros(3, *SHAPE, device=DEVICE)
    return torch.export.export(model, (x, torch.zeros(3, device=DEVICE))).module()


def traced(model):
    x = torch.zeros(3, *SHAPE, device=DEVICE)
    return torch.jit.trace(model, (x, torch.zeros(3, device=DEVICE)))


FORMS = {
    "module": lambda model: model,
    "function": lambda model: lambda x, t: model(x, t),
    "method": lambda model: model.forward,
    "traced": traced,
    "compiled": torch.compile,
    "exported": exported,
    "channels-last": lambda model: model.to(memory_format=torch.channels_last),
    "max-autotune": lambda model: torch.compile(model, mode="max-autotune-no-cudagraphs"),
}


def test_autocast_is_captured():
    model = conv()
    with torch.autocast(DEVICE, torch.bfloat16):
        wanted = sampler(model, "eager")()
        for mode in MODES:
            ours = sampler(model, mode)
            assert torch.equal(ours(), wanted) and torch.equal(ours(), wanted)
            assert ours.report.graph == mode


class Counting(nn.Module):
    """Says something else at each call: a graph would repeat one of them."""

    calls = 0

    def forward(self, x, t):
        self.calls += 1
        return x * (0.5 + 0.02 * self.calls)


class Reading(nn.Module):
    """Reads a device value on the host."""

    def forward(self, x, t):
        return x * (0.5 if t[0].item() > 500 else 0.4)


REFUSED = {
    "generator": (lambda: Noisy().eval(), "draws from torch's generator"),
    "training": (lambda: Conv().train(), "training mode"),
    "reduce-overhead": (lambda: torch.compile(conv(), mode="reduce-overhead"), "reduce-overhead"),
    "counter": (lambda: Counting().eval(), "other values at each call"),
    "host read": (lambda: Reading().eval(), "cannot be captured: CUDA error"),
}


@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore:the model is in training mode")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_captured(case):
    """`auto` runs it eagerly and says why; a mode asked for by name is an error that says why."""
    make, reason = REFUSED[case]
    network = make().to(DEVICE)
    ours = sampler(network, "auto")
    out = ours()
    assert torch.isfinite(out).all()
    assert ours.report.graph == "eager"
    assert reason in ours.report.graph_reason, ours.report.graph_reason
    for mode in MODES:
        with pytest.raises(ValueError, match=reason):
            sampler(network, mode)()
    assert torch.isfinite(ours()).all(), "the device is usable after a refused capture"
    assert torch.randn(8, device=DEVICE).isfinite().all()  # torch's generator is out of capture mode
    torch.cuda.empty_cache()  # and its allocator
    good = sampler(conv(), "replay")
    good()
    assert good.report.graph == "replay"


@pytest.mark.parametrize("mode", MODES)
def test_callers_noise_is_not_captured(mode):
    def noises(index):
        return torch.randn(3, *SHAPE, generator=torch.Generator(DEVICE).manual_seed(index), device=DEVICE)

    ours = sampler(conv(), "auto", "ddpm")
    assert torch.equal(ours(noise_sampler=noises), sampler(conv(), "eager", "ddpm")(noise_sampler=noises))
    assert ours.report.graph == "eager" and "noise_sampler" in ours.report.graph_reason
    with pytest.raises(ValueError, match="noise_sampler"):
        sampler(conv(), mode, "ddpm")(noise_sampler=noises)


def test_an_error_of_the_network_is_the_callers():
    def network(x, t):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sampler(network, "auto")()


def scaled(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.7)


def assigned(model):
    model.load_state_dict(conv(seed=1).state_dict(), assign=True)


def loaded(model):
    model.load_state_dict(conv(seed=1).state_dict())


def around(model):
    model.to("cpu")
    torch.empty(2**16, device=DEVICE)
    model.to(DEVICE)


def layered(model):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model.last = nn.Sequential(model.last, nn.Conv2d(3, 3, 1)).to(DEVICE).eval()


def one_tensor(model):
    model.last.weight = nn.Parameter(model.last.weight * 0.5, requires_grad=False)


CHANGES = {"in place": scaled, "assigned": assigned, "loaded": loaded, "moved": around, "layer": layered}
CHANGES["one tensor"] = one_tensor
IN_PLACE = ("in place", "loaded")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_change_the_next_image(change, mode):
    model = conv()
    ours = sampler(model, mode)
    before = ours(seeds=1)
    CHANGES[change](model)
    after = ours(seeds=1)
    assert torch.equal(after, sampler(model, "eager")(seeds=1))
    assert torch.equal(after, before) == (change == "moved")
    if change in IN_PLACE:
        assert ours.report.recaptures == 0
    elif change != "moved":  # which may come back to the same memory
        assert ours.report.recaptures == 1
    assert torch.equal(ours(seeds=1), after) and ours.report.recaptures <= 1


@triton.jit
def _halve(source, target, n, BLOCK: tl.constexpr):
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    extra.gdc_wait()
    value = tl.load(source + lane, mask=lane < n)
    extra.gdc_launch_dependents()
    tl.store(target + lane, value * 0.5, mask=lane < n)


def dependent(x, t):
    """Two kernels that may be launched before the one before has ended: edges of a kind of their own in a graph."""
    for _ in range(2):
        out, n = torch.empty_like(x), x.numel()
        _halve[(triton.cdiv(n, 256),)](x, out, n, BLOCK=256, launch_pdl=True)
        x = out
    return x


@pytest.mark.gpu(real="programmatic dependent launches")
@pytest.mark.parametrize("mode", MODES)
def test_programmatic_launches(mode, record_property):
    """Whether a graph, and a WHILE body, may hold them is found out here: it runs right, or it is refused in words."""
    wanted = sampler(lambda x, t: x * 0.25, "eager")()
    assert torch.equal(sampler(dependent, "eager")(), wanted)
    ours = sampler(dependent, mode)
    try:
        got = ours()
    except ValueError as reason:
        record_property(f"programmatic launches, {mode}", f"refused: {reason}")
        return
    assert torch.equal(got, wanted) and torch.equal(ours(), wanted)
    record_property(f"programmatic launches, {mode}", "run")


@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_network_is_captured(form):
    network = FORMS[form](conv())
    eager = sampler(network, "eager")
    eager(seeds=1)  # TorchScript makes other kernels after some calls
    wanted = eager(seeds=1)
    assert (wanted - sampler(conv(), "eager")(seeds=1)).norm() <= 1e-2 * wanted.norm()
    for mode in MODES:
        ours = sampler(network, mode)
        assert torch.equal(ours(seeds=1), wanted) and torch.equal(ours(seeds=1), wanted)
        assert ours.report.graph == mode


@pytest.mark.gpu(real="AOTInductor kernels")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", MODES)
def test_a_package_is_captured(mode, package):
    """Loaded without what makes it safe for threads, which a graph does not need."""
    network = torch._inductor.aoti_load_package(package, run_single_threaded=True)
    wanted, ours = sampler(network, "eager")(seeds=1), sampler(network, mode)
    assert (wanted - sampler(conv(), "eager")(seeds=1)).norm() <= 1e-2 * wanted.norm()
    assert torch.equal(ours(seeds=1), wanted) and torch.equal(ours(seeds=1), wanted)
    assert (ours.report.graph, ours.report.graph_reason) == (mode, "")


@pytest.mark.gpu(real="AOTInductor kernels")
@pytest.mark.timeout(180)
def test_a_package_loaded_the_usual_way(package, record_property):
    """It queries events while it runs: it is refused in words that help, or runs right."""
    network = torch._inductor.aoti_load_package(package)
    wanted, ours = sampler(network, "eager")(seeds=1), sampler(network, "auto")
    assert torch.equal(ours(seeds=1), wanted)
    record_property("package loaded the usual way", f"{ours.report.graph}: {ours.report.graph_reason}")
    assert ours.report.graph != "eager" or "run_single_threaded=True" in ours.report.graph_reason
