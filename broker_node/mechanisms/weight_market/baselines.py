"""What the baselines of paper 003 have in common: they take no money, and what they state.

`proportional`, `social-welfare` and `max-min` divide what is there without a market: their
prices are 0 and every buyer keeps its budget. What proves an optimum is stated beside it, as
shadow prices in utility, and is judged here without a solver.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from broker_node.mechanisms.base import Certificate, Issue, Json, Market, Outcome, Status
from broker_node.mechanisms.stated import stated_array, stated_number
from broker_node.mechanisms.weight_market.certificate import EXACT, feasibility
from broker_node.mechanisms.weight_market.market import WeightMarket, issues, read
from broker_node.mechanisms.weight_market.programme import Array


def outcome_of(market: WeightMarket, x_SJ: Array, gap: float, **proof: Json) -> Outcome:
    """Return the outcome of an allocation for nothing; `gap` is relative to the optimum."""
    values: dict[str, Json] = {
        "x": x_SJ.tolist(),
        "prices": np.zeros_like(market.capacity_JR).tolist(),
        "utility": np.minimum(x_SJ.sum(axis=1), market.limit_S).tolist(),
        "surplus": market.budget_S.tolist(),
        "gap": gap,
        **proof,
    }
    return Outcome(status=Status.TRADE if gap <= EXACT else Status.APPROXIMATE, values=values)


class Baseline(ABC):
    """A division of what is there; a rule of its own says which, and proves it."""

    def validate(self, market: Market) -> list[Issue]:
        return issues(market)

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge feasibility, what is stated, and the rule's own proof; to 1e-6, relatively."""
        read_market = read(market)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            violations = _common(read_market, outcome) | self.proof(read_market, outcome)
        return Certificate(violations=violations, tolerance=EXACT)

    @abstractmethod
    def proof(self, market: WeightMarket, outcome: Outcome) -> dict[str, float]:
        """Return by how much the rule is broken; raises `RefusedInputError` as `stated` does."""


def _common(market: WeightMarket, outcome: Outcome) -> dict[str, float]:
    x_SJ = stated_array(outcome, "x", market.edge_SJ.shape)
    price_JR = stated_array(outcome, "prices", market.capacity_JR.shape)
    utility_S = stated_array(outcome, "utility", market.budget_S.shape)
    surplus_S = stated_array(outcome, "surplus", market.budget_S.shape)
    gap = stated_number(outcome, "gap")
    have_S = x_SJ.sum(axis=1)
    return {
        **feasibility(market, x_SJ, price_JR),
        "priced": float(np.abs(price_JR).max()),
        "limit": max(0.0, float((have_S / market.limit_S - 1).max())),
        "utility": float((np.abs(utility_S - have_S) / np.maximum(have_S, utility_S)).max())
        if (np.maximum(have_S, utility_S) > 0).all()
        else float(np.abs(utility_S - have_S).max()),
        "surplus": float((np.abs(surplus_S / market.budget_S - 1)).max()),
        "status": float(
            outcome.status is not (Status.TRADE if gap <= EXACT else Status.APPROXIMATE)
        ),
    }


def dual_bound(market: WeightMarket, price_JR: Array, weight_S: Array) -> float:
    """Return what Σ weight·utility is at most, by these shadow prices; infinite if by none."""
    if (price_JR < 0).any() or (weight_S < 0).any():
        return float("inf")
    cost_SJ = (market.demand_SJR * price_JR).sum(axis=2)
    cheapest_S = np.where(market.edge_SJ, cost_SJ, np.inf).min(axis=1)
    short_S = weight_S - cheapest_S
    # rounding may leave a buyer without a limit short by nothing that counts
    short_S = np.where(short_S > 1e-12 * weight_S, short_S, 0.0)
    of_limits_S = np.where(short_S > 0, short_S, 0.0) * np.where(short_S > 0, market.limit_S, 0.0)
    return float((price_JR * market.capacity_JR).sum() + of_limits_S.sum())
