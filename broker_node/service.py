"""The broker's shell: lists, fetches, tries, brings to a price, quotes.

    submit ──► fetch ─► verify ─► shelf
    trial  ──► align ─► evaluate ─► private result
    quote  ──► ask the seller ─► price ─► goods prepared ─► quote saved ─► countersigned ─► deal

Where a quorum signs (`broker_node.quorum`), a trial's result is the median of its brokers, and a
quote has the signatures of as many as the escrow wants; where prices are made in calls
(`broker_node.calls.desk`), it has its call's. What was fetched and tried is only in memory: a
restarted broker is told again. What it signed is in the journal before anybody sees it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Final

import trio

from broker_node.appraisal import Appraiser
from broker_node.calls.desk import CallDesk
from broker_node.engine.engine import Engine
from broker_node.engine.local import LocalEngine
from broker_node.intake import Intake
from broker_node.negotiation import Negotiator, Tried
from broker_node.quorum.bench import Bench
from broker_node.quorum.member import Models
from broker_node.settings import BrokerSettings
from broker_node.trials import Trials
from node.chain.port import Escrow
from node.chronicle import NodeReady, NodeStopped
from node.protocol.attestation import Attest, Attested
from node.protocol.brokerage import BrokerageRecord, BrokerageState
from node.protocol.disclosure import Figures, told_of
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.events import PurchaseEvent
from node.protocol.messages import (
    TRIAL_SECONDS,
    Book,
    ListBook,
    QuoteRequest,
    StreamMessage,
    Submit,
    Submitted,
    TrialRequest,
    TrialResult,
)
from node.protocol.offer import BrokerNotice, Offer
from node.protocol.purchase import PurchaseRecord
from node.protocol.quote import trade_id_of
from node.protocol.types import Digest, PeerId, UnixTime
from node.settlement.desk import TradeDesk
from node.settlement.treasury import Treasury
from node.settlement.watch import ChainWatch
from node.station.station import Answer, Question, Station
from node.station.turns import Turns

LISTED: Final = 400
LISTED_BYTES: Final = 200_000


class Broker:
    """One broker, put together. `run` returns only when it is cancelled."""

    def __init__(
        self,
        *,
        station: Station,
        escrow: Escrow,
        appraiser: Appraiser,
        settings: BrokerSettings,
        confirmations: int,
        engine: Engine | None = None,
    ) -> None:
        """`engine`: what computes as `appraiser` says; by default this process, one task at a time.

        It is closed with the broker.
        """
        self.station = station
        self._appraiser = appraiser
        self._engine = engine = engine or LocalEngine(appraiser)
        self._settings = settings
        self._turns = Turns()
        self._compute = trio.CapacityLimiter(engine.at_once)
        self.intake = Intake(station, engine, settings, self._turns, self._compute)
        self._trials = Trials(
            engine,
            self._compute,
            station.observer,
            settings.max_trials_remembered,
            scan=settings.scan,
        )
        self.desk = TradeDesk(
            treasury=Treasury(escrow, station.journal, station.observer),
            watch=ChainWatch(
                escrow, station.journal, station.observer, confirmations=confirmations
            ),
            journal=station.journal,
            workshop=self,
            observer=station.observer,
            clock=station.clock,
        )
        models = Models(
            take_in=self.intake.take_in, held=self.intake.held, model=self.intake.verified
        )
        self._bench = Bench(station, escrow, engine, models, settings, self._compute)
        self._negotiator = Negotiator(
            station, self.desk, settings, self._bench.lead, self.intake.provenance.kin.quoted
        )
        self._calls = CallDesk(station, escrow, settings)

    async def run(self) -> None:
        """Serve until cancelled."""
        self._engine.settle()
        station = self.station
        for root in station.blobs.roots() - self.kept_blobs():
            station.blobs.delete(root)
        station.blobs.delete_leftovers(())
        station.listen(self.answers())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(station.run)
                nursery.start_soon(self.desk.run)
                nursery.start_soon(self._bench.run)
                nursery.start_soon(self._calls.run)
                await self.desk.running.wait()
                nursery.start_soon(self._give_notice_for_ever)
                station.observer.emit(
                    NodeReady(
                        role="broker",
                        peer_id=station.peer_id,
                        account=station.account,
                        addresses=station.network.addresses(),
                    )
                )
        finally:
            self._engine.close()
            station.observer.emit(NodeStopped(role="broker"))

    def answers(self) -> Mapping[Question, Answer]:
        """Return who answers which kind of request."""
        return {
            ListBook: self._list,
            Submit: self._submit,
            TrialRequest: self._try,
            Attest: self._hear_oath,
            QuoteRequest: self._quote,
            **self._bench.answers(),
            **self._calls.answers(),
        }

    def kept_blobs(self) -> frozenset[Digest]:
        """Return what outlives a restart: what was fetched before it can be fetched again."""
        return frozenset()

    # ── terms ──

    async def _give_notice_for_ever(self) -> None:
        """Say our terms, and again at half of their life; after a restart the old ones hold.

        Trials are measured under a notice, and a buyer that has not heard of a newer one yet
        would refuse what it gets.
        """
        renew = self._settings.notice_seconds / 2
        while True:
            now = self.station.clock()
            given = self.station.own_notice()
            left = 0 if given is None else given[1].expires_at - now
            if given is None or left < renew or not self._holds(given[1]):
                await self._give_notice(now)
                left = self._settings.notice_seconds
            await trio.sleep(max(left - renew, 1))

    def _holds(self, notice: BrokerNotice) -> bool:
        """Whether a notice of ours still says what we would say now."""
        return (
            notice.addresses,
            notice.fee_basis_points,
            notice.validation_root,
            notice.validation_rows,
            notice.seed,
        ) == (
            self.station.network.addresses(),
            self._settings.fee_basis_points,
            self._appraiser.validation_root,
            self._appraiser.validation_rows,
            self._seed(),
        )

    async def _give_notice(self, now: UnixTime) -> None:
        notice = BrokerNotice(
            broker=self.station.account,
            peer_id=self.station.peer_id,
            addresses=self.station.network.addresses(),
            task=self.station.task,
            fee_basis_points=self._settings.fee_basis_points,
            validation_root=self._appraiser.validation_root,
            validation_rows=self._appraiser.validation_rows,
            seed=self._seed(),
            issued_at=now,
            expires_at=UnixTime(now + self._settings.notice_seconds),
            nonce=self.station.journal.next_nonce(),
        )
        _, data = self.station.sign(notice)
        await self.station.publish(data)

    def _seed(self) -> Digest:
        """Draw the seed of trials once, for as long as this journal lives."""
        if self._settings.trial_seed is not None:
            return self._settings.trial_seed
        known = self.station.journal.recall("trial-seed")
        if not isinstance(known, bytes):
            known = secrets.token_bytes(32)
            self.station.journal.remember("trial-seed", known)
        return Digest(known)

    # ── the book, and the weights in it ──

    async def _list(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        listed: list[bytes] = []
        room = LISTED_BYTES
        for data in self.station.book.statements(self.station.clock())[:LISTED]:
            room -= len(data)
            if room < 0:
                break
            listed.append(data)
        return Book(statements=tuple(listed))

    async def _submit(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, Submit)
        name, offer = self.intake.take_in(question.statement)
        await self.intake.model(offer)
        return Submitted(digest=name)

    async def _hear_oath(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, Attest)
        return Attested(digest=self.intake.attested(question, peer))

    # ── trials ──

    async def _try(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, TrialRequest)
        deadline = trio.current_time() + TRIAL_SECONDS
        base = self._base(question.base_digest)
        offer = self._offer(question.offer_digest)
        if base.peer_id != peer:
            raise RemoteProtocolError("not-your-submission", base.peer_id, peer=peer)
        if base.layers:
            raise RemoteProtocolError("partial-base", f"layers {list(base.layers)}", peer=peer)
        if not offer.for_sale:
            raise RemoteProtocolError("not-for-sale", question.offer_digest.hex(), peer=peer)
        if base.seller == offer.seller or base.weights_root == offer.weights_root:
            raise RemoteProtocolError("nothing-to-gain", "it is your own", peer=peer)
        if offer.task != base.task or offer.task != self.station.task:
            raise RemoteProtocolError("another-task", offer.task, peer=peer)
        self.intake.provenance.require(offer)  # found since, perhaps: also of a trial that is kept
        notice = self.station.own_notice()
        if notice is None:
            raise RemoteProtocolError("no-notice", "not open yet", peer=peer)
        trial_id = Digest(
            hashlib.sha256(question.base_digest + question.offer_digest + notice[0]).digest()
        )
        tried = self._trials.find(trial_id)
        if tried is None or not self._bench.holds(tried.case, tried.trial):
            async with self._turns.of(peer):  # whoever asks for many has one place in the queue
                ours = await self.intake.verified(base)  # what is tried upon is sold to nobody
                theirs = await self.intake.model(offer)
                trial = await self._trials.measure(trial_id, ours, theirs, offer.task, notice)
                names = (notice[0], question.base_digest, question.offer_digest)
                trial = await self._bench.agree(trial, self.intake.bases, *names, deadline=deadline)
            tried = Tried(
                trial=trial,
                base_digest=question.base_digest,
                buyer=base,
                offer_digest=question.offer_digest,
                offer=offer,
                notice_digest=notice[0],
            )
            self._trials.keep(trial_id, tried)
        self._calls.tried(trial_id, tried)
        found = tried.trial.evaluation
        told = told_of(self._settings.disclosure, Figures(found.gain, found.bound, found.alpha))
        return TrialResult(trial_id=trial_id, gain=told.gain, bound=told.bound, alpha=told.alpha)

    def _offer(self, name: Digest) -> Offer:
        """Return a live offer of the market's book."""
        offer = self.station.book.offer(name, self.station.clock())
        if offer is None:
            raise RemoteProtocolError("unknown-offer", name.hex())
        return offer

    def _base(self, name: Digest) -> Offer:
        """Return what is to be tried upon: a base that was submitted, or an offer."""
        return self.intake.bases.offer(name, self.station.clock()) or self._offer(name)

    # ── quotes ──

    async def _quote(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, QuoteRequest)
        tried = self._trials.find(question.trial_id)
        if tried is None or tried.buyer.peer_id != peer:
            raise RemoteProtocolError("unknown-trial", question.trial_id.hex(), peer=peer)
        trade_id = trade_id_of(
            tried.buyer.seller, tried.offer.seller, tried.offer_digest, question.buyer_nonce
        )
        known = self.desk.find(trade_id, "broker")
        if known is not None:
            record = known.machine.record
            assert isinstance(record, BrokerageRecord)
            if record.state == BrokerageState.PROPOSED.value:
                raise RemoteProtocolError("trade-id-used", trade_id.hex(), peer=peer)
            return record.deal
        self.intake.provenance.require(tried.offer)
        cleared = self._calls.price_of(question)
        return await self._negotiator.negotiate(tried, question, trade_id, cleared=cleared)

    # ── the workshop of its trades ──

    async def fetch_goods(self, purchase: PurchaseRecord) -> PurchaseEvent:
        raise LocalProtocolError("a broker has no purchases")

    async def deliver(self, purchase: PurchaseRecord, secret: Digest) -> PurchaseEvent:
        raise LocalProtocolError("a broker has no purchases")

    async def publish_receipt(self, receipt: bytes) -> None:
        """Tell the market what a paid trade came to."""
        self.station.keep(receipt)
        await self.station.publish(receipt)
