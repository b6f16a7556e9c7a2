"""The packaged plans of few calls, and how auto comes to them."""

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from sampler_case import SHAPE, Conv
from test_cli import place, run  # noqa: F401

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.loop.fitted import difference, fingerprint
from pndm_fast.loop.told import told_plan
from pndm_fast.plan.warn import Notice
from pndm_fast.solvers.auto import recommend
from pndm_fast.tuning.named import finalists

NETWORKS = {"mnist": demo.mnist_unet, "mnist_flow": demo.mnist_flow_unet}
PLANS = [(network, plan) for network in NETWORKS for plan in demo.plans_of(network)]
NAMES = [f"{network}-{plan.nfe}-{plan.rows[0].guidance:g}" for network, plan in PLANS]


@pytest.fixture(scope="module")
def networks():
    return {name: make() for name, make in NETWORKS.items()}


def cond(batch):
    return {"class_labels": torch.arange(batch) % demo.null_class}


@pytest.mark.parametrize("network, plan", PLANS, ids=NAMES)
def test_each_is_of_its_network_and_better(networks, network, plan):
    assert plan.better and plan.interval[1] < 1 and plan.could_not == ()
    assert difference(plan.fitted["network"], fingerprint(networks[network])) is None
    scale = plan.rows[0].guidance
    assert demo.tuned(plan.nfe, network, scale) is plan
    assert told_plan(networks[network], plan.nfe, scale) is plan


@pytest.mark.slow
@pytest.mark.parametrize("network, plan", PLANS, ids=NAMES)
def test_each_is_nearer_than_named_ones(networks, network, plan):
    """On noise of no fit: to auto's plan of 60 calls, than each of three named plans of as many calls."""
    net, scale, batch = networks[network], plan.rows[0].guidance, 12
    given = {"seeds": 50_000, "shape": (batch, 1, 28, 28), "cond": cond(batch)}
    if scale != 1:
        given |= {"guidance": scale, "uncond": {"class_labels": torch.full((batch,), demo.null_class)}}
    fine = pf.sample(net, nfe=60, solver="auto", **given)
    plans = finalists(net.schedule, net.prediction, plan.nfe)
    named = [next(one for key, one in plans.items() if key.startswith(head)) for head in ("auto", "unipc", "dpmpp-2m")]
    near, *others = [(pf.sample(net, solver=one, **given) - fine).flatten(1).norm(dim=1) for one in (plan, *named)]
    assert all(near.mean() < other.mean() for other in others)


@pytest.mark.parametrize("network, plan", PLANS, ids=NAMES)
def test_rows_are_bit_equal(network, plan):
    """C++ and the reference, with a network whose own sums have one order; the file's numbers are kept exactly."""
    given = {"cond": {"labels": torch.tensor([1, 2])}}
    if plan.rows[0].guidance != 1:
        given["uncond"] = {"labels": torch.tensor([10, 10])}
    results = []
    for backend in ("cpp", "reference"):
        sampler = pf.Sampler(Conv(torch.float32), plan, shape=(2, *SHAPE), backend=backend)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # of another network
            results.append(sampler(seeds=4, **given))
    assert torch.equal(*results) and results[0].isfinite().all()
    assert pf.TunedPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.slow
def test_rows_are_tritons(triton_device):
    plan = demo.tuned(10)
    given = {"cond": {"labels": torch.tensor([1, 2]).to(triton_device)}, "seeds": 4}
    results = []
    for backend in ("triton", "reference"):
        sampler = pf.Sampler(Conv(torch.float32).to(triton_device), plan, shape=(2, *SHAPE), backend=backend)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)
            results.append(sampler(**given))
    assert torch.equal(*results)


def test_auto_takes_it_where_it_is_left_every_choice(networks):
    net, plan = networks["mnist"], demo.tuned(5)
    given = {"shape": (2, 1, 28, 28), "cond": cond(2)}
    wanted = pf.sample(net, solver=plan, **given)
    for words in ({"nfe": 5}, {"steps": 5}, {"nfe": 5, "guidance": 1.0}):
        assert torch.equal(pf.sample(net, solver="auto", **words, **given), wanted)
    for words in ({"nfe": 5, "spacing": "leading"}, {"nfe": 5, "spacing": "trailing"}):
        other = pf.sample(net, solver="auto", **words, **given)
        assert torch.equal(other, pf.sample(net, solver=pf.make_plan("auto", **words), **given))
    assert not torch.equal(pf.sample(net, solver="auto", nfe=6, **given), wanted)


def test_auto_takes_it_of_the_network_it_was_fitted_to(networks):
    net, plan = networks["mnist"], demo.tuned(5)
    same = (torch.compile(net), torch.nn.DataParallel(net), demo.mnist_unet(torch.bfloat16))
    assert all(told_plan(one, 5, None) is plan for one in same)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)
    assert told_plan(other, 5, None) is None and told_plan(lambda x, t: net(x, t), 5, None) is None
    assert told_plan(demo.mnist_psld_unet(), 5, None) is None
    guidance = (3.0, [1.0] * 5, pf.Guidance(2.0, interval=(0.1, 1.0)), pf.Guidance(1.0, weaker=other))
    assert all(told_plan(net, 5, one) is None for one in guidance)
    assert all(told_plan(net, calls, None) is None for calls in (4, 5.5, None, "5"))


