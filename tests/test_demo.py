"""The demonstration models: the U-Net is diffusers' function, the mixture is exact, the training resumes bit by bit."""

from __future__ import annotations

import gzip
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import rounding
import torch
import train as training
import typer
from processes import PROCESSES
from safetensors import safe_open

from pndm_fast import demo
from pndm_fast.plan.schedule import Schedule
from pndm_fast.solvers.make import make_plan

GOLDEN = Path(__file__).parent / "golden" / "pndm.npz"
WEIGHTS = Path(demo.__file__).parent / "mnist.safetensors"


@pytest.fixture(scope="module")
def net():
    return demo.mnist_unet()


def inputs(batch, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 1, 28, 28, generator=generator).to(dtype)
    t = torch.randint(1000, (batch,), generator=generator)
    return x, t, torch.randint(11, (batch,), generator=generator)


def metadata():
    with safe_open(WEIGHTS, framework="pt") as file:
        return file.metadata()


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_unet_equals_diffusers(net, batch):
    diffusers = pytest.importorskip("diffusers")
    config = {k: v for k, v in json.loads(metadata()["config"]).items() if not k.startswith("_")}
    reference = diffusers.UNet2DModel(**config).eval()
    reference.load_state_dict(net.state_dict())
    x, t, y = inputs(batch)
    with torch.no_grad():
        for time in (t, t.double() + 0.25, torch.zeros_like(t), torch.full_like(t, 999)):
            expected = reference(x, time, y).sample
            torch.testing.assert_close(net(x, time, y), expected, rtol=0, atol=rounding.of_network(net, expected))


def test_unet_defaults(net):
    x, t, _ = inputs(3)
    null = torch.full((3,), demo.null_class)
    with torch.no_grad():
        expected = net(x, t, null)
        torch.testing.assert_close(net(x, t), expected, rtol=0, atol=rounding.of_network(net, expected))
        expected = net(x, torch.full((3,), 17), null)
        for time in (17, 17.0, torch.tensor(17), torch.tensor([17.0])):
            torch.testing.assert_close(net(x, time), expected, rtol=0, atol=rounding.of_network(net, expected))
    assert (net.config.in_channels, net.config.sample_size) == (1, 28)
    assert sum(p.numel() for p in net.parameters()) == int(metadata()["parameters"]) == 2736353


def test_unet_predicts_noise(net):
    """A trained network explains white noise at t = 999 almost wholly."""
    x, _, _ = inputs(4)
    with torch.no_grad():
        assert (net(x, 999) - x).square().mean() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_unet_half_precision(net, dtype):
    x, t, y = inputs(3)
    with torch.no_grad():
        out = demo.mnist_unet(dtype)(x.to(dtype), t, y)
        error = (out.float() - net(x, t, y)).abs().max()
    assert out.dtype == dtype
    assert error < rounding.of_low_precision(net, out)


def test_unet_layout_changes_rounding_only(net):
    x, t, y = inputs(2)
    contiguous = demo.load_unet(WEIGHTS)
    with torch.no_grad():
        expected = net(x, t, y)
        torch.testing.assert_close(contiguous(x, t, y), expected, rtol=0, atol=rounding.of_network(net, expected))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.stress)])
def test_unet_compiles_whole(backend):
    """Two levels hold every kind of block; three would take twice as long. The graph is whole whatever compiles it."""
    kinds = dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    net = demo.UNet(demo.UNetConfig(block_out_channels=(8, 16), attention_head_dim=8, norm_num_groups=4, **kinds))
    x, t, y = inputs(2)
    compiled = torch.compile(net.eval(), fullgraph=True, backend=backend)
    with torch.no_grad():
        expected = net(x, t, y)
        torch.testing.assert_close(compiled(x, t, y), expected, rtol=0, atol=rounding.of_network(net, expected))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_unet_traces(net):
    traced = torch.jit.trace(net, inputs(2))
    x, t, y = inputs(5, seed=1)
    with torch.no_grad():
        expected = net(x, t, y)
        torch.testing.assert_close(traced(x, t, y), expected, rtol=0, atol=rounding.of_network(net, expected))


