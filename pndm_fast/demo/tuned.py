"""Plans of few calls that were fitted to the packaged networks by `pndm-fast tune`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pndm_fast.plan.checks import shown
from pndm_fast.tuning.tuned import TunedPlan

_FOLDER = Path(__file__).parent / "plans"


def tuned(nfe: int, network: str = "mnist", guidance: float = 1.0) -> TunedPlan:
    """The plan of that many calls that was fitted to a packaged network.

    Args:
        network: mnist is `mnist_unet`, mnist_flow is `mnist_flow_unet`.
        guidance: the scale that it was fitted at, which it carries.

    Raises:
        ValueError: there is none, listing those that there are.
    """
    name = f"{network}-{nfe}" + ("" if guidance == 1 else f"-guidance-{guidance:g}")
    plans = _plans()
    if name not in plans:
        raise ValueError(f"tuned plans are {', '.join(plans)}, got none named {shown(name)}")
    return plans[name]


def plans_of(network: str) -> tuple[TunedPlan, ...]:
    """All that were fitted to one packaged network, mnist or mnist_flow."""
    return tuple(plan for name, plan in _plans().items() if name.split("-")[0] == network)


@cache
def _plans() -> dict[str, TunedPlan]:
    def place(file: Path) -> tuple[str, int, str]:
        network, nfe, *rest = file.stem.split("-")
        return network, int(nfe), "".join(rest)

    return {file.stem: TunedPlan.load(file) for file in sorted(_FOLDER.glob("*.json"), key=place)}
