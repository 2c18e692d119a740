"""What each party checks before it binds itself to a trade.

Pure functions, one for each signature that is given: the seller before it countersigns,
the buyer before it fetches, and again before it funds. Each raises `RemoteProtocolError`
with the reason, and nothing has been lost by then.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from node.protocol import delivery, envelope
from node.protocol.eip712 import Domain, digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.evaluation import Evaluation, check_evaluation, rows_due, trial_seed
from node.protocol.fees import fee_of
from node.protocol.kinship import require_kin
from node.protocol.messages import Deal
from node.protocol.offer import BrokerNotice, Offer, Receipt
from node.protocol.purchase import FUND_MARGIN, PurchaseRecord, PurchaseState
from node.protocol.quorum import below_quorum, signers_of
from node.protocol.quote import Quote, check_signer, trade_id_of
from node.protocol.sale import SaleRecord
from node.protocol.types import NO_ADDRESS, Address, Digest, UnixTime, Wei

MAX_GRACE: Final = 24 * 3600
MAX_REVEAL_SECONDS: Final = 7 * 24 * 3600
BROKER_IS_A_PARTY: Final = "broker-is-a-party"
"""The reason of whoever finds one that trades among several that sign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """The shortest and longest waits that a party agrees to, in seconds."""

    least_dispute_window: int
    """A buyer's: it needs this long to find a bad leaf and prove it."""
    longest_dispute_window: int
    """A seller's: its money is pending for so long."""
    least_reveal_seconds: int
    """A seller's: between the last funding and the last reveal."""
    least_grace: int = 1
    """A seller's: a reveal that leaves in time must be in a block before anybody can refund,
    or whoever watches the pool reads the secret and takes the money back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the buyer asked for, to hold the deal against."""

    offer_digest: Digest
    offer: Offer
    notice_digest: Digest
    notice: BrokerNotice
    base_root: Digest
    valuation: Wei
    buyer: Address
    buyer_nonce: Digest
    private_key: Digest
    tried_on: str = ""
    """The architecture of our own weights, where it is not the offer's."""
    shared_rows: bool = False
    """Whether α may have been chosen on the rows that score it, which flatters the gain."""


def accept_deal(
    domain: Domain, wanted: Wanted, deal: Deal, patience: Patience, now: UnixTime
) -> PurchaseRecord:
    """Return the purchase that `deal` begins, once all of it was seen to be as wanted.

    Raises `RemoteProtocolError` with the first thing that is not.
    """
    quote, offer = deal.quote, wanted.offer
    require_kin(wanted.tried_on or offer.architecture, offer.architecture)
    check_signer(domain, quote, deal.broker_signature, wanted.notice.broker)
    check_signer(domain, quote, deal.seller_signature, offer.seller)
    expected_id = trade_id_of(wanted.buyer, offer.seller, wanted.offer_digest, wanted.buyer_nonce)
    _require(quote.trade_id == expected_id, "wrong-trade-id", quote.trade_id.hex())
    _require(quote.buyer == wanted.buyer, "wrong-buyer", quote.buyer)
    _require(quote.seller == offer.seller, "wrong-seller", quote.seller)
    _require(quote.encryptor == offer.seller, "wrong-encryptor", quote.encryptor)
    _require(quote.asset == NO_ADDRESS, "wrong-asset", quote.asset)
    _require(quote.offer_root == offer.weights_root, "wrong-offer-root", quote.offer_root.hex())
    _require(
        (quote.leaf_count, quote.byte_length) == (offer.leaf_count, offer.byte_length),
        "wrong-size",
        f"{quote.byte_length} bytes, the offer has {offer.byte_length}",
    )
    _require(quote.price <= wanted.valuation, "price-above-valuation", str(quote.price))
    _check_fee(quote, wanted.notice.fee_basis_points)
    _check_times(quote, now)
    _require(
        quote.dispute_window >= patience.least_dispute_window,
        "dispute-window-too-short",
        f"{quote.dispute_window} s, we need {patience.least_dispute_window}",
    )
    _check_dh(deal, wanted)
    _check_measured(deal, wanted, _receipt(domain, deal.receipt, quote))
    return PurchaseRecord(
        state=PurchaseState.FETCHING.value,
        note="",
        quote=quote,
        broker_signature=deal.broker_signature,
        seller_signature=deal.seller_signature,
        offer_digest=wanted.offer_digest,
        seller_peer=offer.peer_id,
        seller_addresses=offer.addresses,
        seller_key=deal.seller_key,
        private_key=wanted.private_key,
        evaluation=deal.evaluation,
        layers=offer.layers,
        recipe=deal.recipe,
        receipt=deal.receipt,
        secret=None,
        paid=False,
        tried_on="" if wanted.tried_on == offer.architecture else wanted.tried_on,
    )


