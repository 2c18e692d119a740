"""The agent's shell: one nursery that holds everything one agent does.

station (gossip, requests) ─┬─ seller  (asks, encrypts, countersigns, serves)
desk (trades, chain)       ─┼─ buyer   (tries, bids, fetches, decrypts)
trainer                    ─┴─ learner (rounds)
"""

from __future__ import annotations

from typing import Final

import trio

from node.agent.buyer import Buyer
from node.agent.learner import Learner
from node.agent.seller import Seller
from node.agent.settings import AgentSettings
from node.chain.port import Escrow
from node.chronicle import NodeReady, NodeStopped, PeerFault
from node.net.addresses import parse_peer_address
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.messages import GOODS_PROTOCOL, PARAMS_PROTOCOL, Book, ListBook
from node.settlement.desk import TradeDesk
from node.settlement.treasury import Treasury
from node.settlement.watch import ChainWatch
from node.station.station import Station
from node.training.trainer import Trainer

LIST_SECONDS: Final = 20.0
RETRY_SECONDS: Final = 1.0


class Agent:
    """One agent, put together. `run` returns only when it is cancelled."""

    def __init__(
        self,
        *,
        station: Station,
        escrow: Escrow,
        trainer: Trainer,
        settings: AgentSettings,
        confirmations: int,
    ) -> None:
        if not settings.brokers:
            raise LocalProtocolError("an agent needs a broker to join by")
        self.station = station
        self._settings = settings
        self._broker = parse_peer_address(settings.brokers[0]).peer
        self.buyer = Buyer(station, settings)
        self.desk = TradeDesk(
            treasury=Treasury(escrow, station.journal, station.observer),
            watch=ChainWatch(
                escrow, station.journal, station.observer, confirmations=confirmations
            ),
            journal=station.journal,
            workshop=self.buyer,
            observer=station.observer,
            clock=station.clock,
        )
        self.seller = Seller(station, self.desk, settings)
        self.learner = Learner(
            station=station,
            desk=self.desk,
            buyer=self.buyer,
            seller=self.seller,
            trainer=trainer,
            settings=settings,
            broker=self._broker,
        )

    async def run(self) -> None:
        """Serve, trade and train until cancelled."""
        station = self.station
        station.joins({parse_peer_address(a).peer: a for a in self._settings.brokers})
        station.serve(PARAMS_PROTOCOL, self.seller.serve_weights)
        station.serve(GOODS_PROTOCOL, self.seller.serve_goods)
        station.listen(self.seller.answers())
        try:
            async with trio.open_nursery() as nursery:
                for address in self._settings.brokers:
                    nursery.start_soon(station.network.keep_connected, address)
                nursery.start_soon(station.run)
                nursery.start_soon(self.desk.run)
                await self.desk.running.wait()
                station.observer.emit(
                    NodeReady(
                        role="agent",
                        peer_id=station.peer_id,
                        account=station.account,
                        addresses=station.network.addresses(),
                    )
                )
                await self._read_book()
                nursery.start_soon(self.learner.run)
        finally:
            station.observer.emit(NodeStopped(role="agent"))

    async def _read_book(self) -> None:
        """Ask the broker what is on offer, until it has said its own terms too."""
        station = self.station
        while True:
            try:
                book = await station.ask(self._broker, ListBook(), Book, seconds=LIST_SECONDS)
                station.take_in(book.statements)
            except RemoteProtocolError as error:
                station.observer.emit(
                    PeerFault(
                        peer=self._broker,
                        during="list-book",
                        reason=error.reason,
                        detail=error.detail,
                    )
                )
            if station.notice_of(self._broker) is not None:
                return
            await trio.sleep(RETRY_SECONDS)
