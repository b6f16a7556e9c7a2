"""Requests for an engine, and what each of them gets alone."""

import torch

import pndm_fast as pf

SHAPE = (2, 4, 4)
VP = pf.Schedule.linear()


def network(x, t, shift=None, texts=None, bias=None, scale=1.0):
    """Batch-invariant: each element by itself, the same arithmetic at every batch size."""
    per_sample = (-1, *[1] * (x.dim() - 1))
    out = x * 0.5 + (t / 1000).view(per_sample) * scale
    if shift is not None:
        out = out + shift.view(per_sample)
    if texts is not None:
        out = out + torch.tensor([float(len(text)) for text in texts], dtype=x.dtype).view(per_sample)
    return out if bias is None else out + bias


def other(x, t, **cond):
    return network(x, t, **cond) * 0.25 - x


def plan(solver, steps, **options):
    return pf.make_plan(solver, VP, steps=steps, spacing="trailing", **options)


PLANS = {
    "ddpm": plan("ddpm", 5),
    "f-pndm": plan("f-pndm", 4),
    "unipc": plan("unipc", 6),
    "euler": pf.make_plan("euler", pf.Schedule.edm(), steps=5),
    "sde": plan("dpmpp-2m-sde", 7),
    "stitched": plan("ddim", 6).with_models([0, 0, 1, 1, 1, 0]),
    "clipped": plan("ddim", 4).with_clip(1.0),
}


def draws(seed, count):
    """Requests of all kinds, of one to three samples."""
    generator = torch.Generator().manual_seed(seed)

    def number(most):
        return int(torch.randint(most, (1,), generator=generator))

    return [request(number, generator) for _ in range(count)]


def request(number, generator):
    batch = 1 + number(3)
    plans = list(PLANS.values())

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    words = {"plan": plans[number(len(plans))], "seeds": [number(1000) for _ in range(batch)]}
    if number(4) == 0 and words["plan"] is not PLANS["stitched"]:
        words["plan"] = [plans[b % 3] for b in range(batch)]
    form = number(6)
    cond, uncond = [
        ({"shift": normal(batch)}, {"shift": torch.zeros(1)}),
        ({"shift": normal(batch), "bias": pf.Shared(torch.full((4,), 0.5))}, {"shift": normal(batch)}),
        ({"texts": pf.PerSample(["a" * number(4) for _ in range(batch)])}, {"texts": pf.PerSample([""] * batch)}),
        ({"shift": normal(batch), "scale": 1.0 + number(2)}, {"shift": normal(batch), "scale": 3.0}),
        ({"shift": normal(batch)}, {"shift": normal(batch)}),
        ({}, {}),
    ][form]
    if form == 4:
        table = normal(40, batch)
        cond = lambda row: {"shift": table[row]}  # noqa: E731
    words["cond"] = cond
    kind = number(5)
    if kind and form != 5:
        interval = (0.3, 3.0) if kind == 2 else None
        guidance = pf.Guidance(1.5 + kind, interval=interval, rescale=0.5 * (kind == 3))
        if kind == 4:
            guidance = pf.Guidance(2.0, weaker=other)
        words |= {"uncond": uncond, "guidance": guidance}
    x0, noise = normal(batch, *SHAPE), normal(batch, *SHAPE)
    starts = [None, None, pf.Noise(noise), pf.State(noise), pf.Image(x0), pf.Image(x0, noise)]
    starts += [pf.Inpaint(x0, (x0 > 0).float()), pf.Inpaint(x0, x0.sigmoid(), start=pf.Noise(noise))]
    words["start"] = starts[number(len(starts))]
    if number(6) == 0 and not isinstance(words["start"], pf.Inpaint):
        zs = normal(60, batch, *SHAPE)
        words["noise_sampler"] = lambda index: zs[index]
    return pf.Request(**words)


def alone(request, sampler):
    """What a sampler gives, or raises."""
    try:
        return sampler.run(request)
    except Exception as error:
        return error


def served(engine, requests, at=None):
    """Requests are put in line before those steps; what each came to, by its place."""
    at = at or [0] * len(requests)
    place, got, step = {}, {}, 0
    todo = sorted(range(len(requests)), key=lambda i: at[i])
    while todo or not engine.idle:
        while todo and at[todo[0]] <= step:
            i = todo.pop(0)
            place[engine.add(requests[i])] = i
        for one in engine.step():
            got[place.pop(one.id)] = one.error or one.result
        step += 1
        assert step < 10_000
    return [got[i] for i in range(len(requests))]


def same(ours, theirs):
    """Two results, or two errors, that say the same."""
    if isinstance(theirs, Exception):
        assert type(ours) is type(theirs), (ours, theirs)
        assert str(ours) == str(theirs)
        for name in ("samples", "state"):
            a, b = getattr(ours, name, None), getattr(theirs, name, None)
            assert (a is None) is (b is None) and (a is None or torch.equal(a.nan_to_num(7), b.nan_to_num(7)))
        return
    assert not isinstance(ours, Exception), ours
    assert ours.bad == theirs.bad
    assert ours.samples.dtype is theirs.samples.dtype and ours.samples.is_contiguous()
    assert torch.equal(ours.samples.nan_to_num(7), theirs.samples.nan_to_num(7))


NETWORKS = (network, other)


def pair(capacity=6, networks=NETWORKS, **options):
    """An engine, and the sampler that it must equal."""
    engine = pf.Engine(networks, shape=(capacity, *SHAPE), **options)
    options = {name: value for name, value in options.items() if name not in ("buckets", "max_queue")}
    return engine, pf.Sampler(networks, shape=(1, *SHAPE), **options)
