from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broker_node.mechanisms.base import Claim, Json, Outcome, RefusedInputError, Status
from broker_node.mechanisms.nash import Nash
from tests.mechanisms.judged import cleared, needs_every_figure, rejected

NASH = Nash()
value = st.floats(-100, 100)
market = st.fixed_dictionaries(
    {"v_a_own": value, "v_a_other": value, "v_b_own": value, "v_b_other": value},
    optional={
        "tau": st.floats(0, 1),
        "disagreement": st.lists(st.floats(-5, 5), min_size=2, max_size=2),
        "budget": st.lists(st.none() | st.floats(0, 50), min_size=2, max_size=2),
        "legs": st.sampled_from([["a"], ["b"], ["a", "b"], []]),
        "fee": st.sampled_from([0, 0.02]) | st.floats(0, 0.9),
    },
)


def clear(inputs: dict[str, Json]) -> Outcome:
    return NASH.clear(inputs, tolerance=1e-9, seed=0)


def figures(outcome: Outcome) -> tuple[float, float, float]:
    read = [outcome.values[key] for key in ("net_transfer_to_a", "utility_a", "utility_b")]
    assert all(isinstance(figure, float | int) for figure in read)
    return float(read[0]), float(read[1]), float(read[2])  # type: ignore[arg-type]


def values(a_own: float, a_other: float, b_own: float, b_other: float) -> dict[str, Json]:
    return {"v_a_own": a_own, "v_a_other": a_other, "v_b_own": b_own, "v_b_other": b_other}


def test_one_leg_is_priced_at_the_midpoint_of_the_two_valuations() -> None:
    outcome = clear({**values(2, 0, 9, 10), "legs": ["a"]})
    assert outcome.to_json() == {
        "status": "trade",
        "legs": ["a"],
        "net_transfer_to_a": 6,
        "utility_a": 4,
        "utility_b": 4,
    }


@given(a_own=value, a_other=value, b_own=value, b_other=value)
def test_both_legs_at_their_own_midpoints_are_the_netted_bargain(
    a_own: float, a_other: float, b_own: float, b_other: float
) -> None:
    assume(b_other >= a_own and a_other >= b_own)
    transfer, utility_a, utility_b = figures(clear(values(a_own, a_other, b_own, b_other)))
    assert transfer == pytest.approx((a_own + b_other) / 2 - (b_own + a_other) / 2, abs=1e-9)
    assert utility_a == pytest.approx(utility_b, abs=1e-9)


def test_in_the_optimal_scenario_the_price_difference_has_the_sign_of_the_erratum() -> None:
    # sellers value what they sell as its buyer does: A pays with what B values, and gets less
    gain_a, gain_b = 3.0, 5.0
    transfer, _, _ = figures(clear(values(gain_b, gain_a, gain_a, gain_b)))
    assert transfer == pytest.approx(gain_b - gain_a)


def numbers(inputs: dict[str, Json], key: str, default: float) -> list[float]:
    """Return a list of the input as floats, `default` standing for null and for no list."""
    given_values = inputs.get(key, [default, default])
    assert isinstance(given_values, list)
    return [float(v) if isinstance(v, float | int) else default for v in given_values]


