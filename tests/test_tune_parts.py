"""What a fit is made of, against direct loops: the generalised solver, its elimination, its gradient, the engine."""

import numpy as np
import pytest
import torch
from tune_case import CASES, SHAPE, VP, Mixture, relative

import pndm_fast as pf
from pndm_fast.loop.network import denoiser_of
from pndm_fast.plan.agree import departure
from pndm_fast.plan.coefficients import level, to_store
from pndm_fast.tuning.blackbox import LastRow, on_times, optimal_times
from pndm_fast.tuning.calls import Caller, Pairs, joined
from pndm_fast.tuning.named import best, finalists, rounds
from pndm_fast.tuning.parameters import Solver, coefficients, coefficients_of, named, sizes, start_of
from pndm_fast.tuning.rollout import rollout
from pndm_fast.tuning.table import plan_of, table_of

NFE = 5
X = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def random_vector(seed, nfe=NFE):
    generator = torch.Generator().manual_seed(seed)
    vector = 0.2 * torch.randn(sum(sizes(nfe).values()), generator=generator, dtype=torch.float64)
    return vector


def direct(vector, solver, model, x):
    """The generalised solver as it is written: states and estimates one after another, nothing eliminated."""
    schedule, n = solver.schedule, solver.nfe
    parts = {name: part.numpy() for name, part in named(vector, n).items()}
    a, c = parts["a"].reshape(n, n), parts["c"].reshape(n, n)
    times = [solver.first_time]
    for theta in parts["theta"]:
        times.append(schedule.first + (times[-1] - schedule.first) / (1 + np.exp(-theta)))
    levels = [level(schedule, t) for t in [*times, schedule.first]]
    lam = [np.log(at.alpha / at.sigma) if at.alpha * at.sigma else (np.inf if at.alpha else -np.inf) for at in levels]
    span = np.array(times) if schedule.scale == "sigma" else np.full(n, schedule.last - schedule.first)
    told = np.array(times) + 0.02 * span * parts["told"]
    told = told if schedule.scale == "sigma" else np.clip(told, schedule.floor, schedule.last)
    y = x * (1.0 if schedule.scale == "vp" else levels[0].sigma) * (1 + parts["scale"][0])
    states, estimates = [y], []
    for k in range(n):
        (alpha, sigma), (alpha_s, sigma_s) = levels[k], levels[k + 1]
        edm = solver.prediction == "edm"
        seen = states[k] / np.sqrt(sigma**2 + 0.25) if edm else states[k]
        out = model(seen, torch.full((len(x),), np.log(told[k]) / 4 if edm else told[k], dtype=torch.float64))
        p, q, *_ = to_store("x0", solver.prediction, levels[k])
        estimates.append(p * states[k] + q * out)
        gain = alpha_s - alpha * sigma_s / sigma
        y = sigma_s / sigma * states[k] + gain * estimates[k]
        if 0 < k < n - 1:
            h, before = lam[k + 1] - lam[k], lam[k] - lam[k - 1]
            y = y + gain * h / (2 * before) * (estimates[k] - estimates[k - 1])
        y = y + sum(a[k, i] * states[i] + c[k, i] * estimates[i] for i in range(k + 1))
        states.append(y)
    return y


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_plan_is_the_training_loop(case, seed):
    """Old states are eliminated exactly, and what the engine runs is what was fitted."""
    schedule, model, prediction = CASES[case]
    first = schedule.last if seed else 0.95 * schedule.last
    solver, vector = Solver(schedule, prediction, first, NFE), random_vector(seed)
    with torch.no_grad():
        wanted = direct(vector, solver, model, X)
    numbers = coefficients(vector, solver)
    plan = plan_of(numbers.table(), schedule, prediction)
    got = pf.Sampler(model, plan, shape=X.shape, dtype=torch.float64)(start=pf.Noise(X))
    assert relative(got, wanted) < 1e-12
    ours, basis = rollout(lambda x, t, row: model(x, t.expand(len(x))), numbers, X)
    assert relative(ours.detach(), wanted) < 1e-12 and len(basis) == 1 + NFE
    assert pf.Plan.from_json(plan.to_json()) == plan and plan.n_slots == NFE


@pytest.mark.parametrize("case", CASES)
def test_named_plans_as_tables_and_as_parameters(case):
    """Every rival, whatever its slots hold, is the same plan as a table, and parameters that start there give it."""
    schedule, model, prediction = CASES[case]
    plans = finalists(schedule, prediction, NFE)
    assert len(plans) >= 12
    for name, plan in plans.items():
        sampler = pf.Sampler(model, shape=X.shape, dtype=torch.float64)
        wanted = sampler(plan=plan, start=pf.Noise(X))
        table = table_of(plan, schedule)
        got = sampler(plan=plan_of(table, schedule, prediction), start=pf.Noise(X))
        # slots of x_0 in place of eps: 1 / alpha times rounding
        most = 1 / min(alpha for alpha in (row.levels.call.position.alpha for row in plan) if alpha > 0)
        assert relative(got, wanted) < max(1e-11, 1e-14 * most), name
        solver = Solver(schedule, prediction, float(table.times[0]), NFE)
        again = coefficients(start_of(table, solver), solver).table()
        for one in ("times", "told", "p0", "a", "b"):
            np.testing.assert_allclose(getattr(again, one), getattr(table, one), rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("pairs", [2, 3, 5, 32, 100, 1024, 10**6])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 57])
