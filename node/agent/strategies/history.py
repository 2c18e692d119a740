"""Asks what would have earned the most in the past."""

from __future__ import annotations

from node.agent.settings import AskPolicy
from node.agent.strategies.base import Asked, Usual
from node.protocol.types import Wei


class History(Usual):
    """Bids κ·Δ, and learns its ask of receipts alone; before the first it asks as is usual.

    The usual ask weighs the seller's own gain against the receipts; this one believes the market.
    """

    def __init__(self, learned: AskPolicy) -> None:
        self._learned = learned

    def ask(self, asked: Asked, /) -> Wei:
        if not asked.prices:
            return asked.usual
        facts = (asked.own_gain_value, asked.prices, asked.cost, asked.fee_basis_points)
        return self._learned(*facts)
