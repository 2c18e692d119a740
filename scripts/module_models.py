"""A network that no family of the market has, for `scripts/bench.py modules`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Network(nn.Module):
    """Convolutions with batch normalisation, in two stages with a residual block each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = _normed(1, width, stride=2)
        self.first = nn.Sequential(_normed(width, width), nn.ReLU(), _normed(width, width))
        self.wider = _normed(width, 2 * width, stride=2)
        self.second = nn.Sequential(
            _normed(2 * width, 2 * width), nn.ReLU(), _normed(2 * width, 2 * width)
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = functional.relu(self.stem(images))
        images = functional.relu(images + self.first(images))
        images = functional.relu(self.wider(images))
        images = functional.relu(images + self.second(images))
        logits: torch.Tensor = self.head(images.mean((2, 3)))
        return logits


def _normed(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
    )


def network(width: int = 16) -> nn.Module:
    """Return the network of so many channels in its first stage."""
    return Network(width)
