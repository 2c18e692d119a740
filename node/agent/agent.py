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
from node.agent.session import Meet, Session, never_wait
from node.agent.settings import AgentSettings
from node.chain.errors import WrongContractError
from node.chain.port import Escrow
from node.chronicle import NodeReady, NodeStopped, PeerFault
from node.net.addresses import parse_peer_address
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.messages import GOODS_PROTOCOL, PARAMS_PROTOCOL, Book, ListBook
from node.settlement.desk import TradeDesk
from node.settlement.purse import Purse
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
        trainer: Trainer | None,
        settings: AgentSettings,
        confirmations: int,
        meet: Meet = never_wait,
    ) -> None:
        """Without a trainer the rounds are driven by whoever holds `session`."""
        if not settings.brokers:
            raise LocalProtocolError("an agent needs a broker to join by")
        self.station = station
        self._escrow = escrow
        self._settings = settings
        self._broker = parse_peer_address(settings.brokers[0]).peer
        self.buyer = Buyer(station, settings)
        treasury = Treasury(escrow, station.journal, station.observer)
        self.desk = TradeDesk(
            treasury=treasury,
            watch=ChainWatch(
                escrow, station.journal, station.observer, confirmations=confirmations
            ),
            journal=station.journal,
            workshop=self.buyer,
            observer=station.observer,
            clock=station.clock,
        )
        self.seller = Seller(station, self.desk, settings)
        self.session = Session(
            station=station,
            desk=self.desk,
            buyer=self.buyer,
            seller=self.seller,
            purse=Purse(treasury, self.desk, station.journal, budget=settings.budget),
            settings=settings,
            broker=self._broker,
            meet=meet,
        )
        self._learner = None
        if trainer is not None:
            self._learner = Learner(
                session=self.session,
                trainer=trainer,
                settings=settings,
                observer=station.observer,
            )
        self.joined = trio.Event()
        """Set once the market's book and a broker's terms are known."""
        self._learning = trio.CancelScope()

    async def run(self) -> None:
        """Serve, trade and train until cancelled."""
        station = self.station
        station.joins(
            {parse_peer_address(a).peer: a for a in self._settings.brokers}, self._escrow.broker
        )
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
                self.joined.set()
                nursery.start_soon(self._learn)
        finally:
            station.observer.emit(NodeStopped(role="agent"))

    async def _learn(self) -> None:
        with self._learning:
            if self._learner is not None:
                await self._learner.run()

    def rest(self) -> None:
        """Train and buy no more; what is open is still seen to its end, and buyers are served."""
        self._learning.cancel()

    async def _read_book(self) -> None:
        """Ask the broker what is on offer, until it has said its own terms too.

        Raises `WrongContractError` if its terms are another account's than the one whose quotes
        the escrow takes: nothing that it signs could be paid for. Open trades are seen to their
        end before.
        """
        station, told = self.station, False
        while True:
            try:
                book = await station.ask(self._broker, ListBook(), Book, seconds=LIST_SECONDS)
                station.take_in(book.statements)
            except RemoteProtocolError as error:
                self._fault("list-book", error.reason, error.detail)
            if station.notice_of(self._broker) is not None:
                return
            stranger = station.book.notice_of(self._broker, station.task, station.clock())
            if stranger is not None:
                escrow = f"{station.domain.escrow} on chain {station.domain.chain_id}"
                detail = (
                    f"broker {self._broker} signs as {stranger[1].broker}, and the escrow {escrow} "
                    f"takes quotes of {self._escrow.broker} alone; name a broker of this escrow "
                    "with --bootstrap, or the escrow of this broker with --escrow"
                )
                if not self.desk.open_trades():
                    raise WrongContractError(detail)
                if not told:
                    self._fault("join", "not-the-escrows-broker", detail)
                told = True
            await trio.sleep(RETRY_SECONDS)

    def _fault(self, during: str, reason: str, detail: str) -> None:
        self.station.observer.emit(
            PeerFault(peer=self._broker, during=during, reason=reason, detail=detail)
        )