@pytest.mark.slow
def test_unet_exports_with_any_batch(net):
    batch = torch.export.Dim("batch", min=1, max=256)
    shapes = {"x": {0: batch}, "t": {0: batch}, "class_labels": {0: batch}}
    program = torch.export.export(net, inputs(2), dynamic_shapes=shapes).module()
    for size in (1, 5):
        x, t, y = inputs(size, seed=size)
        with torch.no_grad():
            expected = net(x, t, y)
            torch.testing.assert_close(program(x, t, y), expected, rtol=0, atol=rounding.of_network(net, expected))


def test_unet_config_refuses_what_it_does_not_do():
    config = json.loads(metadata()["config"])
    assert demo.UNetConfig.from_dict(config) == demo.UNetConfig()
    with pytest.raises(ValueError, match="act_fn must be 'silu', got 'gelu'"):
        demo.UNetConfig.from_dict({**config, "act_fn": "gelu"})
    with pytest.raises(ValueError, match="up_block_types must be"):
        demo.UNetConfig.from_dict({**config, "up_block_types": ["UpBlock2D"] * 3})


def golden_mixture(name, **options):
    data = np.load(GOLDEN)
    schedule = Schedule.from_alphas_cumprod(data[f"meta_abar64_{name}"])
    mean, var, weight = (data[f"meta_mix_{key}"] for key in ("means", "vars", "weights"))
    return data, demo.gaussian_mixture(schedule, mean, var, weight, **options)


@pytest.mark.parametrize("t", [0, 1, 250, 500, 990])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_mixture_equals_golden(name, t):
    data, mixture = golden_mixture(name)
    x = torch.from_numpy(data["check_eps_x"])
    for time in (t, float(t), torch.full((4,), t)):
        np.testing.assert_allclose(mixture(x, time).numpy(), data[f"check_eps_{name}_t{t}"], rtol=1e-12, atol=1e-14)


def test_mixture_predictions_agree():
    """x = alpha x0 + sigma eps whatever is predicted; each sample has its own time."""
    x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 12.5, 500.0, 999.0], dtype=torch.float64)
    out = {kind: golden_mixture("linear", prediction=kind)[1](x, t) for kind in ("eps", "x0", "v", "flow")}
    schedule = golden_mixture("linear")[1].schedule
    alpha, sigma = (torch.from_numpy(f(t.numpy()))[:, None] for f in (schedule.alpha, schedule.sigma))
    torch.testing.assert_close(alpha * out["x0"] + sigma * out["eps"], x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alpha * out["eps"] - sigma * out["x0"], out["v"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out["eps"] - out["x0"], out["flow"], rtol=0, atol=0)


def test_mixture_keeps_dtype_and_shape():
    mixture = demo.gaussian_mixture(Schedule.linear())
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        out = mixture(x.to(dtype).reshape(3, 1, 1, 2), 400)
        assert out.dtype == dtype and out.shape == (3, 1, 1, 2)
        assert torch.equal(out, mixture(x.to(dtype).double(), 400).to(dtype).reshape(out.shape))


def test_mixture_data_has_the_moments():
    _, mixture = golden_mixture("linear")
    data = mixture.sample_data(20000, seed=1)
    mean = mixture.weights @ mixture.means
    second = mixture.weights @ (mixture.means**2 + mixture.variances)
    error = (second - mean**2).sqrt() / 20000**0.5
    assert ((data.mean(0) - mean).abs() < 5 * error).all()
    torch.testing.assert_close(data.square().mean(0), second, rtol=0.05, atol=0)
    assert torch.equal(data, mixture.sample_data(20000, seed=1))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(means=[[0.0, 1.0]], variances=0.0), "variances must be positive"),
        (dict(means=[[0.0, 1.0]], variances=[1.0, 2.0, 3.0]), "variances must be a number"),
        (dict(means=[0.0, 1.0]), "means must be"),
        (dict(means=[[0.0], [1.0]], weights=[1.0, -1.0]), "weights must be 2 positive"),
        (dict(prediction="score"), "prediction must be one of"),
    ],
)
def test_mixture_errors(options, message):
    with pytest.raises(ValueError, match=message):
        demo.gaussian_mixture(Schedule.linear(), **options)


