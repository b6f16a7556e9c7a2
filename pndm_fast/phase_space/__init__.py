"""Phase-space diffusions: samples [B, 2 C, ...] of positions, which are the data, and then momenta."""

from pndm_fast.phase_space.parts import MomentumOnly, momentum, position
from pndm_fast.phase_space.process import PSLD, Preconditioning

__all__ = ["PSLD", "MomentumOnly", "Preconditioning", "momentum", "position"]
