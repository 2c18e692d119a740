"""Which of the offers in the book a round tries, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from node.net.errors import PASSING
from node.protocol.messages import FAILING, SELLER_UNREACHABLE
from node.protocol.offer import Offer, Receipt
from node.protocol.types import Digest, PeerId

NOT_ITS_OWN: Final = PASSING | FAILING | {SELLER_UNREACHABLE, "unknown-offer"}
"""Why a trial fails that another round may have: it says nothing about what was offered."""


def in_turn(
    offers: Iterable[tuple[Digest, Offer]],
    *,
    receipts: Iterable[Receipt],
    brokers: Collection[PeerId],
    missed: Collection[Digest],
    most: int,
) -> list[tuple[Digest, Offer]]:
    """Return at most so many offers, in the order of their trials.

    First whom a receipt of a broker of ours names: strangers' receipts cost nothing. The newest
    come first; what could not be tried the last time (`missed`) comes after all that could.
    """
    traded = {
        account
        for receipt in receipts
        if receipt.peer_id in brokers
        for account in (receipt.buyer, receipt.seller)
    }

    def turn(offered: tuple[Digest, Offer]) -> tuple[bool, bool, int, int]:
        name, offer = offered
        return name in missed, offer.seller not in traded, -offer.issued_at, -offer.nonce

    return sorted(offers, key=turn)[:most]
