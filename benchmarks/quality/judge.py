"""A small classifier of MNIST digits, whose features and answers judge samples."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[2] / "examples/mnist"))
from train import load_mnist, read_idx  # noqa: E402

FEATURES = 16
_BATCH, _EPOCHS, _SEED = 128, 3, 0


class Judge(nn.Module):
    """(features [B, 16], logits [B, 10]) of images in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 49, FEATURES),
        )
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(F.relu(features))


def train_judge(data: Path) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Its weights, its features of the test set, and the digits there."""
    images, labels = load_mnist(data)
    torch.manual_seed(_SEED)
    judge = Judge()
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(len(images)).split(_BATCH):
            _, logits = judge(images[chosen].float() / 127.5 - 1)
            loss = F.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    judge.eval()
    test = torch.from_numpy(read_idx(data, "t10k-images-idx3-ubyte").copy())[:, None].float() / 127.5 - 1
    right = torch.from_numpy(read_idx(data, "t10k-labels-idx1-ubyte").astype(np.int64))
    with torch.no_grad():
        features, logits = judge(test)
    accuracy = float((logits.argmax(1) == right).float().mean())
    if accuracy < 0.97:
        raise RuntimeError(f"the classifier must know its digits to judge others, got {accuracy:.1%} of the test set")
    return judge.state_dict(), features, right
