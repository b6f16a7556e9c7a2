"""`pf.tune`: better than the best named plan, the same after a break, and honest where it cannot be."""

import ast
import copy
import inspect
import json
import re
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed, nn
from tune_case import CASES, SHAPE, VP, Mixture, black_box, tuned

import pndm_fast as pf
from pndm_fast.loop.fitted import difference, fingerprint
from pndm_fast.plan.warn import Notice

MODEL = Mixture()


@pytest.fixture(scope="module")
def plan():
    return tuned(MODEL)


def draw(model, plan, seeds, **given):
    return pf.Sampler(model, plan, shape=(1, *SHAPE))(seeds=seeds, **given)


def errors(plan, seeds=range(10**6, 10**6 + 256)):
    """Of a plan's samples, against 400 calls of another solver than the teacher's, on noise that no fit has seen."""
    exact = draw(MODEL, pf.make_plan("dpmpp-3m", VP, nfe=400, spacing="logsnr"), seeds)
    return (draw(MODEL, plan, seeds) - exact).square().mean(1).sqrt()


def test_it_beats_the_best_named_plan(plan):
    """By its own account, and by an independent one: the named plans that a user would take, on other noise."""
    assert plan.better and plan.solver == "tuned" and plan.nfe == 4 and plan.interval[1] < 0.5
    held = plan.fitted["held_out"]
    assert held["interval"][0] <= held["ratio"] <= held["interval"][1]
    assert held["ratio"] == pytest.approx(held["fitted"]["mean"] / held["named"]["mean"])
    ours = errors(plan).mean()
    for solver, spacing in (("auto", None), ("unipc", "trailing"), ("dpmpp-2m", "logsnr"), ("deis", "trailing")):
        assert ours < 0.5 * errors(pf.make_plan(solver, VP, nfe=4, spacing=spacing)).mean()
    assert MODEL.means.grad is None and MODEL.means.requires_grad  # the network stays as it was
    assert "ratio" in plan.summary() and plan.could_not == () and plan.fitted["by"] == "gradient"


