"""The agent's shell: one nursery that holds everything one agent does.

station (gossip, requests) ─┬─ seller  (asks, encrypts, countersigns, serves)
desk (trades, chain)       ─┼─ buyer   (tries, bids, fetches, decrypts)
trainer                    ─┴─ learner (rounds)
"""

from __future__ import annotations

import trio

from node.agent.brokers import Brokers
from node.agent.buyer import Buyer
from node.agent.consent import Consent
from node.agent.keeping import RoundKeeper
from node.agent.learner import Learner
from node.agent.participant import Participant
from node.agent.seller import Seller
from node.agent.session import Meet, Session, never_wait
from node.agent.settings import AgentSettings
from node.agent.taking_part import ClearingTerms
from node.chain.port import Escrow
from node.chronicle import NodeReady, NodeStopped
from node.protocol.errors import LocalProtocolError
from node.protocol.messages import GOODS_PROTOCOL, PARAMS_PROTOCOL, Introduce
from node.protocol.purchase import PurchaseRecord
from node.settlement import rounds
from node.settlement.desk import TradeDesk
from node.settlement.purse import Purse
from node.settlement.treasury import Treasury
from node.settlement.watch import ChainWatch
from node.station.station import Station
from node.training.trainer import Trainer


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
        clearing: ClearingTerms | None = None,
    ) -> None:
        """Without a trainer the rounds are driven by whoever holds `session`.

        `clearing`: take part in rounds of a clearing house instead of trading.
        """
        if not settings.brokers:
            raise LocalProtocolError("an agent needs a broker to join by")
        self.station = station
        self._settings = settings
        consent = Consent(escrow)

        async def afford(purchase: PurchaseRecord) -> None:  # the purse is made of what needs us
            await self._purse.require(purchase)

        self.buyer = Buyer(station, settings, consent, afford=afford)
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
        self._purse = Purse(treasury, self.desk, station.journal, budget=settings.budget)
        self.brokers = Brokers(station, escrow, settings.brokers, owes=self._owes)
        self.seller = Seller(station, self.desk, settings, consent)
        self.session = Session(
            station=station,
            desk=self.desk,
            buyer=self.buyer,
            seller=self.seller,
            purse=self._purse,
            settings=settings,
            brokers=self.brokers,
            meet=meet,
        )
        self._learner: Learner | Participant | None = None
        self._keeper: RoundKeeper | None = None
        if clearing is not None:
            self._keeper = RoundKeeper(station, self.brokers, clearing, self.desk.turn)
        if trainer is not None and clearing is not None and self._keeper is not None:
            self._learner = Participant(
                station=station,
                brokers=self.brokers,
                trainer=trainer,
                settings=settings,
                terms=clearing,
                keeper=self._keeper,
                meet=meet,
            )
        elif trainer is not None:
            self._learner = Learner(
                session=self.session,
                trainer=trainer,
                settings=settings,
                observer=station.observer,
            )
        self.joined = trio.Event()
        """Set once the market's book and the terms of one of its brokers are known."""
        self._learning = trio.CancelScope()

    async def run(self) -> None:
        """Serve, trade and train until cancelled."""
        station = self.station
        station.joins(self.brokers.peers)
        station.serve(PARAMS_PROTOCOL, self.seller.serve_weights)
        station.serve(GOODS_PROTOCOL, self.seller.serve_goods)
        station.listen({**self.seller.answers(), Introduce: self.brokers.introduce})
        try:
            async with trio.open_nursery() as nursery:
                for address in self._settings.brokers:
                    nursery.start_soon(station.network.keep_connected, address)
                nursery.start_soon(station.run)
                nursery.start_soon(self.desk.run)
                await self.desk.running.wait()
                if self._keeper is not None:
                    nursery.start_soon(self._keeper.run)
                station.observer.emit(
                    NodeReady(
                        role="agent",
                        peer_id=station.peer_id,
                        account=station.account,
                        addresses=station.network.addresses(),
                    )
                )
                await self.brokers.join()
                self.joined.set()
                nursery.start_soon(self.brokers.keep_up)
                nursery.start_soon(self._learn)
        finally:
            station.observer.emit(NodeStopped(role="agent"))

    async def _learn(self) -> None:
        with self._learning:
            if self._learner is not None:
                await self._learner.run()

    def _owes(self) -> bool:
        return bool(self.desk.open_trades() or rounds.unsettled(self.station.journal))

    def rest(self) -> None:
        """Train and buy no more; what is open is still seen to its end, and buyers are served."""
        self._learning.cancel()
