"""Makes price history: accounts of one owner buy from one another, at too high a price.

Each pays the other, so that the owner loses the fee and nothing else; the receipts are true, and
whoever learns its ask from receipts asks for too much. How the accounts find each other is no
part of the protocol: the last 40 bits of an offer's reserve, in wei, are a code of its seller
under a word that only they know. That moves a reserve by less than 2 millionths of an ether.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from node.agent.strategies.base import Usual
from node.protocol.errors import LocalProtocolError
from node.protocol.offer import Offer
from node.protocol.types import Address, Wei

MARK_BITS: Final = 40
TIMES: Final = 4
"""What is bid for an accomplice's offer, in values of it."""


class WashTrader(Usual):
    """Buys of its accomplices before all others, whatever the bound says; else as is usual.

    A trial must show a gain all the same: what an honest node does not buy, it does not buy.
    """

    def __init__(self, owner: str) -> None:
        """`owner`: the word; raises `LocalProtocolError` if there is none."""
        if not owner:
            raise LocalProtocolError("a wash-trader's accounts know each other by --owner: name it")
        self._word = owner.encode()

    def reserve(self, reserve: Wei, seller: Address, /) -> Wei:
        """Return `reserve`, rounded up to whole 2⁴⁰ wei, and the mark."""
        whole = -(-reserve >> MARK_BITS) << MARK_BITS
        return Wei(whole + self._mark(seller))

    def favours(self, offer: Offer, /) -> bool:
        return offer.reserve % (1 << MARK_BITS) == self._mark(offer.seller)

    def bid(self, worth: Wei, offer: Offer, /) -> Wei:
        return Wei(TIMES * worth) if self.favours(offer) else worth

    def _mark(self, seller: Address) -> int:
        code = hmac.digest(self._word, seller.encode(), hashlib.sha256)
        return int.from_bytes(code, "big") >> (8 * len(code) - MARK_BITS)
