"""A plan that was fitted, with what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pndm_fast.loop.fitted import difference, fingerprint
from pndm_fast.loop.network import denoiser_of
from pndm_fast.plan.plan import Plan
from pndm_fast.tuning.calls import Caller, Conditioning, Pairs, probed, same_outputs


class TunedPlan(Plan):
    """What `pf.tune` returns: a plan, and in `fitted` what it was fitted to and how well it does.

    Where nothing was better than the best named plan it is that one, and `better` is False. `save` and `load` are a
    plan's; a file is read by `Plan.load` too.
    """

    @property
    def better(self) -> bool:
        """Whether it is a fitted one: on held-out noise better than the best named plan."""
        return bool(self._told("better"))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of its loss over the best named plan's on held-out noise."""
        low, high = self._told("held_out")["interval"]
        return float(low), float(high)

    @property
    def could_not(self) -> tuple[str, ...]:
        """What the network did not allow to be fitted, in words."""
        return tuple(self._told("could_not"))

    def departs(self, model: Callable[..., Any], cond: Conditioning = None) -> str | None:
        """In what a network differs from the one of the fit, None where it does not.

        One without weights is called once, at the first pair of the fit.

        Args:
            cond: of the fit.
        """
        told, own = self._told("probe"), denoiser_of(model)
        if self._told("network") is not None:
            return difference(self._told("network"), fingerprint(model))
        device = own.device or torch.device("cpu")
        pairs = Pairs(tuple(told["shape"]), told["seed"], cond, None, device)
        caller = Caller(own, None, None, torch.float64 if own.dtype is torch.float64 else torch.float32)
        got, kept = probed(caller, pairs, told["time"]), told["outputs"]
        return None if same_outputs(kept, got) else "other outputs"

    def summary(self) -> str:
        """What was fitted and how it does, in a few lines."""
        held: Mapping[str, Any] = self._told("held_out")
        low, high = self.interval
        verdict = "fitted" if self.better else "the best named plan, for the fitted one is not better"
        lines = [
            f"{verdict}: {self.nfe} calls, by {self._told('by')}",
            f"held out, {held['pairs']} pairs, {self._told('loss')}: fitted {held['fitted']['mean']:.4g}, "
            f"{self._told('named')['plan']} {held['named']['mean']:.4g}",
            f"ratio {held['ratio']:.3f}, 95 % interval [{low:.3f}, {high:.3f}]",
        ]
        return "\n".join([*lines, *[f"could not: {one}" for one in self.could_not]])

    def _told(self, name: str) -> Any:
        if self.fitted is None or name not in self.fitted:
            raise ValueError(f"a tuned plan must say {name!r} in fitted, got a plan that does not")
        return self.fitted[name]
