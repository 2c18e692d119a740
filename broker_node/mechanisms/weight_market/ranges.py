"""Between which prices an equilibrium leaves a choice, by linear programmes on the dual face.

Utilities u are unique, so y_s = B_s/u_s is too, and the equilibrium prices are the solutions
of a linear programme: the least Σ p + Σ μ_s D_s with Σ_r d_sjr p_jr + μ_s ≥ y_s on every edge
and μ_s > 0 for limited buyers only. That least is Σ B. A range is the least and the most that
a price, or the surplus μ_s D_s of a buyer at its limit, has on that face.

Two programmes in a random direction tell whether the face is a point, as it mostly is; only
if not are there two a price. Ranges are good to `WIDTH` of the mean price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from broker_node.mechanisms.weight_market.programme import Array, Programme, cost

if TYPE_CHECKING:
    from broker_node.mechanisms.weight_market.interior import Equilibrium

SLACK: Final = 1e-9
"""By how much, relatively, the face is widened so that rounding does not empty it."""
WIDTH: Final = 1e-5
"""Relative width up to which a range is a point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """The least and the most of every price and surplus, in the units of the programme."""

    low_RJ: Array
    high_RJ: Array
    surplus_low_S: Array
    surplus_high_S: Array


class _Face:
    """The optimal prices and limits' duals, as the feasible set of a linear programme."""

    def __init__(self, programme: Programme, found: Equilibrium) -> None:
        from scipy.sparse import csr_array  # noqa: PLC0415  slow to import

        utility_S = found.x_SJ.sum(axis=1)
        y_S = programme.budget_S / utility_S
        buyer_E, seller_E = np.nonzero(programme.edge_SJ)
        types, _, sellers = programme.demand_RSJ.shape
        self.goods = types * sellers
        near_S = utility_S >= programme.limit_S * (1 - WIDTH)
        self.limited_S = np.flatnonzero(near_S)
        column_S = np.full(len(y_S), -1)
        column_S[self.limited_S] = self.goods + np.arange(len(self.limited_S))
        at_E = np.arange(len(buyer_E))
        of_limit_E = column_S[buyer_E] >= 0
        rows = [np.tile(at_E, types), at_E[of_limit_E]]
        columns = [
            (np.arange(types)[:, None] * sellers + seller_E).ravel(),
            column_S[buyer_E][of_limit_E],
        ]
        figures = [
            programme.demand_RSJ[:, buyer_E, seller_E].ravel(),
            np.ones(int(of_limit_E.sum())),
        ]
        limit_L = programme.limit_S[self.limited_S]
        variables = self.goods + len(self.limited_S)
        # the last row: all that is paid and all surpluses are no more than the budgets
        rows.append(np.full(variables, len(at_E)))
        columns.append(np.arange(variables))
        figures.append(np.concatenate([np.full(self.goods, -1.0), -limit_L]))
        scale_E = 1 / y_S[buyer_E]
        budget = float(programme.budget_S.sum())
        row_scale = np.append(scale_E, 1 / budget)
        row = np.concatenate(rows)
        self.matrix = csr_array(
            (np.concatenate(figures) * row_scale[row], (row, np.concatenate(columns))),
            shape=(len(at_E) + 1, variables),
        )
        self.least_E = np.append(np.full(len(at_E), 1 - SLACK), -1 - SLACK - 2 * found.gap)
        self.limit_L = limit_L

    def extreme(self, direction: Array) -> float | None:
        """Return the least of `direction`·(p, μ) on the face; None if there is no answer."""
        from scipy.optimize import linprog  # noqa: PLC0415  slow to import

        answer: Any = linprog(
            direction,
            A_ub=-self.matrix,
            b_ub=-self.least_E,
            bounds=(0, None),
            method="highs",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        return float(answer.fun) if answer.status == 0 else None


def optimal_ranges(programme: Programme, found: Equilibrium) -> Ranges | None:
    """Return the ranges, or None where the equilibrium is not exact enough to have any."""
    face = _Face(programme, found)
    scale = float(programme.budget_S.sum()) / face.goods
    weights = np.random.default_rng(0).uniform(1, 2, face.matrix.shape[1])
    weights[face.goods :] *= face.limit_L
    least, most = face.extreme(weights), face.extreme(-weights)
    if least is None or most is None:
        return None
    low = _duals(programme, found, face)
    high = low.copy()
    if -most - least > WIDTH * scale:
        for index in range(len(low)):
            unit = np.zeros(len(low))
            unit[index] = 1.0
            lowest, highest = face.extreme(unit), face.extreme(-unit)
            if lowest is None or highest is None:
                return None
            times = 1.0 if index < face.goods else float(face.limit_L[index - face.goods])
            if (-highest - lowest) * times > WIDTH * scale:
                low[index], high[index] = max(0.0, lowest), -highest
    surplus_low_S, surplus_high_S = np.zeros(len(found.x_SJ)), np.zeros(len(found.x_SJ))
    surplus_low_S[face.limited_S] = low[face.goods :] * face.limit_L
    surplus_high_S[face.limited_S] = high[face.goods :] * face.limit_L
    shape = found.price_RJ.shape
    return Ranges(
        low_RJ=low[: face.goods].reshape(shape),
        high_RJ=high[: face.goods].reshape(shape),
        surplus_low_S=surplus_low_S,
        surplus_high_S=surplus_high_S,
    )


def _duals(programme: Programme, found: Equilibrium, face: _Face) -> Array:
    """Return the prices found and the limits' duals that belong to them."""
    cost_SJ = np.where(programme.edge_SJ, cost(programme.demand_RSJ, found.price_RJ), np.inf)
    y_S = programme.budget_S / found.x_SJ.sum(axis=1)
    spare_S = np.maximum(0.0, y_S - cost_SJ.min(axis=1))
    return np.concatenate([found.price_RJ.ravel(), spare_S[face.limited_S]])
