"""How a command ends where something else ends it: signals, readers that are gone, places that are full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import place, run, sample  # noqa: F401

from pndm_fast.cli import images

ROOT = Path(__file__).parent.parent
# the signal comes while a module is imported
DURING = """
import os, signal, sys

class During:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{signal})

sys.meta_path.insert(0, During())
sys.argv = ["pndm-fast", "sample", "-n", "1", "--out", "a.npz"]
"""


def process(code, *words, **options):
    """A process of its own, from the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"capture_output": True, "text": True, **options}
    return subprocess.run([sys.executable, *code, *words], env=environment, timeout=120, **options)


MAIN = "from pndm_fast.cli import main; main()"
MODULE = "import runpy; runpy.run_module('pndm_fast', run_name='__main__', alter_sys=False)"


@pytest.mark.parametrize(
    "module, entry, name",
    [
        ("typer", "MODULE", "SIGINT"),
        ("torch", "MAIN", "SIGINT"),
        pytest.param("numpy", "MAIN", "SIGTERM", marks=pytest.mark.slow),
        pytest.param("torch", "MODULE", "SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_signal_during_imports(module, entry, name, tmp_path):
    code, word = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated")}[name]
    entry = globals()[entry]
    result = process(["-c", DURING.format(module=module, signal=name) + entry], cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (code, "", f"error: {word}\n")


@pytest.mark.slow
def test_an_ignored_signal_stays_ignored(tmp_path):
    """As of a job that nohup, or a script's &, has put in the background."""
    start = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    start += DURING.format(module="typer", signal="SIGINT")
    result = process(["-c", f"{start}\nsys.argv = ['pndm-fast', '--version']\n{MAIN}"], cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.startswith("pndm-fast ") and result.stderr == ""


@pytest.mark.parametrize("out", ["made", "a.npz"])
def test_sigterm_keeps_what_is_finished(place, out, monkeypatch):  # noqa: F811
    text = (place / "toy_net.py").read_text()
    (place / "toy_net.py").write_text(text.replace("raise KeyboardInterrupt", "os.kill(os.getpid(), 15)"))
    result = sample("-n", 8, "--batch", 2, "--shape", "1,4,4", "--out", out, "--json", model="toy_net:stop", code=143)
    told = json.loads(result.stdout)
    assert told["interrupted"] and told["images"] == 4
    assert result.stderr.splitlines()[-2:] == [f"4 finished pictures are kept in {out}", "error: terminated"]
    if out == "a.npz":
        assert images.read_recipe(out)["number"] == 4


def test_an_interrupted_replay_writes_nothing_half(place):  # noqa: F811
    sample("-n", 6, "--batch", 2, "--shape", "1,4,4", "--out", "a.npz", model="toy_net:plain", steps=9)
    text = (place / "toy_net.py").read_text()
    (place / "toy_net.py").write_text(text.replace("def plain", "def old").replace("def stop", "def plain"))
    sys.modules.pop("toy_net")
    result = run("replay", "a.npz", "--trust", "--device", "cpu", "--json")
    assert result.exit_code == 130 and json.loads(result.stdout) == {"replays": [], "interrupted": True}
    assert sorted(p.name for p in place.iterdir() if p.is_file()) == ["a-replay.npz", "a.npz", "toy_net.py"]


PLAN = ["-m", "pndm_fast", "plan", "ddim", "--steps", "999"]


def test_a_reader_that_has_seen_enough():
    reading, writing = os.pipe()
    os.close(reading)
    result = process(PLAN, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")


def test_stdout_that_is_full_or_closed():
    with open("/dev/full", "w") as full:
        result = process(PLAN, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (1, "error: stdout could not be written: No space left on device\n")
    closed = process(["-c", f"import sys; sys.stdout = None; sys.argv = ['pndm-fast', 'plan', 'ddim']; {MAIN}"])
    assert (closed.returncode, closed.stderr) == (1, "error: stdout must be open, got none\n")


def test_sampling_needs_no_stdout(place, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(sys, "stdout", None)
    from pndm_fast.cli.app import app

    words = ["sample", "--model", "toy_net:toy", "--trust", "-n", "1", "--steps", "4", "--device", "cpu"]
    with pytest.raises(SystemExit) as caught:
        app([*words, "--solver", "ddim", "--quiet", "--out", "a.npz"])
    assert caught.value.code == 0 and images.read_recipe("a.npz")["number"] == 1


def test_a_plan_is_written_whole_or_not_at_all(place):  # noqa: F811
    """A full disk is code 1, a place where nothing can be written code 2; a device is written to, not replaced."""
    for path, code, text in [
        ("/dev/full", 1, "No space left on device"),
        ("", 2, "got '': "),
        (".", 2, "got '.': "),
        ("absent/plan.json", 2, "No such file"),
        ("a" * 300, 2, "File name too long"),
    ]:
        result = run("plan", "ddim", "--steps", 3, "--save", path)
        assert result.exit_code == code and text in result.stderr and result.stderr.count("\n") == 1
    assert not os.path.isfile("/dev/full")
    (place / "link.json").symlink_to("real.json")
    assert run("plan", "ddim", "--steps", 3, "--save", "link.json").exit_code == 0
    assert sorted(p.name for p in place.iterdir()) == ["link.json", "real.json", "toy_net.py"]
    assert (place / "link.json").is_symlink()


def test_a_full_disk_leaves_whole_pictures(place, monkeypatch):  # noqa: F811
    save, written = images.save_png, []

    def full(path, *rest):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        save(path, *rest)

    monkeypatch.setattr(images, "save_png", full)
    result = sample("-n", 6, "--batch", 2, "--out", "made", "--quiet", code=1)
    assert result.stderr.splitlines() == [
        "3 finished pictures are kept in made",
        "error: made could not be written: OSError: [Errno 28] No space left on device (test_cli_ends.py:"
        + result.stderr.rpartition(":")[2].strip(),
    ]
    assert len(list((place / "made").iterdir())) == 3
