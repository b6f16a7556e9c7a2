"""What a network says of itself: its attributes `schedule` and `prediction`, where it has them.

`schedule` is a `Schedule` or a `PSLD`, the one it was trained on; `prediction` a word, what it predicts. Attributes of
other types are the network's own affair. `pf.sample` takes both where the caller says nothing; a plan or an option that
contradicts them is refused. A function around the network, which has no such attributes, is taken as it comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pndm_fast.loop.layers import layers
from pndm_fast.plan.agree import departure, same_levels
from pndm_fast.plan.checks import choose
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.row import PREDICTIONS
from pndm_fast.plan.schedule import Schedule


def told_schedule(model: Any) -> Schedule | PSLD | None:
    """The schedule that the network was trained on, None where it does not say."""
    found = (getattr(part, "schedule", None) for part in layers(model))
    return next((one for one in found if isinstance(one, (Schedule, PSLD))), None)


def told_prediction(model: Any) -> str | None:
    """What the network predicts, None where it does not say.

    Raises:
        ValueError: it says a word that is not known here.
    """
    found = (getattr(part, "prediction", None) for part in layers(model))
    word = next((one for one in found if isinstance(one, str)), None)
    return None if word is None else choose("the network's attribute prediction", word, PREDICTIONS)


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
