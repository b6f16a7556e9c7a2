"""What a fit's folder is known by, and plans and networks that `pf.tune` refuses by name."""

import copy
import os
import time

import pytest
import torch
from torch import nn
from tune_case import CASES, SHAPE, Mixture, black_box, tuned

import pndm_fast as pf

SMALL = dict(pairs=16, validation=4, held_out=8, batch=8, teacher=12, iterations=2)


def test_a_folder_is_one_networks(tmp_path):
    """The teacher's samples are not taken for another weaker network, dtype, or function without weights."""
    own, weaker = Mixture(), Mixture(seed=1)
    cases = (
        (own, {"guidance": pf.Guidance(2.0, weaker=weaker)},
         own, {"guidance": pf.Guidance(2.0, weaker=Mixture(seed=2))}, "weaker"),
        (own, {}, own, {"dtype": torch.bfloat16}, "dtype"),
        (black_box, {}, lambda x, t: 0.5 * black_box(x, t), {}, "outputs"),
        (own, {"guidance": pf.Guidance(2.0, weaker=black_box)},
         own, {"guidance": pf.Guidance(2.0, weaker=lambda x, t: 0.5 * black_box(x, t))}, "outputs"),
    )  # fmt: skip
    for i, (model, given, other, changed, said) in enumerate(cases):
        folder = tmp_path / str(i)
        wanted = tuned(model, folder=folder, **SMALL, **given)
        with pytest.raises(ValueError, match=f"of the same fit, got one with another {said}"):
            tuned(other, folder=folder, **SMALL, **changed)
        assert tuned(model, folder=folder, **SMALL, **given).rows == wanted.rows


def test_outputs_are_known_in_their_rounding(tmp_path):
    """A function whose last digits another machine has otherwise goes on; what is no list of numbers does not."""
    tuned(black_box, folder=tmp_path, **SMALL)
    tuned(lambda x, t: black_box(x, t) * (1 + 1e-5), folder=tmp_path, **SMALL)
    file = tmp_path / "fit.json"
    text = file.read_text()
    for broken in ('"outputs": 3, "was": [', '"outputs": ["a", '):
        file.write_text(text.replace('"outputs": [', broken))
        with pytest.raises(ValueError, match="another outputs"):
            tuned(black_box, folder=tmp_path, **SMALL)


def test_samples_without_a_word_on_whose_they_are(tmp_path):
    tuned(folder=tmp_path, **SMALL)
    (tmp_path / "fit.json").unlink()
    with pytest.raises(ValueError, match="folder must be empty or of the same fit, got .* no fit.json"):
        tuned(Mixture(seed=3), folder=tmp_path, **SMALL)
    assert not (tmp_path / "fit.json").exists()


class Stopping(Mixture):
    """It ends everything in its second iteration."""

    asked = 0

    def forward(self, x, t):
        self.asked += torch.is_grad_enabled()
        if self.asked > 1 + 4 + 2:  # for its gradients, by the first iteration, by this one
            raise KeyError
        return super().forward(x, t)


def test_a_fit_begun_anew_and_killed_has_nothing_of_the_one_before(tmp_path):
    """Killed before its first checkpoint: the next call goes on with the new fit, and the old one is no hindrance."""
    new = SMALL | {"iterations": 40}
    tuned(folder=tmp_path / "a", **SMALL)
    with pytest.raises(KeyError):
        tuned(Stopping(), folder=tmp_path / "a", resume=False, **new)
    got, wanted = tuned(folder=tmp_path / "a", **new), tuned(**new)
    assert got.rows == wanted.rows and got.fitted["validation"] == wanted.fitted["validation"]


def test_what_a_killed_process_was_writing(tmp_path):
    """Removed once nobody can be writing it, and nothing else is."""
    tuned(folder=tmp_path, **SMALL)
    names = [".fit.json.a.tmp", ".teacher-000000.safetensors.b.tmp", ".parameters.safetensors.c.tmp", ".notes.d.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - 7200,) * 2)
    (tmp_path / ".fit.json.e.tmp").write_bytes(b"half")  # written now
    tuned(folder=tmp_path, **SMALL)
    assert sorted(file.name for file in tmp_path.glob(".*")) == [".fit.json.e.tmp", ".notes.d.tmp"]


def test_plans_of_another_schedule():
    """A teacher or a rival on other levels is refused; on the fit's own, in each of its predictions, it is not."""
    other = pf.Schedule.linear()
    with pytest.raises(ValueError, match="teacher must be on the fit's schedule, vp"):
        tuned(**SMALL | {"teacher": pf.make_plan("ddim", other, nfe=20)})
    with pytest.raises(ValueError, match="rivals must be on the fit's schedule, vp"):
        tuned(**SMALL, rivals=[pf.make_plan("ddim", other, nfe=4)])
    for schedule, model, prediction in CASES.values():
        named = [pf.make_plan("dpmpp-2m", schedule, nfe=n, prediction=prediction, spacing="logsnr") for n in (20, 4)]
        given = SMALL | {"teacher": named[0], "rivals": named[1:]}
        assert tuned(model, schedule=schedule, prediction=prediction, **given).nfe == 4


class Embedded(nn.Module):
    """A network with one embedding per training time."""

    def __init__(self):
        super().__init__()
        self.scale, self.times = nn.Parameter(torch.tensor(0.5)), nn.Embedding(1000, *SHAPE)
        self.eval()

    def forward(self, x, t):
        return torch.tanh(self.scale * x + 0.1 * self.times(t))


class Failing(nn.Module):
    def forward(self, x, t):
        raise RuntimeError("of its own")


def test_networks_of_whole_times():
    """Refused by name; a function that rounds is fitted at the named plan's times. Other failures are the network's."""
    net, linear = Embedded(), pf.Schedule.linear()
    with pytest.raises(ValueError, match="model must take times that are not whole"):
        tuned(net, **SMALL, schedule=linear)
    got = tuned(lambda x, t: net(x, t.round().long()), **SMALL, schedule=linear)
    assert "the time it is told" in got.could_not[0]
    with pytest.raises(RuntimeError, match="of its own"):
        tuned(Failing().eval(), **SMALL)


def test_a_passing_failure_is_not_of_its_times():
    class Once(Mixture):
        failed = False

        def forward(self, x, t):
            if not self.failed:
                self.failed = True
                raise RuntimeError("this time")
            return super().forward(x, t)

    with pytest.raises(RuntimeError, match="this time"):
        tuned(copy.deepcopy(Once()), **SMALL)