def test_it_is_a_plan_like_any(plan, tmp_path, stand_in):
    """JSON gives back each number, and every backend and mode the same bits."""
    plan.save(tmp_path / "plan.json")
    again, plain = pf.TunedPlan.load(tmp_path / "plan.json"), pf.Plan.load(tmp_path / "plan.json")
    assert again == plan and again.fitted == plan.fitted and again.interval == plan.interval
    assert plain.rows == plan.rows and plain.fitted == plan.fitted
    json.loads((tmp_path / "plan.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert copy.deepcopy(plan).fitted == plan.with_clip(1.0).fitted == plan.fitted
    wanted = draw(MODEL, plan, range(3))
    for backend, graph in (("cpp", "eager"), ("reference", "eager"), ("triton", "eager"), ("cpp", "replay")):
        sampler = pf.Sampler(MODEL, plain, shape=(1, *SHAPE), backend=backend, graph=graph)
        assert all(torch.equal(sampler(seeds=range(3)), wanted) for _ in range(2))


class Stopped(Exception):
    pass


class Stopping(nn.Module):
    """A network that ends everything at one of its calls, or at one of those that have a gradient: the fit's."""

    def __init__(self, at, error, *, of_fit=False):
        super().__init__()
        self.means, self.inner, self.at, self.error, self.calls = MODEL.means, [MODEL], at, error, 0
        self.of_fit = of_fit
        self.eval()

    def forward(self, x, t):
        self.calls += x.requires_grad or not self.of_fit
        if self.calls == self.at:
            raise self.error
        return self.inner[0](x, t)


def test_a_killed_fit_ends_where_an_unbroken_one_does(tmp_path):
    """Killed while the teacher draws, then in the fit, twice; the last call takes what the others have left."""
    count = Stopping(-1, None)
    wanted = tuned(count, iterations=30, folder=tmp_path / "whole")
    for at, of_fit in ((100, False), (4 * 20, True), (4 * 8, True)):
        with pytest.raises(Stopped):
            tuned(Stopping(at, Stopped(), of_fit=of_fit), iterations=30, folder=tmp_path / "broken")
    assert (tmp_path / "broken" / "parameters.safetensors").exists()
    last = Stopping(-1, None)
    got = tuned(last, iterations=30, folder=tmp_path / "broken")
    assert got.rows == wanted.rows and got.fitted["held_out"] == wanted.fitted["held_out"]
    assert got.fitted["validation"] == wanted.fitted["validation"] and last.calls < count.calls
    for change, said in (({"seed": 1}, "seed"), ({"teacher": 41}, "teacher"), ({"pairs": 300}, "pairs")):
        with pytest.raises(ValueError, match=f"of the same fit, got one with another {said}"):
            tuned(count, folder=tmp_path / "broken", **change)
    with pytest.raises(ValueError, match="another network"):
        tuned(Mixture(seed=3), folder=tmp_path / "broken")
    with pytest.raises(ValueError, match="other conditioning"):
        tuned(MODEL, folder=tmp_path / "broken", cond={"label": torch.zeros(1)})
    with pytest.raises(ValueError, match="resume must go on from the same fit, got a folder with another rate"):
        tuned(MODEL, iterations=30, rate=0.02, folder=tmp_path / "broken")
    grids = [pf.make_plan("ddim", VP, nfe=4, spacing=spacing) for spacing in ("trailing", "quadratic")]
    tuned(MODEL, iterations=30, folder=tmp_path / "broken", resume=False, rivals=grids[:1])
    with pytest.raises(ValueError, match="resume must go on from the same fit, got a folder with another start"):
        tuned(MODEL, iterations=30, folder=tmp_path / "broken", rivals=grids[1:])
    (tmp_path / "broken" / "fit.json").write_text("3")
    with pytest.raises(ValueError, match="of the same fit"):
        tuned(MODEL, folder=tmp_path / "broken")


def test_another_fit_takes_the_teachers_samples(tmp_path):
    wanted = tuned(MODEL, iterations=10, folder=tmp_path)
    other, alone = Stopping(-1, None), Stopping(-1, None)
    assert tuned(other, nfe=5, iterations=10, folder=tmp_path, resume=False).nfe == 5
    tuned(alone, nfe=5, iterations=10)
    again = tuned(MODEL, iterations=10, folder=tmp_path, resume=False)
    assert again.rows == wanted.rows and alone.calls - other.calls == 40 * 9


def test_ctrl_c_keeps_the_best_so_far():
    count = Stopping(-1, None)
    tuned(count, iterations=60)
    got = tuned(Stopping(count.calls * 4 // 5, KeyboardInterrupt()), iterations=60)
    assert got.better and got.fitted["interrupted"] and 0 < got.fitted["iterations"] < 60
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_cannot_be_better_is_refused():
    """A loss that no plan changes: the named plan comes back, says so, and warns of nothing."""
    got = tuned(MODEL, iterations=10, loss=lambda samples, ends: 1 + 0 * samples.sum(1))
    assert not got.better and got.interval == (1.0, 1.0) and got.solver != "tuned"
    assert "the best named plan" in got.summary() and got.fitted["loss"].endswith("<lambda>")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(Mixture(seed=9), got, range(2))


@pytest.mark.parametrize("loss", ["l1", "own"])
def test_other_losses(loss):
    """L1, and a function: of features, the square of which a plan can also be better in."""

    def own(samples, ends):
        return (samples[:, :4] - ends[:, :4]).square().sum(1)

    got = tuned(MODEL, iterations=60, loss=own if loss == "own" else loss)
    assert got.better and got.fitted["loss"].rpartition(".")[2] == loss
    with pytest.raises(ValueError, match=r"loss must return one number for each of the .* samples, got \[\]"):
        tuned(MODEL, iterations=1, loss=lambda samples, ends: samples.sum())


def test_fingerprints():
    own = fingerprint(MODEL)
    rounded = [copy.deepcopy(MODEL).to(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64)]
    wrapped = [torch.compile(MODEL), nn.DataParallel(MODEL), torch.optim.swa_utils.AveragedModel(MODEL)]
    for same in (*rounded, *wrapped):
        assert difference(own, fingerprint(same)) is None
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        assert difference(own, fingerprint(nn.parallel.DistributedDataParallel(copy.deepcopy(MODEL)))) is None
    finally:
        distributed.destroy_process_group()
    assert difference(own, fingerprint(Mixture(seed=1))) == "other weights"
    other = copy.deepcopy(MODEL)
    other.more = nn.Linear(2, 2)
    assert difference(own, fingerprint(other)) == "weights of other names or shapes"
    configured, again = copy.deepcopy(MODEL), copy.deepcopy(MODEL)
    configured.config, again.config = {"depth": 3, "_name_or_path": "a"}, {"_name_or_path": "b", "depth": 3}
    assert difference(fingerprint(configured), fingerprint(again)) is None
    again.config = {"depth": 4}
    assert difference(fingerprint(configured), fingerprint(again)) == "another configuration"
    conv = nn.Conv2d(3, 4, 3)
    lasting = copy.deepcopy(conv).to(memory_format=torch.channels_last)
    assert fingerprint(conv) == fingerprint(lasting) and fingerprint(black_box) is None
    away = fingerprint(nn.Conv2d(3, 4, 3, device="meta"))
    assert away["numbers"] == [None, None] and difference(away, fingerprint(conv)) is None
    assert difference(away, fingerprint(nn.Conv2d(3, 4, 5))) == "weights of other names or shapes"


def test_it_warns_elsewhere(plan):
    for model in (MODEL, torch.compile(MODEL, backend="eager"), copy.deepcopy(MODEL).bfloat16()):
        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)
            assert plan.departs(model) is None
            pf.Sampler(model, plan, shape=(1, *SHAPE), dtype=torch.float32, graph="eager")(seeds=range(2))
    with pytest.warns(Notice, match="fitted to another network: this one has other weights"):
        draw(Mixture(seed=1), plan, range(2))
    label = {"cond": {"label": torch.ones(1)}, "uncond": {"label": torch.zeros(1)}}
    with pytest.warns(Notice, match="fitted at guidance 1, got 2"):
        draw(MODEL, plan, range(2), guidance=2.0, **label)
    with pytest.raises(ValueError, match="must say 'network'"):
        pf.TunedPlan(plan.rows, fitted={}).departs(MODEL)


TAMPERED = {
    "held_out": (3, [], {"interval": 1}, {"interval": [1, "a"]}, {"interval": [0.1, 0.2], "fitted": 3}),
    "could_not": (3, [1], None, "no"),
    "better": ("yes", None, 1),
    "named": ([], {"plan": 3}),
    "by": (None, 3),
    "loss": ([],),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_files_words_of_itself_are_not_believed(plan, name):
    for value in TAMPERED[name]:
        other = pf.TunedPlan(plan.rows, fitted={**plan.fitted, name: value})
        with pytest.raises(ValueError, match="a tuned plan must say"):
            _ = other.better, other.interval, other.could_not, other.summary()
    probe = {"network": None, "probe": {"shape": [8], "seed": 0, "time": 0.5, "outputs": [0.0] * 16}}
    for key, value in (("shape", [-1]), ("shape", 3), ("seed", 0.5), ("time", "0"), ("outputs", [None])):
        fitted = {**plan.fitted, **probe, "probe": {**probe["probe"], key: value}}
        with pytest.raises(ValueError, match=f"must say 'probe.{key}'"):
            pf.TunedPlan(plan.rows, fitted=fitted).departs(black_box)


def test_guidance_and_conditioning_are_the_users():
    """Fitted at a scale, with labels by pair: the plan carries the scale, and is better there."""
    given = {"cond": lambda i: {"label": torch.tensor([i % 3])}, "uncond": {"label": torch.tensor([0])}}
    got = tuned(MODEL, guidance=2.0, iterations=60, **given)
    assert got.better and [row.guidance for row in got] == [2.0] * 4
    trees = {"cond": {"label": torch.tensor([0, 1, 2, 0])}, "uncond": {"label": torch.tensor([0])}}
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        own = draw(MODEL, got, range(4), **trees)
        assert torch.equal(own, draw(MODEL, got, range(4), guidance=2.0, **trees))
    with pytest.warns(Notice, match="fitted at guidance 2, got 3"):
        draw(MODEL, got, range(4), guidance=3.0, **trees)
    inside = tuned(MODEL, guidance=pf.Guidance(2.0, interval=(0.3, 3.0)), iterations=20, **given)
    assert {row.guidance for row in inside} == {1.0, 2.0}


def test_a_black_box():
    """No gradient and no weights: optimal times and a last row, better than what is named; it says what is missing."""
    got = tuned(black_box, nfe=5)
    assert got.better and got.fitted["by"] == "optimal times and least squares" and "by gradient" in got.could_not[0]
    assert got.fitted["network"] is None and got.departs(black_box) is None
    assert got.departs(lambda x, t: 0.9 * black_box(x, t)) == "other outputs"
    assert "could not: told times" in got.summary() and got.could_not[0].endswith("its output carries none")


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()


def test_a_network_without_a_backward_pass():
    got = tuned(lambda x, t: Once.apply(MODEL(x, t)), nfe=5, iterations=5)
    assert got.fitted["by"] == "optimal times and least squares" and "backward" in got.could_not[0]


def test_a_network_that_hides_its_time():
    """Coefficients alone are fitted where no gradient comes from the time that is told."""
    named = pf.make_plan("dpmpp-2m", VP, nfe=4)
    got = tuned(lambda x, t: MODEL(x, t.detach()), iterations=60, rivals=[named])
    assert got.better and "the time it is told" in got.could_not[0]
    assert got.times == pytest.approx(named.times, rel=1e-12) and got.rows != named.rows


def test_minutes_are_iterations():
    got = tuned(MODEL, iterations=None, minutes=0.01)
    assert got.fitted["iterations"] >= 5 and not got.fitted["interrupted"]


def test_float64_and_flow():
    """A network in float64 on flow's schedule, with rivals of one's own, recomputed in the backward pass."""
    schedule, model, prediction = CASES["flow"]
    rivals = [pf.make_plan(s, schedule, nfe=4, prediction=prediction, spacing="trailing") for s in ("unipc", "ddim")]
    got = tuned(copy.deepcopy(model).double(), schedule=schedule, prediction=prediction, rivals=rivals, recompute=True,
                iterations=60)  # fmt: skip
    assert got.better and got.fitted["named"]["plan"].startswith("rival") and got.prediction == "flow"


def test_a_network_in_bfloat16():
    """The state is float32 and the loss sees through the rounding; the plan is for the network in float32 too."""
    got = tuned(copy.deepcopy(MODEL).bfloat16(), iterations=40)
    assert got.better and got.departs(MODEL) is None and got.interval[1] < 0.6


def test_the_page_names_what_there_is():
    """Arguments in docs/tune.md's examples are `tune`'s, and the command's are its own."""
    page = (Path(__file__).parent.parent / "docs" / "tune.md").read_text()
    block = page.split("```python\n")[1].split("```")[0]
    calls = [n for n in ast.walk(ast.parse(block)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "pf.tune"]
    names = {keyword.arg for call in calls for keyword in call.keywords}
    assert names and names <= inspect.signature(pf.tune).parameters.keys()
    assert {"--trust", "--nfe", "--minutes", "--out"} == set(
        re.findall(r"--\w+", page.split("    pndm-fast tune")[1].split("\n")[0])
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A finished fit's folder."""
    folder = tmp_path_factory.mktemp("fit")
    tuned(MODEL, iterations=10, folder=folder)
    return folder


DAMAGE = {
    "empty": lambda data: b"",
    "text": lambda data: b"x" * 100,
    "cut": lambda data: data[:-7],
}
CHANGES = {
    "nan": ("teacher-000000", "ends", lambda ends: ends * torch.nan),
    "another shape": ("teacher-000000", "ends", lambda ends: ends[:, :4]),
    "fewer": ("teacher-000000", "ends", lambda ends: ends[1:]),
    "none": ("teacher-000000", "ends", lambda ends: None),
    "no vector": ("parameters", "vector", lambda vector: None),
    "short vector": ("parameters", "vector", lambda vector: vector[:3]),
    "infinite vector": ("parameters", "best", lambda best: best / 0),
    "more done than all": ("parameters", "numbers", lambda numbers: numbers + torch.tensor([0, 0, 0, 99, 0])),
    "curve": ("parameters", "curve", lambda curve: curve[:, :1]),
}


def refused(folder, match="folder must"):
    with pytest.raises(ValueError, match=match):
        tuned(MODEL, iterations=10, folder=folder)


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["fit.json", "teacher-000000.safetensors", "parameters.safetensors"])
def test_a_damaged_folder(how, name, kept, tmp_path):
    """Refused by name: never another library's error, and never gone on from."""
    shutil.copytree(kept, tmp_path / "fit")
    file = tmp_path / "fit" / name
    file.write_bytes(DAMAGE[how](file.read_bytes()))
    refused(tmp_path / "fit")


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_with_other_tensors(change, kept, tmp_path):
    name, key, work = CHANGES[change]
    shutil.copytree(kept, tmp_path / "fit")
    file = tmp_path / "fit" / f"{name}.safetensors"
    with safe_open(file, "pt") as opened:
        tensors, words = {k: opened.get_tensor(k) for k in opened.keys()}, opened.metadata()
    changed = {**tensors, key: work(tensors[key])}
    save_file({k: t.contiguous() for k, t in changed.items() if t is not None}, file, metadata=words)
    refused(tmp_path / "fit")
    save_file(tensors, file, metadata={"told": "["})
    refused(tmp_path / "fit")


def test_a_file_for_a_folder(tmp_path):
    (tmp_path / "fit").write_text("mine")
    refused(tmp_path / "fit", "folder must be a folder")
    assert (tmp_path / "fit").read_text() == "mine"


@pytest.mark.parametrize(
    "change, said",
    [
        ({"network": "mine"}, "fitted to another network"),
        ({"network": {"numbers": 3}}, "fitted to another network"),
        ({"network": {**(fingerprint(MODEL) or {}), "numbers": [["a"]]}}, "fitted to another network"),
        ({"guidance": {"scales": ["a"]}}, "fitted at guidance"),
        ({"guidance": {"scales": 3}}, "fitted at guidance"),
    ],
)
def test_a_files_words_are_not_believed(change, said):
    """Whatever stands there, the plan samples, and the warning is the product's own."""
    told = {"better": True, "network": fingerprint(MODEL), "guidance": {"scales": [1.0] * 4}, **change}
    plan = pf.Plan.from_json({**pf.make_plan("ddim", VP, nfe=4).to_json(), "fitted": told})
    with pytest.warns(Notice, match=said):
        draw(MODEL, plan, range(2))
