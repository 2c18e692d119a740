from __future__ import annotations

import contextlib
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.division import (
    Division,
    Settlement,
    divide,
    settle_in_wei,
)
from broker_node.mechanisms.reading import as_written
from broker_node.mechanisms.shapley_values import replication_robust
from broker_node.mechanisms.transfers import largest_remainder
from node.protocol.types import UINT256_MAX, Wei

Floats = npt.NDArray[np.float64]
ETHER = Wei(10**18)
value = st.floats(0, 1, allow_subnormal=False)


def shared(game: Floats) -> Division:
    parties = len(game).bit_length() - 1
    alone = game[1 << np.arange(parties)]
    psi = replication_robust(game)
    return divide(alone, np.full(parties, game[-1]), psi[None, :], alone[None, :])


def of_own_tasks(tasks: Floats) -> Division:
    own = np.arange(len(tasks))
    singles = tasks[:, 1 << own]
    return divide(singles[own, own], tasks[:, -1], replication_robust(tasks), singles)


def monotone(values: list[float]) -> Floats:
    game = np.array(values)
    for party in range(len(game).bit_length() - 1):
        halves = game.reshape(-1, 2, 1 << party)
        halves[:, 1] = np.maximum(halves[:, 0], halves[:, 1])
    return game


pools = st.integers(1, 5).flatmap(
    lambda parties: st.lists(value, min_size=1 << parties, max_size=1 << parties)
)


@given(
    values=pools,
    grows=st.booleans(),
    unit=st.integers(0, 10**24),
    entry=st.integers(0, 10**20),
)
def test_wei_in_are_wei_out(values: list[float], grows: bool, unit: int, entry: int) -> None:
    division = shared(monotone(values) if grows else np.array(values))
    psi_below_zero = (division.psi < 0).any()
    with contextlib.suppress(RefusedInputError) if psi_below_zero else contextlib.nullcontext():
        conserved(settle_in_wei(division, unit=Wei(unit), entry=Wei(entry)), division, entry)
    assert not (grows and psi_below_zero)


def conserved(settled: Settlement, division: Division, entry: int) -> None:
    assert sum(settled.fee) == sum(settled.returned) + settled.kept
    assert sum(settled.payout) == sum(settled.owed)
    assert min(settled.returned) >= 0
    assert settled.kept == entry * len(settled.fee)
    assert settled.pooled == (division.reason is None)
    if not settled.pooled:
        assert settled.returned == tuple(fee - entry for fee in settled.fee)


@given(tasks=st.lists(st.lists(value, min_size=8, max_size=8), min_size=3, max_size=3))
def test_wei_in_are_wei_out_with_several_tasks(tasks: list[list[float]]) -> None:
    division = of_own_tasks(np.array([monotone(task) for task in tasks]))
    settled = settle_in_wei(division, unit=ETHER)
    assert sum(settled.fee) == sum(settled.returned) + settled.kept
    assert sum(settled.payout) == sum(settled.owed)


@given(values=pools, unit=st.integers(1, 10**24))
def test_nobody_pays_more_than_its_gain_and_payouts_are_within_a_wei_of_their_share(
    values: list[float], unit: int
) -> None:
    division = shared(monotone(values))
    assume(division.reason is None)
    settled = settle_in_wei(division, unit=Wei(unit))
    psi = [Fraction(float(one)) for one in division.psi[0]]
    for party, (owed, payout) in enumerate(zip(settled.owed, settled.payout, strict=True)):
        exact = as_written(division.pooled[party]) - as_written(division.alone[party])
        assert exact * unit - 1 < owed <= exact * unit
        fee = (1 - as_written(division.alone[party])) * unit
        assert fee <= settled.fee[party] < fee + 1
        assert abs(payout - Fraction(sum(settled.owed)) * psi[party] / sum(psi)) < 1


