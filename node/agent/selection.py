"""Which of the offers in the book a round tries, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final

import trio

from node.agent.settings import AgentSettings
from node.net.errors import PASSING
from node.protocol.kinship import kin
from node.protocol.messages import FAILING, SELLER_UNREACHABLE
from node.protocol.offer import Offer, Receipt
from node.protocol.types import Digest, PeerId
from node.station.station import Station

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


async def new_offers(
    station: Station,
    settings: AgentSettings,
    architecture: str,
    *,
    parts: Collection[tuple[int, ...]] | None,
    expected: int,
    brokers: Collection[PeerId],
    tried: Callable[[], Collection[Digest]],
    missed: Collection[Digest],
) -> list[tuple[Digest, Offer]]:
    """Wait for offers of others that were not `tried` yet, as long as a round's patience.

    Of each seller the newest; of each of these `parts` of its layers, where there are any.
    """
    patience, lane = trio.current_time() + settings.round_patience, kin(architecture)
    while True:
        known, book = tried(), station.book
        found = [
            (name, offer)
            for name, offer in book.latest_of_each_seller(station.task, station.clock(), parts)
            if offer.seller != station.account
            and name not in known
            and kin(offer.architecture) == lane
            and offer.for_sale
        ]
        heard = station.heard
        new = sum(name not in missed for name, _ in found)
        if new >= expected or trio.current_time() >= patience:
            return in_turn(
                found,
                receipts=book.receipts(station.task),
                brokers=brokers,
                missed=missed,
                most=max(settings.trials_per_round, expected),
            )
        with trio.move_on_at(patience):
            await heard.wait()
