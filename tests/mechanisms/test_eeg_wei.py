"""An outcome of the weight market in Wei: nothing is created, nothing lost, nobody overspends."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.mechanisms.base import Json, RefusedInputError
from broker_node.mechanisms.eeg import ExtendedEisenbergGale
from broker_node.mechanisms.transfers import in_proportion
from broker_node.mechanisms.weight_market.wei import payments
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Wei
from tests.mechanisms.weight_markets import array, figures, weight_markets, with_values

EEG = ExtendedEisenbergGale()
ONE: dict[str, Json] = {"demand": [[[1.0]], [[1.0]]], "budget": [1.0, 2.0], "capacity": [[1.0]]}


@settings(max_examples=20)
@given(market=weight_markets(), data=st.data())
def test_budgets_hold_and_transfers_sum_to_nothing(
    market: dict[str, Json], data: st.DataObject
) -> None:
    outcome = EEG.clear({**market, "price_ranges": False}, tolerance=1e-9, seed=0)
    x, prices = figures(outcome, "x", "prices")
    wei = st.integers(0, 2**80).map(Wei)
    budgets = [data.draw(wei) for _ in x]
    done = payments(market, outcome, budgets)
    assert sum(done.transfers) == 0
    spent = x * (array(market["demand"]) * prices).sum(axis=2)
    for s, budget in enumerate(budgets):
        assert sum(done.paid[s]) + done.kept[s] == budget
        assert min(*done.paid[s], done.kept[s]) >= 0
        share = spent[s] / array(market["budget"])[s]
        exact = [float(one) * budget for one in share]
        assert np.array(done.paid[s], dtype=float) == pytest.approx(exact, rel=1e-9, abs=2)
    for j, received in enumerate(done.received):
        assert received == sum(row[j] for row in done.paid)


@given(
    weights=st.lists(st.fractions(0, 10), min_size=1, max_size=8),
    total=st.integers(0, 10**24).map(Wei),
)
def test_a_division_is_exact_and_within_one_of_every_share(
    weights: list[Fraction], total: Wei
) -> None:
    whole = sum(weights)
    if whole == 0 and total > 0:
        with pytest.raises(LocalProtocolError):
            in_proportion(weights, total)
        return
    shares = in_proportion(weights, total)
    assert sum(shares) == total
    for weight, share in zip(weights, shares, strict=True):
        assert share >= 0
        if whole:
            assert abs(share - weight * total / whole) < 1


def test_the_largest_remainder_gets_the_odd_wei_and_of_equals_the_first() -> None:
    thirds = [Fraction(1, 3)] * 3
    assert in_proportion(thirds, Wei(10)) == (4, 3, 3)
    assert in_proportion([Fraction(1), Fraction(2)], Wei(5)) == (2, 3)


def test_a_whole_budget_is_paid_to_the_wei() -> None:
    outcome = EEG.clear(ONE, tolerance=1e-9, seed=0)
    done = payments(ONE, outcome, [Wei(1001), Wei(2002)])
    assert done.received == (3003,)
    assert done.kept == (0, 0)


@pytest.mark.parametrize(
    ("budgets", "named"),
    [([Wei(1)], "2 items, got 1"), ([Wei(1), Wei(-1)], "buyer 1"), ([Wei(1), Wei(2**256)], "1")],
)
def test_budgets_that_are_not_those_of_the_buyers_are_refused(
    budgets: list[Wei], named: str
) -> None:
    outcome = EEG.clear(ONE, tolerance=1e-9, seed=0)
    with pytest.raises(RefusedInputError, match="budgets") as refused:
        payments(ONE, outcome, budgets)
    assert named in refused.value.reason


def test_an_outcome_that_overspends_is_refused() -> None:
    outcome = EEG.clear(ONE, tolerance=1e-9, seed=0)
    dear = with_values(outcome, prices=figures(outcome, "prices")[0] * 1.5)
    with pytest.raises(RefusedInputError, match="x"):
        payments(ONE, dear, [Wei(100), Wei(200)])
