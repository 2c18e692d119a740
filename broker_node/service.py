"""The broker's shell: lists, fetches, tries, brings to a price, quotes.

    submit ──► fetch ─► verify ─► shelf
    trial  ──► align ─► evaluate ─► private result
    quote  ──► ask the seller ─► price ─► goods prepared ─► quote saved ─► countersigned ─► deal

Where a quorum signs (`broker_node.quorum`), a trial's result is the median of its brokers, and a
quote has the signatures of as many as the escrow wants; where prices are made in calls
(`broker_node.call_desk`), it has its call's. What was fetched and tried is only in memory: a
restarted broker is told again. What it signed is in the journal before anybody sees it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import trio

from broker_node.appraisal import Appraiser, ModelShelf
from broker_node.bases import Bases
from broker_node.blame import of_seller
from broker_node.call_desk import CallDesk
from broker_node.negotiation import Negotiator, Tried
from broker_node.quorum.bench import Bench
from broker_node.quorum.member import Models
from broker_node.settings import BrokerSettings
from broker_node.trials import Trials
from broker_node.verify.stages import Verified
from node.chain.port import Escrow
from node.chronicle import NodeReady, NodeStopped
from node.net.transfer import Source, fetch_blob
from node.protocol.brokerage import BrokerageRecord, BrokerageState
from node.protocol.disclosure import Figures, told_of
from node.protocol.errors import LocalProtocolError, MarketError, RemoteProtocolError
from node.protocol.events import PurchaseEvent
from node.protocol.messages import (
    PARAMS_PROTOCOL,
    SELLER_UNREACHABLE,
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
MAX_UNFINISHED: Final = 16
"""Downloads that were cut off and may still be resumed."""


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
    ) -> None:
        self.station = station
        self._appraiser = appraiser
        self._settings = settings
        self._shelf = ModelShelf(settings.max_models_held, settings.max_models_bytes)
        self._turns = Turns()
        self._unfinished: OrderedDict[Digest, None] = OrderedDict()
        """Roots on the disk in part, of which no model is on the shelf, oldest first."""
        self._bases = Bases(station.book, station.task)
        self._compute = trio.CapacityLimiter(1)
        self._trials = Trials(
            appraiser, self._compute, station.observer, settings.max_trials_remembered
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
        models = Models(take_in=self._take_in, held=self._held, model=self._model)
        self._bench = Bench(station, escrow, appraiser, models, settings, self._compute)
        self._negotiator = Negotiator(station, self.desk, settings, self._bench.lead)
        self._calls = CallDesk(station, escrow, settings)

    async def run(self) -> None:
        """Serve until cancelled."""
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
            station.observer.emit(NodeStopped(role="broker"))

    def answers(self) -> Mapping[Question, Answer]:
        """Return who answers which kind of request."""
        return {
            ListBook: self._list,
            Submit: self._submit,
            TrialRequest: self._try,
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
        name, offer = self._take_in(question.statement)
        await self._model(offer)
        return Submitted(digest=name)

    def _take_in(self, statement: bytes) -> tuple[Digest, Offer]:
        """Return an offer or a base, once it is in the book, or among the bases."""
        name, offer = self.station.offer_in(statement)
        self._screen(offer)
        book = self.station.book if offer.for_sale else self._bases
        verdict = book.receive(statement, self.station.clock())
        if not verdict.accepted and verdict.reason != "duplicate":
            raise RemoteProtocolError(verdict.reason, "submitted statement")
        return name, offer

    async def _model(self, offer: Offer) -> Verified:
        """Return the verified model of an offer, fetched from its seller if need be."""
        held = self._held(offer)
        if held is not None:
            return held
        self._screen(offer)
        async with self._turns.of(offer.weights_root):
            return self._held(offer) or await self._fetch(offer)

    def _screen(self, offer: Offer) -> None:
        """Raise `RemoteProtocolError` for what is not worth fetching, or a place."""
        if offer.byte_length > self._settings.max_model_bytes:
            raise RemoteProtocolError("too-large", f"{offer.byte_length} bytes", peer=offer.peer_id)
        self._appraiser.screen(offer)

    def _held(self, offer: Offer) -> Verified | None:
        model = self._shelf.get(offer.weights_root)
        sold = (offer.architecture, offer.layers)
        return model if model and (model.architecture.text, model.layers) == sold else None

    async def _fetch(self, offer: Offer) -> Verified:
        root = offer.weights_root
        self._unfinished.pop(root, None)
        try:
            await self._download(offer)
            model = await trio.to_thread.run_sync(
                self._appraiser.admit,
                self.station.blobs.path(root),
                offer,
                limiter=self._compute,
            )
        except RemoteProtocolError as error:
            self._let_go(root, resumable=error.reason == SELLER_UNREACHABLE)
            raise
        except MarketError:
            self._let_go(root, resumable=False)
            raise
        except BaseException:
            self._let_go(root, resumable=True)
            raise
        for forgotten in self._shelf.put(model):
            self.station.blobs.delete(forgotten)
        return model

    async def _download(self, offer: Offer) -> None:
        """Raises ``seller-unreachable`` for what may pass: it is the seller's, and not ours."""
        blobs, root = self.station.blobs, offer.weights_root
        if blobs.has(root):
            return
        source = Source(
            peer=offer.peer_id,
            protocol=PARAMS_PROTOCOL,
            name=root,
            addresses=(*self.station.book.addresses_of(offer.peer_id), *offer.addresses),
        )
        with of_seller(offer.peer_id):
            await fetch_blob(
                self.station.network,
                source,
                lambda hashes: blobs.writer(root, offer.byte_length, hashes),
                root=root,
                byte_length=offer.byte_length,
            )

    def _let_go(self, root: Digest, *, resumable: bool) -> None:
        """Delete what is on the disk of a blob that did not get to the shelf, or keep it a while.

        One that is on the shelf is good, and was offered as something else.
        """
        blobs = self.station.blobs
        if self._shelf.get(root) is not None:
            return
        if not resumable:
            blobs.delete(root)
            return
        self._unfinished[root] = None
        while len(self._unfinished) > MAX_UNFINISHED:
            oldest, _ = self._unfinished.popitem(last=False)
            blobs.delete(oldest)

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
        notice = self.station.own_notice()
        if notice is None:
            raise RemoteProtocolError("no-notice", "not open yet", peer=peer)
        trial_id = Digest(
            hashlib.sha256(question.base_digest + question.offer_digest + notice[0]).digest()
        )
        tried = self._trials.find(trial_id)
        if tried is None or not self._bench.holds(tried.case, tried.trial):
            async with self._turns.of(peer):  # whoever asks for many has one place in the queue
                ours, theirs = await self._model(base), await self._model(offer)
                trial = await self._trials.measure(trial_id, ours, theirs, offer.task, notice)
                names = (notice[0], question.base_digest, question.offer_digest)
                trial = await self._bench.agree(trial, self._bases, *names, deadline=deadline)
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
        return self._bases.offer(name, self.station.clock()) or self._offer(name)

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
