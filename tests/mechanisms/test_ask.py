from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_node.mechanisms.ask import market_ask
from broker_node.mechanisms.bayesian_ask import best_ask
from broker_node.mechanisms.price import bargain
from broker_node.mechanisms.priors import Uniform
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Wei

wei = st.integers(0, 10**20).map(Wei)


@given(gain=st.integers(1, 10**15), cost=st.integers(0, 10**15), fee=st.integers(0, 1000))
def test_before_any_receipt_the_prior_is_uniform_on_twice_its_own_gain(
    gain: int, cost: int, fee: int
) -> None:
    ask = market_ask(Wei(gain), [], Wei(cost), fee)
    most = 2 * gain * (1 - fee / 10_000)
    # without a cost to meet nobody bids: the ask is the cost then
    expected = best_ask(Uniform(0.0, most), cost=float(cost), share=0.5) if cost < most else cost
    assert ask == pytest.approx(max(cost, expected), rel=1e-9, abs=1)


def test_a_third_of_the_scale_is_asked() -> None:
    assert market_ask(Wei(300), [], Wei(0), 0) == 200
    assert market_ask(Wei(300), [], Wei(150), 0) == 300


@given(gain=st.none() | wei, receipts=st.lists(wei, max_size=20), cost=wei)
def test_the_cost_is_always_covered(gain: Wei | None, receipts: list[Wei], cost: Wei) -> None:
    assert market_ask(gain, receipts, cost, 200) >= cost


def test_with_nothing_to_go_by_the_cost_is_asked() -> None:
    assert market_ask(None, [], Wei(7), 200) == 7
    assert market_ask(Wei(-5), [], Wei(7), 200) == 7


def test_receipts_pull_the_ask_towards_what_others_paid() -> None:
    alone = market_ask(Wei(300), [], Wei(0), 0)
    cheap = market_ask(Wei(300), [Wei(30)] * 8, Wei(0), 0)
    dear = market_ask(Wei(300), [Wei(3000)] * 8, Wei(0), 0)
    assert cheap < alone < dear
    assert cheap == (300 + 30) * 2 // 3 // 2
    assert market_ask(Wei(300), [Wei(300)] * 8, Wei(0), 0) == alone


def test_receipts_that_are_old_are_forgotten() -> None:
    recent = [Wei(40)] * 8
    assert market_ask(None, [Wei(10**9), *recent], Wei(0), 0) == market_ask(None, recent, Wei(0), 0)


def test_prices_that_asks_of_this_rule_lead_to_keep_the_scale_where_it_is() -> None:
    generator = np.random.Generator(np.random.Philox(1))
    scale = 1_000_000
    ask = market_ask(Wei(scale // 2), [], Wei(0), 0)
    prices = []
    for bid in generator.integers(0, scale, 4000):
        deal = bargain(Wei(int(bid)), ask, fee_basis_points=0)
        if deal is not None:
            prices.append(deal.price)
    assert float(np.mean(prices)) == pytest.approx(scale / 2, rel=0.02)


def test_the_ask_earns_more_than_other_asks_against_its_own_prior() -> None:
    generator = np.random.Generator(np.random.Philox(2))
    gain, cost = 500_000, 100_000
    bids = [Wei(int(bid)) for bid in generator.integers(0, 2 * gain, 1500)]

    def profit(ask: int) -> float:
        deals = (bargain(bid, Wei(ask), fee_basis_points=200) for bid in bids)
        return math.fsum(deal.seller_receives - cost for deal in deals if deal is not None)

    chosen = market_ask(Wei(gain), [], Wei(cost), 200)
    for factor in (0.5, 0.7, 1.4, 1.7):
        assert profit(int(chosen * factor)) < profit(chosen)


@pytest.mark.parametrize(("cost", "receipt", "fee"), [(-1, 0, 0), (0, -1, 0), (0, 0, 10_000)])
def test_impossible_inputs_are_our_own_mistake(cost: int, receipt: int, fee: int) -> None:
    with pytest.raises(LocalProtocolError):
        market_ask(None, [Wei(receipt)], Wei(cost), fee)
