from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_node.mechanisms.base import Json, Status
from broker_node.mechanisms.kplus1 import KPlusOne
from tests.mechanisms.judged import (
    cleared,
    indices,
    needs_every_figure,
    number,
    refuses,
    rejected,
)

AUCTION = KPlusOne()
offer = st.floats(0, 10) | st.integers(0, 5).map(float)
offers = st.lists(offer, min_size=1, max_size=7)


def auction(bids: list[float], copies: int, reserve: float) -> tuple[list[int], float]:
    market: dict[str, Json] = {"bids": [*bids], "copies": copies, "reserve": reserve}
    values = cleared(AUCTION, market).values
    return indices(values["winners"]), number(values["price"])


def test_winners_pay_the_highest_bid_that_won_nothing() -> None:
    assert auction([3, 9, 5, 7], 2, 0) == ([1, 3], 5)


def test_the_reserve_is_the_least_price() -> None:
    assert auction([3, 9, 5, 7], 2, 6) == ([1, 3], 6)
    assert auction([3, 9, 5, 7], 2, 8) == ([1], 8)
    assert auction([3, 9], 5, 3) == ([0, 1], 3)


def test_where_nobody_reaches_the_reserve_there_is_no_trade() -> None:
    market: dict[str, Json] = {"bids": [3, 9], "copies": 1, "reserve": 10}
    outcome = cleared(AUCTION, market)
    assert outcome.to_json() == {"status": "no_trade", "winners": [], "price": 10}
    assert outcome.status is Status.NO_TRADE


def test_of_equal_bids_the_first_wins() -> None:
    assert auction([4, 4, 4], 1, 0) == ([0], 4)


@given(bids=offers, copies=st.integers(1, 8), reserve=offer)
def test_nobody_loses_or_envies(bids: list[float], copies: int, reserve: float) -> None:
    winners, price = auction(bids, copies, reserve)
    assert len(winners) <= copies
    for index, bid in enumerate(bids):
        assert bid >= price if index in winners else bid <= price


@given(bids=offers, copies=st.integers(1, 8), reserve=offer, lie=offer, who=st.integers(0, 6))
def test_no_bidder_gains_by_another_bid(
    bids: list[float], copies: int, reserve: float, lie: float, who: int
) -> None:
    who %= len(bids)

    def utility(told: float) -> float:
        winners, price = auction([*bids[:who], told, *bids[who + 1 :]], copies, reserve)
        return bids[who] - price if who in winners else 0.0

    for told in (lie, bids[who] + 0.5, bids[who] / 2, 0.0, 11.0):
        assert utility(told) <= utility(bids[who]) + 1e-12


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"price": 4}, "price"),
        ({"price": 6}, "price"),
        ({"price": 8}, "individual_rationality"),
        ({"winners": [1]}, "left_over"),
        ({"winners": [1, 2]}, "envy"),
        ({"winners": [1, 2, 3]}, "copies"),
        ({"winners": []}, "status"),
    ],
)
def test_another_outcome_is_not_confirmed(change: dict[str, Json], broken: str) -> None:
    market: dict[str, Json] = {"bids": [3, 9, 5, 7], "copies": 2, "reserve": 0}
    assert broken in rejected(AUCTION, market, change)


def test_each_figure_must_be_stated() -> None:
    needs_every_figure(AUCTION, {"bids": [3, 9, 5, 7], "copies": 2, "reserve": 0})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"bids": []}, "bids"),
        ({"bids": [1, None]}, "bids[1]"),
        ({"bids": [1, float("nan")]}, "bids[1]"),
        ({"copies": 0}, "copies"),
        ({"copies": 1.5}, "copies"),
        ({"copies": True}, "copies"),
        ({"reserve": -1}, "reserve"),
        ({"asks": [1]}, "asks"),
    ],
)
def test_a_refused_input_names_its_field(change: dict[str, Json], field: str) -> None:
    refuses(AUCTION, {"bids": [1], "copies": 1, "reserve": 0, **change}, field)
