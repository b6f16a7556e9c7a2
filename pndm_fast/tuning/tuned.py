"""A plan that was fitted, with what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pndm_fast.loop.fitted import difference, fingerprint
from pndm_fast.loop.network import denoiser_of
from pndm_fast.plan.checks import shown
from pndm_fast.plan.numbers import is_integer, is_number
from pndm_fast.plan.plan import Plan
from pndm_fast.tuning.calls import Caller, Conditioning, Pairs, probed, same_outputs

MEANS = ("fitted.mean", "named.mean", "ratio")


class TunedPlan(Plan):
    """What `pf.tune` returns: a plan, and in `fitted` what it was fitted to and how well it does.

    Where nothing was better than the best named plan it is that one, and `better` is False. `save` and `load` are a
    plan's; a file is read by `Plan.load` too.
    """

    @property
    def better(self) -> bool:
        """Whether it is a fitted one: on held-out noise better than the best named plan."""
        return bool(self._told("better", _flag))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of its loss over the best named plan's on held-out noise."""
        low, high = self._told("held_out.interval", _two_numbers)
        return float(low), float(high)

    @property
    def could_not(self) -> tuple[str, ...]:
        """What the network did not allow to be fitted, in words."""
        return tuple(self._told("could_not", _texts))

    def departs(self, model: Callable[..., Any], cond: Conditioning = None) -> str | None:
        """In what a network differs from the one of the fit, None where it does not.

        One without weights is called once, at the first pair of the fit.

        Args:
            cond: of the fit.
        """
        network = self._told("network", lambda value: value is None or isinstance(value, Mapping))
        if network is not None:
            return difference(network, fingerprint(model))
        kept, time = self._told("probe.outputs", _numbers), self._told("probe.time", is_number)
        shape, seed = self._told("probe.shape", _sizes), self._told("probe.seed", is_integer)
        own = denoiser_of(model)
        pairs = Pairs(tuple(shape), seed, cond, None, own.device or torch.device("cpu"))
        caller = Caller(own, None, None, torch.float64 if own.dtype is torch.float64 else torch.float32)
        return None if same_outputs(kept, probed(caller, pairs, time)) else "other outputs"

    def summary(self) -> str:
        """What was fitted and how it does, in a few lines."""
        low, high = self.interval
        fitted, named, ratio = (self._told(f"held_out.{name}", is_number) for name in MEANS)
        pairs, loss = self._told("held_out.pairs", is_integer), self._told("loss", _text)
        verdict = "fitted" if self.better else "the best named plan, for the fitted one is not better"
        lines = [
            f"{verdict}: {self.nfe} calls, by {self._told('by', _text)}",
            f"held out, {pairs} pairs, {loss}: fitted {fitted:.4g}, {self._told('named.plan', _text)} {named:.4g}",
            f"ratio {ratio:.3f}, 95 % interval [{low:.3f}, {high:.3f}]",
        ]
        return "\n".join([*lines, *[f"could not: {one}" for one in self.could_not]])

    def _told(self, path: str, holds: Callable[[Any], bool]) -> Any:
        """What `fitted` has there. It may be a file's, and is not believed."""
        found: Any = self.fitted
        for name in path.split("."):
            if not isinstance(found, Mapping) or name not in found:
                raise ValueError(f"a tuned plan must say {path!r} in fitted, got a plan that does not")
            found = found[name]
        if not holds(found):
            raise ValueError(f"a tuned plan must say {path!r} in fitted as tune does, got {shown(found)}")
        return found


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_text, value))


def _numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(is_number, value))


def _two_numbers(value: Any) -> bool:
    return _numbers(value) and len(value) == 2


def _sizes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(is_integer(one) and one > 0 for one in value)
