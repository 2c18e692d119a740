from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.mechanisms.base import Claim, Json, Status
from broker_node.mechanisms.procurement import Procurement
from tests.mechanisms.judged import (
    cleared,
    floats,
    indices,
    needs_every_figure,
    refuses,
    rejected,
    unchecked,
)

BUY = Procurement()
cost = st.floats(0, 10) | st.integers(0, 5).map(float)
value = st.floats(0.1, 10) | st.integers(0, 5).map(float)
sellers = st.lists(st.tuples(cost, value), min_size=1, max_size=8)
budgets = st.floats(0, 40)


def market(offers: list[tuple[float, float]], budget: float) -> dict[str, Json]:
    return {"cost": [c for c, _ in offers], "value": [v for _, v in offers], "budget": budget}


def bought(offers: list[tuple[float, float]], budget: float) -> tuple[list[int], list[float]]:
    values = cleared(BUY, market(offers, budget)).values
    return indices(values["winners"]), floats(values["payment"])


def retold(offers: list[tuple[float, float]], budget: float, who: int, told: float) -> float | None:
    """Return what a seller is paid that tells another cost, None where it does not win."""
    others = [*offers[:who], (told, offers[who][1]), *offers[who + 1 :]]
    values = unchecked(BUY, market(others, budget)).values
    return floats(values["payment"])[who] if who in indices(values["winners"]) else None


def test_three_of_four_are_bought_each_at_its_critical_bid() -> None:
    # shares 10/1, 10/2, 10/3; the fourth at 4 > 10/4 is left, and 10/3 < 4 binds
    winners, payment = bought([(1, 1), (2, 1), (3, 1), (4, 1)], 10)
    assert winners == [0, 1, 2]
    assert payment == pytest.approx([10 / 3, 10 / 3, 10 / 3, 0])


def test_the_first_loser_bounds_what_winners_are_paid() -> None:
    winners, payment = bought([(1, 2), (1.5, 1), (5, 1)], 4)
    assert winners == [0]
    assert payment == [3, 0, 0]  # 2·1.5/1, under the whole budget of 4


@given(offers=sellers, budget=budgets)
def test_nobody_loses_and_the_budget_holds(
    offers: list[tuple[float, float]], budget: float
) -> None:
    winners, payment = bought(offers, budget)
    assert sum(payment) <= budget * (1 + 1e-12)
    for index, (asked, _) in enumerate(offers):
        assert payment[index] >= asked if index in winners else payment[index] == 0


@given(offers=sellers, budget=budgets, lie=st.floats(0, 15), who=st.integers(0, 7))
def test_no_seller_gains_by_another_cost(
    offers: list[tuple[float, float]], budget: float, lie: float, who: int
) -> None:
    who %= len(offers)
    true_cost, _ = offers[who]

    def utility(told: float) -> float:
        paid = retold(offers, budget, who, told)
        return 0.0 if paid is None else paid - true_cost

    honest = utility(true_cost)
    assert utility(lie) <= honest + 1e-9
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert utility(true_cost * factor) <= honest + 1e-9


@settings(max_examples=30)
@given(offers=sellers, budget=st.floats(0.5, 40))
def test_each_payment_is_the_highest_bid_that_still_wins(
    offers: list[tuple[float, float]], budget: float
) -> None:
    winners, payment = bought(offers, budget)
    for winner in winners:
        wins, loses = offers[winner][0], budget + 1.0
        for _ in range(60):
            middle = (wins + loses) / 2
            if retold(offers, budget, winner, middle) is not None:
                wins = middle
            else:
                loses = middle
        assert payment[winner] == pytest.approx(wins, rel=1e-9, abs=1e-9)


def test_more_could_have_been_bought_so_efficiency_is_not_claimed() -> None:
    winners, _ = bought([(1, 1), (9, 5)], 10)
    assert winners == [0]  # though both together cost no more than the budget
    assert Claim.PARETO not in BUY.claims


@pytest.mark.parametrize("unit", [2.0**-1022, 2.0**-1074, 2.0**300])
def test_in_whatever_unit_values_are_the_same_is_bought_for_the_same(unit: float) -> None:
    offers = [(1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0)]
    assert bought([(c, v * unit) for c, v in offers], 10) == bought(offers, 10)


def test_data_that_is_worth_nothing_is_not_bought() -> None:
    assert bought([(0, 0), (1, 1)], 5) == ([1], [0, 5])
    outcome = cleared(BUY, {"cost": [0], "value": [0], "budget": 5})
    assert outcome.status is Status.NO_TRADE


def test_without_a_budget_only_what_is_free_is_bought() -> None:
    assert bought([(0, 1), (1, 1)], 0) == ([0], [0, 0])


def test_many_sellers_are_cleared_and_checked() -> None:
    generator = np.random.Generator(np.random.Philox(4))
    drawn = generator.uniform(0.1, 1, (2, 5_000)).tolist()
    outcome = cleared(BUY, {"cost": drawn[0], "value": drawn[1], "budget": 300})
    assert outcome.status is Status.TRADE


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"payment": [3.3, 3.3, 3.3, 0]}, "critical_bid"),
        ({"payment": [3.4, 3.4, 3.4, 0]}, "budget"),
        ({"payment": [1, 2, 2.5, 0]}, "individual_rationality"),
        ({"payment": [10 / 3, 10 / 3, 10 / 3, 1]}, "losers_paid"),
        ({"winners": [0, 1]}, "winners"),
        ({"winners": []}, "status"),
    ],
)
def test_another_outcome_is_not_confirmed(change: dict[str, Json], broken: str) -> None:
    assert broken in rejected(BUY, market([(1, 1), (2, 1), (3, 1), (4, 1)], 10), change)


def test_each_figure_must_be_stated() -> None:
    needs_every_figure(BUY, market([(1, 1), (2, 1)], 10))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cost": []}, "cost"),
        ({"cost": [1]}, "value"),
        ({"cost": [1, -2]}, "cost[1]"),
        ({"cost": [1, float("nan")]}, "cost[1]"),
        ({"cost": [[1], [2]]}, "cost[0]"),
        ({"value": [1, 1e200]}, "value[1]"),
        ({"value": "12"}, "value"),
        ({"budget": -1}, "budget"),
        ({"budget": None}, "budget"),
        ({"price": 1}, "price"),
    ],
)
def test_a_refused_input_names_its_field(change: dict[str, Json], field: str) -> None:
    refuses(BUY, {"cost": [1, 2], "value": [1, 1], "budget": 3, **change}, field)
