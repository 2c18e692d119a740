"""The weight market, weight fusion and TripleWin, as the experiments play them."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from broker_node.mechanisms.base import Certificate, Status
from broker_node.mechanisms.shapley_values import shapley_values
from node.data.datasets import load
from scripts.reproduction import clearings, fusion, fusions, sellers, triplewin, weight_market
from scripts.reproduction import demands as demanded
from scripts.reproduction.engine import ReproductionError
from scripts.reproduction.prices import (
    METHODS,
    Drawn,
    accepted,
    draw_market,
    fixed_point,
    judged,
    supply_first,
)
from scripts.reproduction.seeds import Given

NOWHERE = Path("nowhere")
"""The digits need no folder."""


# ── the weight market ──


def test_gains_are_measured_on_trained_networks_and_the_same_for_a_seed() -> None:
    gain_SJR = demanded.measured(3, NOWHERE, sellers=1)
    assert gain_SJR.shape == (7, 1, 3)
    assert gain_SJR.min() >= demanded.LEAST_GAIN
    assert gain_SJR.max() > 10  # who has 20 rows gains by the weights of who has over 60
    assert (demanded.measured(3, NOWHERE, sellers=1) == gain_SJR).all()


def test_an_average_seller_is_worth_a_fortieth_of_all_limits() -> None:
    gain_SJR = np.random.default_rng(1).uniform(1, 30, (7, 40, 3))
    worth_SJ = (1 / demanded.demands(gain_SJR)).min(axis=2)
    assert worth_SJ.mean() * 40 == pytest.approx(7 * demanded.LIMIT)


def test_every_scheme_clears_with_a_certificate_that_holds() -> None:
    demand_SJR = np.random.default_rng(2).uniform(0.01, 0.04, (7, 14, 3))
    found = {name: clearings.cleared(name, demanded.market(demand_SJR, 14))
             for name in clearings.SCHEMES}  # fmt: skip
    totals = {name: sum(one["utility"]) for name, one in found.items()}
    assert max(totals, key=lambda name: totals[name]) == "SWM"
    assert totals["EEG"] > totals["PS"]
    for name in ("EEG", "EG", "PS"):
        assert found[name]["envy_freeness"] > 1 - 1e-6
    assert statistics.pstdev(found["MMF"]["utility"]) < statistics.pstdev(found["SWM"]["utility"])


def test_a_clearing_that_its_certificate_refutes_is_no_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuted = Certificate(violations={"gap": 1.0}, tolerance=1e-6)
    monkeypatch.setattr(type(clearings.SCHEMES["PS"]), "verify", lambda *_: refuted)
    demand_SJR = np.full((2, 2, 1), 0.02)
    with pytest.raises(ReproductionError, match="certificate of PS"):
        clearings.cleared("PS", demanded.market(demand_SJR, 2))


def test_the_weight_markets_figures_are_told_and_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = np.random.default_rng(5).uniform(5, 30, (7, 60, 3))
    monkeypatch.setattr(clearings, "measured", lambda *_: gains)
    given = Given(variant="digits", data_folder=NOWHERE, folder=NOWHERE)
    monkeypatch.setattr(clearings, "TIMINGS", 1)
    monkeypatch.setattr(clearings, "random_market", lambda *_: small_market())
    once, played = clearings.timed(given), [clearings.play(0, given)]
    rows = {row.what: row for row in weight_market.compare(once, played)}
    assert rows["% of buyers whom EEG gives what PS does, or more"].values == [100.0]
    assert rows["total utility, EEG, 60 sellers"].values[0] == pytest.approx(2_100)
    ratio = rows["SP 7's utility with twice the budget, over that with one"].values[0]
    assert 1.2 < ratio <= 2.01
    assert len(weight_market.grids(once, played)[0].rows) == 6
    picture = weight_market.draw({"title": "t", "once": once, "by_seed": {"0": played[0]}})
    assert picture.startswith(b"\x89PNG")


def small_market() -> dict[str, Any]:
    return {**demanded.market(np.full((2, 2, 1), 0.02), 2), "price_ranges": False}


# ── weight fusion ──


def test_fusing_one_seller_with_the_whole_of_it_leaves_the_sellers_network() -> None:
    own, bought = ({"w": torch.full((2,), value)} for value in (1.0, 5.0))
    assert fusions.fused(own, [bought], 1.0)["w"].tolist() == [5, 5]
    assert fusions.fused(own, [bought], 0.25)["w"].tolist() == [2, 2]
    assert fusions.fused(own, [bought, own], 1.0)["w"].tolist() == [3, 3]


def test_fedavg_weighs_everybody_by_rows() -> None:
    models = [{"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}]
    assert fusions.averaged(models, [30, 10])["w"].tolist() == [1.0]


def test_rows_are_dealt_as_the_figures_say() -> None:
    assert fusions.dealt((30, 70), 400) == [120, 280]
    assert fusions.dealt((33, 33, 33), 300) == [100, 100, 100]
    assert all(sum(split) in {99, 100} for split in fusions.SPLITS.values())


def test_curves_of_every_split_begin_as_fused_and_the_ends_of_lambda_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fusions, "EPOCHS", 2)
    monkeypatch.setattr(fusions, "SOURCE_EPOCHS", 1)
    monkeypatch.setattr(fusions, "ROWS", 60)
    given = Given(variant=fusions.DIGITS, data_folder=NOWHERE, folder=NOWHERE)
    found = fusions.play(0, given)
    assert set(found["curves"]) == set(fusions.SPLITS)
    for curves in found["curves"].values():
        assert list(curves) == list(fusions.CURVES)
        assert {len(values) for values in curves.values()} == {3}
        assert len(set(curves[fusions.KEPT])) == len(set(curves[fusions.REPLACED])) == 1
        assert curves[fusions.ALONE][0] == curves[fusions.KEPT][0]
    assert {row.where for row in fusion.compare({}, [found])} == set(fusions.SPLITS)
    monkeypatch.setattr(fusion, "EPOCHS", 2)
    document = {"title": "t", "variant": "digits", "by_seed": {"0": found}}
    assert fusion.draw(document).startswith(b"\x89PNG")


# ── TripleWin ──


def test_markets_without_shapley_values_are_the_authors_to_the_last_printed_digit() -> None:
    even = np.full((10, 5), 0.1)
    markets = [draw_market(seed, even) for seed in range(30)]
    for method in ("SupplyFirst", "BrokerCentric"):
        found = [judged(market, METHODS[method](market)) for market in markets]
        for place, (quantity, (_, places)) in enumerate(triplewin.QUANTITIES.items()):
            if quantity in {"spearman", "resilience"}:
                continue  # these depend on the Shapley values
            mean = statistics.fmean(one[quantity] for one in found)
            assert round(mean, places) == triplewin.THEIRS[method][place], (method, quantity)


def by_hand(**changes: Any) -> Drawn:
    """Return one seller, one model, two buyers; ρ = ½."""
    market = Drawn(
        shapley_DJ=np.array([[1.0]]),
        kappa_D=np.array([1.0]),
        list_DJ=np.array([[10.0]]),
        ask_D=np.array([1.0]),
        kappa_M=(np.array([1.0, 3.0]),),
        reserve=(np.array([20.0, 13.0]),),
        delta=0.0,
        rho=0.5,
    )
    return replace(market, **changes)


def test_prices_of_a_market_by_hand() -> None:
    market = by_hand()
    assert supply_first(market).buyers[0].tolist() == [11, 13]
    # Q = ½ · mean κ_M = 1 pays the seller 1 more than κ_D
    assert METHODS["DemandFirst"](market).data_DJ.tolist() == [[2.0]]
    # p_D = 1 + ¼·(4 + 2·p_D), so p_D = 4
    fixed = METHODS["TripleWin"](market)
    assert fixed.data_DJ == pytest.approx(np.array([[4.0]]))
    assert fixed.buyers[0] == pytest.approx(np.array([5.0, 7.0]))
    assert accepted(market, fixed)
    found = judged(market, fixed)
    # both buyers pay κ_M and 4, and the seller gets 4 once
    assert (found["buyers"], found["sellers"], found["platform"]) == pytest.approx((21, 3, 4))
    assert found["e2e"] == 100
    dear = by_hand(reserve=(np.array([20.0, 6.0]),))
    assert not accepted(dear, fixed)
    assert judged(dear, fixed)["e2e"] == 50


def test_there_is_no_fixed_point_where_the_loop_gains_all_that_goes_round() -> None:
    assert fixed_point(by_hand(rho=1.0)).status is Status.INFEASIBLE
    with pytest.raises(ReproductionError, match="no fixed point"):
        METHODS["TripleWin"](by_hand(rho=1.0))


def test_half_is_found_between_two_scales() -> None:
    assert triplewin.half_at([1, 2, 3], [0.0, 0.25, 0.75]) == 2.5
    assert triplewin.half_at([1, 2], [1.0, 0.0]) == 1.5
    assert np.isnan(triplewin.half_at([1, 2], [1.0, 0.9]))


def test_sellers_hold_all_rows_and_none_twice() -> None:
    dataset = load("digits", NOWHERE)
    for division in (sellers.EQUAL, sellers.UNEQUAL):
        parts = sellers.parts_of(dataset, division)
        assert sum(map(len, parts)) == len(dataset.train)
        rows = {row.tobytes() for part in parts for row in part.inputs_RF}
        assert len(rows) == len({row.tobytes() for row in dataset.train.inputs_RF})
    assert max(map(len, parts)) > 1.5 * min(map(len, parts))


@pytest.mark.parametrize("model", sorted(sellers.MODELS))
def test_every_model_learns_and_its_shapley_values_share_out_all(model: str) -> None:
    dataset = load("digits", NOWHERE)
    parts = sellers.parts_of(dataset, sellers.EQUAL)[:2]
    game = sellers.performances(model, parts, dataset.test, None)
    assert game[0] == 0
    assert game[3] > 0.3
    assert sellers.shares(shapley_values(game)).sum() == pytest.approx(1)


def test_a_seller_whose_data_harm_has_no_share() -> None:
    assert sellers.shares(np.array([0.3, -0.1, 0.1])).tolist() == pytest.approx([0.75, 0, 0.25])


def test_sampled_orders_are_exact_where_parties_add_up_and_noisy_where_they_do_not() -> None:
    sizes = np.array([subset.bit_count() for subset in range(1 << 10)])
    assert sellers.sampled(sizes / 10, 10, 0) == pytest.approx(np.full(10, 0.1))
    enough = (sizes > 0).astype(np.float64)  # the first who comes has all
    noisy = sellers.sampled(enough, 10, 0)
    assert noisy.sum() == pytest.approx(1)
    assert noisy.std() > 0.02
