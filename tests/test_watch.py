"""`_C.Watch`: whether attributes of objects, and what dicts and lists among them hold, are what they were."""

import random
import sys

import pytest

from pndm_fast import _C


class Thing:
    """With attributes, a hash and an equality that nobody may ask for."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    __hash__ = object.__hash__

    def __eq__(self, other):
        raise AssertionError("compared")


def test_a_watch_asks_no_object_for_equality():
    thing = Thing(other=Thing(), table={"a": Thing(), 1: 2.0}, items=[Thing()], pair=(1, 2))
    watch = _C.Watch([thing], set())
    assert not watch.changed()
    thing.pair = tuple([1, 2])
    assert watch.changed()


@pytest.mark.parametrize("other", [1.0, True, 2, "1", None, 1 + 0j])
def test_a_number_of_another_type_or_value(other):
    thing = Thing(value=1, table={"value": 1}, items=[1])
    for change in (
        lambda value: setattr(thing, "value", value),
        lambda value: thing.table.update(value=value),
        lambda value: thing.items.__setitem__(0, value),
    ):
        watch = _C.Watch([thing], set())
        change(other)
        assert watch.changed()
        change(1)
        assert not watch.changed()


def test_names_that_are_not_read():
    thing = Thing(read=1, unread=1)
    watch = _C.Watch([thing], {"unread"})
    thing.unread = {"a": 1}
    assert not watch.changed()
    del thing.unread
    assert watch.changed()


@pytest.mark.parametrize("thing", [3, [1], {1}, len])
def test_what_cannot_be_watched(thing):
    message = f"objects must have weak references and a __dict__, got {type(thing).__name__}"
    with pytest.raises(TypeError, match=message):
        _C.Watch([thing], set())


def test_a_watch_leaves_no_references():
    other, pair, numbers = Thing(), (1, [2]), [int("1" + 20 * "0") for _ in range(2)]
    thing = Thing(other=other, pair=pair, table={"pair": pair, "other": other}, items=[pair, 1.5], number=numbers[0])
    watched = other, pair, thing, *numbers, Thing, dict, list

    def use():
        for i in range(100):
            watch = _C.Watch([thing], {"pair"})
            for thing.number in (*numbers, *numbers):
                assert not watch.changed()
            thing.table["new"] = i
            assert watch.changed()
            del thing.table["new"]

    use()
    before = [sys.getrefcount(one) for one in watched]
    use()
    assert [sys.getrefcount(one) for one in watched] == before


OTHERS = [Thing(), Thing()]


def shown(things):
    """What a watch compares: plain values by type and value, other objects by identity."""

    def form(value, tables=True):
        if tables and isinstance(value, dict):
            return [(key, form(one, False)) for key, one in value.items()]
        if tables and isinstance(value, list):
            return [form(one, False) for one in value]
        return id(value) if isinstance(value, Thing) else (type(value), value)

    return [[(name, form(value)) for name, value in vars(thing).items()] for thing in things]


CHANGES = [
    lambda thing, pick: setattr(thing, "flag", pick([True, False])),
    lambda thing, pick: setattr(thing, "number", pick([0.5, 1, 1000, int("1000"), float("0.5")])),
    lambda thing, pick: setattr(thing, "new", pick("ab")),
    lambda thing, pick: vars(thing).pop("new", None),
    lambda thing, pick: thing.table.update({pick("xyz"): pick([0, 1, *OTHERS])}),
    lambda thing, pick: thing.table.pop("x", None),
    lambda thing, pick: setattr(thing, "table", dict(thing.table)),
    lambda thing, pick: thing.items.append(1),
    lambda thing, pick: thing.items and thing.items.pop(),
    lambda thing, pick: setattr(thing, "items", list(thing.items)),
    lambda thing, pick: setattr(thing, "__dict__", dict(vars(thing))),
    lambda thing, pick: [(thing.flag, thing.number, thing.table) for _ in range(20)],  # specialised reads
]


@pytest.mark.parametrize("seed", range(20))
def test_any_changes_in_any_order(seed):
    pick = random.Random(seed).choice
    things = [Thing(flag=True, number=1, table={}, items=[]) for _ in range(3)]
    said = set()
    for _ in range(20):
        watch, before = _C.Watch(things, set()), shown(things)
        for _ in range(10):
            for _ in range(pick(range(3))):
                pick(CHANGES)(pick(things), pick)
            changed = watch.changed()
            assert changed == (shown(things) != before)
            said.add(changed)
    assert said == {True, False}
