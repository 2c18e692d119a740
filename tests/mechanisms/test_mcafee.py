from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_node.mechanisms.base import Claim, Json, Outcome, Status
from broker_node.mechanisms.mcafee import McAfee
from tests.mechanisms.judged import (
    cleared,
    indices,
    needs_every_figure,
    number,
    refuses,
    rejected,
    unchecked,
)

AUCTION = McAfee()
offer = st.floats(0, 10) | st.integers(0, 5).map(float)
offers = st.lists(offer, min_size=1, max_size=7)


def auction(bids: list[float], asks: list[float]) -> Outcome:
    return cleared(AUCTION, {"bids": [*bids], "asks": [*asks]})


def most_value(bids: list[float], asks: list[float]) -> float:
    """Return the value of the best trades: by how much the highest bids are over the asks."""
    pairs = zip(sorted(bids, reverse=True), sorted(asks), strict=False)
    return sum(max(0.0, bid - ask) for bid, ask in pairs)


def test_the_next_pair_sets_the_price_where_it_fits() -> None:
    assert auction([9, 8, 7, 4], [1, 2, 3, 5]).to_json() == {
        "status": "trade",
        "trades": 3,
        "buyer_price": 4.5,
        "seller_price": 4.5,
        "buyers": [0, 1, 2],
        "sellers": [0, 1, 2],
        "surplus": 0,
    }


def test_else_the_last_pair_is_given_up_and_the_broker_keeps_what_lies_between() -> None:
    # the midpoint (2 + 8)/2 = 5 is over bid 3, 4.6
    assert auction([9, 8, 4.6, 2], [1, 2, 4, 8]).to_json() == {
        "status": "trade",
        "trades": 2,
        "buyer_price": 4.6,
        "seller_price": 4,
        "buyers": [0, 1],
        "sellers": [0, 1],
        "surplus": pytest.approx(1.2),
    }


def test_a_single_pair_that_no_other_prices_does_not_trade() -> None:
    outcome = auction([9], [1])
    assert outcome.status is Status.NO_TRADE
    assert (outcome.values["trades"], outcome.values["buyer_price"]) == (0, None)


def test_bids_under_every_ask_do_not_trade() -> None:
    assert auction([1, 2], [3, 4]).status is Status.NO_TRADE


@given(bids=offers, asks=offers)
def test_nobody_loses_and_no_money_is_needed(bids: list[float], asks: list[float]) -> None:
    values = auction(bids, asks).values
    buyers, sellers = indices(values["buyers"]), indices(values["sellers"])
    assert len(buyers) == len(sellers) == values["trades"]
    if buyers:
        paid, received = number(values["buyer_price"]), number(values["seller_price"])
        assert all(bids[buyer] >= paid for buyer in buyers)
        assert all(asks[seller] <= received for seller in sellers)
        assert number(values["surplus"]) == pytest.approx(len(buyers) * (paid - received))
        assert paid >= received


@given(bids=offers, asks=offers, lie=offer, who=st.integers(0, 6))
def test_no_trader_gains_by_another_offer(
    bids: list[float], asks: list[float], lie: float, who: int
) -> None:
    def buyer_gain(told: list[float], index: int) -> float:
        values = unchecked(AUCTION, {"bids": [*told], "asks": [*asks]}).values
        won = index in indices(values["buyers"])
        return bids[index] - number(values["buyer_price"]) if won else 0.0

    def seller_gain(told: list[float], index: int) -> float:
        values = unchecked(AUCTION, {"bids": [*bids], "asks": [*told]}).values
        sold = index in indices(values["sellers"])
        return number(values["seller_price"]) - asks[index] if sold else 0.0

    buyer, seller = who % len(bids), who % len(asks)
    for told in (lie, bids[buyer] + 0.5, bids[buyer] / 2, 0.0, 11.0):
        changed = [*bids[:buyer], told, *bids[buyer + 1 :]]
        assert buyer_gain(changed, buyer) <= buyer_gain(bids, buyer) + 1e-9
    for told in (lie, asks[seller] + 0.5, asks[seller] / 2, 0.0, 11.0):
        changed = [*asks[:seller], told, *asks[seller + 1 :]]
        assert seller_gain(changed, seller) <= seller_gain(asks, seller) + 1e-9


@given(bids=offers, asks=offers)
def test_no_more_is_lost_than_the_least_valuable_trade(
    bids: list[float], asks: list[float]
) -> None:
    values = auction(bids, asks).values
    traded = sum(bids[buyer] for buyer in indices(values["buyers"]))
    traded -= sum(asks[seller] for seller in indices(values["sellers"]))
    pairs = zip(sorted(bids, reverse=True), sorted(asks), strict=False)
    least = min((bid - ask for bid, ask in pairs if bid >= ask), default=0.0)
    assert traded >= most_value(bids, asks) - least - 1e-9
    assert Claim.PARETO not in AUCTION.claims


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"trades": 3}, "trades"),
        ({"buyer_price": 4.5}, "prices"),
        ({"seller_price": 4.7}, "deficit"),
        ({"buyers": [0, 2]}, "ranks"),
        ({"buyers": [0, 3]}, "buyers"),
        ({"sellers": [0]}, "pairs"),
        ({"surplus": 0.0}, "surplus"),
    ],
)
def test_another_outcome_is_not_confirmed(change: dict[str, Json], broken: str) -> None:
    market: dict[str, Json] = {"bids": [9, 8, 4.6, 2], "asks": [1, 2, 4, 8]}
    assert broken in rejected(AUCTION, market, change)


def test_each_figure_must_be_stated() -> None:
    needs_every_figure(AUCTION, {"bids": [9, 8, 4.6, 2], "asks": [1, 2, 4, 8]})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"bids": []}, "bids"),
        ({"asks": []}, "asks"),
        ({"bids": [1, float("inf")]}, "bids[1]"),
        ({"bids": [-1]}, "bids[0]"),
        ({"asks": {"0": 1}}, "asks"),
        ({"asks": [True]}, "asks[0]"),
        ({"reserve": 1}, "reserve"),
    ],
)
def test_a_refused_input_names_its_field(change: dict[str, Json], field: str) -> None:
    refuses(AUCTION, {"bids": [1], "asks": [1], **change}, field)


def test_trades_without_traders_are_not_confirmed() -> None:
    market: dict[str, Json] = {"bids": [9, 8, 4.6, 2], "asks": [1, 2, 4, 8]}
    assert "pairs" in rejected(AUCTION, market, {"buyers": []})
    assert "pairs" in rejected(AUCTION, market, {"sellers": []})
