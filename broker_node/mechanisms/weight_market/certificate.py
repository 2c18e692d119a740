"""The certificate of the (extended) Eisenberg–Gale programme, from inputs and outcome alone.

With b_s = min_j Σ_r d_sjr p_jr and t_s = min(B_s/b_s, D_s) weak duality gives, for every
feasible allocation and every prices ≥ 0,

    gap = Σ p·c + Σ_s (B_s log t_s − b_s t_s) − Σ_s B_s log u_s ≥ 0

which is 0 at an equilibrium only. It is the sum of three terms of at least 0: goods left
over at a price, goods bought dearer than need be, and utility short of what the budget buys
at the cheapest seller; the first two are looked at on their own too. Money figures are
relative to the sum of budgets, others to the bound that they must keep.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from broker_node.mechanisms.base import DEFAULT_TOLERANCE, Certificate, Json, Outcome, Status
from broker_node.mechanisms.reading import items, number
from broker_node.mechanisms.stated import stated, stated_array, stated_number
from broker_node.mechanisms.weight_market.market import RANGED_CELLS, WeightMarket
from broker_node.mechanisms.weight_market.programme import Array

EXACT: Final = 1e-6
"""Relative gap up to which an outcome is called a trade, and not approximate."""
RANGE_KEYS: Final = ("price_ranges", "surplus_ranges")


def certify(
    market: WeightMarket, outcome: Outcome, *, limited: bool, ranges: bool | None
) -> Certificate:
    """Judge an outcome of `eeg` (`limited`) or `eg`; `market` has its limits in both.

    A trade must have its ranges where `ranges`, or where that is None in a market of up to
    `RANGED_CELLS`; else they may be null. Raises `RefusedInputError` for an outcome that lacks
    a figure, or has one that is none.
    """
    x_SJ = stated_array(outcome, "x", market.edge_SJ.shape)
    price_JR = stated_array(outcome, "prices", market.capacity_JR.shape)
    utility_S, surplus_S = (
        stated_array(outcome, key, market.budget_S.shape) for key in ("utility", "surplus")
    )
    told = stated_number(outcome, "gap")
    unranged = [key for key in RANGE_KEYS if stated(outcome, key) is None]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        violations = _violations(
            market, outcome, (x_SJ, price_JR, utility_S, surplus_S), told, limited
        )
    due = market.demand_SJR.size <= RANGED_CELLS if ranges is None else ranges
    if due and unranged and outcome.status is Status.TRADE:
        violations["ranges"] = 1.0
    return Certificate(violations=violations, tolerance=DEFAULT_TOLERANCE)


def _violations(
    market: WeightMarket,
    outcome: Outcome,
    figures: tuple[Array, Array, Array, Array],
    told: float,
    limited: bool,
) -> dict[str, float]:
    x_SJ, price_JR, utility_S, surplus_S = figures
    money = market.budget_S.sum()
    limit_S = market.limit_S if limited else np.full_like(market.limit_S, np.inf)
    cost_SJ = (market.demand_SJR * price_JR).sum(axis=2)
    cheapest_S = np.where(market.edge_SJ, cost_SJ, np.inf).min(axis=1)
    bought_S = x_SJ.sum(axis=1)
    spent_S = (x_SJ * cost_SJ).sum(axis=1)
    left_JR = market.capacity_JR - (x_SJ[:, :, None] * market.demand_SJR).sum(axis=0)
    gap = duality_gap(market, limit_S, price_JR, bought_S) / money
    violations: dict[str, float] = {
        **feasibility(market, x_SJ, price_JR),
        "limit": _worst(bought_S / limit_S - 1),
        "budget": _worst(spent_S / market.budget_S - 1),
        "utility": _worst(np.abs(utility_S - np.minimum(bought_S, market.limit_S)) / bought_S),
        "surplus": _worst(np.abs(surplus_S - (market.budget_S - spent_S)) / market.budget_S),
        "gap_stated": abs(told / money - gap),
        "gap_negative": max(0.0, -gap),
        "relative_gap": abs(stated_number(outcome, "relative_gap") - gap),
    }
    if outcome.status is Status.APPROXIMATE:
        violations["status"] = float(gap < EXACT * (1 - EXACT))
    else:
        dearer_SJ = np.where(x_SJ > 0, x_SJ * (cost_SJ - cheapest_S[:, None]), 0.0)
        violations |= {
            "status": 0.0 if outcome.status is Status.TRADE else 1.0,
            "gap": max(0.0, gap - EXACT),
            "unsold_at_a_price": max(0.0, float((price_JR * left_JR).sum() / money) - EXACT),
            "bought_dearer": max(0.0, float(dearer_SJ.sum() / money) - EXACT),
            "ranges": max(
                _outside(outcome, "price_ranges", price_JR, price_JR.max(), _dearest(market)),
                _outside(outcome, "surplus_ranges", surplus_S, market.budget_S, market.budget_S),
            ),
        }
    return violations


def duality_gap(market: WeightMarket, limit_S: Array, price_JR: Array, bought_S: Array) -> float:
    """Return the gap in money; infinite where the prices bound nothing."""
    cost_SJ = np.einsum("sjr,jr->sj", market.demand_SJR, price_JR)
    cheapest_S = np.where(market.edge_SJ, cost_SJ, np.inf).min(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        most_S = np.minimum(market.budget_S / cheapest_S, limit_S)
        conjugate_S = market.budget_S * np.log(most_S / bought_S) - cheapest_S * most_S
    gap = float((price_JR * market.capacity_JR).sum() + conjugate_S.sum())
    return gap if np.isfinite(gap) else float("inf")


def feasibility(market: WeightMarket, x_SJ: Array, price_JR: Array) -> dict[str, float]:
    """Return by how much purchases and prices break what holds for every mechanism."""
    load_JR = (x_SJ[:, :, None] * market.demand_SJR).sum(axis=0)
    over_JR = np.where(
        market.capacity_JR > 0,
        load_JR / np.where(market.capacity_JR > 0, market.capacity_JR, 1.0) - 1,
        np.where(load_JR > 0, np.inf, 0.0),
    )
    return {
        "capacity": _worst(over_JR),
        "negative_purchase": _worst(-x_SJ),
        "negative_price": _worst(-price_JR),
        "no_edge": float((x_SJ[~market.edge_SJ] != 0).any()),
    }


def _dearest(market: WeightMarket) -> Array:
    """Return what all the money buys the whole of a good at, infinite where there is none."""
    there_JR = market.capacity_JR > 0
    return np.where(
        there_JR, market.budget_S.sum() / np.where(there_JR, market.capacity_JR, 1.0), np.inf
    )


def _outside(outcome: Outcome, key: str, figures: Array, scale: Array, most: Array) -> float:
    """Return 1 where a figure is out of its stated range, or the range out of 0 … `most`.

    0 also where the ranges are null.
    """
    cells: list[Json] = [stated(outcome, key)]
    if cells == [None]:
        return 0.0
    for length in figures.shape:
        cells = [one for part in cells for one in items(part, key, length=length)]
    ends = [items(cell, key, length=2) for cell in cells]
    low = np.array([number(least, key) for least, _ in ends]).reshape(figures.shape)
    told = np.array([np.inf if end is None else number(end, key) for _, end in ends])
    high = told.reshape(figures.shape)
    edge = DEFAULT_TOLERANCE * scale
    held = (low - edge <= figures) & (figures <= high + edge)
    possible = (low >= 0) & (high <= most * (1 + EXACT))
    return float(not (held & possible).all())


def _worst(excess: Array) -> float:
    worst = float(excess.max())
    return float("inf") if np.isnan(worst) else max(0.0, worst)
