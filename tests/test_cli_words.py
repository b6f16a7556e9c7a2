"""The words of the command line: what other programs call them, what completes them, how help is asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from test_cli import place, run, sample  # noqa: F401
from test_cli_ends import ROOT
from typer.testing import CliRunner

from pndm_fast.cli import app as cli
from pndm_fast.cli import images, models, words
from pndm_fast.cli.arguments import SCHEDULES
from pndm_fast.loop.request import ON_NAN
from pndm_fast.plan.grids import SPACINGS
from pndm_fast.plan.named_grids import OTHER_SPACINGS
from pndm_fast.plan.row import PREDICTIONS
from pndm_fast.row.backends import BACKENDS
from pndm_fast.runtime.graphs import GRAPHS
from pndm_fast.solvers import SOLVERS
from pndm_fast.solvers.compat import COMPAT


def test_words_that_are_known_without_torch():
    assert (words.BACKENDS, words.GRAPHS, words.ON_NAN) == (tuple(BACKENDS), tuple(GRAPHS), tuple(ON_NAN))
    assert (words.DTYPES, words.DEMOS) == (tuple(models.DTYPES), tuple(models.DEMOS))


HINTS = {
    ("sample", "--num-inference-steps", "20"): "did you mean --steps?",
    ("sample", "--num_inference_steps", "20"): "did you mean --steps?",
    ("sample", "--guidance-scale", "3"): "did you mean --guidance?",
    ("sample", "--cfg", "3"): "did you mean --guidance?",
    ("sample", "--cfg-scale=3"): "did you mean --guidance?",
    ("sample", "--sampler", "ddim"): "did you mean --solver?",
    ("sample", "--scheduler", "ddim"): "did you mean --solver?",
    ("sample", "--batch-size", "4"): "did you mean --batch?",
    ("sample", "--num-images", "4"): "did you mean --number?",
    ("sample", "--n", "4"): "did you mean --number?",
    ("sample", "-o", "a.png"): "did you mean --out?",
    ("sample", "--label", "3"): "did you mean --class?",
    ("sample", "--prompt", "a cat"): "did you mean --class",
    ("sample", "--eta", "0.5"): "did you mean --option eta=...?",
    ("sample", "--t-min", "3"): "did you mean --option t_min=...?",
    ("plan", "ddim", "--clip", "1"): "did you mean --option clip=...?",
    ("plan", "--solver", "ddim"): "did you mean plan SOLVER?",
    ("plan", "ddim", "--times", "[999, -1]"): "did you mean --option times=...?",
    ("sample", "--integer-times", "true"): "did you mean --option integer_times=...?",
    ("sample", "--compat", "diffusers"): "did you mean plan --compat?",
    ("plan", "ddim", "-n", "3"): "did you mean sample --number?",
    ("replay", "a.png", "--cfg", "3"): "did you mean sample --guidance?",
    ("replay", "a.png", "--overwrite"): "did you mean --force?",
    ("--steps", "20"): "did you mean sample --steps?",
    ("sample", "digits.PNG"): "did you mean --out digits.PNG, or replay digits.PNG?",
    ("generate",): "did you mean sample?",
    ("list",): "did you mean solvers?",
    ("reproduce", "a.png"): "did you mean replay?",
    ("help",): "did you mean --help?",
    ("sampel",): "Did you mean 'sample'?",
    ("sample", "--step", "3"): "--steps",
}


@pytest.mark.parametrize("asked", HINTS, ids=" ".join)
def test_words_of_other_programs(asked):
    result = run(*asked)
    assert result.exit_code == 2 and result.stdout == ""
    assert HINTS[asked] in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["", "sample", "replay", "plan", "solvers"])
def test_short_help(command):
    asked = [command] if command else []
    short, long = run(*asked, "-h"), run(*asked, "--help")
    assert short.exit_code == long.exit_code == 0 and short.stdout == long.stdout and "-h, --help" in short.stdout


def completed(*asked):
    environment = {
        "_PNDM_FAST_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["pndm-fast", *asked]),
        "COMP_CWORD": str(len(asked)),
    }
    return CliRunner().invoke(cli.app, [], env=environment, prog_name="pndm-fast").stdout.split()


@pytest.mark.parametrize(
    "asked, expected",
    [
        (("s",), ["sample", "solvers"]),
        (("sample", "--solver", "dpmpp"), [name for name in sorted(SOLVERS) if name.startswith("dpmpp")]),
        (("plan", "f"), ["f-pndm", "fon", "fon-rk4"]),
        (("plan", "--compat", "diffusers", "d"), [name for name in sorted(COMPAT["diffusers"]) if name[0] == "d"]),
        (("sample", "--schedule", ""), list(SCHEDULES)),
        (("sample", "--spacing", "l"), [name for name in (*SPACINGS, *OTHER_SPACINGS) if name[0] == "l"]),
        (("sample", "--prediction", ""), list(PREDICTIONS)),
        (("sample", "--dtype", "b"), ["bf16"]),
        (("sample", "--backend", "c"), ["cpp"]),
        (("sample", "--graph", "w"), ["while"]),
        (("sample", "--on-nan", "m"), ["mark"]),
        (("sample", "--model", "demo"), list(words.DEMOS)),
        (("sample", "--solver", "ddim", "--option", "e"), ["eta="]),
        (("sample", "--solver", "dpmpp-3m", "--option", "ex"), ["exact=true", "exact=false"]),
    ],
)
def test_completion(asked, expected):
    assert completed(*asked) == expected


def test_completion_and_plans_need_no_torch():
    """It takes seconds to import."""
    code = """if True:
    import sys
    sys.modules.update(dict.fromkeys(["torch", "rich", "PIL", "safetensors"]))
    from pndm_fast.cli import main
    main()
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asked = ["plan", "ddim", "--steps", "3"]
    shown = subprocess.run([sys.executable, "-c", code, *asked], env=environment, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.startswith("ddim: 3 steps") and shown.stderr == ""
    environment |= {"_PNDM_FAST_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "pndm-fast sample --solver sscs"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert shown.returncode == 0 and "sscs" in shown.stdout


def test_completion_can_be_installed(monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    result = CliRunner().invoke(cli.app, ["--show-completion", "bash"], prog_name="pndm-fast")
    assert result.exit_code == 0 and "_PNDM_FAST_COMPLETE=complete_bash" in result.stdout
    assert "--install-completion" in run("--help").stdout


@pytest.mark.parametrize("name", ["a.PNG", "a.Png", "a.NPZ"])
def test_suffixes_of_any_case(name, place):  # noqa: F811
    sample("-n", 2, "--out", name)
    assert images.read_recipe(name)["number"] == 2
    assert (place / name).read_bytes()[:2] == (b"PK" if name.endswith("Z") else b"\x89P")
