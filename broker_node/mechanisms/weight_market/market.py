"""Reading a weight market: who demands how much of what from whom, for which budget.

A purchase is in fixed proportions (paper 003, Eq. 1): a unit of utility that buyer s takes
from seller j uses d_sjr of the seller's capacity c_jr for every type r. There is an edge
where the seller has all that the buyer demands of it; a buyer that demands nothing of a
seller takes nothing from it, and a demand of null says the same.

Shape suffixes: S buyers, J sellers, R types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker_node.mechanisms.base import Issue, Json, Market, RefusedInputError
from broker_node.mechanisms.reading import issues_of, items, number, require_keys
from broker_node.mechanisms.weight_market.programme import Array, Programme

REQUIRED: Final = ("demand", "budget", "capacity")
LIMITS: Final = "max_utility"
RANGES: Final = "price_ranges"
"""Optional, of those mechanisms that have prices: whether to find their ranges."""
RANGED_CELLS: Final = 5_000
"""Buyers × sellers × types up to which ranges of prices are found without being asked for."""
MAX_CELLS: Final = 20_000_000
"""Buyers × sellers × types; 2048 × 400 × 3 is an eighth of it."""
SMALLEST, LARGEST = 1e-50, 1e50
"""Bounds of every positive figure, so that no product or quotient of a few leaves a double."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightMarket:
    """A market that can be cleared: every buyer has a budget and at least one edge."""

    demand_SJR: Array
    budget_S: Array
    limit_S: Array
    """Infinite where there is none."""
    capacity_JR: Array
    edge_SJ: NDArray[np.bool_]

    def without_limits(self) -> WeightMarket:
        """Return the market of the plain Eisenberg–Gale programme: no (6c)."""
        return WeightMarket(
            demand_SJR=self.demand_SJR,
            budget_S=self.budget_S,
            limit_S=np.full_like(self.limit_S, np.inf),
            capacity_JR=self.capacity_JR,
            edge_SJ=self.edge_SJ,
        )


def read(market: Market, optional: tuple[str, ...] = ()) -> WeightMarket:
    """Return the market; raises `RefusedInputError` with the field, the place and the value."""
    require_keys(market, REQUIRED, (LIMITS, *optional))
    budget_S = _budgets(market["budget"])
    capacity_JR = _capacities(market["capacity"])
    buyers, (sellers, types) = len(budget_S), capacity_JR.shape
    if buyers * sellers * types > MAX_CELLS:
        raise RefusedInputError(
            "demand", f"of {buyers} × {sellers} × {types} is more than {MAX_CELLS} figures"
        )
    demand_SJR = _demands(market["demand"], buyers, sellers, types)
    limit_S = _limits(market.get(LIMITS), buyers)
    asked_SJR = demand_SJR > 0
    lacking_SJ = (asked_SJR & (capacity_JR == 0)).any(axis=2)
    edge_SJ = asked_SJR.any(axis=2) & ~lacking_SJ
    for s in range(buyers):
        if not asked_SJR[s].any():
            raise RefusedInputError(f"demand[{s}]", "is 0 of every seller")
        if not edge_SJ[s].any():
            raise RefusedInputError(f"demand[{s}]", "can be met by no seller's capacity")
    return WeightMarket(
        demand_SJR=demand_SJR,
        budget_S=budget_S,
        limit_S=limit_S,
        capacity_JR=capacity_JR,
        edge_SJ=edge_SJ,
    )


def issues(market: Market, optional: tuple[str, ...] = ()) -> list[Issue]:
    """Return why `market` is refused, the first reason found; empty if it is not."""
    return issues_of(lambda asked: read(asked, optional), market)


def _budgets(value: Json) -> Array:
    budgets = items(value, "budget")
    if not budgets:
        raise RefusedInputError("budget", "is of no buyer: the market is empty")
    return np.array([_positive(one, f"budget[{s}]") for s, one in enumerate(budgets)])


