"""What a trajectory may start from, besides the seeds' own noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pndm_fast.plan.hints import in_words


@in_words("Noise", latents="values", noise="values", x_T="values")
@dataclass(frozen=True, eq=False)
class Noise:
    """Standard normals [B, *shape] in place of the seeds' x_T; the plan scales them to its first level."""

    values: Tensor


@in_words("State", latents="values", state="values")
@dataclass(frozen=True, eq=False)
class State:
    """The state [B, *shape] at the plan's first level, as it is. For `ddim-inverse` that is the data."""

    values: Tensor


@in_words("Image", image="x0", init_image="x0", latents="noise")
@dataclass(frozen=True, eq=False)
class Image:
    """Data x0 [B, *shape], noised to the plan's first level: image to image.

    `make_plan(strength=)` or `t_start=` puts that level in the middle. In phase space data are [x_0, 0], the momentum's
    half zero. `noise` stands in place of the seeds' x_T.
    """

    x0: Tensor
    noise: Tensor | None = None


@in_words("Inpaint", image="x0", init_image="x0", mask_image="mask")
@dataclass(frozen=True, eq=False)
class Inpaint:
    """Data x0 [B, *shape] that the samples are to have where the mask is 0; they are drawn where it is 1.

    The mask has any shape that x0's can be broadcast from, and values in [0, 1]. Where it is m in between, an element
    is held to the data, noised to the state's level, until the fraction 1 - m of its plan's rows has been run, and
    drawn from there: differential diffusion, Levin & Fried 2023, arXiv:2306.00950. After k of n rows what is known is
    m < 1 - k/n or m = 0. A multistep method's slots then hold outputs at the data's path. `start` is what the drawn
    part starts from, where that is not the seeds' noise.
    """

    x0: Tensor
    mask: Tensor
    start: Noise | State | Image | None = None


Start = Noise | State | Image | Inpaint


def tensors_of(start: Start | None) -> dict[str, Any]:
    """What a start holds, of the samples' shape, by the names that messages have.

    Raises:
        TypeError: inpainting within inpainting.
    """
    match start:
        case None:
            return {}
        case Noise(values):
            return {"noise": values}
        case State(values):
            return {"state": values}
        case Image(x0, noise):
            return {"image": x0} if noise is None else {"image": x0, "noise": noise}
        case Inpaint(x0, _, Noise() | State() | Image() | None as inner):
            return {**tensors_of(inner), "known": x0}
    raise TypeError(f"Inpaint's start must be a Noise, State or Image, got {type(start.start).__name__}")
