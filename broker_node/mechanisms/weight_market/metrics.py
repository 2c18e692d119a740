"""The fairness of an allocation, as paper 003 §III-C and §IV-A measure it.

A buyer's utility of a bundle A is min(Σ_j min_r a_jr / d_sjr, D_s) (Eq. 3), over the types
that it demands and the sellers that it has an edge to; every mechanism here allocates
a_jr = x_sj·d_sjr.
"""

from __future__ import annotations

import numpy as np

from broker_node.mechanisms.weight_market.market import WeightMarket
from broker_node.mechanisms.weight_market.programme import Array


def utility_of(market: WeightMarket, buyer: int, bundle_JR: Array) -> float:
    """Return what `bundle_JR` is worth to `buyer`, at most its limit (Eq. 3)."""
    demand_JR, edge_J = market.demand_SJR[buyer], market.edge_SJ[buyer]
    parts_JR = np.full(demand_JR.shape, np.inf)
    np.divide(bundle_JR, demand_JR, out=parts_JR, where=demand_JR > 0)
    return float(min(parts_JR.min(axis=1)[edge_J].sum(), market.limit_S[buyer]))


def envy_freeness_index(market: WeightMarket, x_SJ: Array) -> float:
    """Return min over s, s' of u_s(A_s) / u_s(B_s/B_s' · A_s'): 1 if nobody envies.

    A bundle without value to s is envied by nobody. Costs S²·J·R.
    """
    lowest = 1.0
    own_S = np.minimum(x_SJ.sum(axis=1), market.limit_S)
    safe_SJR = np.where(market.demand_SJR > 0, market.demand_SJR, 1.0)
    for other, x_J in enumerate(x_SJ):
        bundle_JR = x_J[:, None] * market.demand_SJR[other]
        parts_SJR = np.where(market.demand_SJR > 0, bundle_JR / safe_SJR, np.inf)
        parts_SJ = np.where(market.edge_SJ, parts_SJR.min(axis=2), 0.0)
        scaled_S = parts_SJ.sum(axis=1) * market.budget_S / market.budget_S[other]
        of_other_S = np.minimum(scaled_S, market.limit_S)
        wanted_S = of_other_S > 0
        lowest = min(lowest, float((own_S[wanted_S] / of_other_S[wanted_S]).min(initial=1.0)))
    return lowest


def proportional_fairness_index(market: WeightMarket, x_SJ: Array) -> Array:
    """Return, for every buyer, its utility over what it would have of everything there is.

    Proportionality holds where it is at least the buyer's share of the budgets.
    """
    own_S = np.minimum(x_SJ.sum(axis=1), market.limit_S)
    of_all = [utility_of(market, s, market.capacity_JR) for s in range(len(own_S))]
    return np.asarray(own_S / np.array(of_all))


def sharing_incentive_index(market: WeightMarket, x_SJ: Array) -> Array:
    """Return, for every buyer, its utility over that of a share of everything by its budget.

    The sharing incentive holds where it is at least 1.
    """
    own_S = np.minimum(x_SJ.sum(axis=1), market.limit_S)
    share_S = market.budget_S / market.budget_S.sum()
    alone = [utility_of(market, s, share * market.capacity_JR) for s, share in enumerate(share_S)]
    return np.asarray(own_S / np.array(alone))
