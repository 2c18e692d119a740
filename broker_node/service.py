"""The broker's shell: lists, fetches, tries, brings to a price, quotes.

    submit ──► fetch ─► verify ─► shelf
    trial  ──► align ─► evaluate ─► private result
    quote  ──► ask the seller ─► price ─► goods prepared ─► quote saved ─► countersigned ─► deal

What it fetched and tried is only remembered in memory: a broker that was restarted is told
again. What it signed is in the journal before anybody sees it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass

import trio

from broker_node.appraisal import Appraiser, ModelShelf, Trial
from broker_node.mechanisms.price import bargain
from broker_node.settings import BrokerSettings
from broker_node.verify.stages import Verified
from node.chain.port import Escrow
from node.chronicle import NodeReady, NodeStopped, NoDealReached, TrialDone
from node.net.transfer import Source, fetch_blob
from node.protocol.brokerage import Brokerage, BrokerageRecord, BrokerageState
from node.protocol.eip712 import digest
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.events import PurchaseEvent
from node.protocol.messages import (
    PARAMS_PROTOCOL,
    Ask,
    AskRequest,
    Book,
    Countersign,
    Countersigned,
    Deal,
    GoodsPrepared,
    ListBook,
    NoDeal,
    PrepareGoods,
    QuoteRequest,
    StreamMessage,
    Submit,
    Submitted,
    TrialRequest,
    TrialResult,
)
from node.protocol.offer import BrokerNotice, Offer, Receipt
from node.protocol.purchase import PurchaseRecord
from node.protocol.quote import Quote, check_signer, trade_id_of
from node.protocol.signing import sign_digest
from node.protocol.types import NO_ADDRESS, Digest, PeerId, UnixTime, Wei
from node.settlement.desk import TradeDesk
from node.settlement.treasury import Treasury
from node.settlement.watch import ChainWatch
from node.station.station import Station

LISTED = 400
LISTED_BYTES = 200_000
SELLER_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tried:
    """A trial, and between whom."""

    trial: Trial
    buyer: Offer
    offer_digest: Digest
    offer: Offer
    notice_digest: Digest


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
        self._shelf = ModelShelf(settings.max_models_held)
        self._fetching: dict[Digest, trio.Lock] = {}
        self._trials: OrderedDict[Digest, Tried] = OrderedDict()
        self._compute = trio.CapacityLimiter(1)
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

    async def run(self) -> None:
        """Serve until cancelled."""
        station = self.station
        station.listen(
            {
                ListBook: self._list,
                Submit: self._submit,
                TrialRequest: self._try,
                QuoteRequest: self._quote,
            }
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(station.run)
                nursery.start_soon(self.desk.run)
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

    # ── terms ──

    async def _give_notice_for_ever(self) -> None:
        while True:
            now = self.station.clock()
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
            await trio.sleep(self._settings.notice_seconds / 2)

    def _seed(self) -> Digest:
        """Draw the seed of trials once, for as long as this journal lives."""
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
        verdict = self.station.book.receive(question.statement, self.station.clock())
        if not verdict.accepted and verdict.reason != "duplicate":
            raise RemoteProtocolError(verdict.reason, "submitted statement", peer=peer)
        name, offer = self.station.offer_in(question.statement)
        await self._model(offer)
        return Submitted(digest=name)

    async def _model(self, offer: Offer) -> Verified:
        """Return the verified model of an offer, fetched from its seller if need be."""
        held = self._shelf.get(offer.weights_root)
        if held is not None and held.architecture.text == offer.architecture:
            return held
        if offer.byte_length > self._settings.max_model_bytes:
            raise RemoteProtocolError("too-large", f"{offer.byte_length} bytes", peer=offer.peer_id)
        async with self._fetching.setdefault(offer.weights_root, trio.Lock()):
            blobs, root = self.station.blobs, offer.weights_root
            if not blobs.has(root):
                source = Source(
                    peer=offer.peer_id,
                    protocol=PARAMS_PROTOCOL,
                    name=root,
                    addresses=(*self.station.book.addresses_of(offer.peer_id), *offer.addresses),
                )
                await fetch_blob(
                    self.station.network,
                    source,
                    lambda hashes: blobs.writer(root, offer.byte_length, hashes),
                    root=root,
                    byte_length=offer.byte_length,
                )
            model = await trio.to_thread.run_sync(
                self._appraiser.admit, blobs.path(root), offer, limiter=self._compute
            )
            forgotten = self._shelf.put(model)
            if forgotten is not None:
                blobs.delete(forgotten)
        self._fetching.pop(offer.weights_root, None)
        return model

    # ── trials ──

    async def _try(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, TrialRequest)
        base, offer = self._offer(question.base_digest), self._offer(question.offer_digest)
        if base.peer_id != peer:
            raise RemoteProtocolError("not-your-submission", base.peer_id, peer=peer)
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
        tried = self._trials.get(trial_id)
        if tried is None:
            ours, theirs = await self._model(base), await self._model(offer)
            begun = trio.current_time()
            trial = await trio.to_thread.run_sync(
                lambda: self._appraiser.measure(ours, theirs, task=offer.task, notice=notice),
                limiter=self._compute,
            )
            tried = Tried(
                trial=trial,
                buyer=base,
                offer_digest=question.offer_digest,
                offer=offer,
                notice_digest=notice[0],
            )
            self._trials[trial_id] = tried
            if len(self._trials) > self._settings.max_trials_remembered:
                self._trials.popitem(last=False)
            found = trial.evaluation
            self.station.observer.emit(
                TrialDone(
                    trial_id=trial_id,
                    task=offer.task,
                    gain=found.gain,
                    bound=found.bound,
                    alpha=found.alpha,
                    seconds=round(trio.current_time() - begun, 3),
                )
            )
        found = tried.trial.evaluation
        return TrialResult(
            trial_id=trial_id, gain=found.gain, bound=found.bound, alpha=found.alpha
        )

    def _offer(self, name: Digest) -> Offer:
        offer = self.station.book.offer(name, self.station.clock())
        if offer is None:
            raise RemoteProtocolError("unknown-offer", name.hex())
        return offer

    # ── quotes ──

    async def _quote(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, QuoteRequest)
        tried = self._trials.get(question.trial_id)
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
        return await self._negotiate(tried, question, trade_id)

    async def _negotiate(
        self, tried: Tried, question: QuoteRequest, trade_id: Digest
    ) -> Deal | NoDeal:
        station, seller = self.station, tried.offer.peer_id
        fee = self._settings.fee_basis_points
        ask = await station.ask(
            seller,
            AskRequest(
                trade_id=trade_id, offer_digest=tried.offer_digest, fee_basis_points=fee
            ),
            Ask,
            seconds=SELLER_SECONDS,
        )
        price = bargain(question.valuation, ask.ask, fee_basis_points=fee)
        if price is None:
            station.observer.emit(
                NoDealReached(offer_digest=tried.offer_digest, reason="no-surplus")
            )
            return NoDeal(reason="no-surplus")
        goods = await station.ask(
            seller,
            PrepareGoods(
                trade_id=trade_id,
                offer_digest=tried.offer_digest,
                buyer=tried.buyer.seller,
                buyer_key=question.buyer_key,
                buyer_nonce=question.buyer_nonce,
            ),
            GoodsPrepared,
            seconds=SELLER_SECONDS,
        )
        size = (tried.offer.leaf_count, tried.offer.byte_length)
        if (goods.leaf_count, goods.byte_length) != size:
            raise RemoteProtocolError("wrong-size", f"{goods.byte_length} bytes", peer=seller)
        proposed = self._propose(tried, question, trade_id, price.price, price.fee, goods)
        trade = self.desk.open(Brokerage(proposed))
        answer = await station.ask(
            seller,
            Countersign(
                quote=proposed.deal.quote,
                broker_signature=proposed.deal.broker_signature,
                receipt=proposed.deal.receipt,
            ),
            Countersigned,
            seconds=SELLER_SECONDS,
        )
        check_signer(station.domain, proposed.deal.quote, answer.signature, tried.offer.seller)
        brokerage = trade.machine
        assert isinstance(brokerage, Brokerage)
        before = brokerage.state.value
        brokerage.countersigned(answer.signature)
        self.desk.changed(trade, before)
        return brokerage.record.deal

    def _propose(
        self,
        tried: Tried,
        question: QuoteRequest,
        trade_id: Digest,
        price: Wei,
        fee: Wei,
        goods: GoodsPrepared,
    ) -> BrokerageRecord:
        """Write out the receipt and the quote, signed; nothing has left yet."""
        station, settings = self.station, self._settings
        now = station.clock()
        receipt = Receipt(
            broker=station.account,
            peer_id=station.peer_id,
            trade_id=trade_id,
            task=tried.offer.task,
            buyer=tried.buyer.seller,
            seller=tried.offer.seller,
            offer_digest=tried.offer_digest,
            offer_root=tried.offer.weights_root,
            notice_digest=tried.notice_digest,
            price=price,
            fee=fee,
            evaluation_hash=tried.trial.evaluation.hash,
            issued_at=now,
            expires_at=UnixTime(now + settings.receipt_seconds),
            nonce=station.journal.next_nonce(),
        )
        fund_by = UnixTime(now + settings.fund_seconds)
        quote = Quote(
            trade_id=trade_id,
            buyer=tried.buyer.seller,
            seller=tried.offer.seller,
            encryptor=tried.offer.seller,
            asset=NO_ADDRESS,
            price=price,
            fee=fee,
            fee_recipient=station.account,
            offer_root=tried.offer.weights_root,
            goods_root=goods.goods_root,
            leaf_count=goods.leaf_count,
            byte_length=goods.byte_length,
            secret_commitment=goods.secret_commitment,
            dh_commitment=goods.dh_commitment,
            fund_by=fund_by,
            reveal_by=UnixTime(fund_by + settings.reveal_seconds),
            grace=settings.grace_seconds,
            dispute_window=settings.dispute_window_seconds,
            receipt_hash=digest(station.domain, receipt),
        )
        return BrokerageRecord(
            state=BrokerageState.PROPOSED.value,
            note="",
            deal=Deal(
                quote=quote,
                broker_signature=sign_digest(station.keys.account, digest(station.domain, quote)),
                seller_signature=b"",
                seller_key=goods.seller_key,
                receipt=station.seal(receipt),
                evaluation=tried.trial.evaluation,
                recipe=tried.trial.recipe,
            ),
        )

    # ── the workshop of its trades ──

    async def fetch_goods(self, purchase: PurchaseRecord) -> PurchaseEvent:
        """A broker buys nothing."""
        raise LocalProtocolError("a broker has no purchases")

    async def deliver(self, purchase: PurchaseRecord, secret: Digest) -> PurchaseEvent:
        """A broker buys nothing."""
        raise LocalProtocolError("a broker has no purchases")

    async def publish_receipt(self, receipt: bytes) -> None:
        """Tell the market what a paid trade came to."""
        self.station.keep(receipt)
        await self.station.publish(receipt)