def check_countersign(
    domain: Domain,
    sale: SaleRecord,
    offer: Offer,
    quote: Quote,
    broker_signature: bytes,
    receipt_bytes: bytes,
    *,
    broker: Address,
    fee_basis_points: int,
    patience: Patience,
    now: UnixTime,
) -> None:
    """Check all that a seller binds itself to; it signs when this returns.

    Raises `RemoteProtocolError` with the first thing that is not as prepared.
    """
    check_signer(domain, quote, broker_signature, broker)
    _require(quote.trade_id == sale.trade_id, "wrong-trade-id", quote.trade_id.hex())
    _require(quote.buyer == sale.buyer, "wrong-buyer", quote.buyer)
    _require(quote.seller == offer.seller, "wrong-seller", quote.seller)
    _require(quote.encryptor == offer.seller, "wrong-encryptor", quote.encryptor)
    _require(quote.asset == NO_ADDRESS, "wrong-asset", quote.asset)
    _require(quote.offer_root == sale.offer_root, "wrong-offer-root", quote.offer_root.hex())
    _require(quote.goods_root == sale.goods_root, "wrong-goods-root", quote.goods_root.hex())
    _require(
        (quote.leaf_count, quote.byte_length) == (sale.leaf_count, sale.byte_length),
        "wrong-size",
        f"{quote.byte_length} bytes, the goods have {sale.byte_length}",
    )
    dh = delivery.shared_secret(sale.private_key, sale.buyer_key)
    _require(
        quote.secret_commitment == delivery.secret_commitment(sale.secret)
        and quote.dh_commitment == delivery.dh_commitment(dh, sale.trade_id),
        "wrong-commitment",
        "not the keys that were prepared",
    )
    _check_fee(quote, fee_basis_points)
    _require(
        quote.price - quote.fee >= max(sale.ask, offer.reserve),
        "price-below-ask",
        str(quote.price),
    )
    _check_times(quote, now)
    _require(
        quote.reveal_by - quote.fund_by >= patience.least_reveal_seconds,
        "too-short-to-reveal",
        f"{quote.reveal_by - quote.fund_by} s, we need {patience.least_reveal_seconds}",
    )
    _require(
        quote.grace >= patience.least_grace,
        "grace-too-short",
        f"{quote.grace} s, we need {patience.least_grace}",
    )
    _require(
        quote.dispute_window <= patience.longest_dispute_window,
        "dispute-window-too-long",
        f"{quote.dispute_window} s, we wait {patience.longest_dispute_window}",
    )
    receipt = _receipt(domain, receipt_bytes, quote)
    _require(receipt.broker == broker, "wrong-receipt", receipt.broker)
    _require(
        (receipt.offer_digest, receipt.task) == (sale.offer_digest, offer.task),
        "wrong-receipt",
        "another offer",
    )


def quorum_of(
    domain: Domain, quote: Quote, signatures: bytes, *, threshold: int
) -> tuple[Address, ...]:
    """Return who signed a quote, by rising account; the caller asks the escrow for their seats.

    The escrow takes no quote of fewer than `threshold`; where that is several, none of them may
    trade. Raises `RemoteProtocolError`: ``below-quorum``, ``bad-signature``, ``unsorted-brokers``,
    ``broker-is-a-party``.
    """
    signers = tuple(signers_of(digest(domain, quote), signatures))
    if len(signers) < threshold:
        raise below_quorum(len(signers), threshold)
    for party in (quote.buyer, quote.seller):
        _require(threshold == 1 or party not in signers, BROKER_IS_A_PARTY, party)
    return signers


