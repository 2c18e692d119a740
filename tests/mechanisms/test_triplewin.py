from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broker_node.mechanisms.base import Json, Outcome, RefusedInputError, Status
from broker_node.mechanisms.triplewin import (
    Coupled,
    TripleWin,
    closed_form,
    jacobi,
    read,
    solve,
    trading,
    transfers_in_wei,
)
from broker_node.mechanisms.triplewin_simulation import simulate_misreports, simulate_reserves
from node.protocol.types import UINT256_MAX, Wei

Floats = npt.NDArray[np.float64]
TRIPLEWIN = TripleWin()
ETHER = Wei(10**18)
ONE_BY_HAND: dict[str, Json] = {
    "shapley": [[0.5], [0.25]],
    "delta": [0.5],
    "kappa_d": [1, 2],
    "kappa_m": [[4, 8]],
    "omega": [[0.5, 0.25]],
}


def clear(market: dict[str, Json]) -> Outcome:
    return TRIPLEWIN.clear(market, tolerance=1e-9, seed=0)


def figures(outcome: Outcome, key: str) -> Floats:
    return np.array(outcome.values[key], dtype=np.float64)


def random_market(
    seed: int, *, sellers: int = 10, models: int = 5, buyers: int = 3, gain: float = 0.6
) -> Coupled:
    """Return a market as in the paper's experiments, every loop with the same gain."""
    generator = np.random.Generator(np.random.Philox(seed))
    shapley = generator.random((sellers, models))
    return Coupled(
        shapley=shapley / shapley.sum(axis=0),
        delta=generator.uniform(0, 0.3, models),
        kappa_d=generator.uniform(0.1, 0.4, sellers),
        kappa_m=generator.uniform(1, 5, (models, buyers)),
        omega=np.full((models, buyers), gain / buyers),
        reserve=generator.uniform(25, 100, (models, buyers)),
    )


def as_json(market: Coupled) -> dict[str, Json]:
    return {
        "shapley": market.shapley.tolist(),
        "delta": market.delta.tolist(),
        "kappa_d": market.kappa_d.tolist(),
        "kappa_m": market.kappa_m.tolist(),
        "omega": market.omega.tolist(),
        "reserve": [
            [None if limit == np.inf else limit for limit in row] for row in market.reserve.tolist()
        ],
    }


@st.composite
def markets(draw: st.DrawFn) -> dict[str, Json]:
    sellers, models, buyers = (draw(st.integers(1, 3)) for _ in range(3))

    def rows(value: st.SearchStrategy[Json], height: int, width: int) -> list[Json]:
        row = st.lists(value, min_size=width, max_size=width)
        return list(draw(st.lists(row, min_size=height, max_size=height)))

    share = st.floats(0, 1, allow_subnormal=False)
    cost = st.floats(0.01, 100)
    return {
        "shapley": rows(share, sellers, models),
        "delta": list(draw(st.lists(share, min_size=models, max_size=models))),
        "kappa_d": list(draw(st.lists(cost, min_size=sellers, max_size=sellers))),
        "kappa_m": rows(cost, models, buyers),
        "omega": rows(share, models, buyers),
        "reserve": rows(st.none() | st.floats(0, 1000), models, buyers),
    }


def test_one_model_is_priced_as_by_hand() -> None:
    # σW = ¾·¾, c = 2 + 2; Σp = (3 + ¾·4/1.5)/(7/16) = 80/7; Q = 4 + ¾·1.5·80/7 = 118/7
    outcome = clear(ONE_BY_HAND)
    assert outcome.values["loop_gain"] == [0.5625]
    assert figures(outcome, "p_model_to_buyer") == pytest.approx(
        np.array([[4 + 120 / 7, 8 + 120 / 7]])
    )
    data = np.array([[1 + 118 / 21], [2 + 118 / 42]])
    assert figures(outcome, "p_data_to_model") == pytest.approx(data)
    assert data.sum() == pytest.approx(80 / 7)
    assert (outcome.status, outcome.values["feasible"]) == (Status.TRADE, True)


@given(market=markets())
def test_every_outcome_is_certified(market: dict[str, Json]) -> None:
    assert TRIPLEWIN.verify(market, clear(market)).valid