@pytest.fixture
def idx_folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (9, 28, 28), dtype=np.uint8)
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    labels = bytes([0, 0, 8, 1]) + (9).to_bytes(4, "big") + bytes(range(9))
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)
    return folder


def call_main(folder, out, **options):
    training.main(folder, out, epochs=2, batch=4, **options)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_training_resumed_equals_uninterrupted(idx_folder, tmp_path, process):
    whole, halves = tmp_path / "whole", tmp_path / "cfg_copies"
    weights = PROCESSES[process].file
    call_main(idx_folder, whole, process=process)
    call_main(idx_folder, halves, process=process, stop_after=1)
    with safe_open(halves / weights, "pt") as file:
        assert "1 of 4 steps" in file.metadata()["recipe"]
    call_main(idx_folder, halves, process=process, resume=True)
    for name in ("checkpoint.safetensors", weights):
        with safe_open(whole / name, "pt") as a, safe_open(halves / name, "pt") as b:
            assert a.metadata() == b.metadata()
            assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in a.keys())
    assert demo.load_unet(whole / weights).config == PROCESSES[process].config
    assert sorted(p.name for p in whole.iterdir()) == ["checkpoint.safetensors", weights]


@pytest.mark.slow
def test_training_saves_at_interrupt(idx_folder, tmp_path, monkeypatch):
    """Ctrl-C in the middle of a step lets the step end, then saves."""

    def interrupted_step(*args):
        signal.raise_signal(signal.SIGINT)
        return train_step(*args)

    train_step, handler = training.train_step, signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(training, "train_step", interrupted_step)
    with pytest.raises(typer.Exit) as exit:
        call_main(idx_folder, tmp_path)
    assert exit.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is handler
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        assert file.metadata()["step"] == "1"


@pytest.mark.slow
def test_training_refuses_another_recipe_and_overwriting(idx_folder, tmp_path, capsys):
    call_main(idx_folder, tmp_path / "out", stop_after=1)
    for options, message in [
        (dict(resume=True, seed=7), "recipe must be"),
        (dict(resume=True, process="psld"), "recipe must be"),
        (dict(process="ve"), "process must be one of vp, psld, flow, got 've'"),
        (dict(), "exists: give --resume"),
    ]:
        with pytest.raises(typer.Exit) as exit:
            call_main(idx_folder, tmp_path / "out", **options)
        assert exit.value.exit_code == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_training_learns_one_batch(process):
    """Twelve steps at the full rate on the same noise: the loss falls by a third."""
    recipe = training.Recipe(batch=4, process=process)
    run = training.new_run(recipe, "cpu")
    images = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    batch = training.batch_at(0, images, torch.arange(4), recipe, demo.null_class)
    losses = [training.train_step(run, batch, 1e-3, PROCESSES[process]) for _ in range(12)]
    assert losses[-1] < losses[0] * 2 / 3


def test_a_phase_network_begins_as_the_position_network():
    narrow, wide = demo.mnist_unet(), training.new_run(training.Recipe(process="psld"), "cpu").net
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([20.0, 700.0])
    out = wide(torch.cat([x, torch.randn_like(x)], 1), t)
    torch.testing.assert_close(out[:, :1], narrow(x, t), rtol=0, atol=rounding.of_network(wide, out[:, :1]))
    assert (out[:, 1:] == 0).all()


