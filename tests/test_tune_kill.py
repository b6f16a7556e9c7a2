"""`pndm-fast tune` killed at any moment and gone on with: the plan of a fit that nothing broke, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

import pndm_fast as pf
from pndm_fast.tuning.fit import CHECKPOINT

pytestmark = pytest.mark.stress

TESTS = Path(__file__).parent
WAIT = 120  # seconds for what takes a few
SLACK = 4  # calls that a run may make between the one it is to be killed at and the kill
TEACHER, BATCH, ITERATIONS = 30, 16, 60
BATCHES = (128 + 64 + 128) // BATCH  # of pairs, validation and held-out ones
SPREAD = ("teacher",) * 4 + ("rivals",) * 3 + ("fit",) * 3
WORDS = f"""tune toy_net:net --trust --shape 1,1,8 --schedule vp --nfe 4 --pairs 128 --held-out 128 --batch {BATCH}
--teacher {TEACHER} --iterations {ITERATIONS} --device cpu --quiet --resume --out plan.json""".split()

# Writes a letter for each of its calls, "g" where a gradient may pass, and stands still at call STALL: a kill that is
# meant for one stage cannot come too late for it.
NET = """
import os, time, torch
from tune_case import Mixture

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls, self.stall = Mixture(), 0, int(os.environ.get("STALL", 0))
        self.log = os.open("calls", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def forward(self, x, t):
        self.calls += 1
        os.write(self.log, b"g" if torch.is_grad_enabled() else b"n")
        if self.calls == self.stall:
            time.sleep(300)
        return self.inner(x.flatten(1), t).view(x.shape)

def net():
    return Net()
"""
MAIN = "from pndm_fast.cli import main; main()"
HALF = """
import os, pathlib, signal
name, left, replace = os.environ["AT"], int(os.environ["TURN"]), os.replace

def halved(source, target):
    global left
    left -= pathlib.Path(target).name == name
    if left == 0:
        os.truncate(source, os.path.getsize(source) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = halved
"""


def started(place, code=MAIN, **environment):
    """The command on its way, in a process of its own."""
    (place / "toy_net.py").write_text(NET)
    (place / "calls").unlink(missing_ok=True)
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    told = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in environment.items()}
    with open(place / "stderr", "w") as stderr:
        return subprocess.Popen([sys.executable, "-c", code, *WORDS], cwd=place, env=told, stderr=stderr)


def finished(place):
    """What a run that nothing breaks leaves: its plan, and a letter for each call."""
    assert started(place).wait(WAIT) == 0, (place / "stderr").read_text()
    return pf.TunedPlan.load(place / "plan.json"), calls(place)


def calls(place):
    log = place / "calls"
    return log.read_bytes() if log.exists() else b""


def drawn_samples(place):
    return len([*(place / "plan.json.fit").glob("teacher-*.safetensors")])


def iterations(place):
    """Those that the checkpoint has, 0 where there is none; reading it also shows that it is whole."""
    file = place / "plan.json.fit" / f"{CHECKPOINT}.safetensors"
    return int(load_file(file)["numbers"][3]) if file.exists() else 0


def killed(place, at, pause):
    """Kill a run some moments after its network's call `at`, and check that it lived until then."""
    process = started(place, STALL=at + SLACK)
    try:
        limit = time.monotonic() + WAIT
        while len(calls(place)) < at:
            assert process.poll() is None, (place / "stderr").read_text()
            assert time.monotonic() < limit, f"call {at} has not come"
            time.sleep(0.001)
        time.sleep(pause)
        assert process.poll() is None, (place / "stderr").read_text()
    finally:
        process.kill()
        code = process.wait(WAIT)
    assert code == -signal.SIGKILL
    assert at <= len(calls(place)) <= at + SLACK


def stage(place):
    """Where a killed run was, by what it has left."""
    if drawn_samples(place) < BATCHES:
        return "teacher"
    return "fit" if calls(place).count(b"g") > 1 else "rivals"  # the first asks for gradients


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("whole"))


def same(plan, wanted):
    assert wanted.better and plan.to_json()["rows"] == wanted.to_json()["rows"] and plan.rows == wanted.rows
    for name in wanted.fitted.keys() - {"seconds", "fit_seconds"}:
        assert json.dumps(plan.fitted[name]) == json.dumps(wanted.fitted[name]), name


def left_over(place):
    """Files of the fit's folder that no finished fit has."""
    names = {f"teacher-{i * BATCH:06}.safetensors" for i in range(BATCHES)} | {"fit.json", f"{CHECKPOINT}.safetensors"}
    return sorted({file.name for file in (place / "plan.json.fit").iterdir()} - names)


def point(wish, place, log, rng):
    """A call of the next run that lies in this stage; an unbroken run has made those of `log`.

    That is: the teacher's, those of named plans, one that asks for gradients, last rows by least squares, the fit's,
    and the judgement's. Least squares are not for a run that has a checkpoint.
    """
    drawing, asks, done = TEACHER * (BATCHES - drawn_samples(place)), log.index(b"g"), iterations(place)
    rivals = asks - TEACHER * BATCHES
    if wish == "teacher":
        return rng.randrange(1, drawing // 3)
    if wish == "rivals":
        return drawing + rng.randrange(1, rivals - SLACK)
    first, last = log.index(b"g", asks + 1), log.rindex(b"g")
    begin = drawing + rivals + (1 if done else first - asks)
    left = (last - first) * (ITERATIONS - done) // ITERATIONS
    return begin + rng.randrange(max(SLACK, left // 3), left * 9 // 10)  # checkpoints are 27 iterations apart


def test_ten_kills_change_no_bit(whole, tmp_path):
    """Four while the teacher draws, three among the named plans, three in the fit, at calls drawn by a seed."""
    wanted, log = whole
    assert log[: TEACHER * BATCHES] == b"n" * TEACHER * BATCHES
    rng, hits, done = random.Random(7), Counter(), []
    for wish in SPREAD:
        killed(tmp_path, point(wish, tmp_path, log, rng), rng.uniform(0, 0.004))
        hits[stage(tmp_path)] += 1
        done.append(iterations(tmp_path))
    assert hits == Counter(SPREAD) and hits.total() == 10
    assert done == sorted(done) and done[6] == 0 < done[-1] < ITERATIONS
    plan, last = finished(tmp_path)
    same(plan, wanted)
    assert len(last) < len(log) - TEACHER * BATCHES  # it made use of what the killed ones have left


def test_kills_that_leave_half_a_file(whole, tmp_path):
    """Each file of a fit in turn, killed where it is half written; what lies about is gone once it is old."""
    turns = [("fit.json", 1), ("teacher-000032.safetensors", 1), (f"{CHECKPOINT}.safetensors", 1)]
    turns += [(f"{CHECKPOINT}.safetensors", 2), ("plan.json", 1)]
    for name, turn in turns:
        before = (tmp_path / "plan.json.fit" / name).exists()
        assert started(tmp_path, HALF + MAIN, AT=name, TURN=turn).wait(WAIT) == -signal.SIGKILL
        assert (tmp_path / "plan.json.fit" / name).exists() == (before or turn > 1)
    assert not (tmp_path / "plan.json").exists() and len(left_over(tmp_path)) == 4
    for name in left_over(tmp_path):
        os.utime(tmp_path / "plan.json.fit" / name, (time.time() - 7200,) * 2)
    same(finished(tmp_path)[0], whole[0])
    assert left_over(tmp_path) == []
