"""Auctions in whole Wei: nothing is created, nobody pays over its bid, no budget is broken."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_node.mechanisms import kplus1, mcafee, procurement, vcg
from broker_node.mechanisms.base import Outcome, RefusedInputError, Status
from broker_node.mechanisms.reading import as_written
from broker_node.mechanisms.registry import MECHANISMS
from broker_node.mechanisms.transfers import InWei, Transfers, largest_remainder
from node.protocol.errors import LocalProtocolError
from node.protocol.types import UINT256_MAX, Wei
from tests.mechanisms.drawn import DRAWN

ETHER = Wei(10**18)
units = st.sampled_from([Wei(0), Wei(1), Wei(1000), ETHER]) | st.integers(0, 2**60).map(Wei)
Settle = Callable[..., Transfers]
AUCTIONS: dict[str, Settle] = {
    "kplus1": kplus1.transfers_in_wei,
    "mcafee": mcafee.transfers_in_wei,
    "vcg": vcg.transfers_in_wei,
    "procurement": procurement.transfers_in_wei,
}


def moderate(figures: Any) -> bool:
    """Return whether no figure is so large that its payment would leave 256 bits."""
    if isinstance(figures, list | dict):
        inside = figures.values() if isinstance(figures, dict) else figures
        return all(map(moderate, inside))
    return bool(abs(figures) < 1e50)


def settled(
    data: st.DataObject, name: str, unit: Wei
) -> tuple[dict[str, Any], dict[str, Any], Transfers]:
    """Return a market, what its outcome states, and the transfers."""
    market = data.draw(DRAWN[name].filter(moderate))
    outcome = MECHANISMS[name].clear(market, tolerance=1e-9, seed=0)
    done = AUCTIONS[name](market, outcome, unit=unit)
    amounts = (*done.paid, *done.received, done.broker)
    assert sum(done.changes) == 0
    assert {type(amount) for amount in amounts} == {int}
    assert min(amounts) >= 0
    return market, dict(outcome.values), done


def in_wei(value: float, unit: Wei) -> Fraction:
    return as_written(value) * unit


@given(data=st.data(), unit=units)
def test_winners_of_copies_pay_one_price_that_none_of_them_overbids(
    data: st.DataObject, unit: Wei
) -> None:
    market, told, done = settled(data, "kplus1", unit)
    price = math.floor(in_wei(told["price"], unit))
    for bidder, paid in enumerate(done.paid):
        assert paid == (price if bidder in told["winners"] else 0)
        assert paid <= in_wei(market["bids"][bidder], unit)
    assert sum(paid > 0 for paid in done.paid) <= market["copies"]


@given(data=st.data(), unit=units)
def test_no_side_of_a_double_auction_loses_nor_does_the_broker(
    data: st.DataObject, unit: Wei
) -> None:
    market, told, done = settled(data, "mcafee", unit)
    for buyer, paid in enumerate(done.paid):
        assert paid <= in_wei(market["bids"][buyer], unit) * (buyer in told["buyers"])
    for seller, received in enumerate(done.received):
        if seller in told["sellers"]:
            assert received >= math.floor(in_wei(market["asks"][seller], unit))
        else:
            assert received == 0
    assert abs(done.broker - in_wei(told["surplus"], unit)) <= max(
        1 + told["trades"], Fraction(1, 10**12) * sum(done.paid)
    )


@given(data=st.data(), unit=units)
def test_nobody_pays_more_for_a_good_than_it_is_worth_to_it(data: st.DataObject, unit: Wei) -> None:
    market, told, done = settled(data, "vcg", unit)
    for buyer, good in enumerate(told["assignment"]):
        worth = 0 if good is None else in_wei(market["values"][buyer][good], unit)
        assert done.paid[buyer] <= worth
        assert abs(done.paid[buyer] - in_wei(told["payments"][buyer], unit)) < 1
    total = sum((in_wei(payment, unit) for payment in told["payments"]), Fraction())
    assert total - len(done.paid) < sum(done.paid) <= total


@given(data=st.data(), unit=units)
def test_the_budget_for_data_holds_and_every_seller_has_its_cost(
    data: st.DataObject, unit: Wei
) -> None:
    market, told, done = settled(data, "procurement", unit)
    assert sum(done.paid) <= in_wei(market["budget"], unit)
    slack = Fraction(1, 10**12) * sum(done.paid) + Fraction(3, 2)
    for seller, received in enumerate(done.received):
        assert abs(received - in_wei(told["payment"][seller], unit)) <= slack
        if seller in told["winners"]:
            assert received >= math.floor(in_wei(market["cost"][seller], unit))
        else:
            assert received == 0


def test_a_third_of_an_ether_each_is_paid_from_one_ether_and_no_more() -> None:
    market: dict[str, Any] = {"cost": [0.1, 0.1, 0.1], "value": [1, 1, 1], "budget": 1}
    outcome = MECHANISMS["procurement"].clear(market, tolerance=1e-9, seed=0)
    done = procurement.transfers_in_wei(market, outcome, unit=Wei(1000))
    assert done.received in {(333, 333, 333), (334, 333, 333)}
    assert sum(done.paid) <= 1000


def test_the_odd_wei_goes_to_the_largest_remainder_that_may_take_it() -> None:
    thirds = [Fraction(1, 3)] * 3
    assert largest_remainder(thirds, 1) == [1, 0, 0]
    assert largest_remainder(thirds, 1, most=[0, 1, 1]) == [0, 1, 0]
    assert largest_remainder(thirds, 1, most=[0, 0, 0]) == [0, 0, 0]
    with pytest.raises(RefusedInputError, match="total"):
        largest_remainder(thirds, 4)


def test_tenths_are_tenths_and_not_what_a_float_holds() -> None:
    market: dict[str, Any] = {"bids": [0.3, 0.3], "copies": 1, "reserve": 0}
    outcome = MECHANISMS["kplus1"].clear(market, tolerance=1e-9, seed=0)
    assert kplus1.transfers_in_wei(market, outcome, unit=Wei(10)).received == (3,)


def forged(**values: Any) -> Outcome:
    return Outcome(status=Status.TRADE, values=values)


BOUGHT = {"cost": [1, 2], "value": [1, 1], "budget": 4}


@pytest.mark.parametrize(
    ("name", "market", "outcome", "field"),
    [
        ("kplus1", {"bids": [3, 1], "copies": 1, "reserve": 0}, {"winners": [0], "price": 4},
         "price"),
        ("kplus1", {"bids": [3, 1], "copies": 1, "reserve": 0}, {"winners": [0], "price": -1},
         "price"),
        ("kplus1", {"bids": [3, 3], "copies": 1, "reserve": 0}, {"winners": [0, 1], "price": 1},
         "winners"),
        ("mcafee", {"bids": [3], "asks": [1]},
         {"buyers": [0], "sellers": [0], "buyer_price": 4, "seller_price": 2}, "buyer_price"),
        ("mcafee", {"bids": [3], "asks": [1]},
         {"buyers": [0], "sellers": [0], "buyer_price": 2, "seller_price": 3}, "seller_price"),
        ("mcafee", {"bids": [3], "asks": [1]},
         {"buyers": [0], "sellers": [0], "buyer_price": 2, "seller_price": 0}, "seller_price"),
        ("mcafee", {"bids": [3], "asks": [1]}, {"buyers": [0], "sellers": []}, "buyers"),
        ("vcg", {"values": [[3]]}, {"assignment": [0], "payments": [4]}, "payments[0]"),
        ("vcg", {"values": [[3]]}, {"assignment": [None], "payments": [1]}, "payments[0]"),
        ("procurement", BOUGHT, {"winners": [0], "payment": [0.5, 0]}, "payment[0]"),
        ("procurement", BOUGHT, {"winners": [0], "payment": [1, 1]}, "payment[1]"),
        ("procurement", BOUGHT, {"winners": [0, 1], "payment": [3, 3]}, "payment"),
    ],
)  # fmt: skip
def test_an_outcome_that_breaks_a_bound_moves_no_money(
    name: str, market: dict[str, Any], outcome: dict[str, Any], field: str
) -> None:
    with pytest.raises(RefusedInputError) as refused:
        AUCTIONS[name](market, forged(**outcome), unit=ETHER)
    assert refused.value.field == field


@pytest.mark.parametrize("unit", [Wei(-1), Wei(UINT256_MAX + 1), Wei(UINT256_MAX)])
def test_units_that_leave_256_bits_are_refused(unit: Wei) -> None:
    market: dict[str, Any] = {"bids": [9, 5], "copies": 1, "reserve": 0}
    outcome = MECHANISMS["kplus1"].clear(market, tolerance=1e-9, seed=0)
    with pytest.raises(RefusedInputError, match="unit"):
        kplus1.transfers_in_wei(market, outcome, unit=unit)


def test_transfers_that_do_not_balance_are_none() -> None:
    with pytest.raises(LocalProtocolError, match="balance"):
        Transfers(paid=(Wei(2),), received=(Wei(1),))
    with pytest.raises(LocalProtocolError, match="balance"):
        Transfers(paid=(Wei(1),), received=(Wei(2),), broker=Wei(-1))
    assert InWei(ETHER).down(0.1) == 10**17


def test_an_odd_wei_is_left_with_the_buyers_where_it_would_be_more_than_a_good_is_worth() -> None:
    market: dict[str, Any] = {"values": [[1.5, 0], [1.5, 0], [0, 1.5], [0, 1.5]]}
    outcome = MECHANISMS["vcg"].clear(market, tolerance=1e-9, seed=0)
    done = vcg.transfers_in_wei(market, outcome, unit=Wei(1))
    assert sorted(done.paid) == [0, 0, 1, 1]  # of 3 Wei in all
    assert done.received == (2,)
