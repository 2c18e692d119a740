"""The most utility in total (paper 003 §IV, SWM), a baseline of `eeg`: budgets do not count.

A linear programme. Efficient in the sum, and envied: a buyer whose demands are large may get
nothing. No money moves; the shadow prices that prove the optimum are in utility.
"""

from __future__ import annotations

import numpy as np

from broker_node.mechanisms.base import Claim, Market, Outcome
from broker_node.mechanisms.stated import stated_array, stated_number
from broker_node.mechanisms.weight_market.baselines import Baseline, dual_bound, outcome_of
from broker_node.mechanisms.weight_market.certificate import EXACT
from broker_node.mechanisms.weight_market.linear import most_welfare
from broker_node.mechanisms.weight_market.market import WeightMarket, read
from broker_node.mechanisms.weight_market.programme import Array


class SocialWelfare(Baseline):
    """The allocation of most utility, whoever has it."""

    name = "social-welfare"
    claims = frozenset({Claim.INDIVIDUAL_RATIONALITY, Claim.PARETO})

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return x, prices (0), utility, surplus (the budget), gap and shadow_prices.

        `gap` is relative to the total utility. Raises `SolverError` if HiGHS does.
        """
        known = read(market)
        x_SJ, price_JR = most_welfare(known)
        total = float(x_SJ.sum())
        gap = max(0.0, _most(known, price_JR) - total) / total
        return outcome_of(known, x_SJ, gap, shadow_prices=price_JR.tolist())

    def proof(self, market: WeightMarket, outcome: Outcome) -> dict[str, float]:
        """Return the gap to the bound of the shadow prices: weak duality, without a solver."""
        shadow_JR = stated_array(outcome, "shadow_prices", market.capacity_JR.shape)
        total = float(stated_array(outcome, "x", market.edge_SJ.shape).sum())
        bound = dual_bound(market, shadow_JR, np.ones(len(market.budget_S)))
        gap = bound / total - 1 if total > 0 else float("inf")
        told = stated_number(outcome, "gap")
        return {
            "gap": max(0.0, gap - (told if told > EXACT else 0.0)),
            "gap_stated": abs(max(0.0, gap) - told),
            "gap_negative": max(0.0, -gap),
        }


def _most(market: WeightMarket, price_JR: Array) -> float:
    """Return the dual objective Σ p·c + Σ_s D_s·max(0, 1 − b_s)."""
    cost_SJ = np.einsum("sjr,jr->sj", market.demand_SJR, price_JR)
    spare_S = np.maximum(0.0, 1 - np.where(market.edge_SJ, cost_SJ, np.inf).min(axis=1))
    counted_S = np.isfinite(market.limit_S)
    return float(
        np.vdot(price_JR, market.capacity_JR) + spare_S[counted_S] @ market.limit_S[counted_S]
    )
