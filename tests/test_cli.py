"""The command line: what it writes, what it refuses, and what it keeps."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch
from drawing import draw
from typer.testing import CliRunner

import pndm_fast as pf
from pndm_fast.cli import app as cli
from pndm_fast.cli import images, jobs, main
from pndm_fast.cli.words import parse_classes, parse_options
from pndm_fast.solvers import SOLVER_INFO

pytest.importorskip("PIL")

TOY = '''
import os
import torch

class Toy(torch.nn.Module):
    """eps = tanh(x + class / 20): one output depends on one input, so a batch changes no bit."""
    config = {"in_channels": 1, "sample_size": (4, 4), "num_class_embeds": 11}

    def forward(self, x, t, class_labels=None):
        if class_labels is None:
            return torch.tanh(x)
        return torch.tanh(x + class_labels[:, None, None, None] / 20)

def toy():
    return Toy()

def plain():
    return lambda x, t: torch.tanh(x)

def latent():
    net = Toy()
    net.config = {"in_channels": 4, "sample_size": (4, 4)}
    return net

def nan():
    return lambda x, t: torch.where(x.flatten(1)[:, :1, None, None] > LIMIT, torch.nan, x)

def broken():
    def net(x, t):
        raise RuntimeError("no such weights")
    return net

def stop():
    calls = 0
    def net(x, t):
        nonlocal calls
        calls += 1
        if calls > 9:
            raise KeyboardInterrupt
        return torch.tanh(x)
    return net

def number():
    return 5

def fails():
    raise OSError("weights are lost")

LIMIT = 0.0
not_callable = 3
'''


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder with the toy model's module beside it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "toy_net.py").write_text(TOY)
    yield tmp_path
    sys.modules.pop("toy_net", None)


def run(*words):
    return CliRunner().invoke(cli.app, list(map(str, words)))


def sample(*words, model="toy_net:toy", steps=4, code=0):
    backend = () if "--backend" in words else ("--backend", "reference")
    base = ("sample", "--model", model, "--trust", "--solver", "ipndm", "--steps", steps, "--device", "cpu", *backend)
    result = run(*base, *words)
    assert result.exit_code == code, result.output
    return result


def test_demo_sheet_holds_its_recipe(place):
    result = sample("-n", 2, "--seed", 7, "--out", "a.png", model="demo:mnist")
    assert "images/s" in result.stdout and "a.png" in result.stdout
    assert images.read_recipe("a.png") == {
        "format": 1,
        "version": pf.__version__,
        "model": "demo:mnist",
        "dtype": "fp32",
        "solver": "ipndm",
        "steps": 4,
        "nfe": 4,
        "prediction": "eps",
        "spacing": "leading",
        "schedule": "linear",
        "grid": {"steps": 4},
        "options": {},
        "guidance": 1.0,
        "class": [0, 1],
        "seed": 7,
        "number": 2,
        "batch": 2,
    }
    assert sorted(p.name for p in place.iterdir() if p.is_file()) == ["a.png", "toy_net.py"]


def test_demo_is_the_library_call():
    sample("-n", 2, "--class", "3,8", "--guidance", 2, "--seed", 1, "--out", "a.npz", model="demo:mnist")
    from pndm_fast import demo

    expected = draw(
        demo.mnist_unet(),
        4,
        solver="ipndm",
        seeds=[1, 2],
        cond={"class_labels": torch.tensor([3, 8])},
        uncond={"class_labels": torch.tensor([10, 10])},
        guidance=2.0,
        backend="reference",
    )
    with np.load("a.npz") as file:
        assert np.array_equal(file["arr_0"], images.to_uint8(expected))


def test_npz():
    sample("-n", 3, "--class", 5, "--option", "order=2", "--spacing", "trailing", "--out", "a.npz")
    with np.load("a.npz") as file:
        assert file["arr_0"].shape == (3, 4, 4, 1) and file["arr_0"].std() > 0
    recipe = images.read_recipe("a.npz")
    assert (recipe["class"], recipe["seed"], recipe["number"]) == ([5, 5, 5], 0, 3)
    assert (recipe["options"], recipe["spacing"]) == ({"order": 2}, "trailing")


def test_batch_does_not_change_samples():
    for batch in (1, 2, 5):
        sample("-n", 5, "--class", "0-2", "--batch", batch, "--out", f"{batch}.npz")
    arrays = [np.load(f"{batch}.npz")["arr_0"] for batch in (1, 2, 5)]
    assert np.array_equal(arrays[0], arrays[1]) and np.array_equal(arrays[0], arrays[2])


def test_folder_resumes(place):
    words = ("-n", 5, "--seed", 10, "--class", "1,2", "--batch", 2, "--out", "made/digits")
    sample(*words)
    folder = place / "made/digits"
    names = [f"{seed:06d}.png" for seed in range(10, 15)]
    before = {name: (folder / name).read_bytes() for name in names}
    assert sorted(p.name for p in folder.iterdir()) == names
    recipe = images.read_recipe(folder / "000013.png")
    assert (recipe["seed"], recipe["class"]) == (13, 2) and "number" not in recipe
    assert (recipe["batch"], recipe["place"]) == (2, 1)
    (folder / names[3]).unlink()
    times = {name: (folder / name).stat().st_mtime_ns for name in names if name != names[3]}
    result = sample(*words, "--json")
    told = json.loads(result.stdout)
    assert (told["images"], told["skipped"]) == (1, 4) and "4 of 5 pictures" in result.stderr
    assert {name: (folder / name).read_bytes() for name in names} == before
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    assert json.loads(sample(*words, "--json").stdout)["images"] == 0
    assert json.loads(sample(*words, "--json", "--force").stdout)["images"] == 5


@pytest.mark.parametrize("content", [None, b"no picture", b""])
def test_folder_with_another_recipe_is_refused(place, content):
    sample("-n", 2, "--out", "made/")
    old = place / "made/000001.png"
    if content is not None:
        old.write_bytes(content)
    kept = old.read_bytes()
    steps = 5 if content is None else 4
    result = sample("-n", 2, "--out", "made/", steps=steps, code=2)
    assert "--force" in result.stderr and ".png" in result.stderr and old.read_bytes() == kept
    assert ("(steps 4, not 5)" if content is None else "which is not ours") in result.stderr
    sample("-n", 2, "--out", "made/", "--force", steps=steps)
    assert images.read_recipe(old)["steps"] == steps


def test_json_is_one_object():
    result = sample("-n", 2, "--json", "--out", "a.png")
    told = json.loads(result.stdout)
    assert told["images"] == 2 and told["seconds"] > 0 and told["images_per_second"] > 0
    assert (told["solver"], told["nfe"], told["backend"], told["device"]) == ("ipndm", 4, "reference", "cpu")
    assert told["bad_seeds"] == [] and not told["interrupted"]
    assert "━" not in result.stderr


def test_quiet_says_nothing():
    result = sample("-n", 1, "--quiet", "--out", "a.png")
    assert result.output == ""


def test_auto_device_says_so_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = sample("-n", 1, "--device", "auto", "--out", "a.png")
    assert "no GPU found" in result.stderr


def test_existing_file_needs_force(place):
    (place / "a.png").write_bytes(b"precious")
    assert "--force" in sample("-n", 1, "--out", "a.png", code=2).stderr
    assert (place / "a.png").read_bytes() == b"precious"
    sample("-n", 1, "--out", "a.png", "--force")
    assert images.read_recipe("a.png")["number"] == 1


def test_plain_callable_takes_a_shape():
    sample("-n", 1, "--shape", "3,4,6", "--out", "a.npz", model="toy_net:plain")
    assert np.load("a.npz")["arr_0"].shape == (1, 4, 6, 3)
    assert images.read_recipe("a.npz")["shape"] == [3, 4, 6]


def test_guidance_with_your_own_model():
    words = ("-n", 2, "--class", "1", "--guidance", "1.5")
    assert "--null-class" in sample(*words, "--out", "a.npz", code=2).stderr
    sample(*words, "--null-class", 10, "--out", "a.npz")
    assert images.read_recipe("a.npz")["null_class"] == 10


USAGE = {
    "solver": (["--solver", "f-pmdm"], "solver must be one of", "did you mean 'f-pndm'"),
    "steps": (["--steps", "0"], "steps must be"),
    "steps word": (["--steps", "many"], "--steps"),
    "steps and nfe": (["--nfe", "20"], "nfe"),
    "spacing": (["--spacing", "wide"], "spacing must be one of"),
    "prediction": (["--prediction", "score"], "prediction must be one of"),
    "schedule": (["--schedule", "quadratic"], "schedule must be one of"),
    "number": (["-n", "0"], "--number"),
    "number too large": (["-n", "1000000001"], "--number"),
    "seed": (["--seed", "-1"], "--seed must be"),
    "seed too large": (["--seed", str(2**64 - 1), "-n", "2"], "--seed must be"),
    "class": (["--class", "11"], "--class must be in [0, 10]"),
    "class word": (["--class", "three"], "--class must be", "'three'"),
    "class none and more": (["--class", "none,3"], "--class must be", "'none'"),
    "class range": (["--class", "9-0"], "--class must be", "'9-0'"),
    "class range too long": (["--class", "0-999999999"], "--class must be"),
    "guidance": (["--guidance", "nan"], "guidance must be finite"),
    "guidance without class": (["--guidance", "2", "--class", "none"], "--guidance must be 1"),
    "batch": (["--batch", "0"], "--batch"),
    "device": (["--device", "tpu"], "--device must be"),
    "device absent": (["--device", "cuda:99"], "--device must be", "'cuda:99'"),
    "dtype": (["--dtype", "fp8"], "dtype must be one of"),
    "backend": (["--backend", "cuda"], "backend must be one of"),
    "graph": (["--graph", "always"], "graph must be one of"),
    "graph on the CPU": (["--graph", "while", "--device", "cpu"], "graphs need a CUDA device, got cpu"),
    "on-nan": (["--on-nan", "shout"], "on_nan must be one of"),
    "option form": (["--option", "order"], "--option must be key=value"),
    "option twice": (["--option", "order=1", "--option", "order=2"], "--option", "twice"),
    "option unknown": (["--option", "ordr=1"], "option of ipndm", "'ordr'"),
    "option type": (["--option", "order=four"], "order must be int"),
    "option value": (["--option", "order=5"], "order must be"),
    "option is a flag": (["--option", "steps=5"], "--steps"),
    "option times": (["--option", "times=5"], "steps, nfe, times and sigmas exclude one another"),
    "out suffix": (["--out", "a.jpg"], "--out must end in"),
    "out empty": (["--out", ""], "--out must end in"),
    "out folder": (["--out", "absent/a.png"], "--out must be in a folder"),
    "out is a file": (["--out", "taken"], "--out must be a folder"),
    "model": (["--model", "stable-diffusion"], "--model must be demo:mnist, demo:psld or"),
    "model demo": (["--model", "demo:cifar"], "--model must be demo:mnist, demo:psld or"),
    "model absent": (["--model", "absent_module:net"], "--model absent_module:net must be importable"),
    "model attribute": (["--model", "toy_net:absent"], "--model toy_net:absent must be importable"),
    "factory": (["--model", "toy_net:not_callable"], "must be a factory"),
    "factory's result": (["--model", "toy_net:number"], "must make something callable"),
    "shape": (["--shape", "3x4"], "--shape must be C,H,W"),
    "shape missing": (["--model", "toy_net:plain"], "--shape must be given"),
    "latents": (["--model", "toy_net:latent"], "got 4: latents"),
    "demo's prediction": (["--model", "demo:mnist", "--prediction", "v"], "the network's own, 'eps', got 'v'"),
    "demo's schedule": (["--model", "demo:mnist", "--schedule", "edm"], "the network's own, linear, got edm"),
    "demo's shape": (["--model", "demo:mnist", "--shape", "1,4,4"], "--shape"),
    "start": (["--steps", "1"], "grid starts pure noise", "trailing"),
    "flag": (["--colour", "red"], "--colour"),
}


@pytest.mark.parametrize("case", USAGE)
def test_mistakes_are_one_line(case, place, monkeypatch):
    """Exit code 2, the argument named, no traceback, nothing written, no network call."""
    (place / "taken").write_text("")
    monkeypatch.setattr(pf.Sampler, "__call__", lambda *args, **kwargs: pytest.fail("sampled"))
    words, *texts = USAGE[case]
    result = run(*_defaults(words), *words)
    assert result.exit_code == 2 and result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for text in texts:
        assert text in lines[0]
    assert sorted(p.name for p in place.iterdir() if p.is_file()) == ["taken", "toy_net.py"]


def _defaults(words):
    base = {"--model": "toy_net:toy", "--solver": "ipndm", "--steps": "4", "--backend": "reference", "--out": "a.png"}
    pairs = [(name, value) for name, value in base.items() if name not in words]
    return ["sample", "--trust", *(word for pair in pairs for word in pair)]


def test_untrusted_factory_is_not_imported(place):
    result = run("sample", "--model", "toy_net:toy", "--steps", "4", "--backend", "reference")
    assert result.exit_code == 2 and "--trust" in result.stderr and "toy_net" not in sys.modules


def test_no_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert "pip install" in sample("-n", 1, "--out", "a.png", code=2).stderr
    sample("-n", 1, "--out", "a.npz")


def test_model_failures_exit_1(place):
    result = sample("-n", 1, "--shape", "1,4,4", "--out", "a.png", model="toy_net:broken", code=1)
    assert "error: the model failed: RuntimeError: no such weights (toy_net.py:" in result.stderr
    result = sample("-n", 1, "--shape", "1,4,4", "--out", "a.png", model="toy_net:fails", code=1)
    assert "OSError: weights are lost" in result.stderr and "Traceback" not in result.output
    assert not (place / "a.png").exists()


def test_nan():
    words = ("-n", 6, "--shape", "1,4,4", "--json")
    result = sample(*words, "--out", "a.npz", model="toy_net:nan", code=1)
    assert "not finite: seed" in result.stderr and result.stdout == ""
    told = json.loads(sample(*words, "--on-nan", "mark", "--out", "a.npz", model="toy_net:nan").stdout)
    bad = told["bad_seeds"]
    assert 0 < len(bad) < 6
    array = np.load("a.npz")["arr_0"]
    assert [seed for seed in range(6) if not array[seed].any()] == bad
    told = json.loads(sample(*words, "--on-nan", "mark", "--out", "made", model="toy_net:nan").stdout)
    assert told["bad_seeds"] == bad and told["images"] == 6 - len(bad)


@pytest.mark.parametrize("out, kept", [("made", 4), ("a.npz", 4)])
def test_interrupt_keeps_what_is_finished(place, out, kept):
    """Ctrl-C in the tenth network call: two batches of two are done in eight calls."""
    words = ("-n", 8, "--batch", 2, "--shape", "1,4,4", "--out", out)
    result = sample(*words, "--json", model="toy_net:stop", code=130)
    told = json.loads(result.stdout)
    assert told["interrupted"] and told["images"] == kept and f"{kept} finished pictures" in result.stderr
    if out == "made":
        assert sorted(p.name for p in (place / out).iterdir()) == [f"{seed:06d}.png" for seed in range(4)]
    else:
        assert images.read_recipe(out)["number"] == len(np.load(out)["arr_0"]) == 4


def test_interrupt_while_loading(monkeypatch):
    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "load_model", stop)
    sample("-n", 1, "--out", "a.png", code=130)


def test_failed_write_is_told(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images, "save_npz", full)
    result = sample("-n", 1, "--out", "a.npz", code=1)
    assert "a.npz could not be written: OSError: [Errno 28] No space left" in result.stderr


@pytest.mark.filterwarnings("default:the grid starts")
def test_warnings_are_one_line():
    result = sample("-n", 1, "--out", "a.png", steps=2)
    lines = [line for line in result.stderr.splitlines() if "grid" in line]
    assert len(lines) == 1 and lines[0].startswith("warning: the grid starts pure noise at t = 500")


@pytest.mark.parametrize(
    "words, labels",
    [
        (None, None),
        (["none"], ()),
        (["3"], (3,)),
        (["1,4", "7"], (1, 4, 7)),
        (["0-3, 9"], (0, 1, 2, 3, 9)),
        (["5-5"], (5,)),
    ],
)
def test_classes(words, labels):
    assert parse_classes(words) == labels


def test_options():
    given = ["eta=0.5", "order=3", "clip=none", "a-b=True", "variance=large", "x=1e3", "y=a=b"]
    expected = dict(eta=0.5, order=3, clip=None, a_b=True, variance="large", x=1000.0, y="a=b")
    parsed = parse_options(given)
    assert parsed == expected and isinstance(parsed["order"], int)


def test_plan(place):
    result = run("plan", "ddim", "--steps", 5, "--option", "eta=0.5", "--save", "plan.json")
    plan = pf.make_plan("ddim", steps=5, eta=0.5)
    assert result.exit_code == 0 and result.stdout == f"{plan}\n"
    assert pf.Plan.load("plan.json") == plan
    result = run("plan", "f-pndm", "--nfe", 19, "--schedule", "cosine", "--json")
    assert pf.Plan.from_json(json.loads(result.stdout)) == pf.make_plan("f-pndm", pf.Schedule.cosine(), nfe=19)
    result = run("plan", "plms", "--steps", 5, "--compat", "diffusers", "--option", "set_alpha_to_one=true")
    assert result.stdout.startswith("plms (diffusers)")


@pytest.mark.parametrize(
    "words, text",
    [
        (["f-pmdm"], "did you mean 'f-pndm'"),
        ([], "'solver'"),
        (["ddim", "--steps", "5", "--nfe", "5"], "steps"),
        (["f-pndm", "--steps", "3"], "steps must be at least 4"),
        (["ddim", "--option", "eta=much"], "eta must be float"),
        (["ddim", "--option", "eta=true"], "eta must be float"),
        (["ddim", "--option", "eta=2"], "eta must be in [0, 1]"),
        (["ddim", "--compat", "keras"], "compat must be one of"),
        (["s-pndm", "--compat", "diffusers"], "solver must be one of"),
        (["ddim", "--save", "absent/plan.json"], "--save must be"),
        (["ddim", "extra"], "extra"),
    ],
)
def test_plan_mistakes(words, text):
    result = run("plan", *words)
    assert result.exit_code == 2 and result.stdout == ""
    assert text in result.stderr and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_solvers():
    result = run("plan", "--list")
    assert result.stdout == run("solvers").stdout
    assert run("plan").exit_code == run("plan", "ddim", "--list").exit_code == 2
    assert all(name in result.stdout for name in pf.SOLVERS) and "n + 9" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80 and "…" not in result.stdout
    listed = json.loads(run("solvers", "--json").stdout)
    assert [row["name"] for row in listed] == sorted(pf.SOLVERS)
    for row in listed:
        assert row["calls"] == SOLVER_INFO[row["name"]].formula() and row["about"] and row["arxiv"]
        assert all(paper in result.stdout for paper in row["arxiv"].split(", "))
        on = "".join(kind[0] for kind in row["schedules"])
        assert on and re.search(rf"^{row['name']}\s.* {on} +{row['spacing']} ", result.stdout, re.MULTILINE)
        assert ("psld" in row["schedules"]) == (SOLVER_INFO[row["name"]].space != "scalar")


def test_what_to_install_is_told(monkeypatch, capsys):
    for name in list(sys.modules):
        if name.startswith(("pndm_fast.cli.", "typer.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    told = "error: the command line needs typer: pip install 'pndm_fast[cli]'\n"
    assert capsys.readouterr() == ("", told)


def test_version_help_and_unknown_command():
    assert run("--version").stdout == f"pndm-fast {pf.__version__}\n"
    assert "sample" in run().stdout and run().exit_code == 0
    assert run("sample", "--help").exit_code == 0
    result = run("sampel")
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and "sample" in result.stderr
