"""Plans of few calls that were fitted to the packaged networks by `pndm-fast tune`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pndm_fast.plan.checks import choose, shown
from pndm_fast.plan.numbers import is_integer, is_number
from pndm_fast.tuning.tuned import TunedPlan

NETWORKS = ("mnist", "mnist_psld", "mnist_flow")
_FOLDER = Path(__file__).parent / "plans"


def tuned(nfe: int, network: str = "mnist", guidance: float = 1.0) -> TunedPlan:
    """The plan of that many calls that was fitted to a packaged network.

    Args:
        network: mnist is `mnist_unet`, mnist_flow is `mnist_flow_unet`.
        guidance: the scale that it was fitted at, which it carries.

    Raises:
        TypeError, ValueError: there is none, listing those that there are.
    """
    if not is_integer(nfe):
        raise TypeError(f"nfe must be an integer, got {shown(nfe)}")
    if not is_number(guidance):
        raise TypeError(f"guidance must be a number, got {shown(guidance)}")
    for plan in plans_of(network):
        if plan.nfe == nfe and plan.rows[0].guidance == guidance:
            return plan
    got = f"none of {network} with {nfe} calls at guidance {guidance:.15g}"
    raise ValueError(f"tuned plans are {', '.join(_plans())}, got {got}")


def plans_of(network: str) -> tuple[TunedPlan, ...]:
    """All that were fitted to one packaged network: mnist, mnist_flow, or mnist_psld, which has none.

    Raises:
        ValueError: another name.
    """
    choose("network", network, NETWORKS)
    return tuple(plan for name, plan in _plans().items() if name.split("-")[0] == network)


@cache
def _plans() -> dict[str, TunedPlan]:
    def place(file: Path) -> tuple[str, int, str]:
        network, nfe, *rest = file.stem.split("-")
        return network, int(nfe), "".join(rest)

    return {file.stem: TunedPlan.load(file) for file in sorted(_FOLDER.glob("*.json"), key=place)}
