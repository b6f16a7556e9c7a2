"""A sample is the same alone, in any batch, at any place, prepared or not, whatever it is conditioned on."""

import enum

import numpy as np
import pytest
import torch
from conditioning_case import PLAN, SHAPE, Output, Pair
from drawing import Reporting
from hypothesis import given
from hypothesis import strategies as st

import pndm_fast as pf

EVERYONE = 5  # samples, of which batches are made


class Word(enum.Enum):
    ONE = 1


CONTAINERS = {"list": list, "tuple": tuple, "pair": lambda v: Pair(*v), "dict": dict, "output": Output}
CONSTANTS = [1, 2.5, True, "word", b"bytes", None, torch.float16, torch.device("cpu"), Word.ONE, np.float32(0.5)]
shapes = st.lists(st.integers(1, 5), max_size=2).map(tuple)
leaves = st.one_of(
    st.tuples(st.sampled_from(["each", "spread", "shared"]), shapes),
    st.tuples(st.just("entries"), st.sampled_from(["tensors", "words", "dicts"])),
    st.tuples(st.just("constant"), st.sampled_from(range(len(CONSTANTS)))),
    st.tuples(st.just("object"), st.sampled_from(["array", "tree", "set"])),
    st.just(("scalar", ())),
)
forms = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["list", "tuple", "dict", "output"]), st.lists(inner, max_size=3)),
        st.tuples(st.just("pair"), st.lists(inner, min_size=2, max_size=2)),
    ),
    max_leaves=5,
)


def numbers(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def value_of(form, seeds, salt, common):
    """What a caller gives for these samples; `salt`, and `common` of what they share, are others in cond and uncond."""
    kind, detail = form
    if kind in CONTAINERS:
        inner = [value_of(one, seeds, salt + 10 * i + 7, common + 10 * i + 7) for i, one in enumerate(detail)]
        return CONTAINERS[kind]({f"k{i}": v for i, v in enumerate(inner)} if kind in ("dict", "output") else inner)
    if kind == "each":
        return torch.stack([numbers(detail, salt + 1000 * seed) for seed in seeds])
    if kind == "spread":
        return numbers((1, *detail), salt)
    if kind == "shared":
        return pf.Shared(numbers(detail, common))
    if kind == "entries":
        of = {
            "tensors": lambda seed: numbers((1 + seed,), salt + seed),
            "words": lambda seed: f"{salt} {seed}",
            "dicts": lambda seed: {"a": numbers((2,), salt + seed), "b": seed},
        }[detail]
        return pf.PerSample([of(seed) for seed in seeds])
    if kind == "object":
        return pf.Shared(
            {"array": np.arange(3.0), "tree": {"a": [numbers((3,), common)], "b": 1}, "set": {1, 2}}[detail]
        )
    return CONSTANTS[detail] if kind == "constant" else numbers((), common)


def in_order(tensor):
    """A number for each of the first dimension: sums taken element by element, whose bits no batch changes."""
    total = torch.zeros(len(tensor))
    for i, column in enumerate(tensor.reshape(len(tensor), -1).unbind(1)):
        total = total * 0.75 + column * (i + 1)
    return total


def single(value):
    """A number, of what one sample or all share."""
    if isinstance(value, torch.Tensor):
        return in_order(value.reshape(1, -1))[0]
    if isinstance(value, dict):
        return single(value["a"][0] if isinstance(value["a"], list) else value["a"]) + value["b"]
    return torch.tensor(float(sum(map(ord, str(value))) % 17))


def folded(form, value, batch):
    """What the network makes of it, [batch]; the forms are those that a network may rely on."""
    kind, detail = form
    if kind in CONTAINERS:
        wanted = type(CONTAINERS[kind]({} if kind in ("dict", "output") else [0, 0]))
        assert type(value) is wanted and len(value) == len(detail)
        values = [value[f"k{i}"] for i in range(len(detail))] if kind in ("dict", "output") else value
        if kind == "output":
            assert all(value[key] is getattr(value, key) for key in value)
        total = torch.zeros(batch)
        for one, inner in zip(detail, values, strict=True):
            total = total * 0.5 + folded(one, inner, batch)
        return total
    if kind in ("each", "spread"):
        assert value.shape == (batch, *detail) and value.view(batch, -1) is not None
        return in_order(value)
    if kind == "entries":
        assert type(value) is list and len(value) == batch
        return torch.stack([single(entry) for entry in value])
    if kind in ("shared", "scalar"):
        assert value.shape == detail
    if kind == "constant":
        assert value is CONSTANTS[detail]
    return single(value).expand(batch)


def network_of(form):
    def network(x, t, **arguments):
        shift = folded(form, arguments["c"], len(x))
        return x * 0.5 + (t / 1000).view(-1, 1) + shift.view(-1, 1) * 0.01

    return network


@pytest.mark.filterwarnings("ignore:uncond has no effect")
@given(
    forms,
    st.lists(st.integers(0, EVERYONE - 1), min_size=1, max_size=6),
    st.sampled_from([None, "auto", "separate", "as one"]),
    st.booleans(),
)
def test_no_sample_depends_on_its_batch(form, seeds, calls, ready):
    """`as one`: uncond's shared values are cond's, so that one call may carry both."""
    network = network_of(form)
    sampler = Reporting(network, PLAN, shape=(1, *SHAPE))

    def asked(seeds):
        request = {"seeds": seeds, "cond": {"c": value_of(form, seeds, 1, 1)}}
        if calls is not None:
            guidance = pf.Guidance(2.0, calls="separate" if calls == "separate" else "auto")
            request |= {"uncond": {"c": value_of(form, seeds, 2, 1 if calls == "as one" else 2)}, "guidance": guidance}
        return request

    alone = {seed: sampler(**asked([seed])) for seed in set(seeds)}
    if ready:
        sampler.prepare([2, 4, 8], pf.Request(**asked([0, 1, 2])))  # cut, and filled up
    together = sampler(**asked(seeds))
    for place, seed in enumerate(seeds):
        assert torch.equal(together[place], alone[seed][0])
