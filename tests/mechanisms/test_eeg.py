"""The extended Eisenberg–Gale market, against answers known in closed form and its own laws."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.mechanisms.base import Json, Outcome, Status
from broker_node.mechanisms.eeg import ExtendedEisenbergGale
from broker_node.mechanisms.eg import EisenbergGale
from broker_node.mechanisms.weight_market.market import read
from broker_node.mechanisms.weight_market.metrics import (
    envy_freeness_index,
    proportional_fairness_index,
    sharing_incentive_index,
)
from tests.mechanisms.weight_markets import (
    array,
    figures,
    limits_of,
    random_market,
    stated_anew,
    weight_markets,
    with_values,
)

EEG, EG = ExtendedEisenbergGale(), EisenbergGale()


def clear(market: dict[str, Json], tolerance: float = 1e-9) -> Outcome:
    return EEG.clear(market, tolerance=tolerance, seed=0)


def market_of(demand: Any, budget: Any, capacity: Any, limits: Any = None) -> dict[str, Json]:
    return {"demand": demand, "budget": budget, "capacity": capacity, "max_utility": limits}


# ---------------------------------------------------------------- answers in closed form


def test_one_buyer_and_one_seller_trade_everything_for_the_whole_budget() -> None:
    outcome = clear(market_of([[[2.0]]], [3.0], [[5.0]]))
    x, prices, utility, surplus = figures(outcome, "x", "prices", "utility", "surplus")
    assert (x[0, 0], utility[0]) == pytest.approx((2.5, 2.5))
    assert prices[0, 0] == pytest.approx(0.6)
    assert surplus[0] == pytest.approx(0, abs=1e-9)
    assert outcome.status is Status.TRADE


def test_equal_buyers_of_equal_sellers_get_equal_shares() -> None:
    utility, prices = figures(
        clear(market_of([[[1.0, 1.0]] * 3] * 4, [1.0] * 4, [[1.0, 1.0]] * 3)), "utility", "prices"
    )
    assert utility == pytest.approx([0.75] * 4)
    assert prices.sum(axis=1) == pytest.approx([4 / 3] * 3)


def test_utility_of_one_good_is_in_proportion_to_budgets_as_the_objective_has_them() -> None:
    # the objective as Proposition 2 prints it, Σ log u without B, would halve it
    (utility,) = figures(clear(market_of([[[1.0]]] * 2, [3.0, 1.0], [[1.0]])), "utility")
    assert utility == pytest.approx([0.75, 0.25])


def test_a_limit_is_on_what_a_buyer_takes_of_all_sellers_together() -> None:
    # (6c) as printed holds for every seller, and would let this buyer have 2
    market = market_of([[[1.0], [1.0]]], [1.0], [[1.0], [1.0]], [1.0])
    outcome = clear(market)
    assert figures(outcome, "utility")[0] == pytest.approx([1.0])
    greedy = stated_anew(market, outcome, x=np.array([[1.0, 1.0]]))
    assert EEG.verify(market, greedy).violations["limit"] > 0.9


def test_two_buyers_may_together_take_more_of_a_seller_than_either_may_have() -> None:
    # (6c) as printed would hold the two together to a limit of 1
    (utility,) = figures(
        clear(market_of([[[1.0]]] * 2, [1.0, 1.0], [[9.0]], [1.0, 1.0])), "utility"
    )
    assert utility == pytest.approx([1.0, 1.0])


def test_everybody_saturated_pays_nothing_and_keeps_the_budget() -> None:
    outcome = clear(market_of([[[1.0], [2.0]]] * 2, [3.0, 5.0], [[4.0], [4.0]], [1.0, 1.5]))
    utility, prices, surplus = figures(outcome, "utility", "prices", "surplus")
    assert utility == pytest.approx([1.0, 1.5])
    assert prices == pytest.approx(np.zeros((2, 1)), abs=1e-9)
    assert surplus == pytest.approx([3.0, 5.0])


def test_a_saturated_buyer_pays_for_what_it_takes_and_keeps_the_rest() -> None:
    # μ·u = B − Σ_j x_sj b_sj = 0.5; as printed, B − Σ_j b_sj, it would keep 0.75
    market = market_of([[[1.0]]] * 2, [1.0, 1.0], [[6.0]], [2.0, None])
    outcome = clear(market)
    utility, prices, surplus = figures(outcome, "utility", "prices", "surplus")
    assert utility == pytest.approx([2.0, 4.0])
    assert prices[0, 0] == pytest.approx(0.25)
    assert surplus == pytest.approx([0.5, 0.0], abs=1e-9)
    printed = with_values(outcome, surplus=[0.75, 0.75])
    assert EEG.verify(market, printed).violations["surplus"] > 0.2


def test_a_limit_on_one_buyer_can_cost_another_where_there_are_two_types() -> None:
    # the paper has EEG at least as good as EG for every buyer; buyer 2 falls from 2/3 to 1/2,
    # as buyer 1 gets the first type that buyer 0 cannot use, and with it takes of the second
    market = market_of(
        [[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 1.0]]], [1.0] * 3, [[1.0, 1.0]], [0.05, None, None]
    )
    with_limits = figures(clear(market), "utility")[0]
    without = figures(EG.clear(market, tolerance=1e-9, seed=0), "utility")[0]
    assert with_limits == pytest.approx([0.05, 1 / 2, 1 / 2])
    assert without == pytest.approx([0.05, 1 / 3, 2 / 3])
    assert with_limits.sum() >= without.sum() - 1e-9


def test_without_limits_eg_keeps_the_fixed_proportions_of_a_purchase() -> None:
    # the paper drops (6b) from EG as well; a buyer of two types would then not need both
    market = market_of([[[1.0, 4.0]]], [1.0], [[1.0, 1.0]])
    for mechanism in (EEG, EG):
        utility, x = figures(mechanism.clear(market, tolerance=1e-9, seed=0), "utility", "x")
        assert utility == pytest.approx([0.25])
        assert x == pytest.approx(np.array([[0.25]]))


def test_eg_sells_more_than_can_be_used_and_counts_what_is() -> None:
    market = market_of([[[1.0]]] * 2, [1.0, 1.0], [[6.0]], [2.0, None])
    outcome = EG.clear(market, tolerance=1e-9, seed=0)
    x, utility, surplus = figures(outcome, "x", "utility", "surplus")
    assert x[:, 0] == pytest.approx([3.0, 3.0])
    assert utility == pytest.approx([2.0, 3.0])
    assert surplus == pytest.approx([0.0, 0.0], abs=1e-9)
    assert EG.verify(market, outcome).valid


def test_a_seller_without_a_type_sells_none_to_those_who_need_it() -> None:
    market = market_of([[[1.0, 1.0], [1.0, 1.0]]], [1.0], [[0.0, 9.0], [1.0, 1.0]])
    outcome = clear(market)
    x, prices = figures(outcome, "x", "prices")
    assert x == pytest.approx(np.array([[0.0, 1.0]]))
    # what it has not got is dear enough for nobody to look for it there
    assert prices[0, 0] == pytest.approx(1.0)
    assert EEG.verify(market, outcome).valid


def test_null_demand_is_demand_for_nothing() -> None:
    one, other = (
        clear(market_of([[[1.0], nothing], [[1.0], [1.0]]], [1.0, 1.0], [[1.0], [1.0]]))
        for nothing in (None, [0.0])
    )
    assert one == other
    assert figures(one, "x")[0][0, 1] == 0


def test_a_larger_unit_of_capacity_changes_prices_and_no_utility() -> None:
    market = random_market(5, 4, 3, 1)
    scale = np.array([3.0, 0.1, 1.0, 50.0])[:, None]
    other = {
        **market,
        "demand": (array(market["demand"]) * scale).tolist(),
        "capacity": (array(market["capacity"]) * scale).tolist(),
    }
    utility, prices = figures(clear(market), "utility", "prices")
    utility_too, prices_too = figures(clear(other), "utility", "prices")
    assert utility_too == pytest.approx(utility, rel=1e-4)
    assert prices_too * scale == pytest.approx(prices, abs=1e-4)


# ---------------------------------------------------------------- ranges of prices


def test_prices_of_types_bought_only_together_are_known_as_a_sum() -> None:
    outcome = clear(market_of([[[1.0, 1.0]]], [2.0], [[1.0, 1.0]]))
    ranges = array(outcome.values["price_ranges"])
    assert figures(outcome, "prices")[0].sum() == pytest.approx(2.0)
    assert ranges == pytest.approx(np.array([[[0.0, 2.0], [0.0, 2.0]]]), abs=1e-5)


def test_a_buyer_just_saturated_pays_anything_up_to_its_budget() -> None:
    # what there is, is what it can use: any price from 0 to B/c clears the market
    outcome = clear(market_of([[[1.0]]], [2.0], [[4.0]], [4.0]))
    assert array(outcome.values["price_ranges"])[0, 0] == pytest.approx([0.0, 0.5], abs=1e-5)
    assert array(outcome.values["surplus_ranges"])[0] == pytest.approx([0.0, 2.0], abs=1e-5)


def test_unique_prices_have_ranges_that_are_points() -> None:
    outcome = clear(market_of([[[1.0]]] * 2, [3.0, 1.0], [[1.0]]))
    assert array(outcome.values["price_ranges"])[0, 0] == pytest.approx([4.0, 4.0])


def test_ranges_are_found_where_they_are_asked_for() -> None:
    market = market_of([[[1.0, 1.0]]], [2.0], [[1.0, 1.0]])
    assert clear({**market, "price_ranges": False}).values["price_ranges"] is None
    assert clear({**market, "price_ranges": True}).values["price_ranges"] is not None


# ---------------------------------------------------------------- laws


@settings(max_examples=30)
@given(market=weight_markets())
def test_budgets_capacities_and_limits_hold_and_the_certificate_is_confirmed(
    market: dict[str, Json],
) -> None:
    market = {**market, "price_ranges": False}
    outcome = clear(market)
    x, prices, utility, surplus = figures(outcome, "x", "prices", "utility", "surplus")
    demand, budget = array(market["demand"]), array(market["budget"])
    assert ((x[:, :, None] * demand).sum(axis=0) <= array(market["capacity"])).all()
    assert (x.sum(axis=1) <= limits_of(market)).all()
    assert ((x * (demand * prices).sum(axis=2)).sum(axis=1) <= budget).all()
    assert min(x.min(), prices.min(), surplus.min()) >= 0
    assert outcome.status is Status.TRADE
    certificate = EEG.verify(market, outcome)
    assert certificate.valid, certificate.violations
    # u < D ⇒ μ = 0: who is not saturated has spent its budget (Proposition 3, the other way)
    unspent = surplus[utility < limits_of(market) * (1 - 1e-3)]
    assert unspent.sum() <= 1e-3 * budget.sum()


@settings(max_examples=20)
@given(market=weight_markets())
def test_an_equilibrium_is_envy_free_and_gives_everybody_its_share(market: dict[str, Json]) -> None:
    x = figures(clear({**market, "price_ranges": False}), "x")[0]
    known = read(market)
    assert envy_freeness_index(known, x) >= 1 - 1e-3
    assert sharing_incentive_index(known, x).min() >= 1 - 1e-3
    shares = known.budget_S / known.budget_S.sum()
    assert (proportional_fairness_index(known, x) >= shares * (1 - 1e-3)).all()


@settings(max_examples=20)
@given(market=weight_markets(limits=False))
def test_without_limits_eeg_is_eg(market: dict[str, Json]) -> None:
    market = {**market, "price_ranges": False}
    ours = figures(clear(market), "utility")[0]
    theirs = EG.clear(market, tolerance=1e-9, seed=0)
    assert figures(theirs, "utility")[0] == pytest.approx(ours, rel=1e-3)
    assert EG.verify(market, theirs).valid


@settings(max_examples=20)
@given(market=weight_markets(), data=st.data())
def test_a_forged_outcome_is_not_confirmed(market: dict[str, Json], data: st.DataObject) -> None:
    market = {**market, "price_ranges": False}
    outcome = clear(market)
    x, prices = figures(outcome, "x", "prices")
    buyer = data.draw(st.integers(0, len(x) - 1))
    factor = data.draw(st.sampled_from([0.5, 0.9, 1.1, 2.0]))
    shifted = x.copy()
    shifted[buyer] *= factor
    budget = array(market["budget"])
    # consistent in itself, and no equilibrium any more
    forged = stated_anew(market, outcome, x=shifted)
    share = budget[buyer] / budget.sum()
    assert not EEG.verify(market, forged).valid or share < 1e-3
    assert not EEG.verify(market, with_values(outcome, x=shifted)).valid
    for key in ("utility", "surplus"):
        other = figures(outcome, key)[0].copy()
        other[buyer] += 0.01 * budget[buyer]
        assert not EEG.verify(market, with_values(outcome, **{key: other})).valid
    assert not EEG.verify(market, with_values(outcome, gap=-0.1 * budget.sum())).valid
    if prices.sum() > 1e-3 * budget.sum():
        dearer = stated_anew(market, outcome, prices=prices * 1.3)
        assert not EEG.verify(market, dearer).valid


@settings(max_examples=8)
@given(market=weight_markets(most=2, limits=True))
def test_no_allocation_on_a_grid_does_better(market: dict[str, Json]) -> None:
    outcome = clear({**market, "price_ranges": False})
    (utility,) = figures(outcome, "utility")
    demand, budget = array(market["demand"]), array(market["budget"])
    capacity, limits, known = array(market["capacity"]), limits_of(market), read(market)
    best = (budget * np.log(utility)).sum()
    buyers, sellers = known.edge_SJ.shape
    steps = np.linspace(0, 1, 7)
    for flat in itertools.product(steps, repeat=buyers * sellers):
        part = np.array(flat).reshape(buyers, sellers)
        with np.errstate(divide="ignore", invalid="ignore"):
            most = np.where(demand > 0, capacity / demand, np.inf).min(axis=2)
        x = np.where(known.edge_SJ, part * np.where(known.edge_SJ, most, 0), 0)
        over = ((x[:, :, None] * demand).sum(axis=0) > capacity * (1 + 1e-12)).any()
        if over or (x.sum(axis=1) > limits).any() or (x.sum(axis=1) == 0).any():
            continue
        assert (budget * np.log(x.sum(axis=1))).sum() <= best + 1e-6 * budget.sum()


@pytest.mark.parametrize("seed", range(4))
def test_utilities_are_those_of_cvxpy(seed: int) -> None:
    cvxpy = pytest.importorskip("cvxpy", reason="CVXPY is not installed")
    market = random_market(12, 7, 3, seed)
    known = read(market)
    x = cvxpy.Variable(known.edge_SJ.shape, nonneg=True)
    held = [
        cvxpy.sum(cvxpy.multiply(known.demand_SJR[:, :, r], x), axis=0) <= known.capacity_JR[:, r]
        for r in range(3)
    ]
    finite = np.flatnonzero(np.isfinite(known.limit_S))
    utility = cvxpy.sum(x, axis=1)
    problem = cvxpy.Problem(
        cvxpy.Maximize(known.budget_S @ cvxpy.log(utility)),
        [*held, utility[finite] <= known.limit_S[finite]],
    )
    problem.solve(solver=cvxpy.CLARABEL)
    outcome = clear(market)
    assert figures(outcome, "utility")[0] == pytest.approx(utility.value, rel=2e-3)
    ranges = array(outcome.values["price_ranges"])
    theirs = np.stack([one.dual_value for one in held], axis=1)
    slack = 1e-3 * known.budget_S.sum()
    assert (ranges[:, :, 0] - slack <= theirs).all()
    assert (theirs <= ranges[:, :, 1] + slack).all()


@pytest.mark.parametrize("shape", [(30, 20, 3), (60, 5, 2), (5, 60, 2), (40, 1, 3), (1, 40, 3)])
def test_markets_wider_and_longer_than_square_are_cleared_exactly(
    shape: tuple[int, int, int],
) -> None:
    market = random_market(*shape, 7)
    outcome = clear(market)
    assert outcome.status is Status.TRADE
    relative = outcome.values["relative_gap"]
    assert isinstance(relative, float)
    assert relative <= 1e-8
    assert EEG.verify(market, outcome).valid


def test_figures_many_orders_apart_are_cleared_or_called_approximate() -> None:
    generator = np.random.Generator(np.random.Philox(3))
    market = market_of(
        np.exp(generator.normal(size=(8, 6, 2)) * 8).tolist(),
        np.exp(generator.normal(size=8) * 6).tolist(),
        np.exp(generator.normal(size=(6, 2)) * 8).tolist(),
        [1e-9, 1e9] * 4,
    )
    outcome = clear(market)
    assert EEG.verify(market, outcome).valid
    assert json.loads(json.dumps(outcome.to_json(), allow_nan=False))["status"] == "trade"


def test_an_outcome_that_is_not_exact_is_called_approximate_and_must_say_how_much() -> None:
    market = random_market(6, 5, 2, 2)
    outcome = clear(market)
    x = figures(outcome, "x")[0]
    poor = stated_anew(market, outcome, x=x * 0.99)
    assert not EEG.verify(market, poor).valid
    admitted = Outcome(status=Status.APPROXIMATE, values=poor.values)
    assert EEG.verify(market, admitted).valid
    understated = with_values(admitted, gap=0.0)
    assert not EEG.verify(market, understated).valid


def test_what_is_sold_beyond_capacity_or_without_an_edge_is_named() -> None:
    market = market_of([[[1.0], [0.0]]], [1.0], [[2.0], [1.0]])
    outcome = clear(market)
    oversold = stated_anew(market, outcome, x=np.array([[3.0, 0.0]]))
    assert EEG.verify(market, oversold).violations["capacity"] == pytest.approx(0.5)
    stray = with_values(outcome, x=[[2.0, 0.1]])
    assert EEG.verify(market, stray).violations["no_edge"] == 1
    negative = with_values(outcome, prices=[[0.5], [-1.0]])
    assert EEG.verify(market, negative).violations["negative_price"] == 1


def test_a_coarse_tolerance_gives_an_approximate_outcome_that_says_so() -> None:
    market = {**random_market(6, 5, 2, 2), "price_ranges": False}
    outcome = clear(market, tolerance=0.1)
    relative = outcome.values["relative_gap"]
    assert isinstance(relative, float)
    assert 1e-6 < relative <= 0.1
    assert outcome.status is Status.APPROXIMATE
    assert EEG.verify(market, outcome).valid
    promoted = Outcome(status=Status.TRADE, values=outcome.values)
    assert not EEG.verify(market, promoted).valid
