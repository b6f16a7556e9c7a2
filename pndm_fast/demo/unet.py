"""A small class-conditional U-Net that predicts eps, for demonstrations and tests.

Parameter names are those of diffusers' `UNet2DModel`. Architecture: Ho et al. 2020, arXiv:2006.11239, appendix B.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pndm_fast.demo.tuned import plans_of
from pndm_fast.plan.plan import Plan
from pndm_fast.plan.psld import PSLD
from pndm_fast.plan.schedule import Schedule

# The choices this network makes where UNet2DModel has options; a configuration may repeat them, not change them.
_FIXED: dict[str, Any] = dict(
    act_fn="silu", add_attention=True, attn_norm_num_groups=None, center_input_sample=False, class_embed_type=None,
    downsample_padding=1, downsample_type="conv", dropout=0.0, flip_sin_to_cos=True, freq_shift=0,
    mid_block_scale_factor=1, mid_block_type="UNetMidBlock2D", num_train_timesteps=None,
    resnet_time_scale_shift="default", time_embedding_dim=None, time_embedding_type="positional", upsample_type="conv",
)  # fmt: skip

psld = PSLD(time_scale=1000.0).preconditioned(1.0)  # of `mnist_psld_unet`; its embedding of time is for 0 to 999
flow = Schedule.flow(T=1000.0)  # of `mnist_flow_unet`, for the same embedding


class Process(NamedTuple):
    """What a network was trained on.

    Attributes:
        prediction: in phase space eps is what the preconditioned output is converted to.
        plans: how the names of plans fitted to the packaged one begin.
    """

    schedule: Schedule | PSLD
    prediction: str
    plans: str


PROCESSES = {
    "vp": Process(Schedule.linear(), "eps", "mnist"),
    "psld": Process(psld, "eps", "mnist_psld"),
    "flow": Process(flow, "flow", "mnist_flow"),
}


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the network; the defaults are those of the packaged MNIST weights."""

    _class_name: ClassVar[str] = "UNet2DModel"  # says that an integer sample_size is height and width
    sample_size: int = 28
    in_channels: int = 1
    out_channels: int = 1
    block_out_channels: tuple[int, ...] = (32, 64, 128)
    down_block_types: tuple[str, ...] = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    layers_per_block: int = 1
    attention_head_dim: int = 32
    norm_num_groups: int = 8
    norm_eps: float = 1e-5
    num_class_embeds: int = 11

    def __post_init__(self) -> None:
        ups = tuple(kind.replace("Down", "Up") for kind in reversed(self.down_block_types))
        if self.up_block_types != ups or len(ups) != len(self.block_out_channels):
            raise ValueError(f"config: up_block_types must be {ups}, one per width, got {self.up_block_types}")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> UNetConfig:
        """Reads a diffusers `config.json`.

        Raises:
            ValueError: an option that this network does not have.
        """
        names = {field.name for field in fields(cls)}
        for key, value in config.items():
            if key not in names and not key.startswith("_") and (key not in _FIXED or _FIXED[key] != value):
                raise ValueError(f"config: {key} must be {_FIXED.get(key, 'absent')!r}, got {value!r}")
        sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in names}
        return cls(**sizes)

    def to_dict(self) -> dict[str, Any]:
        """The same configuration with the keys of a diffusers `config.json`."""
        return {"_class_name": self._class_name, **_FIXED, **asdict(self)}


