"""What a trajectory may start from, besides the seeds' own noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Noise:
    """Standard normals [B, *shape] in place of the seeds' x_T; the plan scales them to its first level."""

    values: Tensor


@dataclass(frozen=True, eq=False)
class State:
    """The state [B, *shape] at the plan's first level, as it is. For `ddim-inverse` that is the data."""

    values: Tensor


@dataclass(frozen=True, eq=False)
class Image:
    """Data x0 [B, *shape], noised to the plan's first level: image to image.

    `make_plan(strength=)` or `t_start=` puts that level in the middle. In phase space data are [x_0, 0], the momentum's
    half zero. `noise` stands in place of the seeds' x_T.
    """

    x0: Tensor
    noise: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Inpaint:
    """Data x0 [B, *shape] that the samples are to have where the mask is 0; they are drawn where it is 1.

    The mask has any shape that x0's can be broadcast from. `start` is what the drawn part starts from, where that is
    not the seeds' noise.
    """

    x0: Tensor
    mask: Tensor
    start: Noise | State | Image | None = None


Start = Noise | State | Image | Inpaint