def test_rivals_by_quarters(count, pairs):
    """The best of all is found, one that diverges is not, no plan is run twice on a pair, nor beyond them."""
    ran = {f"{i}": [] for i in range(count)}

    def error(plan, part):
        ran[plan].extend(part)
        return float("nan") if plan == "0" and count > 1 else len(part) * (1 + (int(plan) * 7 % count))

    wanted = min((f"{i}" for i in range(min(1, count - 1), count)), key=lambda one: int(one) * 7 % count)
    assert best({name: name for name in ran}, error, pairs) == (wanted, wanted)
    assert all(pairs_of == [*range(len(pairs_of))] and len(pairs_of) <= min(64, pairs) for pairs_of in ran.values())
    assert len(ran[wanted]) == (0 if count == 1 else min(64, pairs))
    assert sum(map(len, ran.values())) == sum(many * len(part) for many, part in rounds(count, pairs))


def test_what_rivals_cost_follows_the_pairs():
    """In samples: a few dozen pairs are not outweighed by the rivals, and no number of pairs makes these dear."""
    cost = [sum(many * len(part) for many, part in rounds(57, pairs)) for pairs in (2, 32, 1024, 10**7)]
    assert cost == [114, 300, 600, 600]


@pytest.mark.parametrize("case", CASES)
def test_what_is_told_is_on_the_networks_schedule(case):
    """As far as a fit may move told times, a network that carries its schedule takes the plan."""
    schedule, _, prediction = CASES[case]
    solver = Solver(schedule, prediction, schedule.last, NFE)
    for seed in range(20):
        vector = random_vector(seed)
        named(vector, NFE)["told"].copy_(torch.randn(NFE, generator=torch.Generator().manual_seed(seed)).sign())
        assert departure(plan_of(coefficients(vector, solver).table(), schedule, prediction), schedule) is None


def test_zero_terminal_snr():
    """A first level without data, whose log-SNR is infinite, is no bar to a fit of a v network."""
    schedule = pf.Schedule.linear().zero_terminal_snr()
    solver = Solver(schedule, "v", schedule.last, 4)
    vector = random_vector(3, 4).requires_grad_()
    numbers = coefficients(vector, solver)
    (gradient,) = torch.autograd.grad(numbers.b.sum() + numbers.a.sum(), vector)
    assert gradient.isfinite().all() and numbers.b.isfinite().all()
    assert plan_of(numbers.table(), schedule, "v").start.alpha == 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_differences(case, recompute):
    """Of a loss of the samples to every parameter, by central differences in float64."""
    schedule, model, prediction = CASES[case]
    solver = Solver(schedule, prediction, 0.9 * schedule.last, 4)
    vector = 0.3 * random_vector(2, 4)

    def loss(v):
        made, _ = rollout(lambda x, t, r: model(x, t.expand(len(x))), coefficients(v, solver), X, recompute=recompute)
        return made.square().mean()

    point = vector.clone().requires_grad_()
    (got,) = torch.autograd.grad(loss(point), point)
    step = 1e-6 * torch.eye(len(vector), dtype=torch.float64)
    with torch.no_grad():
        wanted = torch.stack([(loss(vector + e) - loss(vector - e)) / 2e-6 for e in step])
    # differences of float64 numbers, 1e-6 apart: 1e-9 of the loss at best
    assert relative(got, wanted) < 1e-5
    upper = torch.ones(4, 4).triu(1).bool()
    assert not got[7:23].view(4, 4)[upper].any() and (got[:4] != 0).all()


GUIDANCE = {
    "batched": pf.Guidance(2.0),
    "separate": pf.Guidance(2.0, calls="separate"),
    "rescaled": pf.Guidance(3.0, rescale=0.7),
    "interval": pf.Guidance(3.0, interval=(0.2, 5.0)),
    "weaker": pf.Guidance(1.5, weaker=Mixture(seed=5)),
    "none": None,
}