def _receipt(domain: Domain, data: bytes, quote: Quote) -> Receipt:
    signed = envelope.decode(data)
    receipt = signed.body
    if not isinstance(receipt, Receipt):
        raise RemoteProtocolError("wrong-receipt", type(receipt).__name__)
    envelope.check(domain, signed)
    _require(digest(domain, receipt) == quote.receipt_hash, "wrong-receipt", "hash")
    _require(
        (receipt.trade_id, receipt.buyer, receipt.seller, receipt.price, receipt.fee)
        == (quote.trade_id, quote.buyer, quote.seller, quote.price, quote.fee),
        "wrong-receipt",
        "not this trade",
    )
    _require(receipt.offer_root == quote.offer_root, "wrong-receipt", "another offer")
    return receipt


def _check_measured(deal: Deal, wanted: Wanted, receipt: Receipt) -> None:
    """Check that what was measured is what was wanted, by the terms that the buyer had read."""
    measured, offer, notice = deal.evaluation, wanted.offer, wanted.notice
    _require(
        (receipt.broker, receipt.peer_id, receipt.notice_digest)
        == (notice.broker, notice.peer_id, wanted.notice_digest),
        "wrong-receipt",
        "another broker's, or under other terms",
    )
    _require(
        (receipt.offer_digest, receipt.task) == (wanted.offer_digest, offer.task),
        "wrong-receipt",
        "another offer",
    )
    check_evaluation(measured)
    _require(receipt.evaluation_hash == measured.hash, "wrong-evaluation", "hash")
    _require(
        (measured.base_root, measured.sold_root) == (wanted.base_root, offer.weights_root),
        "wrong-evaluation",
        "other weights were measured",
    )
    _require(
        (measured.task, measured.architecture) == (offer.task, offer.architecture),
        "wrong-evaluation",
        "not as what was offered",
    )
    # the seed draws the rows: were it the broker's to choose, so were the gain
    _require(
        (measured.notice_digest, measured.validation_root, measured.seed)
        == (
            wanted.notice_digest,
            notice.validation_root,
            trial_seed(notice.seed, wanted.base_root, offer.weights_root),
        )
        and rows_are_due(measured, notice, shared=wanted.shared_rows),
        "wrong-evaluation",
        "measured on rows that were not committed",
    )
    recipe_hash = hashlib.sha256(deal.recipe).digest()
    _require(recipe_hash == measured.recipe_hash, "wrong-recipe", "not the one that was measured")


def rows_are_due(measured: Evaluation, notice: BrokerNotice, *, shared: bool) -> bool:
    """Whether these are the numbers of rows that are due, or those that may be if `shared`."""
    drawn, committed = (measured.choice_rows, measured.score_rows), notice.validation_rows
    allowed = {rows_due(committed, shared=False), rows_due(committed, shared=shared)}
    return drawn in allowed


def _check_dh(deal: Deal, wanted: Wanted) -> None:
    dh = delivery.shared_secret(wanted.private_key, deal.seller_key)
    _require(
        deal.quote.dh_commitment == delivery.dh_commitment(dh, deal.quote.trade_id),
        "wrong-dh-commitment",
        "a dispute could not be opened",
    )


def _check_fee(quote: Quote, fee_basis_points: int) -> None:
    _require(quote.price > 0, "no-price", "a trade of nothing")
    allowed = fee_of(quote.price, fee_basis_points)
    _require(quote.fee <= allowed, "fee-too-high", f"{quote.fee} over {allowed}")


def _check_times(quote: Quote, now: UnixTime) -> None:
    _require(quote.fund_by - FUND_MARGIN > now, "too-late", f"fund by {quote.fund_by}, now {now}")
    _require(
        quote.reveal_by - now <= MAX_REVEAL_SECONDS and quote.grace <= MAX_GRACE,
        "money-locked-too-long",
        f"reveal by {quote.reveal_by}, grace {quote.grace}",
    )


def _require(condition: bool, reason: str, detail: str) -> None:
    if not condition:
        raise RemoteProtocolError(reason, detail)
