"""What a network says of itself: its attributes `schedule`, `prediction` and `plans`, where it has them.

`schedule` is a `Schedule` or a `PSLD`, the one it was trained on; `prediction` a word, what it predicts; `plans` a
tuple or list of plans fitted to it, by whose weights they are known. Attributes of other types are the network's own
affair. `pf.sample` takes the first two where the caller says nothing, and a plan where the caller says "auto"; what
contradicts the first two is refused. A function around the network, which has no such attributes, is taken as it comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pndm_fast.loop.fitted import difference, fingerprint
from pndm_fast.loop.guidance import Guidance
from pndm_fast.loop.layers import layers
from pndm_fast.plan.agree import departure, same_levels
from pndm_fast.plan.checks import choose
from pndm_fast.plan.numbers import is_integer
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.row import PREDICTIONS
from pndm_fast.plan.schedule import Schedule


def told_schedule(model: Any) -> Schedule | PSLD | None:
    """The schedule that the network was trained on, None where it does not say."""
    return next((one for one in _attributes(model, "schedule") if isinstance(one, (Schedule, PSLD))), None)


def told_prediction(model: Any) -> str | None:
    """What the network predicts, None where it does not say.

    Raises:
        ValueError: it says a word that is not known here.
    """
    word = next((one for one in _attributes(model, "prediction") if isinstance(one, str)), None)
    return None if word is None else choose("the network's attribute prediction", word, PREDICTIONS)


def told_plan(
    model: Any, calls: Any, guidance: float | Guidance | None, schedule: Any = None, prediction: Any = None
) -> Plan | None:
    """The plan of that many calls that was fitted to the network as it is, at that guidance; None where none was.

    Guidance with an interval, a scale by row or another network is none that a plan was fitted at.

    Args:
        schedule, prediction: what the plan must be for, None is any. What is neither is for `make_plan` to refuse.
    """
    guide = guidance if isinstance(guidance, Guidance) else Guidance(1.0 if guidance is None else guidance)
    if guide.interval is not None or guide.weaker is not None or not isinstance(guide.scale, float):
        return None
    if not is_integer(calls):
        return None
    for plan in _told_plans(model):
        if prediction not in (None, plan.prediction) or not _on(plan, schedule):
            continue
        fitted: Any = plan.fitted or {}
        at = {"scales": [guide.scale] * plan.nfe, "rescale": guide.rescale if guide.scale != 1 else 0.0}
        told = fitted.get("guidance")
        same = plan.nfe == calls and isinstance(told, Mapping) and {"rescale": 0.0, **told} == at
        if same and fitted.get("network") and difference(fitted["network"], fingerprint(model)) is None:
            return plan
    return None


def _on(plan: Plan, schedule: Any) -> bool:
    if schedule is None:
        return True
    return isinstance(schedule, (Schedule, PSLD)) and departure(plan, schedule) is None


def _told_plans(model: Any) -> list[Plan]:
    lists = (one for one in _attributes(model, "plans") if isinstance(one, (tuple, list)))
    return next(([*plans] for plans in lists if all(isinstance(plan, Plan) for plan in plans)), [])


def _attributes(model: Any, name: str) -> Iterator[Any]:
    """Of the network and of what it wraps, outermost first; None where one has none."""
    for part in layers(model):
        try:
            yield getattr(part, name, None)
        except Exception as error:  # of whatever kind: a property is the network's own code
            got = f"{type(error).__name__}: {error}"
            raise ValueError(f"the network's attribute {name} must be one that can be read, got {got}") from error


def check_told(plan: Plan, networks: Iterable[Any]) -> None:
    """Refuse a plan for another prediction, or on another schedule, than one of the networks says.

    Raises:
        ValueError: naming the argument of `make_plan`.
    """
    for network in networks:
        _check_prediction(plan.prediction, told_prediction(network))
        own = told_schedule(network)
        away = None if own is None else departure(plan, own)
        if own is not None and away is not None:
            raise ValueError(f"schedule must be the network's own, {own.name}, got {away}")


def completed(model: Any, schedule: Any, prediction: Any) -> tuple[Any, Any]:
    """The schedule and the prediction that are asked for, or where they are None the network's own.

    Raises:
        ValueError: what is asked for contradicts the network.
    """
    own, word = told_schedule(model), told_prediction(model)
    if isinstance(prediction, str):
        _check_prediction(prediction, word)
    if own is not None and isinstance(schedule, (Schedule, PSLD)) and not same_levels(schedule, own):
        other = " of other numbers" if schedule.name == own.name else ""
        raise ValueError(f"schedule must be the network's own, {own.name}, got {schedule.name}{other}")
    return own if schedule is None else schedule, word if prediction is None else prediction


def _check_prediction(asked: str, own: str | None) -> None:
    if own is not None and asked != own:
        raise ValueError(f"prediction must be the network's own, {own!r}, got {asked!r}")
