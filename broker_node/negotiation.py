"""From a bid to a deal: ask the seller, price, have the goods prepared, quote, countersign.

    valuation ─► ask ─► price ─► goods ─► receipt and quote ─► quorum ─► saved ─► countersignature

Either side may walk away at each step; nobody is bound before both have signed, and the
quote is in the journal before the seller sees it. Where a quorum signs, its other brokers have
done so by then; without them there is no deal, for the reason ``below-quorum``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from broker_node.appraisal import Trial
from broker_node.blame import of_seller
from broker_node.mechanisms import price as pricing
from broker_node.quorum.lead import Lead
from broker_node.settings import BrokerSettings
from node.chronicle import NoDealReached
from node.protocol.bids import AskingPrice, Bid, BidAndAsk, check_ask, check_bid
from node.protocol.brokerage import Brokerage, BrokerageRecord, BrokerageState
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.fees import fee_of
from node.protocol.messages import (
    QUOTE_SECONDS,
    Ask,
    AskRequest,
    Countersign,
    Countersigned,
    Deal,
    GoodsPrepared,
    NoDeal,
    PrepareGoods,
    QuoteRequest,
    StreamMessage,
)
from node.protocol.offer import Offer, Receipt
from node.protocol.quorum import BELOW_QUORUM, case_of
from node.protocol.quote import Quote, check_signer
from node.protocol.signing import sign_digest
from node.protocol.types import NO_ADDRESS, Digest, PeerId, UnixTime, Wei
from node.settlement.desk import TradeDesk
from node.station.station import Station

SELLER_SECONDS: Final = 20.0
M = TypeVar("M", Ask, GoodsPrepared, Countersigned)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tried:
    """A trial, and between whom."""

    trial: Trial
    base_digest: Digest
    buyer: Offer
    offer_digest: Digest
    offer: Offer
    notice_digest: Digest

    @property
    def case(self) -> Digest:
        """What a quorum knows it by."""
        return case_of(self.trial.evaluation, self.base_digest, self.offer_digest)


class Negotiator:
    """Brings a buyer's bid and a seller's ask to a quote that both have signed."""

    def __init__(
        self,
        station: Station,
        desk: TradeDesk,
        settings: BrokerSettings,
        lead: Lead | None = None,
        quoted: Callable[[Deal], None] | None = None,
    ) -> None:
        """`lead` brings quotes before our quorum; None for a broker that signs alone.

        `quoted` hears of each quote before the seller does.
        """
        self._station = station
        self._desk = desk
        self._settings = settings
        self._lead = lead
        self._quoted = quoted

    async def negotiate(
        self,
        tried: Tried,
        question: QuoteRequest,
        trade_id: Digest,
        *,
        cleared: Wei | None = None,
    ) -> Deal | NoDeal:
        """`cleared`: the price, where a call has made it; None to bargain for one.

        Raises `RemoteProtocolError` for what either party said, or did not sign.
        """
        station, seller = self._station, tried.offer.peer_id
        deadline = trio.current_time() + QUOTE_SECONDS
        fee = self._settings.fee_basis_points
        bid = Bid(trade_id=trade_id, valuation=question.valuation, buyer_key=question.buyer_key)
        check_bid(station.domain, bid, question.signature, tried.buyer.seller)
        ask = await self._ask_seller(
            seller,
            AskRequest(trade_id=trade_id, offer_digest=tried.offer_digest, fee_basis_points=fee),
            Ask,
        )
        asking = AskingPrice(trade_id=trade_id, offer_digest=tried.offer_digest, ask=ask.ask)
        check_ask(station.domain, asking, ask.signature, tried.offer.seller, peer=seller)
        price, reason = _priced(question.valuation, ask.ask, fee, cleared)
        if price is None:
            station.observer.emit(NoDealReached(offer_digest=tried.offer_digest, reason=reason))
            return NoDeal(reason=reason)
        goods = await self._ask_seller(
            seller,
            PrepareGoods(
                trade_id=trade_id,
                offer_digest=tried.offer_digest,
                buyer=tried.buyer.seller,
                buyer_key=question.buyer_key,
                buyer_nonce=question.buyer_nonce,
            ),
            GoodsPrepared,
        )
        size = (tried.offer.leaf_count, tried.offer.byte_length)
        if (goods.leaf_count, goods.byte_length) != size:
            raise RemoteProtocolError("wrong-size", f"{goods.byte_length} bytes", peer=seller)
        proposed = self._propose(tried, question, trade_id, price.price, price.fee, goods)
        if self._lead is not None:
            bids = BidAndAsk(
                buyer_nonce=question.buyer_nonce,
                bid=bid,
                bid_signature=question.signature,
                asking=asking,
                ask_signature=ask.signature,
            )
            try:
                proposed = await self._cosigned(self._lead, tried, proposed, bids, deadline)
            except RemoteProtocolError as error:
                if error.reason != BELOW_QUORUM:
                    raise
                station.observer.emit(
                    NoDealReached(offer_digest=tried.offer_digest, reason=error.reason)
                )
                return NoDeal(reason=error.reason)
        trade = self._desk.open(Brokerage(proposed))
        if self._quoted is not None:
            self._quoted(proposed.deal)
        answer = await self._ask_seller(
            seller,
            Countersign(
                quote=proposed.deal.quote,
                broker_signature=proposed.deal.broker_signature,
                receipt=proposed.deal.receipt,
            ),
            Countersigned,
        )
        check_signer(station.domain, proposed.deal.quote, answer.signature, tried.offer.seller)
        brokerage = trade.machine
        assert isinstance(brokerage, Brokerage)
        before = brokerage.record
        brokerage.countersigned(answer.signature)
        self._desk.changed(trade, before)
        return brokerage.record.deal

    async def _ask_seller(self, seller: PeerId, question: StreamMessage, answer: type[M]) -> M:
        """Ask a seller; its refusals are its own, whichever reason it gives."""
        with of_seller(seller):
            return await self._station.ask(seller, question, answer, seconds=SELLER_SECONDS)

    async def _cosigned(
        self,
        lead: Lead,
        tried: Tried,
        proposed: BrokerageRecord,
        bids: BidAndAsk,
        deadline: float,
    ) -> BrokerageRecord:
        """Return the proposal under the signatures of a quorum."""
        deal = proposed.deal
        signatures = await lead.cosign(
            tried.case, tried.trial, deal.quote, deal.receipt, bids, deadline=deadline
        )
        deal = dataclasses.replace(deal, broker_signature=signatures)
        return dataclasses.replace(proposed, deal=deal)

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
        station, settings = self._station, self._settings
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
            notice=station.book.data_of(tried.notice_digest) or b"",
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


def _priced(
    bid: Wei, ask: Wei, fee_basis_points: int, cleared: Wei | None
) -> tuple[pricing.Deal | None, str]:
    """Return price and fee, or why there are none: ``ask``, or ``fee`` if without one there were.

    Of a price that a call has made the seller wants its ask, and whoever bids less wants nothing.
    """
    if cleared is None:
        found = pricing.bargain(bid, ask, fee_basis_points=fee_basis_points)
        feeless = found or pricing.bargain(bid, ask, fee_basis_points=0)
        return found, "ask" if feeless is None else "fee"
    agreed = pricing.Deal(price=cleared, fee=fee_of(cleared, fee_basis_points))
    if bid < cleared or agreed.seller_receives < ask:
        return None, "ask" if bid < cleared or cleared < ask else "fee"
    return agreed, ""
