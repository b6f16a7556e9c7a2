"""`pndm-fast tune`: a plan's file, what a fit goes on from, exit codes."""

import json
from pathlib import Path

import pytest
from test_cli import place, run  # noqa: F401

import pndm_fast as pf

TOY = """
import torch
from tune_case import Mixture

class Net(torch.nn.Module):
    def __init__(self, last=10**9, first=10**9):
        super().__init__()
        self.inner, self.calls, self.last, self.all, self.first = Mixture(), 0, last, 0, first

    def forward(self, x, t, class_labels=None):
        self.all += 1
        self.calls += torch.is_grad_enabled()
        if self.all == self.first:
            raise KeyboardInterrupt
        if self.calls == self.last and torch.is_grad_enabled():
            raise KeyboardInterrupt
        label = None if class_labels is None else class_labels / 4
        return self.inner(x.flatten(1), t, label).view(x.shape)

def net():
    return Net()

def stopping():
    return Net(last=60)

def early():
    return Net(first=60)

def failing():
    return lambda x, t: 1 / 0
"""


@pytest.fixture
def fit(place):  # noqa: F811
    (place / "toy_net.py").write_text(TOY)
    words = ("--shape", "1,1,8", "--schedule", "vp", "--nfe", 4, "--batch", 64, "--pairs", 128, "--iterations", 30)
    words += ("--teacher", 40, "--held-out", 128)

    def tune(*more, model="toy_net:net"):
        return run("tune", model, "--trust", *words, "--device", "cpu", *more)

    return tune


def test_a_fit_and_another_from_its_folder(fit):
    first = fit("--out", "a.json")
    assert first.exit_code == 0 and "ratio" in first.stdout and "fit: " in first.stderr
    plan = pf.TunedPlan.load("a.json")
    assert plan.better and plan.nfe == 4
    assert plan.fitted["teacher"]["calls"] == 40 and plan.fitted["held_out"]["pairs"] == 128
    again = fit("--out", "a.json", "--resume", "--json")
    told = json.loads(again.stdout)
    assert again.exit_code == 0 and told["held_out"] == plan.fitted["held_out"] and "fit: " not in again.stderr
    assert pf.TunedPlan.load("a.json") == plan


def test_a_folder_is_made_and_the_file_has_a_table(fit):
    assert fit("--out", "made/a.json", "--iterations", 2, "--quiet").exit_code == 0
    shown = run("plan", "made/a.json")
    assert shown.exit_code == 0 and shown.stdout.strip() == str(pf.Plan.load("made/a.json"))
    for words in (("--nfe", 4), ("--compat", "diffusers")):
        refused = run("plan", "made/a.json", *words)
        assert refused.exit_code == 2 and f"{words[0]} cannot go with a plan's file" in refused.stderr


def test_classes_and_guidance(fit):
    result = fit("--out", "a.json", "--class", "0-2", "--null-class", 0, "--guidance", 2, "--quiet")
    assert result.exit_code == 0 and result.stdout == ""
    assert [row.guidance for row in pf.Plan.load("a.json")] == [2.0] * 4


def test_ctrl_c_writes_the_best_so_far(fit):
    result = fit("--out", "a.json", model="toy_net:stopping")
    assert result.exit_code == 130 and pf.Plan.load("a.json").fitted["interrupted"]


def test_ctrl_c_before_the_fit(fit):
    """No plan, but the teacher's samples are kept, and said to be."""
    result = fit("--out", "a.json", model="toy_net:early")
    assert result.exit_code == 130 and "a.json.fit keeps what is done" in result.stderr and not Path("a.json").exists()
    assert fit("--out", "a.json", "--resume").exit_code == 0


@pytest.mark.parametrize(
    "words, code, said",
    [
        (("--nfe", 1), 2, "nfe must be an integer in [2, 10]"),
        (("--out", "toy_net.py/a.json"), 2, "--out must be a folder that can be made"),
        (("--out", "."), 2, "--out must be a file, got"),
        (("--schedule", "psld"), 2, "--model must be of a process without momentum"),
        (("--guidance", 2), 2, "--guidance must be 1 without a class"),
        (("--minutes", 1), 2, "minutes cannot go with iterations"),
    ],
)
def test_mistakes(fit, words, code, said):
    result = fit(*words)
    assert result.exit_code == code and said in result.stderr


def test_a_model_that_fails(fit):
    result = fit(model="toy_net:failing")
    assert result.exit_code == 1 and "ZeroDivisionError" in result.stderr
