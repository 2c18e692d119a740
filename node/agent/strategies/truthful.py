"""Says what is so: the bid is the value, the ask is the cost."""

from __future__ import annotations

from node.agent.strategies.base import Asked, Usual
from node.protocol.types import Wei


class Truthful(Usual):
    """Bids κ·Δ and asks its reserve.

    That is no equilibrium of the market: where the price is the midpoint, a seller does better
    to ask for more than its cost, and a buyer to bid less than its value.
    """

    def ask(self, asked: Asked, /) -> Wei:
        return asked.cost
