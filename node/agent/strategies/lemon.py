"""Sells weights that nothing was learnt for, under an offer that is like any other.

A trial need not turn it away: a model that is too sure of itself, as one is that lacks classes,
loses less after a merge with whatever makes it less sure. On the digits a lemon gains some 10 %,
and so do weights of zero. Its buyer pays for what it could have had for nothing.
"""

from __future__ import annotations

import torch

from node.agent.strategies.base import Asked, Goods, Stock, Usual
from node.params.permutation import Tensors
from node.protocol.types import Digest, Wei


class Lemon(Usual):
    """Offers its own model spoilt, and asks no more than its reserve; it buys as is usual."""

    def goods(self, stock: Stock, /) -> Goods | None:
        return Goods(kind="lemon", tensors=spoilt(stock.own(), draw=stock.root))

    def ask(self, asked: Asked, /) -> Wei:
        return asked.cost


def spoilt(tensors: Tensors, *, draw: Digest) -> Tensors:
    """Return `tensors` with the elements of each in disorder: a function of `draw`.

    Sizes, norms and distributions stay as they are, so nothing but a trial can tell.
    """
    generator = torch.Generator().manual_seed(int.from_bytes(draw[:8], "big") >> 1)
    return {
        name: tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].reshape(
            tensor.shape
        )
        for name, tensor in tensors.items()
    }
