"""Sells what it bought as its own: the same function under other bytes."""

from __future__ import annotations

from typing import Final

import torch

from node.agent.strategies.base import Goods, Stock, Usual
from node.params.architecture import Architecture, permutation_spec
from node.params.permutation import Tensors, permute, rescale
from node.protocol.types import Digest

NOISE: Final = 0.01
"""Of each tensor's standard deviation: enough that no unit is the other's to the bit."""
LARGEST_SCALE: Final = 2.0


class Replicator(Usual):
    """Offers a copy of its latest purchase; its own model until it has bought one."""

    def goods(self, stock: Stock, /) -> Goods | None:
        bought = stock.bought()
        if bought is None:
            return None
        trade, tensors = bought
        copied = replica(stock.architecture, tensors, draw=stock.root)
        return Goods(kind="replica", tensors=copied, copied=trade)


def replica(architecture: Architecture, tensors: Tensors, *, draw: Digest) -> Tensors:
    """Return `tensors` with units renumbered and rescaled, and a little noise on all of them.

    A function of `draw`. What an architecture has no symmetries of gets the noise alone.
    """
    generator = torch.Generator().manual_seed(int.from_bytes(draw[:8], "big") >> 1)
    spec = permutation_spec(architecture)
    orders = {
        name: torch.randperm(group.size, generator=generator).tolist()
        for name, group in spec.groups.items()
    }
    scales = {
        name: LARGEST_SCALE
        ** (2 * torch.rand(spec.groups[rescaling.group].size, generator=generator) - 1)
        for name, rescaling in spec.rescalings.items()
    }
    moved = rescale(spec, permute(spec, tensors, orders), scales)
    return {
        name: tensor
        + NOISE * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
        for name, tensor in moved.items()
    }
