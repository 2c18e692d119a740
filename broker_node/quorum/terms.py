"""What a broker checks of a quote that it is asked to sign: that it follows from the median.

What the two parties are promised they check themselves (`node.protocol.bargain`). A member vouches
for what they cannot see: that the evaluation in the receipt is the one that was agreed on, and that
the price is what the mechanism makes of the bid and the ask, each signed by its own account.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from broker_node.mechanisms.price import bargain
from node.protocol.bargain import BROKER_IS_A_PARTY, MAX_GRACE, MAX_REVEAL_SECONDS
from node.protocol.bids import check_bids
from node.protocol.eip712 import Domain
from node.protocol.errors import RemoteProtocolError
from node.protocol.evaluation import Evaluation
from node.protocol.messages import Cosign
from node.protocol.offer import BrokerNotice, Offer, Receipt, Statement
from node.protocol.types import NO_ADDRESS, Address, Digest, UnixTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Of one trial: what was said and signed before it, each with its digest."""

    notice_digest: Digest
    notice: BrokerNotice
    base_digest: Digest
    base: Offer
    offer_digest: Digest
    offer: Offer


def check_parties(brokers: Iterable[Address], base: Offer, offer: Offer) -> None:
    """Raise `RemoteProtocolError("broker-is-a-party")` if one that signs is one that trades.

    Its figure would be among those that price its own trade, and its name among those that vouch.
    """
    for party in brokers:
        if party in (base.seller, offer.seller):
            raise RemoteProtocolError(BROKER_IS_A_PARTY, party)


def check_terms(
    question: Cosign,
    receipt: Statement,
    agreed: Evaluation,
    terms: Terms,
    *,
    domain: Domain,
    ours: Address,
    receipt_hash: Digest,
    now: UnixTime,
) -> None:
    """Raise `RemoteProtocolError` with the first thing that does not follow.

    `receipt` is signed, and `receipt_hash` its digest; `agreed` is what the brokers came to, and
    `ours` the account that would sign.
    """
    quote, notice, offered = question.quote, terms.notice, terms.offer
    check_parties((ours, notice.broker), terms.base, offered)
    if not isinstance(receipt, Receipt):
        raise RemoteProtocolError("wrong-receipt", type(receipt).__name__)
    if receipt.evaluation_hash != agreed.hash:
        raise RemoteProtocolError("wrong-evaluation", "not of the figures that were agreed on")
    if (receipt.broker, receipt.peer_id, receipt.notice_digest) != (
        notice.broker,
        notice.peer_id,
        terms.notice_digest,
    ):
        raise RemoteProtocolError("wrong-receipt", "not the lead's, under its notice")
    if (receipt.offer_digest, receipt.task) != (terms.offer_digest, offered.task):
        raise RemoteProtocolError("wrong-receipt", "another offer")
    in_quote = (
        quote.trade_id, quote.buyer, quote.seller, quote.price, quote.fee, quote.offer_root,
        quote.receipt_hash,
    )  # fmt: skip
    in_receipt = (
        receipt.trade_id, receipt.buyer, receipt.seller, receipt.price, receipt.fee,
        receipt.offer_root, receipt_hash,
    )  # fmt: skip
    if in_quote != in_receipt:
        raise RemoteProtocolError("wrong-receipt", "not of this quote")
    of_trial = (
        terms.base.seller, offered.seller, offered.seller, offered.weights_root,
        offered.leaf_count, offered.byte_length, NO_ADDRESS, notice.broker,
    )  # fmt: skip
    if of_trial != (
        quote.buyer, quote.seller, quote.encryptor, quote.offer_root, quote.leaf_count,
        quote.byte_length, quote.asset, quote.fee_recipient,
    ):  # fmt: skip
        raise RemoteProtocolError("wrong-quote", "not between the parties of this trial")
    if (
        quote.fund_by <= now
        or quote.reveal_by - now > MAX_REVEAL_SECONDS
        or quote.grace > MAX_GRACE
    ):
        raise RemoteProtocolError("wrong-times", f"now {now}, fund by {quote.fund_by}")
    bids = question.bids
    check_bids(
        domain,
        bids,
        trade_id=quote.trade_id,
        buyer=quote.buyer,
        seller=quote.seller,
        offer_digest=terms.offer_digest,
    )
    fee = notice.fee_basis_points
    price = bargain(bids.bid.valuation, bids.asking.ask, fee_basis_points=fee)
    if price is None or (price.price, price.fee) != (quote.price, quote.fee):
        raise RemoteProtocolError(
            "wrong-price", f"{quote.price} and a fee of {quote.fee}; here {price}"
        )
