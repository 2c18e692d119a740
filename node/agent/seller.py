"""The selling half of an agent: asks, encrypts, countersigns, serves.

It answers a broker it trusts, and serves ciphertext to whoever knows a trade's id. Every
answer that binds it is in the journal before it leaves.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from node.agent.consent import Consent
from node.agent.settings import AgentSettings
from node.agent.strategies.base import Asked
from node.chain.errors import ChainUnavailableError
from node.chronicle import AskNamed
from node.params.disk import BlobRef
from node.params.store import BlobStore
from node.protocol import cbor, delivery
from node.protocol.bargain import check_countersign
from node.protocol.bids import AskingPrice
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import (
    PLAIN_HASHES,
    Ask,
    AskRequest,
    Countersign,
    Countersigned,
    GoodsPrepared,
    PrepareGoods,
    StreamMessage,
)
from node.protocol.offer import BrokerNotice, Offer
from node.protocol.quorum import own_signature
from node.protocol.quote import trade_id_of
from node.protocol.sale import Sale, SaleRecord, SaleState
from node.protocol.signing import sign_digest
from node.protocol.types import Address, Digest, PeerId, UnixTime, Wei
from node.settlement.desk import TradeDesk
from node.settlement.trade import Trade
from node.station.station import Answer, Question, Station
from node.station.turns import Turns

ASKS_REMEMBERED: Final = 1_024
RECEIPTS_CONSIDERED: Final = 16
OWN_GAIN: Final = "own-gain-value"
UNFUNDED: Final = (SaleState.PREPARED, SaleState.COUNTERSIGNED)


class Seller:
    """Answers brokers, and serves what it offered and what it sold."""

    def __init__(
        self, station: Station, desk: TradeDesk, settings: AgentSettings, consent: Consent
    ) -> None:
        self._station = station
        self._desk = desk
        self._settings = settings
        self._consent = consent
        self._asks: dict[tuple[Digest, Digest], Wei] = {}
        """By trade and offer: a broker could name the id of one trade for a cheaper offer."""
        self._encrypting: list[Address] = []
        """Buyers whose goods are being made; the trades are not open yet."""
        self._turns = Turns()
        self._own_gain_value = _recalled(station.journal.recall(OWN_GAIN))

    @property
    def own_gain_value(self) -> Wei | None:
        """What our own latest trial as a buyer was worth to us, before a restart too."""
        return self._own_gain_value

    @own_gain_value.setter
    def own_gain_value(self, value: Wei) -> None:
        self._own_gain_value = value
        self._station.journal.remember(OWN_GAIN, str(value))  # of more than 64 bits, perhaps

    def answers(self) -> Mapping[Question, Answer]:
        """The kinds of request that a seller answers."""
        return {
            AskRequest: self._ask,
            PrepareGoods: self._prepare,
            Countersign: self._countersign,
        }

    # ── what a broker asks ──

    async def _ask(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, AskRequest)
        notice = self._broker(peer)
        offer = self._offer(question.offer_digest)
        if question.fee_basis_points > notice.fee_basis_points:
            raise RemoteProtocolError("fee-too-high", str(question.fee_basis_points), peer=peer)
        asked = question.trade_id, question.offer_digest
        known = self._asks.get(asked)
        if known is None:
            known = self._name_ask(question, offer)
            if len(self._asks) >= ASKS_REMEMBERED:
                self._asks.pop(next(iter(self._asks)))
            self._asks[asked] = known
        asking = AskingPrice(trade_id=asked[0], offer_digest=asked[1], ask=known)
        signed = digest(self._station.domain, asking)
        return Ask(ask=known, signature=sign_digest(self._station.keys.account, signed))

    def _name_ask(self, question: AskRequest, offer: Offer) -> Wei:
        """Return what our strategy asks, at least our reserve, and note what it knew."""
        station, fee = self._station, question.fee_basis_points
        receipts = [
            receipt
            for receipt in station.book.receipts(offer.task)
            if station.has_joined(receipt.peer_id)
        ][-RECEIPTS_CONSIDERED:]
        prices = tuple(receipt.price for receipt in receipts)
        asked = Asked(
            usual=self._settings.ask(self.own_gain_value, prices, offer.reserve, fee),
            own_gain_value=self.own_gain_value,
            prices=prices,
            cost=offer.reserve,
            fee_basis_points=fee,
        )
        ask = Wei(max(self._settings.strategy.ask(asked), offer.reserve))
        station.observer.emit(
            AskNamed(
                trade_id=question.trade_id,
                offer_digest=question.offer_digest,
                ask=ask,
                cost=asked.cost,
                fee_basis_points=fee,
                own_gain_value=asked.own_gain_value,
                prices=prices,
                receipts=tuple(receipt.trade_id for receipt in receipts),
            )
        )
        return ask

    async def _prepare(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, PrepareGoods)
        self._broker(peer)
        offer = self._offer(question.offer_digest)
        expected = trade_id_of(
            question.buyer, self._station.account, question.offer_digest, question.buyer_nonce
        )
        if question.trade_id != expected:
            raise RemoteProtocolError("wrong-trade-id", question.trade_id.hex(), peer=peer)
        if question.buyer == self._station.account:
            raise RemoteProtocolError("sells-to-itself", question.buyer, peer=peer)
        async with self._turns.of(question.trade_id):
            trade = self._find(question.trade_id)
            if trade is None:
                trade = await self._encrypt(question, offer)
        record = _sale(trade).record
        if (record.buyer_key, record.offer_digest) != (question.buyer_key, question.offer_digest):
            raise RemoteProtocolError("trade-id-used", question.trade_id.hex(), peer=peer)
        return GoodsPrepared(
            goods_root=record.goods_root,
            leaf_count=record.leaf_count,
            byte_length=record.byte_length,
            secret_commitment=delivery.secret_commitment(record.secret),
            dh_commitment=delivery.dh_commitment(
                delivery.shared_secret(record.private_key, record.buyer_key), record.trade_id
            ),
            seller_key=Digest(delivery.public_key(record.private_key)),
        )

    async def _encrypt(self, question: PrepareGoods, offer: Offer) -> Trade:
        """Make keys for this trade alone, encrypt, and journal both before anything leaves."""
        ask = self._asks.get((question.trade_id, question.offer_digest))
        if ask is None:
            raise RemoteProtocolError("never-asked", question.trade_id.hex())
        waiting = self._encrypting + [
            trade.machine.record.buyer
            for trade in self._desk.open_trades()
            if isinstance(trade.machine, Sale) and trade.machine.state in UNFUNDED
        ]
        if waiting.count(question.buyer) >= self._settings.max_unfunded_sales_a_buyer:
            raise RemoteProtocolError("too-many-unfunded-trades", question.buyer)
        if len(waiting) >= self._settings.max_unfunded_sales:
            raise RemoteProtocolError("busy", f"{len(waiting)} trades wait for their buyers")
        private, secret = Digest(secrets.token_bytes(32)), Digest(secrets.token_bytes(32))
        dh = delivery.shared_secret(private, question.buyer_key)
        key = delivery.delivery_key(secret, dh, question.trade_id)
        with self._station.making_blobs(), self._making(question.buyer):
            goods = await trio.to_thread.run_sync(
                self._station.blobs.encrypt, offer.weights_root, key
            )
            return self._desk.open(Sale(self._record(question, offer, ask, private, secret, goods)))

    @contextmanager
    def _making(self, buyer: Address) -> Iterator[None]:
        self._encrypting.append(buyer)
        try:
            yield
        finally:
            self._encrypting.remove(buyer)

    def _record(
        self,
        question: PrepareGoods,
        offer: Offer,
        ask: Wei,
        private: Digest,
        secret: Digest,
        goods: BlobRef,
    ) -> SaleRecord:
        return SaleRecord(
            state=SaleState.PREPARED.value,
            note="",
            trade_id=question.trade_id,
            offer_digest=question.offer_digest,
            offer_root=offer.weights_root,
            buyer=question.buyer,
            buyer_key=question.buyer_key,
            ask=ask,
            private_key=private,
            secret=secret,
            goods_root=goods.root,
            leaf_count=goods.leaf_count,
            byte_length=goods.byte_length,
            prepared_until=UnixTime(self._station.clock() + self._settings.prepared_seconds),
            quote=None,
            broker_signature=b"",
            signature=b"",
            receipt=b"",
            revealed_at=UnixTime(0),
        )

    async def _countersign(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, Countersign)
        notice = self._broker(peer)
        trade = self._find(question.quote.trade_id)
        if trade is None:
            raise RemoteProtocolError("never-prepared", question.quote.trade_id.hex(), peer=peer)
        sale = _sale(trade)
        if sale.record.quote == question.quote:
            return Countersigned(signature=sale.record.signature)
        if sale.state is not SaleState.PREPARED:
            raise RemoteProtocolError("already-countersigned", sale.state.value, peer=peer)
        check_countersign(
            self._station.domain,
            sale.record,
            self._offer(sale.record.offer_digest),
            question.quote,
            own_signature(
                self._station.domain, question.quote, question.broker_signature, notice.broker
            ),
            question.receipt,
            broker=notice.broker,
            fee_basis_points=notice.fee_basis_points,
            patience=self._settings.patience,
            now=self._station.clock(),
        )
        try:
            await self._consent.require(question.quote, question.broker_signature)
        except ChainUnavailableError as error:
            raise RemoteProtocolError("chain-away", str(error)) from error
        if sale.record.quote == question.quote:  # it was asked twice, while the chain was
            return Countersigned(signature=sale.record.signature)
        if sale.state is not SaleState.PREPARED:
            raise RemoteProtocolError("already-countersigned", sale.state.value, peer=peer)
        signature = sign_digest(
            self._station.keys.account, digest(self._station.domain, question.quote)
        )
        before = sale.record
        sale.countersign(
            question.quote,
            broker_signature=question.broker_signature,
            signature=signature,
            receipt=question.receipt,
        )
        self._desk.changed(trade, before)
        return Countersigned(signature=signature)

    # ── what peers may fetch ──

    def serve_weights(self, peer: PeerId, name: bytes, part: str) -> Served:
        """Plaintext of what we offered or submitted, for brokers that we trust."""
        self._broker(peer)
        root = Digest(name)
        if root not in self._station.served or not self._station.blobs.has(root):
            raise RemoteProtocolError("unknown-weights", name.hex()[:64], peer=peer)
        self._station.held_back.asked_for(root)
        return served(self._station.blobs, root, part)

    def serve_goods(self, peer: PeerId, name: bytes, part: str) -> Served:
        """Ciphertext and leaf hashes of a trade; its id is what entitles to them."""
        trade = self._find(Digest(name))
        if trade is None or trade.quote is None:
            raise RemoteProtocolError("unknown-trade", name.hex()[:64], peer=peer)
        record = _sale(trade).record
        if part == PLAIN_HASHES:
            return served(self._station.blobs, record.offer_root, "hashes")
        return served(self._station.blobs, record.goods_root, part)

    # ── shared questions ──

    def _find(self, trade_id: Digest) -> Trade | None:
        """Return a sale of ours; of one that was pruned there is nothing to tell."""
        row = self._station.journal.trade(trade_id, "seller")
        if row is not None and row.pruned:
            return None
        return self._desk.find(trade_id, "seller")

    def _broker(self, peer: PeerId) -> BrokerNotice:
        """Return the notice of a broker that we joined by, or refuse its peer."""
        notice = self._station.notice_of(peer)
        if notice is None:
            raise RemoteProtocolError("not-our-broker", peer, peer=peer)
        return notice

    def _offer(self, name: Digest) -> Offer:
        offer = self._station.own_offer(name)
        if offer is None:
            raise RemoteProtocolError("unknown-offer", name.hex())
        if not offer.for_sale:
            raise RemoteProtocolError("not-for-sale", name.hex())
        return offer


@dataclass(frozen=True, slots=True)
class Served:
    """One part of a blob, as the transfer protocol wants it."""

    byte_length: int
    read: Callable[[int, int], bytes]


def served(blobs: BlobStore, root: Digest, part: str) -> Served:
    """Return ``data`` or ``hashes`` of a blob."""
    ref = blobs.ref(root)
    if part == "data":
        return Served(ref.byte_length, lambda offset, length: blobs.read(root, offset, length))
    if part == "hashes":
        hashes = blobs.hashes(root)
        return Served(len(hashes), lambda offset, length: hashes[offset : offset + length])
    raise RemoteProtocolError("unknown-part", part)


def _recalled(fact: cbor.Value) -> Wei | None:
    return Wei(int(fact)) if isinstance(fact, str) and fact.isdecimal() else None


def _sale(trade: Trade) -> Sale:
    assert isinstance(trade.machine, Sale)
    return trade.machine