@given(market=markets())
def test_prices_exist_just_where_the_loop_gain_is_below_one(market: dict[str, Json]) -> None:
    outcome = clear(market)
    sigma = np.array(market["shapley"], dtype=float).sum(axis=0)
    within = np.array(market["omega"], dtype=float).sum(axis=1)
    assert figures(outcome, "loop_gain") == pytest.approx(sigma * within)
    assume(np.abs(sigma * within - 1).min() > 1e-9)
    if (sigma * within).max() < 1:
        assert (figures(outcome, "p_data_to_model") > 0).all()
        assert (figures(outcome, "p_model_to_buyer") > 0).all()
    else:
        assert outcome.status is Status.INFEASIBLE
        assert outcome.values["feasible"] is False
        assert outcome.values["p_data_to_model"] is outcome.values["p_model_to_buyer"] is None


def test_a_standard_interference_function_need_not_have_a_fixed_point() -> None:
    # the paper concludes that every such market has prices; here each round raises them
    market: dict[str, Json] = {**ONE_BY_HAND, "omega": [[1.0, 0.5]]}
    outcome = clear(market)
    assert (outcome.status, outcome.values["loop_gain"]) == (Status.INFEASIBLE, [1.125])
    without_end = jacobi(read(market))
    assert not without_end.converged
    assert without_end.prices.buyers.min() > 1e100
    # and the linear equations alone would give negative prices, which no certificate passes
    total = (3 + 0.75 * 8 / 1.5) / (1 - 1.125)
    revenue = 8 + 1.5 * 1.5 * total
    forged = Outcome(
        status=Status.TRADE,
        values={
            **outcome.values,
            "feasible": True,
            "trades": [True],
            "p_data_to_model": [[1 + 0.5 / 1.5 * revenue], [2 + 0.25 / 1.5 * revenue]],
            "p_model_to_buyer": [[4 + 1.5 * total, 8 + 1.5 * total]],
        },
    )
    assert not TRIPLEWIN.verify(market, forged).valid


def test_a_loop_gain_of_exactly_one_is_infeasible() -> None:
    market: dict[str, Json] = {**ONE_BY_HAND, "shapley": [[0.5], [0.5]], "omega": [[0.5, 0.5]]}
    assert clear(market).to_json() == {
        "status": "infeasible",
        "feasible": False,
        "trades": [False],
        "p_data_to_model": None,
        "p_model_to_buyer": None,
        "loop_gain": [1.0],
    }


def test_one_infeasible_model_makes_no_price_for_the_others_up() -> None:
    market = random_market(1)
    omega = market.omega.copy()
    omega[2] *= 2
    outcome = clear(as_json(replace(market, omega=omega)))
    assert outcome.status is Status.INFEASIBLE
    assert [gain >= 1 for gain in figures(outcome, "loop_gain")] == [False] * 2 + [True] + [
        False
    ] * 2


@pytest.mark.parametrize("gain", [0.0, 0.1, 0.6, 0.95])
def test_the_iteration_arrives_at_the_closed_form_at_the_rate_of_the_loop(gain: float) -> None:
    market = random_market(3, gain=gain)
    found, exact = jacobi(market), closed_form(market)
    assert found.converged
    np.testing.assert_allclose(found.prices.data, exact.data, rtol=1e-9)
    np.testing.assert_allclose(found.prices.buyers, exact.buyers, rtol=1e-9)
    if gain >= 0.1:
        assert found.rate == pytest.approx(np.sqrt(market.loop_gain.max()), rel=0.01)


def test_a_buyer_that_declines_keeps_its_model_from_trading_and_moves_no_price() -> None:
    market = random_market(4)
    free = clear(as_json(market))
    price = figures(free, "p_model_to_buyer")[1, 0]
    reserve = market.reserve.copy()
    reserve[1, 0] = price * 0.99
    declined = clear(as_json(replace(market, reserve=reserve)))
    assert declined.values["trades"] == [True, False, True, True, True]
    assert (declined.status, declined.values["feasible"]) == (Status.TRADE, False)
    assert declined.values["p_model_to_buyer"] == free.values["p_model_to_buyer"]
    nobody = clear(as_json(replace(market, reserve=np.zeros_like(reserve))))
    assert nobody.status is Status.NO_TRADE
    assert TRIPLEWIN.verify(as_json(replace(market, reserve=reserve)), declined).valid


@pytest.mark.parametrize("key", ["p_data_to_model", "p_model_to_buyer", "loop_gain"])
def test_an_outcome_with_one_figure_changed_is_not_certified(key: str) -> None:
    market = as_json(random_market(5))
    outcome = clear(market)
    changed = figures(outcome, key)
    changed.flat[-1] *= 1 + 1e-6
    forged = Outcome(status=outcome.status, values={**outcome.values, key: changed.tolist()})
    assert not TRIPLEWIN.verify(market, forged).valid


