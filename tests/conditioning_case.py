"""What tests of conditioning share."""

import collections

import pndm_fast as pf

SHAPE = (3,)
PLAN = pf.make_plan("ddpm", steps=3, spacing="trailing")
Pair = collections.namedtuple("Pair", "first second")


class Output(collections.OrderedDict):
    """A mapping with attributes, as libraries return."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        setattr(self, key, value)
