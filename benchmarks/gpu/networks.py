"""Networks of the sizes that benchmarks speak of, with seeded random weights: speed does not depend on the values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SEQUENCE, WIDTH = 77, 768  # of CLIP's text embedding

CIFAR = {  # config.json of google/ddpm-cifar10-32
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
STABLE_DIFFUSION = {  # unet/config.json of Stable Diffusion 1.5
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "attention_head_dim": 8,
    "cross_attention_dim": WIDTH,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}


class Small(nn.Module):
    """Thirty kernels of a few microseconds: on a GPU their launches are its whole cost."""

    def __init__(self, channels: int = 3, width: int = 32, depth: int = 14) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(depth))
        self.last = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.first(x) + (t * 1e-3).to(x.dtype).view(-1, 1, 1, 1)
        for layer in self.layers:
            h = layer(torch.sin(h))
        return self.last(h)


def _cifar() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(**CIFAR)


def _stable_diffusion() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**STABLE_DIFFUSION)


@dataclass(frozen=True)
class Network:
    """A network to be made, and what it is called with.

    Attributes:
        make: the module, on the default device.
        shape: of one sample.
        dtype: of weights and inputs.
        parameters: how many.
        schedule: the arguments of diffusers' `PNDMScheduler` in the model's published scheduler configuration.
        text: whether it takes `encoder_hidden_states`, and is called with guidance.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dtype: torch.dtype
    parameters: int
    schedule: dict[str, Any]
    text: bool = False


_DDPM = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_LATENT |= {"skip_prk_steps": True, "steps_offset": 1}

NETWORKS = {
    "small": Network(Small, (3, 32, 32), torch.float32, 15_011, _DDPM),
    "cifar": Network(_cifar, (3, 32, 32), torch.float32, 35_746_307, _DDPM),
    "sd": Network(_stable_diffusion, (4, 64, 64), torch.bfloat16, 859_520_964, _LATENT, text=True),
}


@functools.lru_cache(maxsize=2)
def module(name: str, device: str = "cpu", seed: int = 0) -> nn.Module:
    """The network with seeded random weights, for inference; the last two made are kept."""
    network = NETWORKS[name]
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        return network.make().to(network.dtype).eval().requires_grad_(False)
