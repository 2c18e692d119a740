"""Proportional sharing (paper 003 §IV, PS), a baseline of `eeg`.

Every buyer gets B_s / Σ B of every good, hence x_sj = B_s/Σ B · min_r c_jr/d_sjr of each
seller that has what it demands, and returns what is over its limit. Envy-free by
construction, and wasteful: what a buyer does not need goes to nobody else. No money moves.
"""

from __future__ import annotations

import numpy as np

from broker_node.mechanisms.base import Claim, Market, Outcome
from broker_node.mechanisms.stated import stated_array, stated_number
from broker_node.mechanisms.weight_market.baselines import Baseline, outcome_of
from broker_node.mechanisms.weight_market.market import WeightMarket, read


class Proportional(Baseline):
    """To every buyer its share, by budget, of everything."""

    name = "proportional"
    claims = frozenset({Claim.INDIVIDUAL_RATIONALITY, Claim.ENVY_FREE, Claim.SHARING_INCENTIVE})

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return x, prices (0), utility, surplus (the budget) and gap (0)."""
        known = read(market)
        share_S = known.budget_S / known.budget_S.sum()
        needed_SJR = known.demand_SJR > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            bundles_SJR = np.where(needed_SJR, known.capacity_JR / known.demand_SJR, np.inf)
        bundles_SJ = np.where(known.edge_SJ, bundles_SJR.min(axis=2), 0.0)
        x_SJ = bundles_SJ * share_S[:, None]
        x_SJ *= np.minimum(1.0, known.limit_S / x_SJ.sum(axis=1))[:, None] * (1 - 1e-13)
        return outcome_of(known, x_SJ, 0.0)

    def proof(self, market: WeightMarket, outcome: Outcome) -> dict[str, float]:
        """Return how far a purchase is from its share, seller by seller."""
        x_SJ = stated_array(outcome, "x", market.edge_SJ.shape)
        worst = 0.0
        for s, budget in enumerate(market.budget_S):
            fair = {}
            for j in np.flatnonzero(market.edge_SJ[s]):
                asked = market.demand_SJR[s, j] > 0
                parts = market.capacity_JR[j, asked] / market.demand_SJR[s, j, asked]
                fair[int(j)] = float(parts.min() * budget / market.budget_S.sum())
            cut = min(1.0, float(market.limit_S[s]) / sum(fair.values()))
            worst = max([worst, *(abs(x_SJ[s, j] / (cut * one) - 1) for j, one in fair.items())])
        return {"share": worst, "gap": abs(stated_number(outcome, "gap"))}
