"""Arguments that are one of a few words, or of a few types; the message offers the nearest word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pndm_fast.plan.numbers import is_integer, is_number

# other libraries' words for what a network predicts, and for solvers, as `_plain` has them
_PEERS = {"epsilon": "eps", "noise": "eps", "v-prediction": "v", "velocity": "v", "sample": "x0", "x-start": "x0"}
_PEERS |= {"start-x": "x0", "data": "x0", "flow-prediction": "flow"}
_PEERS |= {"pndm": "f-pndm", "euler-a": "euler-ancestral", "dpmsolverpp": "dpmpp-2m", "dpmsolver": "dpm-solver-2"}
_SCHEDULERS = {  # diffusers' classes, without their last word
    "PNDM": "plms", "DDIM": "ddim", "DDIMInverse": "ddim-inverse", "DDPM": "ddpm", "LCM": "lcm",
    "DPMSolverMultistep": "dpmpp-2m", "DPMSolverSinglestep": "dpmpp-2s", "DEISMultistep": "deis",
    "UniPCMultistep": "unipc", "EulerDiscrete": "euler", "EulerAncestralDiscrete": "euler-ancestral",
    "HeunDiscrete": "heun", "LMSDiscrete": "lms", "DPMSolverSDE": "dpmpp-sde", "FlowMatchEulerDiscrete": "euler",
    "FlowMatchHeunDiscrete": "heun", "KDPM2Discrete": "dpm-2", "KDPM2AncestralDiscrete": "dpm-2-ancestral",
    "SASolver": "sa-solver", "TCD": "tcd", "CMStochasticIterative": "consistency",
    "LTXEulerAncestralRF": "euler-ancestral", "FlowMatchLCM": "lcm", "SCM": "tcd",
}  # fmt: skip
_PEERS |= {"res-multistep": "res-2m", "dpm-2-a": "dpm-2-ancestral", "dpmpp-2s-a": "dpmpp-2s-ancestral"}  # ComfyUI's
_PEERS |= {f"{name}scheduler".lower(): solver for name, solver in _SCHEDULERS.items()}
_SHORT = 80


def shown(value: Any) -> str:
    """What was got, for a message: as it is written, or where that takes long its beginning, or its type."""
    kind = type(value).__name__
    try:
        text = repr(value)
    except Exception:  # it is somebody else's
        return kind
    if len(text) <= _SHORT and "\n" not in text:
        return text
    return f"{text[:_SHORT]}..." if isinstance(value, (int, float, str, bytes)) else kind


def choose(what: str, name: Any, known: Iterable[str], where: str = "") -> str:
    """`name` if it is one of the known words; `where` says when those are all.

    Raises:
        ValueError: it is none of them.
    """
    names = tuple(known)
    if isinstance(name, str) and name in names:
        return name
    text = _plain(name) if isinstance(name, str) else ""
    own = {_plain(word): word for word in reversed(names)}
    near = [own.get(text), _PEERS.get(text), *(own[k] for k in difflib.get_close_matches(text, own, n=1, cutoff=0.5))]
    hint = next((f"; did you mean {word!r}?" for word in near if word in names), "")
    raise ValueError(f"{what} must be one of {', '.join(names)}{where}, got {shown(name)}{hint}")


def _plain(word: str) -> str:
    """A word as its spellings have it in common: "DPM++ 2M Karras" is dpmpp_2m."""
    return word.lower().replace("++", "pp").replace("_", "-").replace(" ", "-").removesuffix("-karras")


def check_type(what: str, value: Any, kind: Any) -> None:
    """Refuse a value that is not of the annotated type; a float may be any real number, an int any integer.

    Raises:
        TypeError: naming the type.
    """
    kinds = get_args(kind) or (kind,)
    if type(value) in kinds or (float in kinds and is_number(value)) or (int in kinds and is_integer(value)):
        return
    names = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
    raise TypeError(f"{what} must be {names}, got {shown(value)}")