@pytest.mark.parametrize("tau", [0.0, 5e-324, 2.2250738585072014e-308, 1e-20, 1e-16, 1e-9, 1.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_share_too_small_to_be_paid_is_not_forgone(tau: float, mirrored: bool) -> None:
    own, other = ("v_b_own", "v_a_own") if mirrored else ("v_a_own", "v_b_own")
    inputs: dict[str, Json] = {own: -1.0, other: 0.0, "v_a_other": 0.0, "v_b_other": 0.0}
    inputs |= {"tau": 1 - tau if mirrored else tau, "fee": 0.02}
    assert NASH.verify(inputs, clear(inputs)).valid


@given(inputs=market)
def test_nobody_loses_and_the_certificate_holds(inputs: dict[str, Json]) -> None:
    outcome = clear(inputs)
    assert NASH.verify(inputs, outcome).valid
    of_a, of_b = numbers(inputs, "disagreement", 0)
    _, utility_a, utility_b = figures(outcome)
    assert utility_a >= of_a - 1e-9
    assert utility_b >= of_b - 1e-9


@given(inputs=market)
def test_no_transfer_on_a_grid_has_a_larger_product(inputs: dict[str, Json]) -> None:
    outcome = clear({**inputs, "tau": 0.5})
    if outcome.status is Status.NO_TRADE:
        return
    transfer, utility_a, utility_b = figures(outcome)
    of_a, of_b = numbers(inputs, "disagreement", 0)
    cash_a, cash_b = numbers(inputs, "budget", float("inf"))
    fee = inputs.get("fee", 0)
    assert isinstance(fee, float | int)
    left = 1 - fee
    product = (utility_a - of_a) * (utility_b - of_b)
    before_a = utility_a - (transfer * left if transfer > 0 else transfer)
    before_b = utility_b + (transfer if transfer > 0 else transfer * left)
    for step in range(-400, 401):
        other = step / 2
        gain_a = before_a + (other * left if other > 0 else other) - of_a
        gain_b = before_b - (other if other > 0 else other * left) - of_b
        if -cash_a <= other <= cash_b and gain_a >= 0 and gain_b >= 0:
            assert gain_a * gain_b <= product + 1e-6 * (1 + abs(product))


def test_a_bad_leg_is_dropped_and_not_netted_against_a_good_one() -> None:
    outcome = clear(values(5, 100, 1, 4))
    assert outcome.values["legs"] == ["b"]
    transfer, utility_a, utility_b = figures(outcome)
    assert (transfer, utility_a, utility_b) == (-50.5, 49.5, 49.5)


def test_a_leg_without_surplus_still_trades() -> None:
    outcome = clear({**values(7, 0, 0, 7), "legs": ["a"]})
    assert outcome.status is Status.TRADE
    assert figures(outcome) == (7, 0, 0)


def test_with_an_empty_zone_of_agreement_there_is_no_trade() -> None:
    # the raw product of two losses would have a maximum here
    outcome = clear({**values(1, 0, 0, 3), "legs": ["a"], "disagreement": [2, 2]})
    assert outcome.status is Status.NO_TRADE
    assert figures(outcome) == (0, 2, 2)


def test_a_buyer_without_money_pays_what_it_has() -> None:
    outcome = clear({**values(2, 0, 0, 10), "legs": ["a"], "budget": [None, 3]})
    assert figures(outcome) == (3, 1, 7)
    assert clear({**values(2, 0, 0, 10), "legs": ["a"], "budget": [None, 1]}).status is (
        Status.NO_TRADE
    )


def test_it_is_the_same_when_the_buyer_is_a() -> None:
    inputs: dict[str, Json] = {**values(0, 10, 2, 0), "legs": ["b"]}
    assert figures(clear(inputs)) == (-6, 4, 4)
    assert figures(clear({**inputs, "budget": [3, None]})) == (-3, 7, 1)


def test_bargaining_power_moves_the_price_between_the_two_ends() -> None:
    inputs: dict[str, Json] = {**values(2, 0, 0, 10), "legs": ["a"]}
    assert figures(clear({**inputs, "tau": 0}))[0] == 2
    assert figures(clear({**inputs, "tau": 1}))[0] == 10


def test_the_certificate_rejects_a_price_that_is_not_the_bargain() -> None:
    inputs: dict[str, Json] = {**values(2, 0, 0, 10), "legs": ["a"]}
    wrong = Outcome(
        status=Status.TRADE,
        values={"legs": ["a"], "net_transfer_to_a": 7.0, "utility_a": 5.0, "utility_b": 3.0},
    )
    certificate = NASH.verify(inputs, wrong)
    assert not certificate.valid
    assert certificate.violations["optimality"] > 0
    forgone = Outcome(
        status=Status.NO_TRADE,
        values={"legs": [], "net_transfer_to_a": 0.0, "utility_a": 0.0, "utility_b": 0.0},
    )
    assert not NASH.verify(inputs, forgone).valid


def test_a_misreport_can_pay_so_truthfulness_is_not_claimed() -> None:
    honest, _, _ = figures(clear({**values(2, 0, 0, 10), "legs": ["a"]}))
    boastful, _, _ = figures(clear({**values(6, 0, 0, 10), "legs": ["a"]}))
    assert boastful > honest
    assert Claim.INCENTIVE_COMPATIBILITY not in NASH.claims


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"v_a_own": "1"}, "v_a_own"),
        ({"v_a_own": True}, "v_a_own"),
        ({"v_b_own": float("nan")}, "v_b_own"),
        ({"v_b_own": 10**400}, "v_b_own"),
        ({"tau": 2}, "tau"),
        ({"legs": ["a", "a"]}, "legs"),
        ({"legs": [["a"]]}, "legs"),
        ({"legs": "a"}, "legs"),
        ({"budget": [-1, None]}, "budget[0]"),
        ({"budget": [1]}, "budget"),
        ({"disagreement": [None, 0]}, "disagreement[0]"),
        ({"v_a_other": 1e151}, "v_a_other"),
        ({"fee": 1}, "fee"),
        ({"fee": -0.1}, "fee"),
        ({"fee": None}, "fee"),
        ({"price": 1}, "price"),
    ],
)
def test_a_refused_input_names_its_field(change: dict[str, Json], field: str) -> None:
    inputs = {**values(1, 2, 3, 4), **change}
    assert [issue.field for issue in NASH.validate(inputs)] == [field]
    with pytest.raises(RefusedInputError):
        clear(inputs)


def test_a_missing_value_is_named() -> None:
    assert NASH.validate({"v_a_own": 1})[0].field == "v_a_other"
    assert NASH.validate(values(1, 2, 3, 4)) == []


