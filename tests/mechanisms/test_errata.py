"""Where a formula of the papers is wrong as printed: what is right, and that it differs.

Each test computes the printed formula as well, and would fail if that were built instead.
"""

from __future__ import annotations

import math

import pytest

from broker_node.mechanisms.base import Json, Status
from broker_node.mechanisms.bayesian_ask import BayesianAsk
from broker_node.mechanisms.gain_bounds import GainBounds, gain_range
from broker_node.mechanisms.nash import Nash
from tests.mechanisms.judged import cleared, number

NASH, ASK, BOUNDS = Nash(), BayesianAsk(), GainBounds()


def bargain(a_own: float, a_other: float, b_own: float, b_other: float, **more: Json) -> Json:
    market: dict[str, Json] = {
        "v_a_own": a_own,
        "v_a_other": a_other,
        "v_b_own": b_own,
        "v_b_other": b_other,
        **more,
    }
    return cleared(NASH, market).to_json()


def ask(prior: dict[str, Json], **more: Json) -> float:
    market: dict[str, Json] = {"prior": prior, "support": None, "cost": 0, **more}
    return number(cleared(ASK, market).values["price"])


# ── Train 'n Trade, Eq. 1 ──


def test_a_trade_is_made_where_the_printed_box_of_prices_is_empty() -> None:
    # printed: P_a in [v_a(a), v_a(b)] = [3, 1] and P_b in [v_b(b), v_b(a)] = [0.5, 8]
    assert bargain(3, 1, 0.5, 8) == {
        "status": "trade",
        "legs": ["a", "b"],
        "net_transfer_to_a": (3 + 8) / 2 - (0.5 + 1) / 2,
        "utility_a": 2.75,
        "utility_b": 2.75,
    }


def test_in_the_optimal_scenario_the_one_that_gains_more_pays() -> None:
    # sellers value like their buyers: v_a(a) = v_b(a) = Δ_b = 5, v_b(b) = v_a(b) = Δ_a = 3
    outcome = bargain(5, 3, 3, 5)
    assert isinstance(outcome, dict)
    assert outcome["net_transfer_to_a"] == 5 - 3  # Δ_b − Δ_a; printed: Δ_a − Δ_b


def test_two_losses_are_no_bargain_though_their_product_is_positive() -> None:
    # Eq. 1 alone would have d = 3.5, gains of −0.5 each and a product of 0.25
    outcome = bargain(2, 0, 0, 5, legs=["a"], disagreement=[2, 2])
    assert outcome == {
        "status": "no_trade",
        "legs": [],
        "net_transfer_to_a": 0,
        "utility_a": 2,
        "utility_b": 2,
    }


def test_a_bad_leg_is_not_paid_for_by_a_good_one() -> None:
    outcome = bargain(4, 9, 1, 2)
    assert isinstance(outcome, dict)
    assert outcome["legs"] == ["b"]
    assert outcome["net_transfer_to_a"] == -(9 + 1) / 2  # Eq. 1 on both legs: −2


# ── Eq. 2 ──


def test_the_corner_is_compared_where_the_first_order_condition_has_no_use() -> None:
    # Eq. 2 on uniform [0.8, 1] has its root at 0.5, outside of the support
    assert ask({"kind": "uniform", "low": 0.8, "high": 1}) == 0.8
    # and none at all on Pareto: p = p/α
    assert ask({"kind": "pareto", "xm": 2, "alpha": 3}) == 2


def test_the_cost_and_the_cap_move_the_price() -> None:
    exponential: dict[str, Json] = {"kind": "exponential", "rate": 1}
    assert ask(exponential) == 1  # Eq. 2
    assert ask(exponential, cost=0.5) == 1.5
    capped = ask(exponential, support=[0, 2])
    assert capped == pytest.approx(1 - math.exp(capped - 2), rel=1e-12)
    assert capped < 0.9


def test_an_ask_that_is_averaged_with_the_bid_is_a_third_and_not_a_half() -> None:
    uniform: dict[str, Json] = {"kind": "uniform", "low": 0, "high": 1}
    assert ask(uniform) == 0.5
    assert ask(uniform, mode="split_difference", k=0.5) == pytest.approx(1 / 3, rel=1e-15)


# ── Theorem 4.1 ──


def printed(alpha: float, beta: float, delta_a: float) -> tuple[float, float]:
    root = math.sqrt(delta_a)
    term = root * (1 - alpha - beta + 2 * alpha * beta)
    lower = (1 - root * (1 - alpha)) / ((1 - beta) + term)
    upper = (1 + root * (1 - alpha)) / ((1 - beta) - term)
    return lower**2, upper**2


def test_the_printed_lower_bound_is_looser() -> None:
    alpha, beta, delta_a = 0.5, 0.3, 1.5
    lower, upper = gain_range(alpha, beta, delta_a)
    assert printed(alpha, beta, delta_a)[0] < lower / 5
    assert cleared(
        BOUNDS, {"alpha": alpha, "beta": beta, "delta_a": delta_a}
    ).values == pytest.approx({"lower": lower, "upper": upper, "exact": None}, nan_ok=True)


def test_the_printed_upper_bound_is_below_gains_that_happen() -> None:
    # its denominator is negative; these errors on one line have Δ_a = 9 and gain more
    alpha, beta = 0.2, 0.5
    own, merged = 3.0, 1.0
    theirs = (merged - (1 - alpha) * own) / alpha
    gained = (theirs / (beta * own + (1 - beta) * theirs)) ** 2
    assert own**2 / merged**2 == 9
    assert printed(alpha, beta, 9.0)[1] < gained
    lower, upper = gain_range(alpha, beta, 9.0)
    assert lower <= gained * (1 + 1e-12)
    assert gained <= upper * (1 + 1e-12)


def test_disclosing_the_gain_at_the_minimiser_discloses_the_buyers() -> None:
    outcome = cleared(BOUNDS, {"alpha": 0.25, "beta": 0.75, "delta_a": 1.5})
    assert outcome.status is Status.TRADE
    assert outcome.values["exact"] == 1 + 9 * 0.5
