"""Every public argument is declared, checked and documented once; short forms take it as its owner has it."""

import inspect
import pickle
import re
from pathlib import Path

import pytest
import torch

import pndm_fast as pf
from pndm_fast.plan import hints
from pndm_fast.plan.warn import Notice

PLAN = pf.make_plan("ddim", steps=4, spacing="trailing")
OWNERS = (pf.make_plan, pf.Sampler, pf.Request)


def parameters(function):
    return {n: p for n, p in inspect.signature(function).parameters.items() if n != "self"}


def owner_of(name):
    return [owner for owner in OWNERS if name in parameters(owner)]


@pytest.mark.parametrize("function", [pf.sample, pf.make_plan, pf.Sampler, pf.Sampler.__call__], ids=str)
def test_no_more_than_fifteen(function):
    named = [p for p in parameters(function).values() if p.kind is not p.VAR_KEYWORD]
    assert len(named) <= 15
    open_ended = [p.name for p in parameters(function).values() if p.kind is p.VAR_KEYWORD]
    assert open_ended == (["options"] if function in (pf.sample, pf.make_plan) else [])


def test_each_argument_has_one_owner():
    """But `plan`: a sampler's is that of requests that bring none. Messages send others' arguments there."""
    names = [name for owner in OWNERS for name in parameters(owner)]
    assert {name for name in names if names.count(name) > 1} == {"plan"}
    owned = {name: owner.__name__ for owner in OWNERS for name in parameters(owner)}
    assert {name: owned[name] for name in owned.keys() - {"plan", "model", "options"}} == hints.OWNERS


TAKERS = {
    "pf.sample": lambda **given: pf.sample(lambda x, t: x, 4, shape=(1, 8), **given),
    "pf.sample with a plan": lambda **given: pf.sample(lambda x, t: x, solver=PLAN, shape=(1, 8), **given),
    "Sampler": lambda **given: pf.Sampler(lambda x, t: x, PLAN, **given),
    "a call": lambda **given: pf.Sampler(lambda x, t: x, PLAN, shape=(1, 8))(**given),
    "prepare": lambda **given: pf.Sampler(lambda x, t: x, PLAN, shape=(1, 8)).prepare([1], **given),
    "Request": pf.Request,
    "Guidance": lambda **given: pf.Guidance(2.0, **given),
    "make_plan": lambda **given: pf.make_plan("ddim", steps=4, **given),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("value", [3, "x", torch.ones(3)], ids=["3", "x", "tensor"])
def test_no_word_of_others_is_answered_for_another(taker, value):
    """Whatever its value, and whatever else is given: the word itself is what the message is about."""
    for word in hints.HINTS:
        with pytest.raises((TypeError, ValueError)) as error:
            TAKERS[taker](**{word: value})
        said = str(error.value)
        assert re.match(f"'?{word}\\b", said), said
        if taker != "make_plan" and word not in hints.OPTIONS:
            assert hints.HINTS[word] in said or re.match(f"'{word}' is no argument of (Guidance|prepare); say", said)


def test_sample_takes_arguments_as_their_owners_do():
    for name, mine in parameters(pf.sample).items():
        if name in ("options", "solver"):  # a name, or a ready plan
            continue
        (owner,) = owner_of(name)
        theirs = parameters(owner)[name]
        assert (mine.annotation, mine.default) == (theirs.annotation, theirs.default), name


def test_a_call_takes_a_request_s_fields():
    mine, theirs = parameters(pf.Sampler.__call__), parameters(pf.Request)
    assert mine == theirs
    assert inspect.getdoc(pf.Request).split("Args:")[1] in inspect.getdoc(pf.Sampler.__call__)


@pytest.mark.parametrize("owner", [*OWNERS, pf.Guidance], ids=lambda owner: owner.__name__)
def test_every_argument_is_explained(owner):
    text = inspect.getdoc(owner).split("Args:")[1]
    for name, p in parameters(owner).items():
        if p.kind is not p.VAR_KEYWORD:
            assert re.search(rf"\b{name}\b", text), name


def test_foreign_arguments_are_sent_home():
    for owner in OWNERS:
        for name in parameters(owner).keys() - parameters(pf.sample).keys() - {"options", "plan"}:
            with pytest.raises(TypeError, match=f"{name} is an argument of {owner.__name__}"):
                pf.sample(lambda x, t: x, 4, solver="ddim", shape=(1, 8), **{name: 1})

    with pytest.raises(TypeError, match="give a ready plan as solver="):
        pf.sample(lambda x, t: x, shape=(1, 8), plan=pf.make_plan("ddim", steps=4))


def test_a_request_is_checked_when_it_is_made():
    for fields, message in (
        ({"on_nan": "skip"}, "on_nan must be one of"),
        ({"on_step": 1}, "on_step must be callable"),
        ({"guidance": "2"}, "guidance must be a number"),
        ({"start": torch.zeros(2, 8)}, "start must be a Noise, State, Image or Inpaint, which says what its tensor is"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            pf.Request(**fields)
    with pytest.raises(AttributeError):  # frozen
        pf.Request().seeds = 3


def test_a_request_may_be_run_again():
    sampler = pf.Sampler(lambda x, t: x * 0.5, pf.make_plan("ddim", steps=2, spacing="trailing"), shape=(1, 8))
    request = pf.Request(seeds=iter([1, 2]))
    assert torch.equal(sampler.run(request).samples, sampler.run(request).samples)


def test_words_that_a_call_does_not_have():
    sampler = pf.Sampler(lambda x, t: x, pf.make_plan("ddim", steps=2, spacing="trailing"), shape=(1, 8))
    with pytest.raises(TypeError, match="an argument of a call must be one of .* got 'sedes'; did you mean 'seeds'"):
        sampler(sedes=3)
    with pytest.raises(TypeError, match=r"arguments are given by name, as in sampler\(seeds=0\)"):
        sampler(3)


def test_errors_carry_what_was_computed_through_pickle():
    def network(x, t):
        return x * float("nan")

    with pytest.raises(pf.NonFiniteError) as error:
        pf.sample(network, 2, solver="ddim", spacing="trailing", shape=(2, 8))
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value) and again.report == error.value.report and again.bad == error.value.bad
    with pytest.raises(pf.Cancelled) as cancelled:
        pf.Sampler(lambda x, t: x, pf.make_plan("ddim", steps=2, spacing="trailing"), shape=(2, 8))(
            on_step=lambda step: step.cancel()
        )
    again = pickle.loads(pickle.dumps(cancelled.value))
    assert again.index == 0 and torch.equal(again.state, cancelled.value.state)


def test_a_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match="the grid starts pure noise") as seen:
        pf.sample(lambda x, t: x * 0.5, 2, solver="ddim", shape=(1, 8))
    assert [warning.filename for warning in seen] == [__file__]


def test_warnings_go_through_one_door():
    """Whose category the suite makes an error: one that no test means is seen."""
    with pytest.raises(Notice, match="the grid starts pure noise"):
        pf.sample(lambda x, t: x * 0.5, 2, solver="ddim", shape=(1, 8))
    package = Path(pf.__file__).parent
    calls = [file for file in package.rglob("*.py") if "warnings.warn(" in file.read_text()]
    assert calls == [package / "plan" / "warn.py"]
