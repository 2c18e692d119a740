"""A price is made of what buyer and seller signed, and of nothing that a broker says for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from node.protocol.bids import AskingPrice, Bid, BidAndAsk, check_ask, check_bid, check_bids
from node.protocol.eip712 import Domain
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import Digest, PeerId, Wei
from tests.protocol import cast

BID = Bid(trade_id=cast.TRADE_ID, valuation=cast.VALUATION, buyer_key=cast.BUYER_KEY)
ASKING = AskingPrice(trade_id=cast.TRADE_ID, offer_digest=cast.OFFER_DIGEST, ask=cast.ASK)
SAID = BidAndAsk(
    buyer_nonce=cast.BUYER_NONCE,
    bid=BID,
    bid_signature=cast.signature(BID, cast.BUYER),
    asking=ASKING,
    ask_signature=cast.signature(ASKING, cast.SELLER),
)
OF_TRADE: dict[str, Any] = {
    "trade_id": cast.TRADE_ID,
    "buyer": cast.BUYER.account,
    "seller": cast.SELLER.account,
    "offer_digest": cast.OFFER_DIGEST,
}


def refusal(said: BidAndAsk = SAID, **of_trade: Any) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        check_bids(cast.DOMAIN, said, **(OF_TRADE | of_trade))
    return caught.value.reason


def test_what_both_signed_for_this_trade_is_taken() -> None:
    check_bids(cast.DOMAIN, SAID, **OF_TRADE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bid": dataclasses.replace(BID, valuation=Wei(1))}, "not-the-buyers-bid"),
        ({"bid": dataclasses.replace(BID, buyer_key=cast.SELLER_KEY)}, "not-the-buyers-bid"),
        ({"bid": dataclasses.replace(BID, trade_id=Digest(bytes(32)))}, "wrong-trade-id"),
        ({"bid_signature": SAID.ask_signature}, "not-the-buyers-bid"),
        ({"bid_signature": cast.signature(BID, cast.BROKER)}, "not-the-buyers-bid"),
        ({"bid_signature": b""}, "bad-signature"),
        ({"asking": dataclasses.replace(ASKING, ask=Wei(1))}, "not-the-sellers-ask"),
        ({"asking": dataclasses.replace(ASKING, trade_id=Digest(bytes(32)))}, "wrong-trade-id"),
        ({"asking": dataclasses.replace(ASKING, offer_digest=Digest(bytes(32)))}, "another-offer"),
        ({"ask_signature": SAID.bid_signature}, "not-the-sellers-ask"),
        ({"ask_signature": cast.signature(ASKING, cast.BROKER)}, "not-the-sellers-ask"),
        ({"ask_signature": bytes(65)}, "bad-signature"),
        ({"buyer_nonce": cast.word("another nonce")}, "wrong-trade-id"),
    ],
)
def test_nothing_else_is(changes: dict[str, Any], reason: str) -> None:
    assert refusal(dataclasses.replace(SAID, **changes)) == reason


@pytest.mark.parametrize("name", OF_TRADE)
def test_the_trade_id_is_derived_and_never_chosen(name: str) -> None:
    other: object = cast.STRANGER.account
    if isinstance(OF_TRADE[name], bytes):
        other = cast.word("another")
    changed: dict[str, Any] = {name: other}
    assert refusal(**changed) == "wrong-trade-id"


def test_a_bid_or_an_ask_for_another_market_is_none_here() -> None:
    elsewhere = Domain(chain_id=cast.DOMAIN.chain_id + 1, escrow=cast.DOMAIN.escrow)
    there = (
        cast.signature(BID, cast.BUYER, elsewhere),
        cast.signature(ASKING, cast.SELLER, elsewhere),
    )
    assert refusal(dataclasses.replace(SAID, bid_signature=there[0])) == "not-the-buyers-bid"
    assert refusal(dataclasses.replace(SAID, ask_signature=there[1])) == "not-the-sellers-ask"


def test_it_is_named_who_sent_what_was_not_signed() -> None:
    checks: list[tuple[PeerId, Any, Any]] = [
        (cast.BUYER.peer_id, check_bid, BID),
        (cast.SELLER.peer_id, check_ask, ASKING),
    ]
    for peer, check, said in checks:
        for signature in (b"", cast.signature(said, cast.STRANGER)):
            with pytest.raises(RemoteProtocolError) as caught:
                check(cast.DOMAIN, said, signature, cast.BROKER.account, peer=peer)
            assert caught.value.peer == peer
