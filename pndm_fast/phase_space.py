"""Phase-space diffusions: samples [B, 2 C, ...] of positions, which are the data, and then momenta."""

from pndm_fast.loop.phase_space import MomentumOnly, momentum, position
from pndm_fast.plan.psld import PSLD, Preconditioning

__all__ = ["PSLD", "MomentumOnly", "Preconditioning", "momentum", "position"]
