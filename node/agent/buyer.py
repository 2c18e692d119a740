"""The buying half of an agent: try, bid, check, fetch, decrypt, apply the recipe."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

import trio

from node.agent.consent import Consent
from node.agent.merging import check_length, check_recipe, require_mergeable
from node.agent.settings import AgentSettings
from node.agent.unsealing import SPOILT, accuse, clear_spoilt, unseal
from node.chain.errors import ChainUnavailableError, UnfundedAccountError
from node.chronicle import (
    Asked,
    BidNamed,
    NoDealReached,
    OurFault,
    PeerFault,
    TransactionDelayed,
    TrialDone,
)
from node.net.errors import PASSING
from node.net.transfer import Source, fetch_blob, fetch_hashes
from node.params.errors import StoreError
from node.protocol import delivery
from node.protocol.bargain import Wanted, accept_deal
from node.protocol.bids import Bid
from node.protocol.disclosure import Figures, may_be_told_as
from node.protocol.eip712 import digest
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.evaluation import check_measured
from node.protocol.events import (
    GoodsRefused,
    GoodsVerified,
    PurchaseEvent,
    Step,
)
from node.protocol.messages import (
    GOODS_PROTOCOL,
    PLAIN_HASHES,
    QUOTE_SECONDS,
    TRIAL_SECONDS,
    Deal,
    NoDeal,
    QuoteRequest,
    TrialRequest,
    TrialResult,
)
from node.protocol.offer import BrokerNotice, Offer
from node.protocol.purchase import FUND_MARGIN, Purchase, PurchaseRecord
from node.protocol.quorum import own_signature
from node.protocol.quote import trade_id_of
from node.protocol.signing import sign_digest
from node.protocol.types import ONE, Digest, PeerId, Wei
from node.settlement.desk import TradeDesk
from node.settlement.trade import Trade
from node.station.station import Station

RETRY_SECONDS: Final = 0.5
NO_PRICE: Final = frozenset({"ask", "fee"})
"""Why there is no price between a bid and an ask: of a bid that could be higher, we lack cash."""


Afford = Callable[[PurchaseRecord], Awaitable[None]]
"""Raises `UnfundedAccountError`, and `ChainUnavailableError` if nobody can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One trial: an offer, what it was tried on, and what the broker found."""

    offer_digest: Digest
    offer: Offer
    base_digest: Digest
    base_root: Digest
    base_architecture: str = ""
    """Of what it was tried on, where that is not the offer's."""
    notice_digest: Digest
    notice: BrokerNotice
    notice_signed: bytes
    result: TrialResult


@dataclass(frozen=True, slots=True)
class NoPrice:
    """There is no price that suits both; `reason` says who would lose by one."""

    reason: str
    """``ask``: it is over the bid; ``fee``: the fee leaves nothing; ``cash``: we lack money.

    Anything else is why the broker cannot quote.
    """


