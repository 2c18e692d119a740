"""Where the interior point starts: every buyer on the central path of some prices.

For given prices p and a barrier τ the buyers' conditions

    x_sj · (cost_sj − Y_s) = τ,     Y_s = B_s / u_s − τ / (D_s − u_s),     u_s = Σ_j x_sj

have one root Y_s < min_j cost_sj a buyer. What is left to the Newton steps is that capacities
be met, and a few rounds of raising the prices of what is asked for too much see to most of it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from broker_node.mechanisms.weight_market.programme import Array, Programme, cost, load

BARRIER: Final = 3.0
"""τ times the number of products, over the sum of budgets; larger is safer and slower."""
PRICE_ROUNDS: Final = 3
BISECTIONS: Final = 30


def start(programme: Programme) -> tuple[float, Array, Array, Array]:
    """Return the barrier, prices RJ, purchases SJ and their dual slacks SJ."""
    budget = float(programme.budget_S.sum())
    barrier = BARRIER * budget / programme.pairs
    types, _, sellers = programme.demand_RSJ.shape
    price_RJ = np.full((types, sellers), (1 + BARRIER) * budget / (types * sellers))
    x_SJ, z_SJ = _buyers(programme, price_RJ, barrier)
    for _ in range(PRICE_ROUNDS):
        price_RJ = price_RJ * np.sqrt(load(programme.demand_RSJ, x_SJ)) + barrier
        x_SJ, z_SJ = _buyers(programme, price_RJ, barrier)
    return barrier, price_RJ, x_SJ, z_SJ


def _buyers(programme: Programme, price_RJ: Array, barrier: float) -> tuple[Array, Array]:
    """Return x and z by bisection in log t, t = min_j cost − Y: the utility falls in t."""
    budget_S, limit_S, edge_SJ = programme.budget_S, programme.limit_S, programme.edge_SJ
    cost_SJ = np.where(edge_SJ, cost(programme.demand_RSJ, price_RJ), np.inf)
    cheapest_S = cost_SJ.min(axis=1)
    beyond_SJ = cost_SJ - cheapest_S[:, None]
    most_S = edge_SJ.sum(axis=1) * barrier
    low_S = np.log(0.4 * cheapest_S / (1 + budget_S / barrier))
    high_S = np.log(2 * (cheapest_S * (1 + most_S / budget_S) + 2 * most_S / limit_S))
    for _ in range(BISECTIONS):
        middle_S = 0.5 * (low_S + high_S)
        t_S = np.exp(middle_S)
        utility_S = (barrier / (beyond_SJ + t_S[:, None])).sum(axis=1)
        with np.errstate(divide="ignore"):
            pressure_S = barrier / np.maximum(limit_S - utility_S, 0.0)
        too_low_S = budget_S / utility_S - pressure_S < cheapest_S - t_S
        low_S = np.where(too_low_S, middle_S, low_S)
        high_S = np.where(too_low_S, high_S, middle_S)
    z_SJ = np.where(edge_SJ, beyond_SJ + np.exp(high_S)[:, None], 1.0)
    return np.where(edge_SJ, barrier / z_SJ, 0.0), z_SJ
