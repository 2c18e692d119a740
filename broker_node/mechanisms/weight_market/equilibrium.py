"""Clearing by the Eisenberg–Gale programmes: from a market to an outcome in its own units."""

from __future__ import annotations

from typing import Final

import numpy as np

from broker_node.mechanisms.base import Json, Outcome, Status
from broker_node.mechanisms.weight_market.interior import solve
from broker_node.mechanisms.weight_market.market import RANGED_CELLS, Units, WeightMarket, in_units
from broker_node.mechanisms.weight_market.programme import Array
from broker_node.mechanisms.weight_market.ranges import Ranges, optimal_ranges

EXACT: Final = 1e-6
"""Relative gap above which an outcome is approximate."""
FINEST: Final = 1e-12
"""Relative gap below which nothing but rounding is to be gained."""
SHAVED: Final = 1 - 1e-13
"""Of an allocation: so that sums over any number of buyers, in any order, keep the bounds."""


def clear(market: WeightMarket, *, limited: bool, tolerance: float, ranges: bool | None) -> Outcome:
    """Return the equilibrium of `market`, with (6c) if `limited`, at a gap of `tolerance`.

    `ranges` says whether to find the ranges of prices and surpluses; None does for markets
    of up to `RANGED_CELLS`. Where no programme tells them they are the widest possible.
    Utilities are realised ones (Eq. 3): at most the limit, also where the programme does not
    know it.
    """
    if ranges is None:
        ranges = market.demand_SJR.size <= RANGED_CELLS
    units = in_units(market if limited else market.without_limits())
    # ranges follow from the utilities, which are known to the root of the gap only
    aimed = FINEST if ranges else max(tolerance, FINEST)
    found = solve(units.programme, aimed)
    price_JR = _prices(market, units, found.price_RJ)
    x_SJ = _within(market, units, found.x_SJ * units.utility_S[:, None], price_JR)
    bought_S = x_SJ.sum(axis=1)
    spent_S = (x_SJ * _cost(market, price_JR)).sum(axis=1)
    gap = gap_of(market, units.programme.limit_S * units.utility_S, price_JR, bought_S)
    relative = gap / float(market.budget_S.sum())
    surplus_S = np.maximum(market.budget_S - spent_S, 0.0)
    values: dict[str, Json] = {
        "x": x_SJ.tolist(),
        "prices": price_JR.tolist(),
        "utility": np.minimum(bought_S, market.limit_S).tolist(),
        "surplus": surplus_S.tolist(),
        "gap": gap,
        "relative_gap": relative,
        "price_ranges": None,
        "surplus_ranges": None,
    }
    if ranges:
        narrowed = optimal_ranges(units.programme, found)
        values |= _ranges_in(market, units, narrowed or _widest(units), price_JR, surplus_S)
    return Outcome(status=Status.TRADE if relative <= EXACT else Status.APPROXIMATE, values=values)


def _cost(market: WeightMarket, price_JR: Array) -> Array:
    return np.asarray(np.einsum("sjr,jr->sj", market.demand_SJR, price_JR))


def _prices(market: WeightMarket, units: Units, price_RJ: Array) -> Array:
    """Return prices in money; a good that is not there costs what nobody would pay for it.

    Of all the prices that a good of capacity 0 may have this is the lowest: with it the
    cheapest seller of a buyer is the cheapest of those who can deliver.
    """
    there_JR = market.capacity_JR > 0
    price_JR = price_RJ.T * units.money / np.where(there_JR, market.capacity_JR, 1.0)
    cost_SJ = np.where(market.edge_SJ, _cost(market, price_JR), np.inf)
    cheapest_S = cost_SJ.min(axis=1)
    for j, r in np.argwhere(~there_JR):
        wanted_S = market.demand_SJR[:, j, r]
        asked_S = wanted_S > 0
        price_JR[j, r] = (cheapest_S[asked_S] / wanted_S[asked_S]).max(initial=0.0)
    return np.asarray(price_JR)


def _within(market: WeightMarket, units: Units, x_SJ: Array, price_JR: Array) -> Array:
    """Return `x_SJ` within capacities, limits and budgets as the market's own units round."""
    load_JR = np.einsum("sjr,sj->jr", market.demand_SJR, x_SJ)
    there_JR = market.capacity_JR > 0
    over_JR = np.where(there_JR, load_JR / np.where(there_JR, market.capacity_JR, 1.0), 1.0)
    over_SJ = np.where(market.demand_SJR > 0, np.maximum(over_JR, 1.0), 1.0).max(axis=2)
    x_SJ = x_SJ / over_SJ
    limit_S = units.programme.limit_S * units.utility_S
    room_S = limit_S / x_SJ.sum(axis=1)
    spent_S = (x_SJ * _cost(market, price_JR)).sum(axis=1)
    with np.errstate(divide="ignore"):
        affordable_S = market.budget_S / spent_S
    return np.asarray(x_SJ * (SHAVED * np.minimum(1.0, np.minimum(room_S, affordable_S)))[:, None])


def gap_of(market: WeightMarket, limit_S: Array, price_JR: Array, bought_S: Array) -> float:
    """Return the duality gap in money, of at least 0."""
    cheapest_S = np.where(market.edge_SJ, _cost(market, price_JR), np.inf).min(axis=1)
    free_S = cheapest_S <= 0
    target_S = np.where(
        free_S, limit_S, np.minimum(market.budget_S / np.where(free_S, 1.0, cheapest_S), limit_S)
    )
    # both logarithms are near each other: their difference first, the sum last
    short_S = market.budget_S * np.log(target_S / bought_S)
    total = float(np.vdot(price_JR, market.capacity_JR)) + float(
        (short_S - cheapest_S * target_S).sum()
    )
    return max(0.0, total)


def _widest(units: Units) -> Ranges:
    """Return what holds every equilibrium: all the money for any one good, or kept."""
    budget_S = units.programme.budget_S
    shape = units.programme.demand_RSJ.shape[::2]
    return Ranges(
        low_RJ=np.zeros(shape),
        high_RJ=np.full(shape, budget_S.sum()),
        surplus_low_S=np.zeros_like(budget_S),
        surplus_high_S=budget_S,
    )


def _ranges_in(
    market: WeightMarket, units: Units, ranges: Ranges, price_JR: Array, surplus_S: Array
) -> dict[str, Json]:
    """Return the ranges in money, each around what the outcome states."""
    there_JR = market.capacity_JR > 0
    scale_JR = units.money / np.where(there_JR, market.capacity_JR, 1.0)
    low_JR = np.minimum(ranges.low_RJ.T * scale_JR, price_JR)
    high_JR = np.maximum(ranges.high_RJ.T * scale_JR, price_JR)
    prices: list[Json] = []
    for j in range(len(price_JR)):
        of_seller: list[Json] = []
        for r in range(price_JR.shape[1]):
            low, high = float(low_JR[j, r]), float(high_JR[j, r])
            # what is not there may cost more without anybody minding
            of_seller.append([low, high] if there_JR[j, r] else [float(price_JR[j, r]), None])
        prices.append(of_seller)
    return {
        "price_ranges": prices,
        "surplus_ranges": [
            [min(float(low * units.money), told), max(float(high * units.money), told)]
            for low, high, told in zip(
                ranges.surplus_low_S, ranges.surplus_high_S, surplus_S.tolist(), strict=True
            )
        ],
    }