class Buyer:
    """Buys for one agent; also the workshop of its trades."""

    def __init__(
        self, station: Station, settings: AgentSettings, consent: Consent, *, afford: Afford
    ) -> None:
        """`afford` says right before a deposit whether the account can pay: `Purse.require`."""
        self._afford = afford
        self._station = station
        self._settings = settings
        self._consent = consent

    # ── try before purchase ──

    async def try_offer(
        self,
        *,
        broker: PeerId,
        base: tuple[Digest, Offer],
        offered: tuple[Digest, Offer],
    ) -> Tried:
        """Have the broker try an offer on what we submitted. Raises `RemoteProtocolError`.

        Nobody is asked about, and nothing fetched for, what could not be merged into ours.
        """
        require_mergeable(base[1].architecture, offered[1].architecture)
        found = self._station.notice_with_digest(broker)
        if found is None:
            raise RemoteProtocolError("no-notice", "the broker has not said its terms", peer=broker)
        notice_digest, notice = found
        begun = trio.current_time()
        result = await self._station.ask(
            broker,
            TrialRequest(base_digest=base[0], offer_digest=offered[0]),
            TrialResult,
            seconds=TRIAL_SECONDS,
        )
        # no more than all of the loss can go; a bid is made of this
        if result.gain > ONE or result.bound > ONE or not 0 <= result.alpha <= ONE:
            raise RemoteProtocolError("impossible-trial", f"a gain of {result.gain}", peer=broker)
        check_measured(result.gain, result.bound, result.alpha)
        self._station.observer.emit(
            TrialDone(
                trial_id=result.trial_id,
                task=offered[1].task,
                gain=result.gain,
                bound=result.bound,
                alpha=result.alpha,
                seconds=round(trio.current_time() - begun, 3),
                offer_digest=offered[0],
            )
        )
        return Tried(
            offer_digest=offered[0],
            offer=offered[1],
            base_digest=base[0],
            base_root=base[1].weights_root,
            base_architecture=base[1].architecture,
            notice_digest=notice_digest,
            notice=notice,
            notice_signed=self._station.book.data_of(notice_digest) or b"",
            result=result,
        )

    async def buy(
        self, tried: Tried, desk: TradeDesk, *, most: Wei, price: Wei | None = None
    ) -> Trade | NoPrice:
        """Bid what our strategy makes of its worth, at most `most`, and open the purchase.

        Where a call has made a `price`, that is bid instead.

        Raises `RemoteProtocolError` if broker or seller break the protocol, and
        `ChainUnavailableError` if nobody can say who may sign; nothing has been promised then.
        """
        private, nonce = Digest(secrets.token_bytes(32)), Digest(secrets.token_bytes(32))
        worth = self._settings.value_of(tried.result.gain)
        would = self._settings.strategy.bid(worth, tried.offer) if price is None else price
        valuation = Wei(min(would, most))
        if valuation == 0:
            return NoPrice("cash")
        broker, station = tried.notice.peer_id, self._station
        bid = Bid(
            trade_id=trade_id_of(station.account, tried.offer.seller, tried.offer_digest, nonce),
            valuation=valuation,
            buyer_key=Digest(delivery.public_key(private)),
        )
        station.observer.emit(BidNamed(trade_id=bid.trade_id, worth=worth, bid=would, most=most))
        answer = await self._station.ask_either(
            broker,
            QuoteRequest(
                trial_id=tried.result.trial_id,
                valuation=valuation,
                buyer_nonce=nonce,
                buyer_key=bid.buyer_key,
                signature=sign_digest(station.keys.account, digest(station.domain, bid)),
            ),
            Deal,
            NoDeal,
            seconds=QUOTE_SECONDS,
        )
        if isinstance(answer, NoDeal):
            self._station.observer.emit(
                NoDealReached(offer_digest=tried.offer_digest, reason=answer.reason)
            )
            short = valuation < would and answer.reason in NO_PRICE
            return NoPrice("cash" if short else answer.reason)
        wanted = Wanted(
            offer_digest=tried.offer_digest,
            offer=tried.offer,
            notice_digest=tried.notice_digest,
            notice=tried.notice,
            base_root=tried.base_root,
            valuation=valuation,
            buyer=self._station.account,
            buyer_nonce=nonce,
            private_key=private,
            tried_on=tried.base_architecture,
            shared_rows=self._settings.gate == "gain",
        )
        domain, signatures = self._station.domain, answer.broker_signature
        # the broker that we asked answers for the terms, its quorum for the money
        leading = own_signature(domain, answer.quote, signatures, tried.notice.broker)
        record = accept_deal(
            domain,
            wanted,
            replace(answer, broker_signature=leading),
            self._settings.patience,
            self._station.clock(),
        )
        record = replace(record, broker_signature=signatures, notice=tried.notice_signed)
        try:
            await trio.to_thread.run_sync(check_recipe, record)
        except RemoteProtocolError as error:
            error.peer = broker
            raise
        check_length(record)
        measured, result = record.evaluation, tried.result
        if not may_be_told_as(
            Figures(measured.gain, measured.bound, measured.alpha),
            Figures(result.gain, result.bound, result.alpha),
        ):
            raise RemoteProtocolError("wrong-evaluation", "not what the trial said", peer=broker)
        await self._consent.require(record.quote, signatures)
        return desk.open(Purchase(record))

    # ── the workshop: effects of a purchase ──

    async def fetch_goods(self, purchase: PurchaseRecord) -> PurchaseEvent:
        """Fetch leaf hashes and ciphertext, verified, until the time to fund has gone.

        A transfer that is under way then is broken off: the trade is given up, and its goods
        will never be paid for. Nor are those of a quote whose brokers have left their seats, or
        for whose deposit and dispute the account has no money when that time is over.
        """
        left = purchase.quote.fund_by - FUND_MARGIN + 1 - self._station.clock()
        with trio.move_on_after(max(left, 0)) as patience:
            given = await self._fetch_until_verified(purchase)
            if isinstance(given, GoodsVerified):
                given = await self._still_signed(purchase)
        late = GoodsRefused("the goods did not come in time")
        return late if patience.cancelled_caught else given

    async def _fetch_until_verified(self, purchase: PurchaseRecord) -> PurchaseEvent:
        last = purchase.quote.fund_by - FUND_MARGIN
        while self._station.clock() <= last:
            try:
                await self._fetch(purchase)
            except RemoteProtocolError as error:
                self._station.observer.emit(
                    PeerFault(
                        peer=purchase.seller_peer,
                        during="fetch-goods",
                        reason=error.reason,
                        detail=error.detail,
                    )
                )
                if error.reason not in PASSING:
                    return GoodsRefused(str(error))
                await trio.sleep(RETRY_SECONDS)
            else:
                return GoodsVerified()
        return GoodsRefused("the seller could not be reached in time")

    async def _still_signed(self, purchase: PurchaseRecord) -> PurchaseEvent:
        """Count brokers and money again, right before it moves; wait for a chain that is away.

        Of too few brokers the escrow would refuse the deposit, and the gas would be lost. With
        too little money a deposit could be made, and garbage never be disputed: fees may fall,
        or money come, until there is no time to fund.
        """
        told = False
        while True:
            try:
                await self._consent.require(purchase.quote, purchase.broker_signature)
                await self._afford(purchase)
            except RemoteProtocolError as error:
                return GoodsRefused(str(error))
            except UnfundedAccountError as error:
                # a second early: whoever breaks this off says only that it took too long
                if self._station.clock() >= purchase.quote.fund_by - FUND_MARGIN:
                    return GoodsRefused(f"no deposit is made that could not be disputed: {error}")
                if not told:
                    told = True
                    self._station.observer.emit(
                        TransactionDelayed(
                            trade_id=purchase.trade_id, step=Step.FUND.value, reason=str(error)
                        )
                    )
            except ChainUnavailableError:
                pass
            else:
                return GoodsVerified()  # at once: what was counted may not be so a moment later
            await trio.sleep(RETRY_SECONDS)

    async def _fetch(self, purchase: PurchaseRecord) -> None:
        quote, blobs = purchase.quote, self._station.blobs
        network, observer = self._station.network, self._station.observer

        def asked(part: str) -> None:
            observer.emit(
                Asked(peer=purchase.seller_peer, kind=f"goods-{part}", trade_id=quote.trade_id)
            )

        source = Source(
            peer=purchase.seller_peer,
            protocol=GOODS_PROTOCOL,
            name=quote.trade_id,
            addresses=(
                *self._station.book.addresses_of(purchase.seller_peer),
                *purchase.seller_addresses,
            ),
            asked=asked,
        )
        size = quote.byte_length
        plain = await fetch_hashes(
            network, source, root=quote.offer_root, byte_length=size, part=PLAIN_HASHES
        )
        await trio.to_thread.run_sync(blobs.put_hashes, quote.offer_root, size, plain)
        if not blobs.has(quote.goods_root):
            await fetch_blob(
                network,
                source,
                lambda hashes: blobs.writer(quote.goods_root, size, hashes),
                root=quote.goods_root,
                byte_length=size,
            )

    async def deliver(self, purchase: PurchaseRecord, secret: Digest) -> PurchaseEvent:
        """Derive the key, decrypt, check, and apply the recipe.

        Goods that our own disk spoilt since they were checked are fetched once more, for as
        long as the seller has them. A disk that keeps the weights back, a full one say, does not
        keep back the proof that they are bad. Raises `MarketError` for what may be mended.
        """
        try:
            return await trio.to_thread.run_sync(unseal, self._station.blobs, purchase, secret)
        except StoreError as error:
            if error.reason not in SPOILT:
                bad = await trio.to_thread.run_sync(accuse, self._station.blobs, purchase, secret)
                if bad is None:
                    raise
                return bad
            self._station.observer.emit(OurFault(during="deliver", reason=str(error)))
        await trio.to_thread.run_sync(clear_spoilt, self._station.blobs, purchase.quote.goods_root)
        await self._fetch(purchase)
        return await trio.to_thread.run_sync(unseal, self._station.blobs, purchase, secret)

    async def publish_receipt(self, receipt: bytes) -> None:
        """A buyer leaves that to the broker."""
        raise LocalProtocolError("a buyer publishes no receipts")
