"""The market of data and models, priced four ways (TripleWin's benchmark, experiment 6).

The markets are drawn as the authors' code draws them, from the same seeds: κ_D, list prices,
asks, and for each model its buyers. Only the Shapley values are others: of models that are
trained here. The baselines are theirs, written anew from what they do:

`SupplyFirst`     sellers get their list prices, buyers pay κ_M + (1 + δ)·Σ p_D
`DemandFirst`     buyers pay κ_M alone, sellers get their Shapley part of that
`BrokerCentric`   as SupplyFirst, with a margin towards what buyers can pay, and cut to it
`TripleWin`       the fixed point, by this repository's mechanism and its certificate
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import spearmanr

from broker_node.mechanisms.base import Outcome, Status
from broker_node.mechanisms.reading import Floats
from broker_node.mechanisms.triplewin import TripleWin
from scripts.reproduction.engine import Json, ReproductionError

KAPPA_D: Final = (0.10, 0.40)
LIST_PRICES: Final = (1.5, 4.0)
ASK_MARKUP: Final = 0.30
BUYERS: Final = (2, 5)
"""Of a model, at least and at most."""
KAPPA_M: Final = (1.0, 5.0)
RESERVES: Final = (15.0, 50.0)
RHO: Final = 0.6
"""Σ_k ω_jk, the loop gain where Shapley values sum to 1."""
DELTA: Final = 0.10
SHOCK: Final = 0.03
"""Reserves fall by this times |N(0, 1)| for the noise resilience."""
SHOCK_SEED: Final = 777
CEILING_QUANTILE: Final = 0.6
WEIGHT: Final = 0.4
MOST_ABOVE: Final = 0.5
AFFORDABLE_QUANTILE: Final = 0.5
"""The authors' defaults of BrokerCentric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One market: D sellers, J models, and each model's own buyers."""

    shapley_DJ: Floats
    kappa_D: Floats
    list_DJ: Floats
    ask_D: Floats
    kappa_M: tuple[Floats, ...]
    reserve: tuple[Floats, ...]
    delta: float = DELTA
    rho: float = RHO

    def omega(self, model: int) -> Floats:
        """Return the weights of a model's buyers; they sum to ρ."""
        count = len(self.kappa_M[model])
        return np.full(count, self.rho / count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """p_D (D, J), and what each buyer of each model pays."""

    data_DJ: Floats
    buyers: tuple[Floats, ...]


def draw_market(
    seed: int, shapley_DJ: Floats, *, reserves: tuple[float, float] = RESERVES
) -> Drawn:
    """Return the authors' market number `seed`, with these Shapley values."""
    generator = np.random.default_rng(seed)  # theirs, in their order
    sellers, models = shapley_DJ.shape
    kappa_D = np.asarray(generator.uniform(*KAPPA_D, size=sellers))
    list_DJ = generator.uniform(*LIST_PRICES, size=(sellers, models))
    markup_D = np.asarray(generator.uniform(0.0, ASK_MARKUP, size=sellers))
    ask_D = kappa_D * (1 + markup_D)
    kappa_M, reserve = [], []
    for _ in range(models):
        count = int(generator.integers(BUYERS[0], BUYERS[1] + 1))
        kappa_M.append(generator.uniform(*KAPPA_M, size=count))
        reserve.append(generator.uniform(*reserves, size=count))
    return Drawn(
        shapley_DJ=shapley_DJ,
        kappa_D=kappa_D,
        list_DJ=list_DJ,
        ask_D=ask_D,
        kappa_M=tuple(kappa_M),
        reserve=tuple(reserve),
    )


# ── four ways to price it ──


def supply_first(market: Drawn) -> Prices:
    spent_J = market.list_DJ.sum(axis=0)
    return Prices(
        data_DJ=market.list_DJ,
        buyers=tuple(
            kappa + (1 + market.delta) * spent
            for kappa, spent in zip(market.kappa_M, spent_J, strict=True)
        ),
    )


def demand_first(market: Drawn) -> Prices:
    revenue_J = np.array([market.omega(j) @ kappa for j, kappa in enumerate(market.kappa_M)])
    paid_DJ = market.shapley_DJ * revenue_J / (1 + market.delta)
    return Prices(data_DJ=market.kappa_D[:, None] + paid_DJ, buyers=market.kappa_M)


def broker_centric(market: Drawn) -> Prices:
    buyers = []
    for j, spent in enumerate(market.list_DJ.sum(axis=0)):
        kappa, reserve = market.kappa_M[j], market.reserve[j]
        ceiling = float(np.quantile(reserve, CEILING_QUANTILE))
        wanted = max(0.0, (ceiling - float(kappa.mean())) / spent - 1)
        margin = (1 - WEIGHT) * market.delta + WEIGHT * wanted
        margin = min(margin, market.delta + MOST_ABOVE)
        data_part = (1 + margin) * spent
        affordable = float(np.quantile(reserve, AFFORDABLE_QUANTILE))
        cut = min(1.0, affordable / float((kappa + data_part).mean()))
        buyers.append(kappa + cut * data_part)
    return Prices(data_DJ=market.list_DJ, buyers=tuple(buyers))


def inputs_of(market: Drawn) -> Json:
    """Return the market for the mechanism; who is not there pays nothing that counts."""
    most = max(map(len, market.kappa_M))

    def padded(values: Floats, with_: float | None) -> list[float | None]:
        return [*values.tolist(), *[with_] * (most - len(values))]

    models = range(len(market.kappa_M))
    return {
        "shapley": market.shapley_DJ.tolist(),
        "delta": [market.delta] * len(market.kappa_M),
        "kappa_d": market.kappa_D.tolist(),
        "kappa_m": [padded(market.kappa_M[j], 1.0) for j in models],
        "omega": [padded(market.omega(j), 0.0) for j in models],
        "reserve": [padded(market.reserve[j], None) for j in models],
    }


def fixed_point(market: Drawn) -> Outcome:
    """Return the mechanism's outcome. Raises `ReproductionError` if its certificate fails."""
    mechanism, inputs = TripleWin(), inputs_of(market)
    outcome = mechanism.clear(inputs, tolerance=1e-9, seed=0)
    certificate = mechanism.verify(inputs, outcome)
    if not certificate.valid:
        raise ReproductionError(f"the certificate of triplewin fails: {certificate.violations}")
    return outcome


def triple_win(market: Drawn) -> Prices:
    outcome = fixed_point(market)
    if outcome.status is Status.INFEASIBLE:
        raise ReproductionError(f"no fixed point: loop gains {outcome.values['loop_gain']}")
    paid_JK = np.array(outcome.values["p_model_to_buyer"], dtype=np.float64)
    return Prices(
        data_DJ=np.array(outcome.values["p_data_to_model"], dtype=np.float64),
        buyers=tuple(
            paid_K[: len(kappa)] for paid_K, kappa in zip(paid_JK, market.kappa_M, strict=True)
        ),
    )


METHODS: Final[Mapping[str, Callable[[Drawn], Prices]]] = {
    "SupplyFirst": supply_first,
    "DemandFirst": demand_first,
    "BrokerCentric": broker_centric,
    "TripleWin": triple_win,
}


# ── what comes of the prices ──


def accepted(market: Drawn, prices: Prices) -> bool:
    """Return whether everybody accepts: buyers up to their reserve, sellers from κ_D on."""
    buyers = all(bool((p <= r).all()) for p, r in zip(prices.buyers, market.reserve, strict=True))
    return buyers and bool((prices.data_DJ >= market.kappa_D[:, None]).all())


def rank_correlation(one_D: Floats, other_D: Floats) -> float:
    """Return Spearman's; NaN where all of either are equal."""
    if len(set(one_D.tolist())) < 2 or len(set(other_D.tolist())) < 2:
        return math.nan
    return float(spearmanr(one_D, other_D).statistic)


def judged(market: Drawn, prices: Prices, reserve: tuple[Floats, ...] | None = None) -> Json:
    """Return the benchmark's figures of `prices`, by its definitions.

    Money is booked where a buyer accepts. `e2e` is the share of buyers that accept a model whose
    sellers all accept: that get no less than their ask, of those that get more than κ_D.
    """
    limits = market.reserve if reserve is None else reserve
    offered_DJ = prices.data_DJ > market.kappa_D[:, None] + 1e-12
    willing_DJ = offered_DJ & (prices.data_DJ >= market.ask_D[:, None])
    supplied_J = offered_DJ.any(axis=0) & (willing_DJ == offered_DJ).all(axis=0)
    buyers_gain = sellers_gain = platform = 0.0
    paying: list[float] = []
    correlations: list[float] = []
    served = 0
    for j, (price, limit) in enumerate(zip(prices.buyers, limits, strict=True)):
        accepts = price <= limit
        paying += price[accepts].tolist()
        served += int(accepts.sum()) if supplied_J[j] else 0
        if not accepts.any():
            continue
        paid_D = np.where(offered_DJ[:, j], prices.data_DJ[:, j], 0.0)
        buyers_gain += float((limit - price)[accepts].sum())
        sellers_gain += float((paid_D - market.kappa_D)[offered_DJ[:, j]].sum())
        platform += float((price - market.kappa_M[j])[accepts].sum() - paid_D.sum())
        correlations.append(rank_correlation(market.shapley_DJ[:, j], paid_D))
    correlations = [one for one in correlations if not math.isnan(one)]
    return {
        "welfare": buyers_gain + sellers_gain + platform,
        "buyers": buyers_gain,
        "sellers": sellers_gain,
        "platform": platform,
        "e2e": 100 * served / sum(map(len, prices.buyers)),
        "buyer_price": float(np.mean(paying)) if paying else None,
        "seller_price": float(prices.data_DJ[willing_DJ].mean()) if willing_DJ.any() else None,
        "spearman": float(np.mean(correlations)) if correlations else None,
    }


def resilience(market: Drawn, prices: Prices, clean: Json, seed: int) -> float:
    """Return the share of welfare that a fall of reserves leaves, times (1 + ρ⁺)/2, percent."""
    generator = np.random.default_rng(seed + SHOCK_SEED)
    fallen = tuple(
        np.maximum(limit * (1 - SHOCK * np.abs(generator.normal(size=limit.shape))), 1e-3)
        for limit in market.reserve
    )
    after = judged(market, prices, fallen)["welfare"]
    kept = min(max(1 - abs(after - clean["welfare"]) / (abs(clean["welfare"]) + 1e-12), 0.0), 1.0)
    return float(100 * kept * (1 + max(clean["spearman"] or 0.0, 0.0)) / 2)
