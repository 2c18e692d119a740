"""The extended Eisenberg–Gale programme in units of its own, and a solver's own gap.

    maximise  Σ_s B_s log Σ_j x_sj    s.t.  Σ_s d_sjr x_sj ≤ 1,   Σ_j x_sj ≤ D_s,   x ≥ 0

Shape suffixes: S buyers, J sellers, R types. The type comes first, so that what is summed
over types runs over contiguous S × J planes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TINY: Final = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class Programme:
    """A market in units where capacities are 1, budgets and utilities near 1."""

    demand_RSJ: Array
    edge_SJ: NDArray[np.bool_]
    """Where a buyer can buy; elsewhere its demand is 0."""
    budget_S: Array
    limit_S: Array
    """Infinite where a buyer's utility has no limit."""

    @property
    def pairs(self) -> int:
        """Return how many products the complementarity conditions have."""
        types, _, sellers = self.demand_RSJ.shape
        capped = int(np.isfinite(self.limit_S).sum())
        return int(self.edge_SJ.sum()) + int(types * sellers) + capped


def load(demand_RSJ: Array, x_SJ: Array) -> Array:
    """Return what `x_SJ` takes of every good, shape RJ."""
    return np.asarray(np.einsum("rsj,sj->rj", demand_RSJ, x_SJ))


def cost(demand_RSJ: Array, price_RJ: Array) -> Array:
    """Return what a unit of utility costs each buyer at each seller, shape SJ."""
    return np.asarray(np.einsum("rsj,rj->sj", demand_RSJ, price_RJ))


def relative_gap(programme: Programme, x_SJ: Array, price_RJ: Array) -> float:
    """Return the duality gap over the sum of budgets; infinite where the bound is."""
    budget_S = programme.budget_S
    cost_SJ = np.where(programme.edge_SJ, cost(programme.demand_RSJ, price_RJ), np.inf)
    cheapest_S = cost_SJ.min(axis=1)
    with np.errstate(divide="ignore", over="ignore"):
        target_S = np.minimum(budget_S / cheapest_S, programme.limit_S)
    utility_S = x_SJ.sum(axis=1)
    if not np.isfinite(target_S).all() or not (utility_S > 0).all():
        return np.inf
    above_S = budget_S * np.log(target_S / utility_S) - cheapest_S * target_S
    gap = float((price_RJ.sum() + above_S.sum()) / budget_S.sum())
    return gap if np.isfinite(gap) else np.inf


def feasible(programme: Programme, x_SJ: Array, price_RJ: Array) -> Array:
    """Return `x_SJ` shrunk to the capacities, the limits and, at these prices, the budgets."""
    demand_RSJ = programme.demand_RSJ
    over_RJ = np.maximum(load(demand_RSJ, x_SJ), 1.0)
    if over_RJ.max() > 1.0:
        x_SJ = x_SJ / np.where(demand_RSJ > 0, over_RJ[:, None, :], 1.0).max(axis=0)
    spend_S = (x_SJ * cost(demand_RSJ, price_RJ)).sum(axis=1)
    room_S = programme.limit_S / np.maximum(x_SJ.sum(axis=1), TINY)
    affordable_S = programme.budget_S / np.maximum(spend_S, TINY)
    return np.asarray(x_SJ * np.minimum(1.0, np.minimum(room_S, affordable_S))[:, None])