def test_the_wei_are_those_of_the_division() -> None:
    division = shared(np.array([0, 0.5, 0.75, 1]))
    settled = settle_in_wei(division, unit=Wei(1000), entry=Wei(7))
    # a = ½ + ¼; v(M) = 1 + ½ + ¼, ψ = ½ + ¼, ¾ + ¼
    assert settled.fee == (507, 257)
    assert settled.owed == (500, 250)
    assert settled.payout == (321, 429)
    assert settled.returned == (321, 429)
    assert settled.kept == 14


def test_equal_parties_share_what_does_not_divide_from_the_first_on() -> None:
    thirds = [Fraction(10, 3)] * 3
    assert largest_remainder(thirds, 10) == [4, 3, 3]
    assert largest_remainder([Fraction(-1, 2), Fraction(1, 2)], 0) == [0, 0]
    with pytest.raises(RefusedInputError, match="total: 12 is not the sum"):
        largest_remainder([Fraction(1), Fraction(2)], 12)


@given(
    parts=st.lists(st.fractions(-100, 100), min_size=1, max_size=8), total=st.integers(-500, 500)
)
def test_largest_remainder_sums_to_the_total_and_moves_nobody_by_a_whole_unit(
    parts: list[Fraction], total: int
) -> None:
    amounts = [*parts, total - sum(parts, Fraction(0))]
    whole = largest_remainder(amounts, total)
    assert sum(whole) == total
    assert all(abs(w - a) < 1 for w, a in zip(whole, amounts, strict=True))


def test_a_party_that_pooling_hurts_gets_more_back_than_it_deposited() -> None:
    settled = settle_in_wei(shared(np.array([0, 0.25, 0.875, 0.75])), unit=Wei(1000))
    assert settled.owed == (500, -125)
    assert settled.returned[1] > settled.fee[1]
    assert sum(settled.returned) == sum(settled.fee)


def test_a_pool_that_is_off_refunds_all_but_the_entry() -> None:
    settled = settle_in_wei(shared(np.array([0, 0.5, 0.5, 0.5])), unit=Wei(1000), entry=Wei(9))
    assert not settled.pooled
    assert settled.fee == (509, 509)
    assert settled.returned == (500, 500)
    assert settled.kept == 18


def test_a_party_that_owes_more_than_its_fee_is_refused_by_name() -> None:
    # party 2 spoils every pair that it joins, and deposits a fifth
    division = shared(np.array([0, 0.7, 0.9, 0.9, 0.8, 0.1, 0.1, 1.0]))
    assert division.psi[0, 2] < 0
    with pytest.raises(RefusedInputError, match=r"psi\[2\]: is negative, and the fee lacks"):
        settle_in_wei(division, unit=ETHER)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"unit": -1}, "unit"),
        ({"unit": UINT256_MAX + 1}, "unit"),
        ({"unit": UINT256_MAX, "ceiling": 9.0}, "unit"),
        ({"unit": 1, "entry": -1}, "entry"),
        ({"unit": 1, "ceiling": 0.5}, "ceiling"),
        ({"unit": 1, "ceiling": float("nan")}, "ceiling"),
    ],
)
def test_bad_money_is_refused_under_its_field(arguments: dict[str, int], field: str) -> None:
    with pytest.raises(RefusedInputError) as refused:
        settle_in_wei(shared(np.array([0, 0.5, 0.75, 1])), **arguments)  # type: ignore[arg-type]
    assert refused.value.field == field


def test_a_decimal_performance_loses_no_wei_on_its_way() -> None:
    # 0.3 - 0.1 as stored is under 0.2, and 1 - 0.7 is over 0.3
    alone, psi = np.array([0.1, 0.7]), np.array([[0.5, 0.5]])
    division = divide(alone, np.array([0.3, 0.9]), psi, alone[None, :])
    settled = settle_in_wei(division, unit=Wei(10))
    assert settled.fee == (9, 3)
    assert settled.owed == (2, 2)