def test_the_fee_is_inside_the_test_of_rationality() -> None:
    # at 10% A needs 9/0.9 = 10, all that its parameters are worth to B
    inputs: dict[str, Json] = {**values(9, 0, 0, 10), "legs": ["a"]}
    at_the_limit = clear({**inputs, "fee": 0.1})
    assert list(figures(at_the_limit)) == pytest.approx([10, 0, 0])
    assert at_the_limit.values["fee"] == pytest.approx(1)
    assert clear({**inputs, "fee": 0.11}).status is Status.NO_TRADE
    assert clear({**inputs, "fee": 0.05}).status is Status.TRADE


def test_a_swap_of_equals_pays_no_fee() -> None:
    outcome = clear({**values(1, 4, 1, 4), "fee": 0.3})
    assert figures(outcome) == (0, 3, 3)
    assert outcome.values["fee"] == 0


def test_of_a_price_and_its_fee_nothing_is_lost() -> None:
    transfer, utility_a, utility_b = figures(clear({**values(2, 0, 0, 12), "legs": ["a"]}))
    after = clear({**values(2, 0, 0, 12), "legs": ["a"], "fee": 0.2})
    paid, net_a, net_b = figures(after)
    assert (transfer, utility_a, utility_b) == (7, 5, 5)
    assert [paid, net_a, net_b] == pytest.approx([7.25, 3.8, 4.75])
    kept = after.values["fee"]
    assert isinstance(kept, float)
    assert net_a + net_b + kept == pytest.approx(10)  # all of the surplus


def test_with_a_fee_one_leg_can_be_worth_more_than_both() -> None:
    # leg A has no surplus, and at 10% its price alone would cost 1
    inputs = {**values(10, 0.6, 0, 10), "fee": 0.1}
    outcome = clear(inputs)
    assert outcome.values["legs"] == ["b"]
    assert clear({**inputs, "fee": 0}).values["legs"] == ["a", "b"]


@given(inputs=market)
def test_what_both_gain_and_the_fee_are_the_surplus_of_the_legs(inputs: dict[str, Json]) -> None:
    outcome = clear({**inputs, "fee": 0.25})
    legs, kept = outcome.values["legs"], outcome.values["fee"]
    assert isinstance(legs, list)
    assert isinstance(kept, float)
    _, utility_a, utility_b = figures(outcome)
    a_own, a_other, b_own, b_other = (
        numbers({"v": [inputs[f"v_{key}"]]}, "v", 0)[0]
        for key in ("a_own", "a_other", "b_own", "b_other")
    )
    surplus = (b_other - a_own) * ("a" in legs) + (a_other - b_own) * ("b" in legs)
    expected = surplus if legs else sum(numbers(inputs, "disagreement", 0))
    assert utility_a + utility_b + kept == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"legs": ["b"]}, "legs"),
        ({"legs": ["a", "b"]}, "legs"),
        ({"legs": []}, "status"),
        ({"net_transfer_to_a": 7.0}, "optimality"),
        ({"net_transfer_to_a": 1.0}, "individual_rationality"),
        ({"net_transfer_to_a": 6.5}, "budget"),
        ({"utility_a": 4.0}, "utilities"),
        ({"fee": 0.0}, "fee"),
    ],
)
def test_another_outcome_is_not_confirmed(change: dict[str, Json], broken: str) -> None:
    inputs: dict[str, Json] = {
        **values(2, 0, 0, 10),
        "legs": ["a"],
        "fee": 0.1,
        "budget": [None, 6.2],
    }
    assert broken in rejected(NASH, inputs, change)


def test_each_figure_must_be_stated() -> None:
    needs_every_figure(NASH, {**values(2, 0, 0, 10), "legs": ["a"], "fee": 0.1})


def test_no_budget_is_none_for_both() -> None:
    assert clear({**values(1, 4, 1, 9), "budget": None}) == clear(values(1, 4, 1, 9))


def test_amounts_at_the_limit_stay_numbers() -> None:
    outcome = cleared(NASH, values(-1e150, 1e150, -1e150, 1e150))
    assert all(abs(figure) <= 4e150 for figure in figures(outcome))


@pytest.mark.parametrize("unit", [1e-140, 1e-12, 1.0, 1e12, 1e140])
def test_a_wrong_transfer_is_found_in_any_unit_of_money(unit: float) -> None:
    market = values(2 * unit, 9 * unit, unit, 10 * unit)
    outcome = clear(market)
    assert outcome.values["net_transfer_to_a"] == pytest.approx((12 - 10) / 2 * unit)
    for change in ({"net_transfer_to_a": 0.9 * unit}, {"utility_a": 8.1 * unit}):
        wrong = Outcome(status=outcome.status, values={**outcome.values, **change})
        assert not NASH.verify(market, wrong).valid


def test_a_transfer_without_measure_is_wrong_and_no_overflow() -> None:
    market = values(0, 0, 0, 0)
    outcome = clear(market)
    wrong = Outcome(status=outcome.status, values={**outcome.values, "net_transfer_to_a": 1e308})
    assert not NASH.verify(market, wrong).valid