def test_money_moved_between_data_sellers_is_not_certified() -> None:
    market = as_json(random_market(5))
    outcome = clear(market)
    data = figures(outcome, "p_data_to_model")
    data[:2, 0] += (0.01, -0.01)
    forged = Outcome(
        status=outcome.status, values={**outcome.values, "p_data_to_model": data.tolist()}
    )
    assert not TRIPLEWIN.verify(market, forged).valid


@pytest.mark.parametrize(
    ("status", "changes"),
    [
        (Status.TRADE, {"feasible": False}),
        (Status.TRADE, {"trades": [True, True, False, True, True]}),
        (Status.NO_TRADE, {}),
        (Status.INFEASIBLE, {}),
        (
            Status.INFEASIBLE,
            {
                "feasible": False,
                "trades": [False] * 5,
                "p_data_to_model": None,
                "p_model_to_buyer": None,
            },
        ),
        (Status.TRADE, {"p_data_to_model": [[1e149] * 5] * 10}),
    ],
)
def test_an_outcome_that_says_something_else_is_not_certified(
    status: Status, changes: dict[str, Json]
) -> None:
    market = as_json(random_market(5))
    outcome = clear(market)
    forged = Outcome(status=status, values={**outcome.values, **changes})
    assert not TRIPLEWIN.verify(market, forged).valid


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"shapley": [[0.5], [-0.1]]}, "shapley[1][0]", "at least 0, got -0.1"),
        ({"shapley": [[0.5], [float("nan")]]}, "shapley[1][0]", "finite, got nan"),
        ({"shapley": [[0.5], []]}, "shapley[1]", "1 items, got 0"),
        ({"shapley": [[], []]}, "shapley", "no data seller or no model"),
        ({"shapley": []}, "shapley", "not be empty"),
        ({"shapley": [0.5, 0.5]}, "shapley[0]", "a list, got 0.5"),
        ({"kappa_d": [1, 0]}, "kappa_d[1]", "over 0, got 0"),
        ({"kappa_d": [1]}, "kappa_d", "2 items, got 1"),
        ({"kappa_m": [[4, -8]]}, "kappa_m[0][1]", "over 0, got -8"),
        ({"kappa_m": [[]]}, "kappa_m", "no buyer"),
        ({"kappa_m": [[4, 8], [4, 8]]}, "kappa_m", "1 items, got 2"),
        ({"delta": [-0.5]}, "delta[0]", "at least 0, got -0.5"),
        ({"delta": [float("inf")]}, "delta[0]", "finite, got inf"),
        ({"omega": [[0.5]]}, "omega[0]", "2 items, got 1"),
        ({"omega": [[0.5, -1]]}, "omega[0][1]", "at least 0, got -1"),
        ({"reserve": [[1]]}, "reserve[0]", "2 items, got 1"),
        ({"reserve": [[1, -1]]}, "reserve[0][1]", "at least 0, got -1"),
        ({"reserve": [[1, "9"]]}, "reserve[0][1]", "number, got '9'"),
        ({"reserve": 5}, "reserve", "a list, got 5"),
        ({"shapley": [[0.5], [0.5]], "omega": [[1 - 1e-12, 0]], "delta": [1e150],
          "kappa_d": [1e150, 1]}, "kappa_m[0]", "prices too large to state"),
        ({"kapa": 1}, "kapa", "not a key"),
    ],
)  # fmt: skip
def test_a_bad_market_is_refused_under_its_field(
    changes: dict[str, Json], field: str, reason: str
) -> None:
    market = {**ONE_BY_HAND, **changes}
    issues = TRIPLEWIN.validate(market)
    assert [issue.field for issue in issues] == [field]
    assert reason in issues[0].reason
    with pytest.raises(RefusedInputError):
        clear(market)


