"""`pndm-fast plan` and `solvers`, their words, and what the command says without its parts."""

from __future__ import annotations

import json
import re
import sys

import pytest
from test_cli import place, run, sample  # noqa: F401

import pndm_fast as pf
from pndm_fast.cli import main
from pndm_fast.cli.words import parse_classes, parse_options
from pndm_fast.solvers import SOLVER_INFO

pytest.importorskip("PIL")


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


def test_plan():
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
