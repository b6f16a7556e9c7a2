"""The command line in phase space."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.cli import app as cli
from pndm_fast.cli import images
from pndm_fast.phase_space import PSLD, position
from pndm_fast.solvers.auto import recommend

pytest.importorskip("PIL")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def run(*words):
    return CliRunner().invoke(cli.app, list(map(str, words)))


@pytest.mark.filterwarnings("ignore:.* diverges in")  # five calls are few
def test_demo():
    """The pictures are the positions; the schedule is the model's, the solver auto's where none is named."""
    words = ("sample", "--model", "demo:psld", "-n", 2, "--seed", 3, "--device", "cpu", "--nfe", 5, "--quiet")
    assert run(*words, "--solver", "rvv", "--out", "a.npz").exit_code == 0
    sampled = {"shape": (2, 2, 28, 28), "seeds": 3, "cond": {"class_labels": torch.tensor([0, 1])}}
    z = pf.sample(demo.mnist_psld_unet(), nfe=5, solver="rvv", schedule=demo.psld, **sampled)
    pictures, recipe = np.load("a.npz")["arr_0"], images.read_recipe("a.npz")
    assert np.array_equal(pictures, images.to_uint8(position(z)))
    assert (recipe["schedule"], recipe["spacing"], recipe["nfe"]) == ("psld", "quadratic", 5)
    assert run(*words, "--out", "b.npz").exit_code == 0
    assert images.read_recipe("b.npz")["solver"] == recommend(demo.psld, 5).solver


@pytest.mark.parametrize(
    "words, message",
    [
        (("--model", "demo:psld", "--solver", "f-pndm"), "solver must be one of coba,"),
        (("--model", "demo:mnist", "--solver", "rvv"), "solver must be one of"),
        (("--solver", "rvv", "--schedule", "linear"), "solver must be one of"),
        (("--model", "demo:mnist", "--schedule", "psld"), "schedule must be the network's own, linear, got psld"),
        (("--model", "demo:psld", "--schedule", "vp"), "schedule must be the network's own, psld(gamma=0.01, nu=4.01)"),
        (("--model", "demo:psld", "--spacing", "karras"), "spacing must be one of uniform, quadratic"),
    ],
)
def test_mistakes(words, message):
    result = run("sample", *words, "--out", "a.npz")
    assert result.exit_code == 2 and message in result.stderr


def test_plan_of_a_phase_solver():
    result = run("plan", "sscs", "--steps", 3)
    assert result.exit_code == 0 and "sscs: 3 steps, 3 network calls" in result.stdout
    result = run("plan", "conjugate", "--nfe", 10, "--schedule", "psld", "--option", "B=[[0, 0.1], [0, 0.1]]", "--json")
    assert pf.Plan.from_json(json.loads(result.stdout)) == pf.make_plan(
        "conjugate", PSLD(), nfe=10, B=((0, 0.1), (0, 0.1))
    )