@given(market=markets(), unit=st.integers(1, 10**12))
def test_in_wei_what_buyers_pay_is_what_sellers_and_producers_get(
    market: dict[str, Json], unit: int
) -> None:
    coupled = read(market)
    assume(coupled.loop_gain.max() < 0.99)
    prices = solve(coupled)
    transfers = transfers_in_wei(coupled, prices, unit=Wei(unit))
    assert sorted(transfers) == np.flatnonzero(trading(coupled, prices)).tolist()
    for j, moved in transfers.items():
        assert sum(moved.paid) == sum(moved.data) + moved.producer
        assert min(moved.producer, *moved.paid, *moved.data) >= 0
        for paid, limit in zip(moved.paid, coupled.reserve[j], strict=True):
            assert limit == np.inf or paid <= limit * unit
        for got, kappa in zip(moved.data, coupled.kappa_d, strict=True):
            assert got > kappa * unit * (1 - 1e-12) - 1


def test_money_finer_or_larger_than_can_be_stated_is_refused() -> None:
    coupled = read(ONE_BY_HAND)
    for unit in (-1, UINT256_MAX, UINT256_MAX + 1):
        with pytest.raises(RefusedInputError, match="unit"):
            transfers_in_wei(coupled, solve(coupled), unit=Wei(unit))


def test_a_data_seller_that_overstates_its_cost_gets_more_than_it_adds() -> None:
    market = replace(random_market(0), reserve=np.full((5, 3), np.inf))
    for report in simulate_misreports(market, 0, [0.5, 1.0, 1.1, 2.0, 10.0]):
        stated = market.kappa_d[0] * (report.factor - 1)
        within, gain = market.omega.sum(axis=1), market.loop_gain
        by_model = 1 + market.shapley[0] * within / (1 - gain)
        assert report.earned == pytest.approx(stated * by_model.sum(), rel=1e-6, abs=1e-12)
        assert report.trading == 5
    # so it is not truthful: at twice its cost this seller earns 1.12 times what it adds
    doubled = simulate_misreports(market, 0, [2.0])[0]
    assert doubled.earned / (5 * market.kappa_d[0]) == pytest.approx(1.12, abs=0.01)


def test_only_the_buyers_reserves_stop_a_seller_from_overstating() -> None:
    market = random_market(0)
    reports = simulate_misreports(market, 0, [1, 2, 5, 20, 50, 500])
    earned = [report.earned for report in reports]
    assert (reports[0].trading, reports[-1].trading) == (5, 0)
    assert max(earned) > 0
    assert earned[-1] < 0


def test_to_misstate_a_reserve_never_pays_a_buyer() -> None:
    factors = [0, 0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 4]
    declined = 0
    for seed in range(20):
        market = random_market(seed, gain=0.9)
        for buyer in range(3):
            reports = simulate_reserves(market, 1, buyer, factors)
            assert max(report.earned for report in reports) <= 0
            declined += sum(report.earned < 0 for report in reports)
    assert declined > 0


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda m: simulate_misreports(m, 10, [1]), "seller"),
        (lambda m: simulate_misreports(m, 0, [0]), "factors"),
        (lambda m: simulate_misreports(m, 0, [float("nan")]), "factors"),
        (lambda m: simulate_reserves(m, 5, 0, [1]), "model"),
        (lambda m: simulate_reserves(m, 0, 3, [1]), "buyer"),
        (lambda m: simulate_reserves(m, 0, 0, [-1]), "factors"),
        (
            lambda m: simulate_reserves(replace(m, reserve=m.reserve + np.inf), 0, 0, [1]),
            "reserve[0][0]",
        ),
    ],
)
def test_a_bad_simulation_is_refused_under_its_field(call: object, field: str) -> None:
    assert callable(call)
    with pytest.raises(RefusedInputError) as refused:
        call(random_market(0))
    assert refused.value.field == field


def test_a_thousand_models_of_a_thousand_sellers_are_one_closed_form() -> None:
    market = random_market(9, sellers=1000, models=1000)
    prices = solve(market)
    one = Coupled(
        shapley=market.shapley[:, 7:8],
        delta=market.delta[7:8],
        kappa_d=market.kappa_d,
        kappa_m=market.kappa_m[7:8],
        omega=market.omega[7:8],
        reserve=market.reserve[7:8],
    )
    np.testing.assert_allclose(prices.data[:, 7:8], solve(one).data, rtol=1e-12)


def test_a_decimal_price_loses_no_wei_on_its_way() -> None:
    # 0.3 is stored as 0.29999999999999998…: ten of it, rounded down, must be three all the same
    coupled = read({**ONE_BY_HAND, "shapley": [[0], [0]], "kappa_d": [0.3, 0.7]})
    transfers = transfers_in_wei(coupled, solve(coupled), unit=Wei(10))
    assert transfers[0].data == (3, 7)
