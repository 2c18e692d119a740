"""The baselines of the weight market: proportional shares, most welfare, leximin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from broker_node.mechanisms.base import Json, Outcome, RefusedInputError, Status
from broker_node.mechanisms.eeg import ExtendedEisenbergGale
from broker_node.mechanisms.max_min import MAX_EDGES, MaxMin
from broker_node.mechanisms.proportional import Proportional
from broker_node.mechanisms.registry import MECHANISMS
from broker_node.mechanisms.social_welfare import SocialWelfare
from broker_node.mechanisms.weight_market.market import read
from broker_node.mechanisms.weight_market.metrics import (
    envy_freeness_index,
    proportional_fairness_index,
    sharing_incentive_index,
    utility_of,
)
from tests.mechanisms.weight_markets import (
    array,
    figures,
    limits_of,
    random_market,
    weight_markets,
    with_values,
)

PROPORTIONAL, WELFARE, MAX_MIN = Proportional(), SocialWelfare(), MaxMin()
BASELINES = (PROPORTIONAL, WELFARE, MAX_MIN)


def clear(mechanism: Any, market: dict[str, Json]) -> Outcome:
    outcome: Outcome = mechanism.clear(market, tolerance=1e-9, seed=0)
    return outcome


def utilities(mechanism: Any, market: dict[str, Json]) -> np.ndarray:
    return figures(clear(mechanism, market), "utility")[0]


def market_of(demand: Any, budget: Any, capacity: Any, limits: Any = None) -> dict[str, Json]:
    return {"demand": demand, "budget": budget, "capacity": capacity, "max_utility": limits}


def test_every_mechanism_of_the_weight_market_is_registered() -> None:
    names = {"eeg", "eg", "proportional", "social-welfare", "max-min"}
    assert names <= set(MECHANISMS)


# ---------------------------------------------------------------- closed form

# one good; buyer 0 needs twice as much of it as buyer 1
UNEQUAL = market_of([[[2.0]], [[1.0]]], [3.0, 1.0], [[1.0]])


def test_shares_by_budget_are_of_every_good() -> None:
    assert utilities(PROPORTIONAL, UNEQUAL) == pytest.approx([0.375, 0.25])
    limited: dict[str, Json] = {**UNEQUAL, "max_utility": [0.1, None]}
    assert utilities(PROPORTIONAL, limited) == pytest.approx([0.1, 0.25])


def test_most_welfare_goes_to_whom_it_takes_least_for() -> None:
    assert utilities(WELFARE, UNEQUAL) == pytest.approx([0.0, 1.0], abs=1e-9)
    limited: dict[str, Json] = {**UNEQUAL, "max_utility": [None, 0.5]}
    assert utilities(WELFARE, limited) == pytest.approx([0.25, 0.5])


def test_the_poorest_have_as_much_as_can_be() -> None:
    assert utilities(MAX_MIN, UNEQUAL) == pytest.approx([1 / 3, 1 / 3])


def test_leximin_goes_on_after_the_first_level() -> None:
    # the paper's words stop at the lowest utility, and would leave buyers 1 and 2 open
    market = market_of(
        [[[1.0], [0.0]], [[0.0], [1.0]], [[0.0], [1.0]]],
        [1.0] * 3,
        [[1.0], [10.0]],
        [None, 4.0, None],
    )
    assert utilities(MAX_MIN, market) == pytest.approx([1.0, 4.0, 6.0])
    levels: Any = clear(MAX_MIN, market).values["levels"]
    assert [level["utility"] for level in levels] == pytest.approx([1.0, 4.0, 6.0])


def test_who_is_saturated_leaves_the_rest_to_the_others() -> None:
    market = market_of([[[1.0]]] * 3, [1.0] * 3, [[3.0]], [0.5, None, None])
    assert utilities(MAX_MIN, market) == pytest.approx([0.5, 1.25, 1.25])


# ---------------------------------------------------------------- laws


@settings(max_examples=12)
@given(market=weight_markets(most=3))
def test_nothing_is_overdrawn_no_money_moves_and_the_proof_holds(market: dict[str, Json]) -> None:
    for mechanism in BASELINES:
        outcome = clear(mechanism, market)
        x, prices, surplus = figures(outcome, "x", "prices", "surplus")
        taken = (x[:, :, None] * array(market["demand"])).sum(axis=0)
        assert (taken <= array(market["capacity"])).all()
        assert (x.sum(axis=1) <= limits_of(market)).all()
        assert x.min() >= 0
        assert not prices.any()
        assert surplus.tolist() == market["budget"]
        assert outcome.status is Status.TRADE
        certificate = mechanism.verify(market, outcome)
        assert certificate.valid, (mechanism.name, certificate.violations)


@settings(max_examples=12)
@given(market=weight_markets(most=3))
def test_each_is_best_at_what_it_aims_at(market: dict[str, Json]) -> None:
    outcomes = {one.name: utilities(one, market) for one in BASELINES}
    equilibrium = ExtendedEisenbergGale().clear(market, tolerance=1e-9, seed=0)
    outcomes["eeg"] = figures(equilibrium, "utility")[0]
    most = max(utility.sum() for utility in outcomes.values())
    highest = max(utility.min() for utility in outcomes.values())
    assert outcomes["social-welfare"].sum() >= most * (1 - 1e-6)
    assert outcomes["max-min"].min() >= highest * (1 - 1e-6)
    known = read(market)
    x = figures(clear(PROPORTIONAL, market), "x")[0]
    assert envy_freeness_index(known, x) >= 1 - 1e-9
    assert sharing_incentive_index(known, x) == pytest.approx(np.ones(len(x)))


@pytest.mark.parametrize("mechanism", BASELINES, ids=lambda one: one.name)
def test_another_allocation_is_not_confirmed(mechanism: Any) -> None:
    market = random_market(5, 4, 2, 5)
    outcome = clear(mechanism, market)
    x, utility = figures(outcome, "x", "utility")
    assert mechanism.verify(market, outcome).valid
    less = with_values(outcome, x=x * 0.99, utility=utility * 0.99)
    assert not mechanism.verify(market, less).valid
    more = with_values(outcome, x=x * 1.01, utility=utility * 1.01)
    assert not mechanism.verify(market, more).valid
    assert not mechanism.verify(market, with_values(outcome, utility=utility * 1.01)).valid
    with pytest.raises(RefusedInputError, match="x: must be a list"):
        mechanism.verify(market, with_values(outcome, x="all"))
    # the worst forgery of an allocation that is another rule's: feasible, and well stated
    other = clear(WELFARE if mechanism is not WELFARE else PROPORTIONAL, market)
    x, utility = figures(other, "x", "utility")
    assert not mechanism.verify(market, with_values(outcome, x=x, utility=utility)).valid


def test_a_level_that_stops_too_early_is_not_confirmed() -> None:
    market = market_of([[[2.0]], [[1.0]]], [1.0, 1.0], [[1.0]])
    outcome = clear(MAX_MIN, market)
    levels: Any = outcome.values["levels"]
    assert len(levels) == 1
    lower = {**levels[0], "utility": 0.3}
    x = np.array([[0.3], [0.3]])
    forged = with_values(outcome, x=x, utility=x[:, 0], levels=[lower])
    assert MAX_MIN.verify(market, forged).violations["gap"] > 0.1
    # nor is a level whose buyers are not those of whom it is proved
    for change, field in (
        ({"buyers": [9]}, "levels[0].buyers"),
        ({"weights": [1.0]}, "levels[0].weights"),
        ({"utility": None}, "levels[0].utility"),
    ):
        with pytest.raises(RefusedInputError) as refused:
            MAX_MIN.verify(market, with_values(outcome, levels=[{**levels[0], **change}]))
        assert refused.value.field == field
    unproved = {**levels[0], "weights": [0.0, 0.0]}
    assert not MAX_MIN.verify(market, with_values(outcome, levels=[unproved])).valid


@pytest.mark.parametrize("seed", range(2))
def test_most_welfare_and_the_first_level_are_those_of_cvxpy(seed: int) -> None:
    cvxpy = pytest.importorskip("cvxpy", reason="CVXPY is not installed")
    market = random_market(8, 6, 2, seed)
    known = read(market)
    x = cvxpy.Variable(known.edge_SJ.shape, nonneg=True)
    utility = cvxpy.sum(x, axis=1)
    finite = np.flatnonzero(np.isfinite(known.limit_S))
    held = [
        cvxpy.sum(cvxpy.multiply(known.demand_SJR[:, :, r], x), axis=0) <= known.capacity_JR[:, r]
        for r in range(2)
    ] + [utility[finite] <= known.limit_S[finite]]
    most = cvxpy.Problem(cvxpy.Maximize(cvxpy.sum(utility)), held).solve(solver=cvxpy.CLARABEL)
    assert utilities(WELFARE, market).sum() == pytest.approx(most, rel=1e-5)
    lowest = cvxpy.Problem(cvxpy.Maximize(cvxpy.min(utility)), held).solve(solver=cvxpy.CLARABEL)
    assert utilities(MAX_MIN, market).min() == pytest.approx(lowest, rel=1e-5)


def test_max_min_refuses_a_market_of_too_many_pairs() -> None:
    side = int(MAX_EDGES**0.5) + 1
    market = market_of([[[1.0]] * side] * side, [1.0] * side, [[1.0]] * side)
    assert MAX_MIN.validate(market)[0].field == "demand"


# ---------------------------------------------------------------- measures of fairness


def test_a_bundle_is_worth_what_its_scarcest_type_allows() -> None:
    known = read(market_of([[[2.0, 1.0], [1.0, 0.0]]], [1.0], [[9.0, 9.0]] * 2, [3.5]))
    assert utility_of(known, 0, np.array([[2.0, 5.0], [1.5, 0.0]])) == pytest.approx(2.5)
    assert utility_of(known, 0, np.array([[8.0, 5.0], [1.5, 0.0]])) == pytest.approx(3.5)


def test_envy_is_of_what_another_has_for_its_budget() -> None:
    known = read(market_of([[[1.0]]] * 2, [1.0, 2.0], [[3.0]]))
    assert envy_freeness_index(known, np.array([[1.0], [2.0]])) == pytest.approx(1)
    assert envy_freeness_index(known, np.array([[0.5], [2.0]])) == pytest.approx(0.5)
    assert envy_freeness_index(known, np.array([[1.0], [0.5]])) == pytest.approx(0.25)


def test_fairness_is_a_share_of_everything_and_a_multiple_of_ones_own() -> None:
    known = read(market_of([[[1.0]]] * 2, [1.0, 2.0], [[3.0]], [2.0, None]))
    x = np.array([[0.5], [2.5]])
    assert proportional_fairness_index(known, x) == pytest.approx([0.25, 2.5 / 3])
    assert sharing_incentive_index(known, x) == pytest.approx([0.5, 1.25])


@pytest.mark.parametrize("mechanism", BASELINES, ids=lambda one: one.name)
def test_budgets_a_world_apart_leave_the_optimum_proved(mechanism: Any) -> None:
    demand = [[[1.0, 2.0], [2.0, 1.0]], [[2.0, 1.0], [1.0, 3.0]]]
    market = market_of(demand, [1.0, 1e18], [[1.0, 1.0], [2.0, 1.0]], [None, 0.4])
    certificate = mechanism.verify(market, clear(mechanism, market))
    assert certificate.valid, certificate.violations


@pytest.mark.parametrize("weights", [[-1.0, 1.0], [0.0, 0.0], [1e-320, -1.0]])
def test_weights_that_prove_nothing_are_no_crash(weights: Any) -> None:
    market = market_of([[[2.0]], [[1.0]]], [1.0, 1.0], [[1.0]])
    outcome = clear(MAX_MIN, market)
    levels: Any = outcome.values["levels"]
    forged = with_values(outcome, levels=[{**levels[0], "weights": weights}])
    assert not MAX_MIN.verify(market, forged).valid


@pytest.mark.parametrize("spread", [1e6, 1e9, 1e11])
def test_the_poorest_have_as_much_however_much_less_the_others_need(spread: float) -> None:
    """Both have 1 over what both need together, as the plain sum has it."""
    needs = np.array([spread**-0.5, spread**0.5])
    market = market_of(needs[:, None, None].tolist(), [1.0, 1.0], [[1.0]])
    outcome = clear(MAX_MIN, market)
    assert figures(outcome, "utility")[0] == pytest.approx([1 / needs.sum()] * 2, rel=1e-6)
    assert MAX_MIN.verify(market, outcome).valid


def test_needs_too_far_apart_to_be_told_are_refused_by_name() -> None:
    market = market_of([[[1e-12]], [[1e12]]], [1.0, 1.0], [[1.0]])
    assert [issue.field for issue in MAX_MIN.validate(market)] == ["demand"]
    with pytest.raises(RefusedInputError, match=r"demand.*1e\+24 times apart"):
        clear(MAX_MIN, market)
