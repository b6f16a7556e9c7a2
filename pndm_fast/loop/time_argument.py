"""Where a network takes its time: second, or by a name that its signature shows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any, NamedTuple

import torch.utils._pytree as pytree
from torch import fx, jit, nn

from pndm_fast.loop.layers import layers

# what the time is called, in diffusers and in the papers' own code
TIMES = frozenset(
    "t time times time_step time_steps timestep timesteps timestep_ratio sigma sigmas noise_label noise_labels "
    "noise_level noise_levels c_noise log_snr logsnr".split()
)
# what a second argument is that is surely no time
NO_TIMES = frozenset(
    "encoder_hidden_states audio_hidden_states pooled_projections prompt_embeds text_embeds text context cond "
    "condition conditioning global_cond local_cond class_label class_labels label labels mask attention_mask img_ids "
    "img_shapes sample_posterior return_dict".split()
)
NAMED = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


class TimeArgument(NamedTuple):
    """How a network is told the time.

    Attributes:
        keyword: the argument's name, None where the time is the second positional one.
        names: of the arguments that the sampler gives, as far as they are known: conditioning must not have them.
    """

    keyword: str | None = None
    names: frozenset[str] = frozenset()


def time_argument(model: Callable[..., Any], name: str = "model") -> TimeArgument:
    """Ask the signature: the second positional argument, if that may be a time, else the one that is called so.

    Where a signature says nothing, as `*args` and compiled code do, the time is the second argument.

    Raises:
        TypeError: x is not the first argument, or there is no place for a time, or more than one.
    """
    parameters = _parameters(model)
    if parameters is None:
        return TimeArgument()
    first = [p for p in parameters if p.kind in NAMED]
    wrong = _misfit(parameters, first)
    others = [p for p in parameters if p not in first[:2] and p.kind in BY_NAME and p.name in TIMES]
    if not wrong and (len(first) < 2 or first[1].name not in TIMES) and others:
        needed = [p for p in others if p.default is Parameter.empty]
        if len(others) == 1 or len(needed) == 1:
            return _told(first[:1], (needed if len(needed) == 1 else others)[0])
        wrong = f"it may be any of {', '.join(p.name for p in others)}"
    elif not wrong and len(first) < 2 and not any(p.kind is Parameter.VAR_POSITIONAL for p in parameters):
        wrong = "there is none"
    elif not wrong and len(first) > 1 and first[1].name in NO_TIMES:
        wrong = f"its second is {first[1].name}"
    if wrong:
        shown = ", ".join(map(_shown, parameters[:6])) + (", ..." if len(parameters) > 6 else "")
        raise TypeError(
            f"{name} must take x first, and the time second or by a name such as timestep, got ({shown}), where "
            f"{wrong}: wrap it, as in lambda x, t, **cond: model(x, my_time=t, **cond)"
        )
    return _told(first[:2], None)


def _misfit(parameters: Sequence[Parameter], first: Sequence[Parameter]) -> str:
    if not first and not any(p.kind is Parameter.VAR_POSITIONAL for p in parameters):
        return "all are given by name"
    if first and first[0].name in TIMES and not (len(first) > 1 and first[1].name in TIMES):
        return f"{first[0].name} is first"
    hidden = [p for p in first[2:] if p.kind is Parameter.POSITIONAL_ONLY and p.name in TIMES]
    if hidden and first[1].name not in TIMES:
        return f"{hidden[0].name} has no keyword"
    return ""


def _told(given: Sequence[Parameter], time: Parameter | None) -> TimeArgument:
    names = {p.name for p in (*given, *([] if time is None else [time])) if p.kind in BY_NAME}
    return TimeArgument(None if time is None else time.name, frozenset(names))


def _shown(parameter: Parameter) -> str:
    stars = 1 if parameter.kind is Parameter.VAR_POSITIONAL else 2 if parameter.kind is Parameter.VAR_KEYWORD else 0
    return "*" * stars + parameter.name


def _parameters(model: Any) -> list[Parameter] | None:
    """Of the outermost layer that says more than *args; None where none does."""
    for part in layers(model):
        found = _partial(part) if isinstance(part, functools.partial) else _own(part)
        if found is not None and (_says(found) or isinstance(part, functools.partial)):
            return found
    return None


def _says(parameters: Sequence[Parameter]) -> bool:
    if not any(p.kind is Parameter.VAR_POSITIONAL for p in parameters):
        return True
    return sum(p.kind in NAMED for p in parameters) > 1 or any(p.name in TIMES for p in parameters)


def _partial(part: functools.partial[Any]) -> list[Parameter] | None:
    """What is left to give; behind an argument that was bound by its name, others can be given by name alone."""
    inner = _parameters(part.func)
    if inner is None:
        return None
    left, bound = list[Parameter](), False
    for at, parameter in enumerate(inner):
        bound = bound or parameter.name in part.keywords
        if at < len(part.args) and parameter.kind in NAMED or parameter.name in part.keywords:
            continue
        by_name = bound and parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
        left.append(parameter.replace(kind=Parameter.KEYWORD_ONLY) if by_name else parameter)
    return left


def _own(part: Any) -> list[Parameter] | None:
    """A layer's own parameters, without self."""
    if isinstance(part, (jit.ScriptModule, jit.ScriptFunction)):
        return _scripted(part)
    spec = _exported_spec(part)
    if spec is not None:
        return _exported(part, spec)
    if not isinstance(part, nn.Module):
        return _signature(part)
    called = [_signature(part)] if type(part).__call__ is not nn.Module.__call__ else []
    return next((p for p in (*called, _signature(part.forward)) if p is not None and _says(p)), None)


def _signature(function: Any) -> list[Parameter] | None:
    """As it is called, and where that is *args, as what `functools.wraps` says."""
    found = None
    for follow in (False, True):
        try:
            found = list(inspect.signature(function, follow_wrapped=follow).parameters.values())
        except (TypeError, ValueError):
            return None
        if _says(found):
            break
    return found


def _scripted(part: Any) -> list[Parameter] | None:
    method = part if isinstance(part, jit.ScriptFunction) else getattr(part, "forward", None)
    schema = getattr(method, "schema", None)
    if schema is None:
        return None
    arguments = schema.arguments if method is part else schema.arguments[1:]
    return [
        Parameter(a.name, kind, default=a.default_value if a.has_default_value() else Parameter.empty)
        for a in arguments
        for kind in [Parameter.KEYWORD_ONLY if a.kwarg_only else Parameter.POSITIONAL_OR_KEYWORD]
    ]


def _exported_spec(part: Any) -> Any:
    """The form of an exported program's arguments, or of a compiled package's: it takes them in no other."""
    spec_of_package = getattr(getattr(part, "__dict__", {}).get("loader"), "get_call_spec", None)
    if spec_of_package is not None:
        return pytree.treespec_loads(spec_of_package()[0])
    return getattr(part, "_in_spec", None) if isinstance(part, fx.GraphModule) else None


def _exported(part: Any, spec: Any) -> list[Parameter] | None:
    children = spec.children() if hasattr(spec, "children") else spec.children_specs
    if len(children) != 2:
        return None
    told = (_signature(part.forward) or []) if isinstance(part, nn.Module) else []
    by_place, by_name = children[0].num_children, children[1].context or []
    names = [p.name for p in told[:by_place]] or [f"argument_{i}" for i in range(by_place)]
    placed = [Parameter(name, Parameter.POSITIONAL_ONLY) for name in names]
    return placed + [Parameter(name, Parameter.KEYWORD_ONLY) for name in by_name]
