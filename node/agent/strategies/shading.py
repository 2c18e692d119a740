"""Says less than a purchase is worth, and more than a sale would usually cost."""

from __future__ import annotations

from node.agent.strategies.base import Asked, Usual
from node.protocol.errors import LocalProtocolError
from node.protocol.offer import Offer
from node.protocol.types import ONE, Millionths, Wei


class Shading(Usual):
    """Bids (1 − s) of its value and asks (1 + s) of the usual ask, both rounded down."""

    def __init__(self, share: Millionths) -> None:
        """`share`: s; raises `LocalProtocolError` unless it is at least 0 and under 1."""
        if not 0 <= share < ONE:
            raise LocalProtocolError(f"a shading of {share / ONE:g}; it is at least 0 and under 1")
        self._share = share

    def bid(self, worth: Wei, offer: Offer, /) -> Wei:
        return Wei(worth * (ONE - self._share) // ONE)

    def ask(self, asked: Asked, /) -> Wei:
        return Wei(asked.usual * (ONE + self._share) // ONE)
