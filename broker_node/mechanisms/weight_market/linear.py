"""The linear programmes of the baselines: most utility in total, and leximin (HiGHS).

Both maximise over x ≥ 0 with Σ_s d_sjr x_sj ≤ c_jr and Σ_j x_sj ≤ D_s. Every answer comes
with the duals that prove it; they are shadow prices in utility, not money.

Raises `SolverError` where HiGHS finds no optimum: nothing is made up in its place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from broker_node.mechanisms.weight_market.market import WeightMarket, in_units
from broker_node.mechanisms.weight_market.programme import Array, Programme, cost, feasible
from node.protocol.errors import LocalProtocolError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

POSITIVE: Final = 1e-7
"""A dual above this, of those that sum to 1, marks a buyer that can have no more."""
KEPT: Final = 1e-10
"""What a settled buyer may lose, relatively, to the rounding of a later round."""
WIDEST: Final = 1e12
"""How far apart buyers may be in what their share of everything gives, for leximin to be told."""
_TOLERANCES: Final = {
    "primal_feasibility_tolerance": 1e-10,
    "dual_feasibility_tolerance": 1e-10,
}


class SolverError(LocalProtocolError):
    """A linear programme that has an optimum was not solved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A step of leximin: `buyers` can have no more than `utility` each, by these weights."""

    utility: float
    buyers: tuple[int, ...]
    weight_S: Array
    price_JR: Array


class _Feasible:
    """Rows of capacities (J·R), then columns of purchases, one an edge."""

    def __init__(self, programme: Programme) -> None:
        from scipy.sparse import csr_array  # noqa: PLC0415  slow to import

        self.buyer_E, self.seller_E = np.nonzero(programme.edge_SJ)
        types, buyers, sellers = programme.demand_RSJ.shape
        self.shape_SJ, self.goods = (buyers, sellers), types * sellers
        edges = len(self.buyer_E)
        figures = programme.demand_RSJ[:, self.buyer_E, self.seller_E].ravel()
        rows = (np.arange(types)[:, None] * sellers + self.seller_E).ravel()
        self.capacities = csr_array(
            (figures, (rows, np.tile(np.arange(edges), types))), shape=(self.goods, edges)
        )
        self.sums = csr_array(
            (np.ones(edges), (self.buyer_E, np.arange(edges))), shape=(buyers, edges)
        )

    def purchases(self, flat_E: Array) -> Array:
        """Return purchases SJ, none of them below 0."""
        x_SJ = np.zeros(self.shape_SJ)
        x_SJ[self.buyer_E, self.seller_E] = np.maximum(flat_E, 0.0)
        return x_SJ


def _optimum(objective: Array, matrix: csr_array, bound: Array) -> Any:
    from scipy.optimize import linprog  # noqa: PLC0415  slow to import

    answer: Any = linprog(
        objective, A_ub=matrix, b_ub=bound, bounds=(0, None), method="highs", options=_TOLERANCES
    )
    if answer.status != 0:
        raise SolverError(f"a linear programme of {matrix.shape} was not solved: {answer.message}")
    return answer


def _limit_rows(programme: Programme) -> NDArray[np.intp]:
    return np.flatnonzero(np.isfinite(programme.limit_S))


def most_welfare(market: WeightMarket) -> tuple[Array, Array]:
    """Return the purchases of most utility in total, and the shadow prices JR of capacities."""
    from scipy.sparse import vstack  # noqa: PLC0415  slow to import

    units = in_units(_of_equals(market))
    programme = units.programme
    face = _Feasible(programme)
    limited = _limit_rows(programme)
    weight_S = units.utility_S / units.utility_S.max()
    bound = np.concatenate([np.ones(face.goods), programme.limit_S[limited]])
    answer = _optimum(
        -weight_S[face.buyer_E], vstack([face.capacities, face.sums[limited]]).tocsr(), bound
    )
    price_RJ = np.maximum(-answer.ineqlin.marginals[: face.goods], 0.0)
    price_RJ = price_RJ.reshape(programme.demand_RSJ.shape[0], -1)
    price_RJ = _covering(programme, price_RJ, np.where(np.isinf(programme.limit_S), weight_S, 0.0))
    x_SJ = _shrunk(programme, face.purchases(answer.x))
    scale = float(units.utility_S.max())
    return x_SJ * units.utility_S[:, None], _own_prices(market, price_RJ) * scale


def _of_equals(market: WeightMarket) -> WeightMarket:
    """Return the market with budgets of 1: they count for nothing here, nor in the units."""
    return replace(market, budget_S=np.ones_like(market.budget_S))


def spread(market: WeightMarket) -> float:
    """Return how many times as much one buyer has of its equal share of everything as another."""
    share_S = in_units(_of_equals(market.without_limits())).utility_S
    return float(share_S.max() / share_S.min())


def leximin(market: WeightMarket) -> tuple[Array, list[Level]]:
    """Return purchases whose lowest utility is highest, then the next lowest, and so on.

    Each round maximises the lowest utility of the buyers that are left, while those before
    keep theirs; the duals say which of them can have no more in any optimum of the round.
    """
    units = in_units(_of_equals(market))
    programme = units.programme
    face = _Feasible(programme)
    unit = float(units.utility_S.min())
    relative_S = units.utility_S / unit
    settled_S = np.full(len(relative_S), np.nan)
    levels: list[Level] = []
    x_SJ = np.zeros(face.shape_SJ)
    while np.isnan(settled_S).any():
        x_SJ, level, weight_S, price_RJ, tight_S = _round(programme, face, relative_S, settled_S)
        settled_S[tight_S] = level
        levels.append(
            Level(
                utility=level * unit,
                buyers=tuple(np.flatnonzero(tight_S).tolist()),
                weight_S=weight_S,
                price_JR=_own_prices(market, price_RJ) * unit,
            )
        )
    return _shrunk(programme, x_SJ) * units.utility_S[:, None], levels


def _round(
    programme: Programme, face: _Feasible, relative_S: Array, settled_S: Array
) -> tuple[Array, float, Array, Array, NDArray[np.bool_]]:
    """Return purchases, the highest lowest utility of the open buyers, its proof, and the tight.

    The proof is weights S and prices RJ; the tight are the open buyers that can have no more.
    The last column is that utility t; the last rows are t ≤ u_s for an open buyer and
    settled_s ≤ u_s for the others. What a unit of t takes of a capacity may differ between
    buyers by `WIDEST`: half of it goes to a buyer's column and half to its row, so that no
    figure falls below what HiGHS takes for 0.
    """
    from scipy.sparse import (  # noqa: PLC0415  slow to import
        coo_array,
        csr_array,
        diags_array,
        hstack,
        vstack,
    )

    open_S = np.isnan(settled_S)
    limited = _limit_rows(programme)
    buyers, edges = len(relative_S), len(face.buyer_E)
    unit = float(relative_S[open_S].min())
    aimed_S = np.where(open_S, unit, settled_S)
    half_S = np.sqrt(np.minimum(aimed_S / relative_S, 1.0))
    per_S = half_S * relative_S / np.where(open_S, unit, 1.0)
    columns = diags_array(half_S[face.buyer_E])
    bounds = vstack([face.capacities @ columns, face.sums[limited]])
    at_S = np.arange(buyers)
    lowest = coo_array((open_S / per_S, (at_S, np.zeros(buyers, dtype=int))), shape=(buyers, 1))
    matrix = vstack(
        [hstack([bounds, csr_array((bounds.shape[0], 1))]), hstack([-face.sums, lowest])]
    ).tocsr()
    kept_S = np.where(open_S, 0.0, -np.nan_to_num(settled_S) * (1 - KEPT) / per_S)
    most_L = programme.limit_S[limited] / half_S[limited]
    objective = np.append(np.zeros(edges), -1.0)
    answer = _optimum(objective, matrix, np.concatenate([np.ones(face.goods), most_L, kept_S]))
    duals = np.maximum(-answer.ineqlin.marginals, 0.0)
    scaled_S = duals[-buyers:]
    tight_S = open_S & (scaled_S > POSITIVE * scaled_S[open_S].max())
    weight_S = scaled_S / per_S * np.where(open_S, 1.0, unit)
    price_RJ = duals[: face.goods].reshape(programme.demand_RSJ.shape[0], -1) * unit
    needed_S = np.where(np.isinf(programme.limit_S), weight_S * relative_S, 0.0)
    price_RJ = _covering(programme, price_RJ, needed_S)
    x_SJ = face.purchases(answer.x[:-1]) * half_S[:, None]
    return x_SJ, float(answer.x[-1]) * unit, weight_S, price_RJ, tight_S


def _covering(programme: Programme, price_RJ: Array, needed_S: Array) -> Array:
    """Return prices raised so that none of `needed_S` is undercut: a valid bound again."""
    cost_SJ = np.where(programme.edge_SJ, cost(programme.demand_RSJ, price_RJ), np.inf)
    cheapest_S = cost_SJ.min(axis=1)
    asked_S = (needed_S > 0) & (cheapest_S > 0)
    factor = (needed_S[asked_S] / cheapest_S[asked_S]).max(initial=1.0)
    return price_RJ * max(1.0, float(factor))


def _shrunk(programme: Programme, x_SJ: Array) -> Array:
    """Return purchases within capacities and limits, whatever the solver's tolerance left."""
    free = np.zeros(programme.demand_RSJ.shape[::2])
    return feasible(programme, x_SJ, free) * (1 - 1e-13)


def _own_prices(market: WeightMarket, price_RJ: Array) -> Array:
    """Return prices per unit of the market's goods, 0 for those that are not there."""
    there_JR = market.capacity_JR > 0
    scaled_JR = price_RJ.T / np.where(there_JR, market.capacity_JR, 1.0)
    return np.asarray(np.where(there_JR, scaled_JR, 0.0))
