"""What a seller checks before it countersigns: it gets its price, and signs nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from node.protocol.bargain import (
    check_countersign,
)
from node.protocol.eip712 import Domain, digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.offer import Receipt
from node.protocol.purchase import FUND_MARGIN
from node.protocol.quote import Quote
from node.protocol.sale import SaleRecord
from node.protocol.types import UnixTime, Wei
from tests.protocol import cast
from tests.protocol.bargains import (
    BROKERS_BOOKKEEPING,
    SELLERS_QUOTE,
    fits,
    names,
    other_value,
)
from tests.protocol.cast import (
    ASK,
    BROKER,
    DOMAIN,
    FEE,
    FEE_BASIS_POINTS,
    FUND_BY,
    NOW,
    PATIENCE,
    PRICE,
    SELLER,
    STRANGER,
)

# ── the seller ──


def countersign(
    quote: Quote,
    *,
    signed: bytes | None = None,
    receipt: bytes | None = None,
    domain: Domain = DOMAIN,
    now: UnixTime = NOW,
    sale: SaleRecord | None = None,
    **changes: Any,
) -> None:
    """Have the seller check a quote that the broker signed."""
    check_countersign(
        domain,
        cast.sale_record() if sale is None else sale,
        changes.get("offer", cast.OFFER),
        quote,
        cast.signature(quote, BROKER) if signed is None else signed,
        cast.seal(cast.receipt(), BROKER) if receipt is None else receipt,
        broker=changes.get("broker", BROKER.account),
        fee_basis_points=changes.get("fee_basis_points", FEE_BASIS_POINTS),
        patience=changes.get("patience", PATIENCE),
        now=now,
    )


def seller_refuses(reason: str, quote: Quote | None = None, **changes: Any) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        countersign(cast.quote() if quote is None else quote, **changes)
    assert caught.value.reason == reason


def test_a_quote_that_is_as_it_was_prepared_is_countersigned() -> None:
    countersign(cast.quote())


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [(field, value, reason) for field, cases in SELLERS_QUOTE.items() for value, reason in cases],
)
def test_the_seller_signs_no_other_terms(field: str, value: Any, reason: str) -> None:
    seller_refuses(reason, cast.quote(**{field: value}))


@pytest.mark.parametrize("field", sorted(names(Quote)))
def test_the_seller_signs_nothing_that_the_broker_did_not_sign(field: str) -> None:
    changed = cast.quote(**{field: other_value(cast.quote(), field)} | fits(field))
    seller_refuses("wrong-signer", changed, signed=cast.signature(cast.quote(), BROKER))


@pytest.mark.parametrize("by", [STRANGER, SELLER, cast.BUYER])
def test_the_seller_hears_only_the_broker_that_it_joined(by: cast.Party) -> None:
    seller_refuses("wrong-signer", signed=cast.signature(cast.quote(), by))
    seller_refuses("wrong-signer", broker=by.account)


def test_the_seller_signs_for_its_own_market_only() -> None:
    seller_refuses("wrong-signer", domain=Domain(chain_id=1, escrow=DOMAIN.escrow))
    seller_refuses("bad-signature", signed=b"")


def priced(price: int, fee: int) -> tuple[Quote, bytes]:
    """Return a quote at another price, and the receipt that agrees with it."""
    money: dict[str, Any] = {"price": Wei(price), "fee": Wei(fee)}
    bill = cast.receipt(**money)
    return cast.quote(**money, receipt_hash=digest(DOMAIN, bill)), cast.seal(bill, BROKER)


def test_what_reaches_the_seller_is_never_under_its_ask() -> None:
    quote, receipt = priced(ASK + 1_000, 1_000)
    countersign(quote, receipt=receipt)
    quote, receipt = priced(ASK + 999, 1_000)
    seller_refuses("price-below-ask", quote, receipt=receipt)


def test_nor_under_the_reserve_that_it_signed_in_its_offer() -> None:
    dear = cast.offer(reserve=Wei(PRICE - FEE))
    countersign(cast.quote(), offer=dear)
    seller_refuses("price-below-ask", offer=cast.offer(reserve=Wei(PRICE - FEE + 1)))


def test_the_fee_is_no_more_than_the_notice_allows() -> None:
    seller_refuses("fee-too-high", fee_basis_points=FEE_BASIS_POINTS - 1)
    quote, receipt = priced(0, 0)
    seller_refuses("no-price", quote, receipt=receipt)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("trade_id", "wrong-trade-id"),
        ("buyer", "wrong-buyer"),
        ("offer_root", "wrong-offer-root"),
        ("goods_root", "wrong-goods-root"),
        ("leaf_count", "wrong-size"),
        ("byte_length", "wrong-size"),
        ("secret", "wrong-commitment"),
        ("private_key", "wrong-commitment"),
        ("buyer_key", "wrong-commitment"),
        ("offer_digest", "wrong-receipt"),
    ],
)
def test_a_good_quote_is_refused_for_another_sale(field: str, reason: str) -> None:
    prepared = cast.sale_record()
    value = other_value(prepared, field)
    seller_refuses(reason, sale=dataclasses.replace(prepared, **{field: value}))


@pytest.mark.parametrize(
    "field", sorted(names(Receipt) - BROKERS_BOOKKEEPING - {"evaluation_hash", "notice_digest"})
)
def test_the_seller_signs_no_trade_under_another_receipt(field: str) -> None:
    changed = {field: other_value(cast.receipt(), field)}
    by = STRANGER if field == "broker" else BROKER
    if field == "peer_id":
        return  # the seller is not told the broker's peer here: the connection vouches for it
    bill = cast.receipt(**changed)
    seller_refuses(
        "wrong-receipt",
        cast.quote(receipt_hash=digest(DOMAIN, bill)),
        receipt=cast.forge(bill, account=by, peer=BROKER),
    )


@pytest.mark.parametrize(
    ("receipt", "reason"),
    [
        (b"", "malformed"),
        (cast.seal(cast.OFFER, SELLER), "wrong-receipt"),
        (cast.seal(cast.receipt(nonce=8), BROKER), "wrong-receipt"),
        (cast.forge(cast.receipt(), account=STRANGER, peer=BROKER), "bad-signature"),
    ],
)
def test_the_seller_reads_the_receipt_that_the_quote_names(receipt: bytes, reason: str) -> None:
    seller_refuses(reason, receipt=receipt)


@pytest.mark.parametrize(
    ("now", "reason"), [(FUND_BY - FUND_MARGIN - 1, None), (FUND_BY - FUND_MARGIN, "too-late")]
)
def test_the_seller_signs_while_there_is_time_to_fund(now: int, reason: str | None) -> None:
    if reason is None:
        countersign(cast.quote(), now=UnixTime(now))
    else:
        seller_refuses(reason, now=UnixTime(now))