class _Residual(nn.Module):
    """h = conv2(silu(norm2(conv1(silu(norm1(x))) + W emb))); out = shortcut(x) + h."""

    def __init__(self, c_in: int, c_out: int, config: UNetConfig) -> None:
        super().__init__()
        groups, eps, width = config.norm_num_groups, config.norm_eps, 4 * config.block_out_channels[0]
        self.norm1 = nn.GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(width, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(emb)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class _Attention(nn.Module):
    """x + W_o softmax(q k^T / sqrt(d)) v over the pixels of x: [B, C, H, W]."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.heads = channels // config.attention_head_dim
        self.group_norm = nn.GroupNorm(config.norm_num_groups, channels, config.norm_eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # [B, H W, C]
        q, k, v = (f(h).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, H W, d]
        h = self.to_out(h.transpose(1, 2).flatten(2))
        out: Tensor = x + h.transpose(1, 2).unflatten(2, x.shape[2:])
        return out


def _resampling(channels: int, stride: int) -> nn.ModuleList:
    # nested only because the parameter names ask: `downsamplers.0.conv.weight`
    conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)
    return nn.ModuleList([nn.Sequential(OrderedDict(conv=conv))])


class _Level(nn.Module):
    """Residual blocks at one resolution, the first `n_attentions` followed by attention; as it is, the middle."""

    def __init__(self, config: UNetConfig, inputs: list[int], c_out: int, n_attentions: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_Residual(c_in, c_out, config) for c_in in inputs])
        self.attentions = nn.ModuleList([_Attention(c_out, config) for _ in range(n_attentions)])

    def block(self, i: int, x: Tensor, emb: Tensor) -> Tensor:
        """Residual block i and its attention."""
        x = self.resnets[i](x, emb)
        return self.attentions[i](x) if i < len(self.attentions) else x

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.block(i, x, emb)
        return x


class _Down(_Level):
    """Level of the contracting path: leaves its results in `skips`, halves the resolution unless it is the last."""

    def __init__(self, config: UNetConfig, inputs: list[int], c_out: int, n_attentions: int, last: bool) -> None:
        super().__init__(config, inputs, c_out, n_attentions)
        self.downsamplers = None if last else _resampling(c_out, stride=2)

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.block(i, x, emb)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x


class _Up(_Level):
    """Level of the expanding path: takes from `skips`, doubles the resolution unless it is the last."""

    def __init__(self, config: UNetConfig, inputs: list[int], c_out: int, n_attentions: int, last: bool) -> None:
        super().__init__(config, inputs, c_out, n_attentions)
        self.upsamplers = None if last else _resampling(c_out, stride=1)

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.block(i, torch.cat([x, skips.pop()], dim=1), emb)
        if self.upsamplers is not None:
            x = self.upsamplers[0](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class UNet(nn.Module):
    """eps(x, t, class) for x: [B, C, H, W] with H and W divisible by the total downsampling (4 for MNIST).

    Attributes:
        process: vp, psld or flow, what it was trained on; None is not known.
        plans: those that were fitted to it; default those of the packaged network of its process, which it may be.
    """

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UNetConfig()
        self.process: str | None = None  # a word, so that networks can be pickled: a preconditioning cannot
        self._plans: tuple[Plan, ...] | None = None
        widths, base, layers = config.block_out_channels, config.block_out_channels[0], config.layers_per_block
        self.conv_in = nn.Conv2d(config.in_channels, base, 3, padding=1)
        self.time_embedding = nn.Sequential(
            OrderedDict(linear_1=nn.Linear(base, 4 * base), act=nn.SiLU(), linear_2=nn.Linear(4 * base, 4 * base))
        )
        self.class_embedding = nn.Embedding(config.num_class_embeds, 4 * base)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        attends = [kind.startswith("Attn") for kind in config.down_block_types]
        skips, c_in = [base], base
        for i, c_out in enumerate(widths):
            inputs, last = [c_in] + [c_out] * (layers - 1), i == len(widths) - 1
            self.down_blocks.append(_Down(config, inputs, c_out, layers * attends[i], last))
            skips += [c_out] * (layers + (not last))
            c_in = c_out
        self.mid_block = _Level(config, [c_in, c_in], c_in, 1)
        for i, c_out in reversed(list(enumerate(widths))):
            inputs = [c + skips.pop() for c in [c_in] + [c_out] * layers]
            self.up_blocks.append(_Up(config, inputs, c_out, (layers + 1) * attends[i], i == 0))
            c_in = c_out
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, base, config.norm_eps)
        self.conv_out = nn.Conv2d(base, config.out_channels, 3, padding=1)

    @property
    def schedule(self) -> Schedule | PSLD | None:
        """The schedule of its training."""
        return None if self.process is None else PROCESSES[self.process].schedule

    @property
    def prediction(self) -> str | None:
        """What it predicts."""
        return None if self.process is None else PROCESSES[self.process].prediction

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Those that were fitted to it."""
        if self._plans is not None:
            return self._plans
        return () if self.process is None else plans_of(PROCESSES[self.process].plans)

    @plans.setter
    def plans(self, plans: Iterable[Plan]) -> None:
        self._plans = tuple(plans)

    def embed(self, t: Tensor | float, class_labels: Tensor | None) -> Tensor:
        """silu(MLP([cos(t w), sin(t w)]) + class vector), w_i = 10000^(-i/half): [B or 1, 4 base]."""
        weight = self.class_embedding.weight
        t = (t if isinstance(t, Tensor) else torch.full((1,), t)).to(weight.device, torch.float32).reshape(-1, 1)
        half = self.config.block_out_channels[0] // 2
        # Angles reach 999 rad: float32 here whatever the dtype of the weights.
        exponents = torch.arange(half, dtype=torch.float32, device=weight.device) * (-math.log(10000) / half)
        angles = t * torch.exp(exponents)
        emb = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1).to(weight.dtype)
        emb = self.time_embedding(emb)
        return F.silu(emb + (weight[-1] if class_labels is None else self.class_embedding(class_labels)))

    def forward(self, x: Tensor, t: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """Predicted noise of x at time t.

        Args:
            x: [B, in_channels, H, W] in the dtype of the weights.
            t: times in training steps, a scalar or [B], integer or floating.
            class_labels: [B] integers; None is the last class, the unconditional one.
        """
        emb = self.embed(t, class_labels)
        x = self.conv_in(x)
        skips = [x]
        for level in (*self.down_blocks, self.mid_block, *self.up_blocks):
            x = level(x, emb, skips)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out
