"""What belongs to a sample is said, not guessed: marks, spreading, filling up, guidance batches, graphs."""

import collections
import warnings
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pytest
import torch
from conditioning_case import PLAN, SHAPE, Output, Pair
from drawing import Reporting

import pndm_fast as pf

# ---- the sentences


@dataclass
class Embedding:
    hidden: torch.Tensor


X, JAGGED = torch.ones(2, 4), torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
FOR_EACH = " must have one entry for each of the 2 samples"
OTHERS = ", or 1 for all, in its first dimension, got shape "
UNMARKED = " must be a tensor, a number, a word or marked: pf.Shared(value) is the same for all samples, pf.PerSample"
REFUSED = {
    "tokens without a batch": (
        {"c": torch.ones(4, 6)},
        f"cond['c'] must have one entry for each of the 2 samples{OTHERS}",
    ),
    "the hint": ({"c": torch.ones(4, 6)}, "got shape (4, 6): pf.Shared(value) is given as it is"),
    "lengths of packed text": ({"c": torch.tensor([0, 5, 9, 14])}, f"{OTHERS}(4,)"),
    "labels for others": ({"c": torch.tensor([1, 2, 3])}, f"{OTHERS}(3,)"),
    "a mask": ({"c": torch.ones(7, dtype=torch.bool)}, f"{OTHERS}(7,)"),
    "no entry": ({"c": torch.ones(0, 3)}, f"{OTHERS}(0, 3)"),
    "deep inside": ({"c": {"d": [X, (X[:1], torch.ones(3))]}}, "cond['c']['d'][1][1] must have one entry for each"),
    "a list of lengths": ({"c": [torch.ones(5, 4), torch.ones(3, 4)]}, "a list marked by pf.PerSample one entry to"),
    "an array": ({"c": np.ones(2)}, f"cond['c']{UNMARKED}"),
    "an array inside": ({"c": [np.ones((1, 5))]}, "cond['c'][0] must be a tensor, a number, a word or marked"),
    "an object": ({"c": Embedding(X)}, "has one for each, got Embedding"),
    "a set": ({"c": {1, 2}}, "got set"),
    "a generator": ({"c": (i for i in (1, 2))}, "got generator"),
    "a range": ({"c": range(2)}, "got range"),
    "a module": ({"c": torch.nn.Identity()}, "got Identity"),
    "a deque": ({"c": collections.deque([X])}, "got deque"),
    "a function inside": ({"c": lambda row: X}, "got function"),
    "sparse": ({"c": X.to_sparse()}, "cond['c'] must be a dense tensor, got torch.sparse_coo: pf.Shared(value)"),
    "nested for others": (
        {"c": torch.nested.nested_tensor([torch.ones(2, 3)], layout=torch.jagged)},
        "in its first dimension, got 1 nested entries",
    ),
    "entries for others": (
        {"c": pf.PerSample(["a"])},
        "cond['c'] must have one entry for each of the 2 samples, got 1",
    ),
    "no entries": ({"c": pf.PerSample([])}, f"cond['c']{FOR_EACH}, got 0"),
    "a mark in a mark": ({"c": pf.Shared(pf.Shared(X))}, "must be marked once, got pf.Shared inside another mark"),
    "a mark deep in one": ({"c": pf.Shared({"d": [pf.PerSample([1])]})}, "cond['c']['d'][0] must be marked once"),
    "a shared entry": ({"c": pf.PerSample([pf.Shared(1), 2])}, "must be marked once, got pf.Shared"),
    "another device": ({"c": torch.ones(2, device="meta")}, "cond['c'] must be on cpu, got meta"),
    "shared elsewhere": ({"c": pf.Shared([torch.ones(3, device="meta")])}, "cond['c'][0] must be on cpu, got meta"),
    "entries elsewhere": ({"c": pf.PerSample([X, X.to("meta")])}, "cond['c'][1] must be on cpu, got meta"),
    "no mapping": ([X], "cond must be a dict of the network's keyword arguments, got list"),
    "a mark for all": (pf.Shared({"c": X}), "cond must be a dict of the network's keyword arguments, got Shared"),
    "keys": ({3: X}, "cond must have words as keys, got 3"),
    "rows of nothing": (lambda row: None, "cond(0) must be a dict of the network's keyword arguments, got None"),
    "rows of tensors": (lambda row: X, "cond(0) must be a dict of the network's keyword arguments, got Tensor"),
    "rows for others": (lambda row: {"c": torch.ones(3, 4)}, "cond(0)['c'] must have one entry for each of the 2"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
@pytest.mark.parametrize("guided", [False, True])
def test_what_is_refused_before_the_first_call(case, guided):
    tree, message = REFUSED[case]
    sampler = pf.Sampler(lambda x, t, **c: pytest.fail("the network was called"), PLAN, shape=(2, *SHAPE))
    more = {"uncond": {}, "guidance": 2.0} if guided else {}
    with pytest.raises((TypeError, ValueError)) as error:
        sampler(cond=tree, **more)
    assert message in str(error.value)


@pytest.mark.parametrize("value", ["ab", X, {1: 2}, np.ones(2), 3, None])
def test_entries_are_a_list(value):
    with pytest.raises(TypeError, match="PerSample must be a list or a tuple with one entry for each sample, got"):
        pf.PerSample(value)


@pytest.mark.parametrize("mark", [pf.Shared(1), pf.PerSample([1])])
def test_marks_do_not_change(mark):
    with pytest.raises(AttributeError):
        mark.value = mark.entries = 2


# ---- what the network gets


def seen_by(cond, batch=2, prepared=None, **more):
    """The arguments of each call."""
    seen = []

    def network(x, t, **arguments):
        seen.append(arguments)
        return x * 0.5

    sampler = Reporting(network, PLAN, shape=(batch, *SHAPE))
    if prepared:
        sampler.prepare([prepared], pf.Request(cond=cond, **more))
    sampler(cond=cond, **more)
    return seen, sampler.report


def test_shared_values_are_given_themselves():
    values = {
        "array": np.ones(5),
        "object": Embedding(X),
        "words": {"a", "b"},
        "tensor": torch.ones(7, 2),
        "tree": {"a": [X]},
    }
    marked = {key: pf.Shared(value) for key, value in values.items()}
    for more in ({}, {"uncond": dict(marked), "guidance": 2.0}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for prepared in (None, 4):
                seen, report = seen_by(marked, prepared=prepared, **more)
                assert all(call[key] is value for call in seen for key, value in values.items())
                assert report.guidance == ("batched" if more else "none")


class Uncomparable:
    def __eq__(self, other):
        raise AssertionError("an unknown object was compared")

    __hash__ = None


@pytest.mark.parametrize(
    "cond, uncond, reason",
    [
        (pf.Shared(Uncomparable()), pf.Shared(Uncomparable()), "Shared Uncomparable and Shared Uncomparable"),
        (pf.Shared(np.ones(5)), pf.Shared(np.ones(5)), "Shared ndarray and Shared ndarray"),
        (pf.Shared(torch.ones(3)), pf.Shared(torch.zeros(3)), "Shared Tensor and Shared Tensor"),
        (pf.Shared(torch.ones(2)), torch.ones(2), "Tensor and Shared Tensor"),
        (pf.Shared(X.to_sparse()), pf.Shared(X.to_sparse()), "Shared Tensor and Shared Tensor"),
        (pf.PerSample(["a", "b"]), ["a", "b"], "list and PerSample"),
        (0.0, -0.0, "-0.0 and 0.0"),
        (1, True, "True and 1"),
        (X, X.half(), "tensors of dtypes torch.float16 and torch.float32"),
        (X, X[:, :3], "tensors of shapes (2, 3) and (2, 4)"),
        (X, None, "None and Tensor"),
        (JAGGED, JAGGED, "nested tensors"),
        (pf.Shared(torch.ones(3)), pf.Shared(torch.ones(3)), None),
        (pf.Shared({"a": [torch.ones(3), "b"]}), pf.Shared({"a": [torch.ones(3), "b"]}), None),
        (pf.Shared(3), 3, None),
        (float("nan"), float("nan"), None),
        (pf.PerSample(["a", "b"]), pf.PerSample(("", "")), None),
        (torch.ones(1, 4), X, None),
        (torch.tensor(2.0), torch.tensor(2.0), None),
    ],
)
def test_one_call_for_guidance_or_two_with_the_reason(cond, uncond, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen, report = seen_by({"c": cond}, uncond={"c": uncond}, guidance=2.0)
    assert report.guidance == ("batched" if reason is None else f"two calls: {reason}")
    assert len(seen) == PLAN.nfe * (1 if reason is None else 2)


def test_nested_tensors_are_not_filled_up():
    seen, _ = seen_by({"c": JAGGED})
    assert all(call["c"] is JAGGED for call in seen)
    with pytest.raises(ValueError, match=r"cond\['c'\] must not be nested where a batch of 2 is brought to 4"):
        seen_by({"c": JAGGED}, prepared=4)


def test_containers_keep_their_types_where_the_batch_is_filled_up():
    frozen = MappingProxyType({"a": X})
    tree = {"o": Output(a=X, b=1), "p": Pair(X, "b"), "m": frozen, "d": collections.defaultdict(list, a=X)}
    for prepared in (None, 4):
        for call in seen_by(tree, prepared=prepared)[0]:
            assert all(type(call[key]) is type(value) for key, value in tree.items())
            size = len(call["o"].a)
            assert size in (1, prepared or 2)  # 1 where `prepare` measures
            assert call["o"].a.shape == call["p"].first.shape == call["m"]["a"].shape == (size, 4)
            assert call["d"]["more"] == [] and call["o"]["b"] == 1
            del call["d"]["more"]
    assert tree["o"].a is X and frozen["a"] is X


def test_one_condition_is_spread_over_the_samples():
    text = torch.randn(1, 5, 3)
    for call in seen_by({"c": text}, batch=4)[0]:
        assert call["c"].view(4, 15) is not None and torch.equal(call["c"], text.expand(4, -1, -1))
    weight = torch.nn.Parameter(text)
    assert not seen_by({"c": weight}, batch=4)[0][0]["c"].requires_grad


# ---- guidance that does nothing


OWN = {"array": pf.Shared(np.ones(3)), "text": X, "words": ["a", 1], "each": pf.PerSample([X, 2])}


@pytest.mark.parametrize(
    "cond, uncond, warned",
    [
        ({}, {}, True),
        ({"c": X}, {}, True),
        ({"c": X}, {"c": X}, True),
        (OWN, OWN, True),
        (OWN, {"words": ["a", 1]}, True),
        ({"c": 1.5}, {"c": 1.5}, True),
        ({"c": {"d": X}}, {"c": {"d": X}}, True),
        ({"c": X}, {"c": X.clone()}, False),  # equal tensors are not looked for: that would wait for the device
        ({"c": X}, {"c": X * 0}, False),
        (OWN, {"words": ["", 1]}, False),
        (OWN, {"array": pf.Shared(np.ones(3))}, False),
        ({"c": 1.5}, {"c": None}, False),
        (lambda row: {"c": X}, {}, True),
        (lambda row: {"c": X}, lambda row: {"c": X}, False),
        (lambda row: {"c": X}, {"c": X}, False),
    ],
)
def test_guidance_that_does_nothing_is_told(cond, uncond, warned):
    sampler = pf.Sampler(lambda x, t, **c: x * 0.5, PLAN, shape=(2, *SHAPE))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampler.prepare([2], pf.Request(cond=cond, uncond=uncond, guidance=2.0))  # values of an example do not matter
        sampler(cond=cond, uncond=uncond, guidance=1.0)
        sampler(cond=cond, uncond=uncond, guidance=pf.Guidance(2.0, weaker=lambda x, t, **c: x * 0.25))
        assert not caught
        sampler(cond=cond, uncond=uncond, guidance=2.0)
    assert [str(w.message).partition(":")[0] for w in caught] == ["uncond has no effect"] * warned
    assert all(w.filename == __file__ for w in caught)


# ---- in captured graphs


def graphs(network, **more):
    return (Reporting(network, PLAN, shape=(2, *SHAPE), graph=graph, **more) for graph in ("replay", "eager"))


def reading(x, t, table, each, scale):
    """A table for all, entries of two lengths, and a number."""
    entries = torch.stack([entry.sum() for entry in each])
    return x * scale + (table.sum() * 0.1 + entries).view(-1, 1)


def trees(i):
    return {
        "table": pf.Shared(torch.arange(4.0) * i),
        "each": pf.PerSample([torch.ones(2) * i, torch.ones(5) - i]),
        "scale": 0.5,
    }


@pytest.mark.parametrize("guided", [False, True])
def test_a_graph_is_filled_with_what_is_marked(stand_in, guided):
    captured, eager = graphs(reading)
    seen, first = set(), trees(0)
    for i in range(3):
        own = trees(i) if i else first
        more = {"guidance": 2.0, "uncond": {**trees(i + 3), "table": own["table"]}} if guided else {}
        got = captured(cond=own, **more)
        assert captured.report.graph == "replay" and captured.report.captures == 1
        assert captured.report.guidance == ("batched" if guided else "none")
        assert torch.equal(got, eager(cond=own, **more))
        seen.add(tuple(got.flatten().tolist()))
    assert len(seen) == 3 and not first["table"].value.any()  # the graph's copy is filled, not the caller's tensor
    for scale in (0.25, pf.Shared(0.125)):  # a number is held fast, marked or not
        changed = {**trees(1), "scale": scale}
        assert torch.equal(captured(cond=changed), eager(cond=changed))
    assert captured.report.captures == 3


def test_a_shared_tensor_of_the_batchs_size_stays_one(stand_in):
    """Its first dimension is no batch: with guidance it is not doubled, and it is filled as it is."""

    def network(x, t, text, weights):
        assert weights.shape == (2, 3) and len(text) == len(x)
        return x * 0.5 + text @ weights

    captured, eager = graphs(network)
    for i in (1.0, 2.0):
        weights = pf.Shared(torch.arange(6.0).view(2, 3) * i * 0.01)
        more = {"uncond": {"text": torch.zeros(2, 2)}, "guidance": 2.0}
        tree = {"text": torch.ones(2, 2), "weights": weights}
        assert torch.equal(captured(cond=tree, **more), eager(cond=tree, **more))
    assert captured.report.captures == 1 and captured.report.guidance == "batched"


@pytest.mark.parametrize(
    "value, reason",
    [
        (pf.Shared(Embedding(X)), "cond holds a Embedding, whose value a graph would hold fast"),
        (pf.Shared([np.ones(2)]), "cond holds a ndarray"),
        (pf.PerSample([Embedding(X)] * 2), "cond holds a Embedding"),
        (pf.Shared(X.to_sparse()), "cond holds a tensor that is not dense"),
        (JAGGED, "cond holds a tensor that is not dense"),
        (pf.Shared(Output(a=X)), "cond holds a Output"),
    ],
)
def test_what_no_graph_can_hold(stand_in, value, reason):
    sampler = Reporting(lambda x, t, c: x * 0.5, PLAN, shape=(2, *SHAPE))
    sampler(cond={"c": value})
    assert sampler.report.graph == "eager" and reason in sampler.report.graph_reason
    with pytest.raises(ValueError, match=f"graph 'replay' cannot be had: {reason}"):
        next(graphs(lambda x, t, c: x * 0.5))(cond={"c": value})


@pytest.mark.parametrize(
    "arguments, told",
    [
        ({"guidance": pf.Guidance(3.0, interval=(1e6, 1e7)), "uncond": {"c": 0}}, "guidance has no effect"),
        ({"guidance": pf.Guidance((1.0,) * 5, interval=(1e6, 1e7)), "uncond": {"c": 0}}, None),
        ({"guidance": pf.Guidance(3.0, interval=(0.0, 1.0)), "uncond": {"c": 0}}, None),
    ],
)
def test_guidance_in_an_interval_without_a_row_is_told(arguments, told):
    sampler = pf.Sampler(lambda x, t, c: x * 0.5, pf.make_plan("ddim", steps=5), shape=(2, 8))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampler(cond={"c": 1}, **arguments)
    assert [str(w.message).partition(":")[0] for w in caught] == ([] if told is None else [told])


def test_one_function_for_both_evaluations_is_told():
    def both(row):
        return {"c": row}

    sampler = pf.Sampler(lambda x, t, c: x * 0.5, pf.make_plan("ddim", steps=5), shape=(2, 8))
    with pytest.warns(UserWarning, match="uncond has no effect"):
        sampler(cond=both, uncond=both, guidance=2.0)