@pytest.mark.parametrize("kind", GUIDANCE)
def test_calls_are_the_engines(kind):
    """What the fit sees, with conditioning by pair, is what a sampler draws with the same seeds and arguments."""
    guide, model = GUIDANCE[kind], Mixture()
    pairs = Pairs(
        SHAPE, 7, lambda i: {"label": torch.tensor([i % 3])}, {"label": torch.tensor([0])}, torch.device("cpu")
    )
    weaker = None if guide is None or guide.weaker is None else denoiser_of(guide.weaker, torch.float64)
    caller = Caller(denoiser_of(model, torch.float64), guide, weaker, torch.float64)
    plan = pf.make_plan("dpmpp-2m", VP, nfe=NFE)
    numbers = coefficients_of(table_of(plan, VP), Solver(VP, "eps", VP.last, NFE))
    indices = [4, 9, 2]
    scales = None if guide is None else [row.guidance for row in plan.with_guidance(guide.scale, guide.interval)]
    made, _ = rollout(caller.bound(pairs.trees(indices), scales), numbers, pairs.noise(indices, torch.float64))
    trees = {"cond": {"label": torch.tensor([1, 0, 2])}}
    trees |= {} if guide is None else {"uncond": {"label": torch.zeros(3)}, "guidance": guide}
    wanted = pf.Sampler(model, plan, shape=(1, *SHAPE), dtype=torch.float64)(seeds=[11, 16, 9], **trees)
    assert relative(made, wanted) < 1e-11


def test_trees_of_pairs():
    tree = {"a": torch.ones(1, 2), "b": [1, pf.Shared(3)], "c": pf.PerSample(["x"]), "d": torch.tensor(2.0)}
    both = joined("cond", [tree, {**tree, "a": torch.zeros(1, 2), "c": pf.PerSample(["y"])}])
    assert both["a"].tolist() == [[1, 1], [0, 0]] and both["c"].entries == ("x", "y") and both["d"] == 2
    for other, said in (
        ({"a": torch.ones(1, 2)}, "the same keys"),
        ({**tree, "d": torch.tensor(3.0)}, "must be the same for all pairs"),
        ({**tree, "b": (1, pf.Shared(3))}, "one form"),
        ({**tree, "b": [2, pf.Shared(3)]}, "must be the same for all pairs"),
    ):
        with pytest.raises(ValueError, match=said):
            joined("cond", [tree, other])


def test_the_last_row_is_least_squares():
    """Against numpy's, on the system with the ridge as rows of its own."""
    generator = torch.Generator().manual_seed(4)
    basis = [torch.randn(40, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(4)]
    own, ends = (torch.randn(40, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    rows = LastRow(3)
    for part in (slice(0, 17), slice(17, 40)):
        rows.add([one[part] for one in basis], own[part], ends[part])
    table = table_of(pf.make_plan("dpmpp-2m", VP, nfe=3), VP)
    matrix = torch.stack([one.flatten() for one in basis]).numpy()
    mean = np.mean((matrix**2).sum(1))
    for got, ridge in zip(rows.tables(table), (1e-5, 1e-4, 1e-3, 1e-2), strict=True):
        system = np.concatenate([matrix.T, np.sqrt(ridge * mean) * np.eye(4)])
        wanted = np.linalg.lstsq(system, np.concatenate([(ends - own).flatten().numpy(), np.zeros(4)]), rcond=None)[0]
        np.testing.assert_allclose([got.a[-1] - table.a[-1], *(got.b[-1] - table.b[-1])], wanted, rtol=1e-9, atol=1e-12)
        assert (got.b[:-1] == table.b[:-1]).all()


def test_optimal_times_are_the_papers():
    """OSS transcribed: for each number of steps and each time the best single step from what the fewer reached."""
    model, grid = Mixture(), np.linspace(1.0, 0.0, 8)
    solver = Solver(VP, "eps", 1.0, 3)

    def network(x, t, row):
        return model(x, t.expand(len(x)))

    def step(x, i, j):
        (alpha, sigma), (alpha_s, sigma_s) = level(VP, grid[i]), level(VP, grid[j])
        eps = network(x, torch.tensor(grid[i]), 0)
        x0 = (x - sigma * eps) / alpha
        return sigma_s / sigma * x + (alpha_s - alpha * sigma_s / sigma) * x0

    path = [X]
    for i in range(7):
        path.append(step(path[-1], i, i + 1))
    with torch.no_grad():
        got = optimal_times(network, solver, grid, torch.stack(path), lambda: None)
        best = {(0, 0): (X, [])}
        for k in range(1, 4):
            for j in range(1, 8):
                tried = [
                    (step(best[k - 1, i][0], i, j), best[k - 1, i][1] + [i]) for i in range(j) if (k - 1, i) in best
                ]
                if tried:
                    best[k, j] = min(tried, key=lambda one: float(((one[0] - path[j]) ** 2).mean()))
    assert got == [grid[i] for i in best[3, 7][1]] and got[0] == 1.0
    table = on_times(got, solver)
    np.testing.assert_allclose(table.times, got, rtol=1e-12)
    two_m = pf.make_plan("dpmpp-2m", VP, times=[*got, 0.0])
    np.testing.assert_allclose(table.b, table_of(two_m, VP).b, rtol=1e-9, atol=1e-12)
