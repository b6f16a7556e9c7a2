"""Caches of diffusers that stand in a network, and the contexts in which a pipeline calls it for their sake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pndm_fast.integrations.stand_in import Recorded
from pndm_fast.loop.conditioning import Shared
from pndm_fast.loop.request import Conditioning

CONTEXT = "cache_context"  # an argument of `AsDenoiser` alone


def hooks_of(networks: Mapping[str, Any]) -> list[Any]:
    """diffusers' hooks on modules of networks. A registry without any is left by each call of a pipeline."""
    registries = [vars(part).get("_diffusers_hook") for network in networks.values() for part in network.modules()]
    return [hook for registry in registries if registry is not None for hook in registry.hooks.values()]


def check_caches(networks: Mapping[str, Any], calls: Sequence[Recorded]) -> bool:
    """Whether the networks are to be called in the contexts of these calls.

    Raises:
        ValueError: a cache that asks for more.
    """
    if calls[0].context is None:
        for name, network in networks.items():
            if getattr(network, "is_cache_enabled", False) is True:
                raise ValueError(f"{name} must have no cache enabled: the pipeline calls it in no contexts")
        return False
    hooks = [hook for hook in hooks_of(networks) if getattr(hook, "_is_stateful", False)]
    if any(hasattr(hook, "current_timestep_callback") for hook in hooks):
        names = " and ".join(networks)
        raise ValueError(f"{names} must have no cache that asks the pipeline for its time, which has none in one loop")
    return bool(hooks)


def in_contexts(tree: dict[str, Any], call: Recorded, sigmas: Sequence[float]) -> Conditioning:
    """Conditioning with the context of a call, which may say at which step it is."""
    assert call.context is not None
    name, where = call.context
    if not where:
        return {**tree, CONTEXT: Shared((name, {}))}

    def at(row: int) -> dict[str, Any]:
        here = {"step_index": row, "sigma": sigmas[row]}
        return {**tree, CONTEXT: Shared((name, {key: here.get(key, value) for key, value in where.items()}))}

    return at
