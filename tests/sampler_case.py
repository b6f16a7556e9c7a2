"""What tests of `Sampler` sample: small networks, and their shape."""

import torch
from torch import nn

SHAPE = (3, 8, 8)


class Conv(nn.Module):
    """A small network: convolutions, time and an optional label; its output depends on all of them."""

    def __init__(self, dtype=torch.float32, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.label = nn.Embedding(11, 8)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        self.to(dtype).eval()

    def forward(self, x, t, labels=None):
        h = self.first(x) + (t.to(x.dtype) / 1000)[:, None, None, None]
        if labels is not None:
            h = h + self.label(labels)[:, :, None, None]
        return self.last(torch.tanh(h))


class Pointwise:
    """A batch-invariant network: each element by itself, the same arithmetic at every batch size."""

    def __call__(self, x, t, shift=None):
        out = x * 0.5 + (t / 1000).view(-1, *[1] * (x.dim() - 1))
        return out if shift is None else out + shift.view(-1, *[1] * (x.dim() - 1))


class ChannelsLast(Conv):
    """Returns channels_last whatever it is given, as fast networks do."""

    def forward(self, x, t, labels=None):
        return super().forward(x, t, labels).contiguous(memory_format=torch.channels_last)