def test_the_phase_networks_target():
    """Input and target of unit variance for data of deviation 1, and with it the score that made the state."""
    process, psld = PROCESSES["psld"], demo.psld
    generator = torch.Generator().manual_seed(0)
    t = process.draw_times(4000, generator)
    x0, eps = torch.randn(4000, 1, 2, 2, generator=generator), torch.randn(4000, 2, 2, 2, generator=generator)
    seen, told, target = process.noised(x0, t, eps)
    assert torch.allclose(told, 1000 * t.float()) and target.shape == x0.shape and 0 < t.min() and t.max() <= 1
    for values in (seen[:, :1], seen[:, 1:], target):
        assert values.square().mean() == pytest.approx(1, abs=0.05)
    i = int(t.argmin())
    time, out = float(t[i]), torch.cat([target[i], torch.zeros_like(target[i])]).double()
    plan = make_plan("em", psld, times=[time, 0.0])
    (row,) = plan.rows
    state = torch.einsum("ij,jhw->ihw", torch.linalg.inv(torch.tensor(row.in_scale)).double(), seen[i].double())
    stored = sum(
        torch.einsum("ij,jhw->ihw", torch.tensor(c, dtype=torch.float64), v)
        for c, v in ((row.store.p, state), (row.store.q, out))
    )
    torch.testing.assert_close(stored, eps[i].double(), rtol=2e-3, atol=2e-3)


def test_learning_rate_of_the_recipe():
    rates = [training.learning_rate(step, 10000) for step in (0, 199, 5000, 10000)]
    assert rates == pytest.approx([2e-6, 4e-4, 2.04e-4, 8e-6], rel=2e-3)


def test_labels_are_dropped_one_in_ten():
    recipe = training.Recipe(batch=4000)
    images = torch.zeros(4000, 1, 1, 1, dtype=torch.uint8)
    x0, y, t, eps = training.batch_at(0, images, torch.zeros(4000, dtype=torch.int64), recipe, demo.null_class)
    assert 320 < (y == demo.null_class).sum() < 480
    assert (x0 == -1).all() and t.min() >= 0 and t.max() <= 999 and eps.shape == x0.shape


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: b"\0\0\x0d" + data[3:], r"must start with bytes 0, 0, 8, 1, got \[0, 0, 13, 1\]"),
        (lambda data: data[:-1], r"\[9\] must make 17 bytes, got 16"),
        (lambda data: data[:-1] + b"\x0b", "labels must be 0 to 9"),
        (lambda data: data[:7] + b"\x08" + data[8:-1], "labels must be as many as images, 9, got 8"),
    ],
)
def test_idx_errors(idx_folder, change, message):
    path = idx_folder / "train-labels-idx1-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        training.load_mnist(idx_folder)


def test_the_flow_networks_target():
    """Between the state and the data lies t along the velocity, and the exact mixture calls that prediction flow."""
    process, flow = PROCESSES["flow"], demo.flow
    generator = torch.Generator().manual_seed(0)
    t = process.draw_times(64, generator)
    x0, eps = torch.randn(64, 1, 2, 2, generator=generator), torch.randn(64, 1, 2, 2, generator=generator)
    seen, told, target = process.noised(x0, t, eps)
    assert torch.equal(told, t) and 0 <= t.min() and flow.last / 2 < t.max() <= flow.last
    alpha, sigma = (torch.from_numpy(f(t.double().numpy()))[:, None, None, None] for f in (flow.alpha, flow.sigma))
    torch.testing.assert_close(seen.double(), alpha * x0 + sigma * eps, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen - sigma.float() * target, x0, rtol=0, atol=1e-6)


def test_the_flow_network_knows_its_process():
    """Both ends of the path: at the noise the velocity is noise less the mean of digits, at the data less the data."""
    net = demo.mnist_flow_unet()
    assert net.schedule is demo.flow and net.prediction == "flow"
    eps = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        far = net(eps, demo.flow.last)
        assert (far - eps).std(0).max() < 0.5 and (far - eps).mean() > 0.5  # digits are dark: their mean is -0.74
        dark = torch.full((4, 1, 28, 28), -1.0)
        seen = 0.9 * dark + 0.1 * eps
        assert ((seen - 0.1 * net(seen, 0.1 * demo.flow.last)) - dark).abs().mean() < 0.1
