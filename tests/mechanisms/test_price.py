from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_node.mechanisms.price import Deal, bargain
from node.protocol.errors import LocalProtocolError
from node.protocol.fees import fee_of
from node.protocol.types import UINT256_MAX, Wei

wei = st.integers(0, 10**24).map(Wei)
small = st.integers(0, 400).map(Wei)
fees = st.sampled_from([0, 100, 200, 250, 500, 1000, 3000, 5000]) | st.integers(0, 9_999)


def brute_force(bid: Wei, ask: Wei, fee_basis_points: int) -> int | None:
    """Return the lowest price with the largest product, by trying every price."""
    best: tuple[int, int] | None = None
    for price in range(1, bid + 1):
        received = price - price * fee_basis_points // 10_000
        if received < ask or (price == bid and received == ask):
            continue
        product = (bid - price) * (received - ask)
        if best is None or product > best[0]:
            best = (product, price)
    return None if best is None else best[1]


@given(bid=small, ask=small, fee=fees)
def test_the_price_is_the_best_of_all_prices(bid: Wei, ask: Wei, fee: int) -> None:
    deal = bargain(bid, ask, fee_basis_points=fee)
    expected = brute_force(bid, ask, fee)
    assert (None if deal is None else deal.price) == expected


@given(bid=wei, ask=wei, fee=fees)
def test_nobody_loses_after_the_fee_and_the_rounding(bid: Wei, ask: Wei, fee: int) -> None:
    deal = bargain(bid, ask, fee_basis_points=fee)
    if deal is None:
        return
    assert 1 <= deal.price <= bid
    assert deal.fee == deal.price * fee // 10_000
    assert deal.seller_receives == deal.price - deal.fee >= ask
    assert deal.price < bid or deal.seller_receives > ask


@given(bid=wei, ask=wei, fee=fees)
def test_there_is_a_deal_wherever_both_can_gain(bid: Wei, ask: Wei, fee: int) -> None:
    left_of_the_bid = bid - fee_of(bid, fee)
    if bid > 0 and left_of_the_bid > ask:
        assert bargain(bid, ask, fee_basis_points=fee) is not None
    if left_of_the_bid < ask:
        assert bargain(bid, ask, fee_basis_points=fee) is None


@given(bid=wei, ask=wei, fee=fees, step=st.integers(-20_000, 20_000))
def test_no_other_price_near_by_has_a_larger_product(
    bid: Wei, ask: Wei, fee: int, step: int
) -> None:
    deal = bargain(bid, ask, fee_basis_points=fee)
    if deal is None:
        return
    product = (bid - deal.price) * (deal.seller_receives - ask)
    other = deal.price + step
    received = other - other * fee // 10_000
    if 1 <= other <= bid and received >= ask:
        assert (bid - other) * (received - ask) <= product


@given(bid=wei, ask=wei)
def test_without_a_fee_it_is_the_midpoint_rounded_for_the_buyer(bid: Wei, ask: Wei) -> None:
    deal = bargain(bid, ask, fee_basis_points=0)
    if bid <= ask:
        assert deal is None
    else:
        assert deal is not None
        assert deal.price == max(1, (bid + ask) // 2)


def test_a_trade_that_helps_nobody_is_no_deal() -> None:
    assert bargain(Wei(100), Wei(100), fee_basis_points=0) is None
    assert bargain(Wei(0), Wei(0), fee_basis_points=0) is None
    assert bargain(Wei(50), Wei(50), fee_basis_points=200) is None


def test_one_wei_of_surplus_is_a_deal() -> None:
    assert bargain(Wei(101), Wei(100), fee_basis_points=0) == Deal(price=Wei(100), fee=Wei(0))
    assert bargain(Wei(1), Wei(0), fee_basis_points=0) == Deal(price=Wei(1), fee=Wei(0))


def test_amounts_of_real_money_are_exact() -> None:
    deal = bargain(Wei(10**18), Wei(0), fee_basis_points=200)
    assert deal is not None
    # the optimum of the reals is the midpoint; the fee's rounding moves it a few wei at most
    assert abs(deal.price - 5 * 10**17) < 10**4 * 10**9
    assert deal.price == deal.fee + deal.seller_receives


def test_the_largest_amounts_do_not_overflow() -> None:
    assert bargain(Wei(UINT256_MAX), Wei(0), fee_basis_points=9_999) is not None


@pytest.mark.parametrize(
    ("bid", "ask", "fee"),
    [(-1, 0, 0), (0, -1, 0), (2**256, 0, 0), (1, 0, -1), (1, 0, 10_000)],
)
def test_impossible_amounts_are_our_own_mistake(bid: int, ask: int, fee: int) -> None:
    with pytest.raises(LocalProtocolError):
        bargain(Wei(bid), Wei(ask), fee_basis_points=fee)