def test_a_network_of_ones_own_says_its_plans(networks):
    """An attribute `plans` is all that it takes; of another type it is the network's own affair."""
    net, plan = networks["mnist"], demo.tuned(5)

    class Own(torch.nn.Module):
        def __init__(self, plans):
            super().__init__()
            self.module, self.plans = net, plans

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    assert told_plan(Own([plan]), 5, None) is plan
    assert told_plan(Own([]), 5, None) is None
    for other in ("5", {5: plan}, [1, 2]):
        assert told_plan(Own(other), 5, None) is plan  # the inner network's


@pytest.mark.parametrize("network, plan", PLANS, ids=NAMES)
def test_the_page_says_what_the_file_says(network, plan):
    page = (Path(__file__).parent.parent / "docs" / "tune.md").read_text()
    scale, held = plan.rows[0].guidance, plan.fitted["held_out"]
    name = f"{network}-{plan.nfe}" + ("" if scale == 1 else f"-guidance-{scale:g}")
    named, fitted = (f"{held[who]['mean']:.4f} / {held[who]['median']:.4f}" for who in ("named", "fitted"))
    low, high = plan.interval
    assert f"| `{name}` | {named} | {fitted} | {held['ratio']:.3f} ({low:.3f} to {high:.3f}) |" in page


def test_auto_takes_it_on_its_schedule_and_for_its_prediction():
    """Where the network says neither, what the caller says of them is not what a plan of another process is for."""

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = demo.mnist_unet()

        def forward(self, x, t):
            return self.net(x, t)

    net, plan = Own().eval(), demo.tuned(5)
    fitted = {**plan.fitted, "network": fingerprint(net)}
    own = pf.TunedPlan(plan.rows, prologue=plan.prologue, fitted=fitted)
    net.plans = [own]
    given = {"nfe": 5, "solver": "auto", "shape": (1, 1, 28, 28)}
    wanted = pf.sample(net, solver=own, shape=(1, 1, 28, 28))
    for words in ({}, {"schedule": pf.Schedule.linear()}, {"prediction": "eps"}):
        assert torch.equal(pf.sample(net, **given, **words), wanted)
    for words in ({"schedule": pf.Schedule.cosine()}, {"schedule": pf.Schedule.scaled_linear()}, {"prediction": "v"}):
        other = pf.make_plan("auto", nfe=5, **words)
        got = pf.sample(net, **given, **words)
        assert torch.equal(got, pf.sample(net, solver=other, shape=(1, 1, 28, 28))), words
    for words in ({"schedule": "linear"}, {"prediction": "epsilon"}, {"nfe": 5.0}):
        with pytest.raises((TypeError, ValueError), match=f"^{next(iter(words))} must be"):
            pf.sample(net, **{**given, **words})


def test_packaged_networks_take_plans_of_ones_own():
    net, plan = demo.mnist_unet(), demo.tuned(8)
    net.plans = [plan]
    assert net.plans == (plan,) and told_plan(net, 8, None) is plan and told_plan(net, 5, None) is None
    assert copy.deepcopy(net).plans == net.plans and demo.mnist_unet().plans == demo.plans_of("mnist")
    assert told_plan(demo.UNet(), 5, None) is None


def test_names():
    with pytest.raises(ValueError, match="tuned plans are mnist-5, .*got none of mnist with 7 calls at guidance 1"):
        demo.tuned(7)
    for guidance in (1.5, 2.0000001):
        with pytest.raises(ValueError, match=f"got none of mnist with 5 calls at guidance {guidance}"):
            demo.tuned(5, guidance=guidance)
    for words, said in (({"guidance": "2"}, "guidance must be a number"), ({"nfe": 5.0}, "nfe must be an integer")):
        with pytest.raises(TypeError, match=said):
            demo.tuned(**{"nfe": 5, **words})
    for ask in (demo.plans_of, lambda name: demo.tuned(5, name)):
        with pytest.raises(ValueError, match="network must be one of .*; did you mean 'mnist_flow'"):
            ask("mnist-flow")
    assert demo.plans_of("mnist_psld") == ()


def test_on_the_command_line(place):  # noqa: F811
    words = ("sample", "-n", 2, "--nfe", 5, "--device", "cpu", "--solver", "auto")
    result = run(*words, "--out", "a.npz", "--json")
    told = json.loads(result.stdout)
    assert told["solver"] == "tuned" and told["nfe"] == 5
    assert "auto: the model's own plan of 5 calls, tuned" in result.stderr
    assert run("replay", "a.npz").exit_code == 0
    result = run(*words, "--out", "b.npz", "--spacing", "trailing", "--json")
    assert json.loads(result.stdout)["solver"] == recommend(pf.Schedule.linear(), 5).solver