def _limits(value: Json, buyers: int) -> Array:
    if value is None:
        return np.full(buyers, np.inf)
    limits = items(value, "max_utility", length=buyers)
    return np.array(
        [
            np.inf if one is None else _positive(one, f"max_utility[{s}]")
            for s, one in enumerate(limits)
        ]
    )


def _capacities(value: Json) -> Array:
    rows = items(value, "capacity")
    if not rows:
        raise RefusedInputError("capacity", "is of no seller: the market is empty")
    types = len(items(rows[0], "capacity[0]"))
    if types == 0:
        raise RefusedInputError("capacity[0]", "has no type: the market is empty")
    for j, row in enumerate(rows):
        items(row, f"capacity[{j}]", length=types)
    return _figures(rows, (len(rows), types), lambda j, r: f"capacity[{j}][{r}]")


def _demands(value: Json, buyers: int, sellers: int, types: int) -> Array:
    nothing: list[Json] = [0.0] * types
    planes: list[Json] = []
    for s, plane in enumerate(items(value, "demand", length=buyers)):
        rows = items(plane, f"demand[{s}]", length=sellers)
        full = [nothing if row is None else row for row in rows]
        for j, row in enumerate(full):
            if not isinstance(row, list) or len(row) != types:
                items(row, f"demand[{s}][{j}]", length=types)
        planes.extend(full)

    def place(row: int, r: int) -> str:
        return f"demand[{row // sellers}][{row % sellers}][{r}]"

    flat = _figures(planes, (buyers * sellers, types), place)
    return flat.reshape(buyers, sellers, types)


def _figures(rows: list[Json], shape: tuple[int, int], place: Callable[[int, int], str]) -> Array:
    """Return rows of numbers, each 0 or within bounds; only a bad one is looked at singly."""
    kinds = set(map(type, chain.from_iterable(rows)))  # type: ignore[arg-type]
    if kinds <= {float, int}:
        try:
            read_ = np.array(rows, dtype=np.float64).reshape(shape)
        except OverflowError:
            read_ = np.full(shape, np.nan)
        if ((read_ == 0) | ((read_ >= SMALLEST) & (read_ <= LARGEST))).all():
            return read_
    for i, row in enumerate(rows):
        for r, one in enumerate(items(row, place(i, 0))):
            if not (_is_number(one) and one == 0):
                _positive(one, place(i, r))
    raise RefusedInputError(place(0, 0), "must be a number")


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(value: Json, field: str) -> float:
    figure = number(value, field)
    if not SMALLEST <= figure <= LARGEST:
        least = "at least 0" if field.startswith(("demand", "capacity")) else "over 0"
        what = least if figure <= 0 else f"{SMALLEST:g} … {LARGEST:g}"
        raise RefusedInputError(field, f"must be {what}, got {figure:g}")
    return figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """What one unit of the programme is in the market's own units."""

    programme: Programme
    utility_S: Array
    money: float


def in_units(market: WeightMarket) -> Units:
    """Return the market with capacities of 1 and budgets and utilities near 1.

    A buyer's unit of utility is what its share by budget of everything would give it, or
    its limit if that is less.
    """
    budget_S = market.budget_S / market.budget_S.mean()
    capacity_JR = np.where(market.capacity_JR > 0, market.capacity_JR, 1.0)
    demand_SJR = np.where(market.edge_SJ[:, :, None], market.demand_SJR / capacity_JR, 0.0)
    most_SJ = np.where(market.edge_SJ, demand_SJR.max(axis=2), np.inf)
    share_S = (1 / most_SJ).sum(axis=1) * budget_S / budget_S.sum()
    utility_S = np.minimum(share_S, market.limit_S)
    programme = Programme(
        demand_RSJ=np.ascontiguousarray((demand_SJR * utility_S[:, None, None]).transpose(2, 0, 1)),
        edge_SJ=market.edge_SJ,
        budget_S=budget_S,
        limit_S=market.limit_S / utility_S,
    )
    return Units(programme=programme, utility_S=utility_S, money=float(market.budget_S.mean()))
