"""A buyer's bid for a call is its own, and no answer of a broker spends more or sells otherwise."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.protocol.call import Allocation, BudgetBid, check_allocations, check_budget_bid
from node.protocol.errors import RemoteProtocolError
from node.protocol.schema import checksummed
from node.protocol.types import Address, Digest, Millionths, PeerId, Wei
from tests.protocol import cast

TRIALS = (cast.word("a trial"), cast.word("another"))
BID = BudgetBid(trials=TRIALS, budget=Wei(1_000))
OFFERS = (cast.word("an offer"), cast.word("a second"), cast.word("a third"))
BROKER = PeerId("the broker's peer")


def refusal_of(bid: BudgetBid, signature: bytes | None = None) -> str:
    signed = cast.signature(bid, cast.BUYER) if signature is None else signature
    with pytest.raises(RemoteProtocolError) as caught:
        check_budget_bid(cast.DOMAIN, bid, signed, cast.BUYER.account, peer=BROKER)
    assert caught.value.peer == BROKER
    return caught.value.reason


def test_a_bid_that_its_buyer_signed_is_taken() -> None:
    check_budget_bid(cast.DOMAIN, BID, cast.signature(BID, cast.BUYER), cast.BUYER.account)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"budget": Wei(0)}, "no-budget"),
        ({"trials": ()}, "no-trial"),
        ({"trials": (TRIALS[0], TRIALS[0])}, "trial-twice"),
    ],
)
def test_a_bid_that_could_be_part_of_no_call_is_refused_by_name(
    changes: dict[str, object], reason: str
) -> None:
    assert refusal_of(dataclasses.replace(BID, **changes)) == reason  # type: ignore[arg-type]


def test_nobody_bids_for_another_account_and_no_budget_is_changed_on_the_way() -> None:
    assert refusal_of(BID, cast.signature(BID, cast.SELLER)) == "not-the-buyers-bid"
    more = dataclasses.replace(BID, budget=Wei(1_001))
    assert refusal_of(more, cast.signature(BID, cast.BUYER)) == "not-the-buyers-bid"
    assert refusal_of(BID, b"") == "bad-signature"


def allotted(offer: Digest, price: int) -> Allocation:
    return Allocation(offer_digest=offer, price=Wei(price), predicted=Millionths(1))


def bid_on(count: int) -> dict[Digest, Address]:
    """Offers of as many sellers."""
    return {offer: checksummed(offer[:20]) for offer in OFFERS[:count]}


def answer_refused(*given_: Allocation, budget: int = 100) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        check_allocations(given_, bid_on=bid_on(2), budget=Wei(budget), peer=BROKER)
    assert caught.value.peer == BROKER
    return caught.value.reason


def test_what_a_broker_may_not_answer_is_refused_by_name() -> None:
    assert answer_refused(allotted(OFFERS[2], 1)) == "not-tried"
    assert answer_refused(allotted(OFFERS[0], 0)) == "no-price"
    assert answer_refused(allotted(OFFERS[0], 101)) == "over-budget"
    assert answer_refused(allotted(OFFERS[0], 60), allotted(OFFERS[1], 41)) == "over-budget"
    assert answer_refused(allotted(OFFERS[0], 1), allotted(OFFERS[0], 1)) == "allocated-twice"


def test_two_beginnings_of_one_sellers_layers_are_not_paid_for_both() -> None:
    both = dict.fromkeys(OFFERS[:2], cast.SELLER.account)
    answer = [allotted(offer, 1) for offer in both]
    with pytest.raises(RemoteProtocolError, match="allocated-twice"):
        check_allocations(answer, bid_on=both, budget=Wei(100), peer=BROKER)


@given(prices=st.lists(st.integers(0, 200), max_size=3), budget=st.integers(1, 300))
def test_an_answer_is_taken_only_if_all_of_it_is_within_the_budget(
    prices: list[int], budget: int
) -> None:
    answer = [allotted(offer, price) for offer, price in zip(OFFERS, prices, strict=False)]
    fits = all(prices) and sum(prices) <= budget
    try:
        check_allocations(answer, bid_on=bid_on(3), budget=Wei(budget), peer=BROKER)
    except RemoteProtocolError:
        assert not fits
    else:
        assert fits
