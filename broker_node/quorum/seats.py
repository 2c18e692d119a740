"""Who else is a broker of this market: by seat in the escrow, and by notice in the book.

Accounts come from the escrow alone: whoever has no seat there is a stranger, whatever it says.
Where a broker listens it says itself, in its notice, which comes by gossip or is asked for at the
addresses that we were given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Final

import trio

from node.chain.errors import ChainUnavailableError
from node.chain.port import Escrow, Seat
from node.net.addresses import parse_peer_address
from node.protocol import cbor, envelope
from node.protocol.errors import MarketError, RemoteProtocolError
from node.protocol.messages import Book, ListBook
from node.protocol.offer import BrokerNotice
from node.protocol.quorum import MAX_BROKERS
from node.protocol.types import Address, Digest, PeerId
from node.station.station import Station

LOOKED_UP: Final = 64
"""Most accounts that are asked about at a time: anybody can sign notices."""
ASK_SECONDS: Final = 5.0
MAX_STRANGERS: Final = 4_096
_NOTICE: Final = cbor.encode([None] * 4)[:1] + cbor.encode("notice")
"""How a signed notice begins."""


class Seats:
    """The other brokers that sit in the escrow and speak for our task."""

    def __init__(self, station: Station, escrow: Escrow, addresses: tuple[str, ...]) -> None:
        """`addresses`: of brokers that are kept connected, and asked for their notices."""
        self._station = station
        self._escrow = escrow
        self._addresses = addresses
        self._strangers: OrderedDict[Address, None] = OrderedDict()
        """Who may ever be a broker is fixed in the escrow: these never will. The latest few, for
        accounts cost nothing."""

    async def run(self) -> None:
        """Keep up connections with the brokers that were named, for ever."""
        async with trio.open_nursery() as nursery:
            for address in self._addresses:
                nursery.start_soon(self._station.network.keep_connected, address)

    async def notice_of(self, peer: PeerId) -> tuple[Digest, BrokerNotice]:
        """Return the terms of another broker of this market.

        Raises `RemoteProtocolError`: ``no-notice``, ``not-of-the-quorum``, ``chain-away``.
        """
        station = self._station
        found = station.book.notice_of(peer, station.task, station.clock())
        if found is None:
            raise RemoteProtocolError("no-notice", f"none of {peer} for {station.task}", peer=peer)
        if not await self.is_seated(found[1].broker):
            raise RemoteProtocolError("not-of-the-quorum", found[1].broker, peer=peer)
        return found

    async def others(
        self, most: int, *, without: Collection[Address] = ()
    ) -> dict[PeerId, Address]:
        """Return up to `most` brokers besides us and `without`, those first that we were told of.

        Raises `RemoteProtocolError("chain-away")` if it cannot be known who sits.
        """
        notices = await self.notices(most, without=without)
        return {notice.peer_id: notice.broker for notice in notices}

    async def notices(
        self, most: int = MAX_BROKERS, *, without: Collection[Address] = ()
    ) -> list[BrokerNotice]:
        """Return the terms of up to `most` brokers besides us, each broker's once; as `others`."""
        named = [parse_peer_address(address).peer for address in self._addresses]
        async with trio.open_nursery() as nursery:
            for peer in named:
                if self._newest(peer) is None:
                    nursery.start_soon(self._ask_notice, peer)
        notices = [notice for peer in named if (notice := self._newest(peer)) is not None]
        notices += self._heard()
        found: dict[Address, BrokerNotice] = {}
        asked = 0
        for notice in notices:
            ours = notice.broker == self._station.account
            if notice.broker in without:
                continue
            if ours or notice.broker in found or notice.broker in self._strangers:
                continue
            if any(notice.peer_id == other.peer_id for other in found.values()):
                continue
            if len(found) == most or asked == LOOKED_UP:
                break
            asked += 1
            if await self.is_seated(notice.broker):
                found[notice.broker] = notice
        return list(found.values())

    def _newest(self, peer: PeerId) -> BrokerNotice | None:
        station = self._station
        found = station.book.notice_of(peer, station.task, station.clock())
        return None if found is None else found[1]

    def _heard(self) -> list[BrokerNotice]:
        """Return the live notices of the book for our task, favoured brokers' first."""
        station = self._station
        bodies = (
            envelope.decode(data).body
            for data in station.book.statements(station.clock())
            if data.startswith(_NOTICE)
        )
        return [b for b in bodies if isinstance(b, BrokerNotice) and b.task == station.task]

    async def _ask_notice(self, peer: PeerId) -> None:
        try:
            book = await self._station.ask(peer, ListBook(), Book, seconds=ASK_SECONDS)
        except MarketError:
            return  # it is away; whoever asks counts the brokers that are there
        self._station.take_in(book.statements)

    async def is_seated(self, account: Address) -> bool:
        """Whether a quote may be funded on this account's signature."""
        if account in self._strangers:
            return False
        try:
            seat = await trio.to_thread.run_sync(self._escrow.seat, account)
        except ChainUnavailableError as error:
            raise RemoteProtocolError("chain-away", str(error)) from error
        if seat is Seat.STRANGER:
            self._strangers[account] = None
            if len(self._strangers) > MAX_STRANGERS:
                self._strangers.popitem(last=False)
        if seat is Seat.TAKEN:
            self._station.book.favoured |= {account}
        return seat is Seat.TAKEN
