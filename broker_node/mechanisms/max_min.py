"""Max–min fairness (paper 003 §IV, MMF), a baseline of `eeg`: leximin, budgets do not count.

The lowest utility is as high as can be, then the next lowest, and so on: the paper's own
words stop at the first, which leaves most of the allocation open. A sequence of linear
programmes, at most one a buyer, hence `MAX_EDGES`. Utilities of different buyers are compared
as they are. No money moves.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np

from broker_node.mechanisms.base import Claim, Issue, Json, Market, Outcome, RefusedInputError
from broker_node.mechanisms.reading import (
    array,
    issues_of,
    items,
    mapping,
    number,
    require_keys,
    shown,
)
from broker_node.mechanisms.stated import stated, stated_array, stated_number
from broker_node.mechanisms.weight_market.baselines import Baseline, dual_bound, outcome_of
from broker_node.mechanisms.weight_market.certificate import EXACT
from broker_node.mechanisms.weight_market.linear import WIDEST, Level, leximin, spread
from broker_node.mechanisms.weight_market.market import WeightMarket, read
from broker_node.mechanisms.weight_market.programme import Array

MAX_EDGES: Final = 10_000
"""Pairs of a buyer and a seller up to which the sequence of programmes ends soon."""


class MaxMin(Baseline):
    """The allocation whose poorest buyers have the most."""

    name = "max-min"
    claims = frozenset({Claim.INDIVIDUAL_RATIONALITY, Claim.PARETO})

    def validate(self, market: Market) -> list[Issue]:
        return issues_of(_read, market)

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return x, prices (0), utility, surplus (the budget), gap and levels.

        A level has its `utility`, the `buyers` that stay at it, and the `weights` and
        `shadow_prices` that prove that they can have no more. `gap` is the worst of the
        levels', relatively. Raises `SolverError` if HiGHS does.
        """
        known = _read(market)
        x_SJ, levels = leximin(known)
        gap = _worst_gap(known, levels)
        return outcome_of(known, x_SJ, gap, levels=[_told(level) for level in levels])

    def proof(self, market: WeightMarket, outcome: Outcome) -> dict[str, float]:
        """Return by how much a level is not reached, not proved, or out of order."""
        have_S = stated_array(outcome, "x", market.edge_SJ.shape).sum(axis=1)
        settled_S = np.full(len(have_S), np.nan)
        violations = {"level": 0.0, "gap": 0.0, "unproved": 0.0, "order": 0.0}
        heights: list[float] = []
        for place, told in enumerate(items(stated(outcome, "levels"), "levels")):
            level = _heard(told, f"levels[{place}]", market)
            height, tight, weight_S = level.utility, list(level.buyers), level.weight_S
            price_JR = level.price_JR
            open_S = np.isnan(settled_S)
            total = float(weight_S[open_S].sum())
            proves = bool(tight) and open_S[tight].all() and (weight_S >= 0).all()
            if not proves or (weight_S[tight] <= 0).any() or height <= 0:
                violations["unproved"] = 1.0
                break
            kept = float(weight_S[~open_S] @ settled_S[~open_S])
            most = (dual_bound(market, price_JR, weight_S) - kept) / total
            violations["gap"] = max(violations["gap"], most / height - 1)
            reached = np.abs(have_S[tight] / height - 1).max()
            violations["level"] = max(violations["level"], float(reached))
            settled_S[tight] = height
            heights.append(height)
        unsettled = float(np.isnan(settled_S).any())
        violations["unproved"] = max(violations["unproved"], unsettled)
        falls = [before / after - 1 for before, after in pairwise(heights)]
        violations["order"] = max(0.0, *falls) if falls else 0.0
        gap = stated_number(outcome, "gap")
        violations["gap_stated"] = abs(max(0.0, violations["gap"]) - gap)
        if gap > EXACT:
            violations["gap"] = max(0.0, violations["gap"] - gap)
        return violations


def _read(market: Market) -> WeightMarket:
    known = read(market)
    edges = int(known.edge_SJ.sum())
    if edges > MAX_EDGES:
        raise RefusedInputError("demand", f"has {edges} edges; max-min takes {MAX_EDGES}")
    apart = spread(known)
    if apart > WIDEST:
        reason = f"puts equal shares {apart:.0e} times apart; max-min takes {WIDEST:.0e}"
        raise RefusedInputError("demand", reason)
    return known


def _told(level: Level) -> dict[str, Json]:
    return {
        "utility": level.utility,
        "buyers": list(level.buyers),
        "weights": level.weight_S.tolist(),
        "shadow_prices": level.price_JR.tolist(),
    }


def _heard(value: Json, field: str, market: WeightMarket) -> Level:
    """Return a level that an outcome states. Raises `RefusedInputError`."""
    told = mapping(value, field)
    require_keys(told, ("utility", "buyers", "weights", "shadow_prices"))
    buyers = items(told["buyers"], f"{field}.buyers")
    numbers = len(market.budget_S)
    for buyer in buyers:
        if isinstance(buyer, bool) or not isinstance(buyer, int) or not 0 <= buyer < numbers:
            reason = f"must be buyers under {numbers}, got {shown(buyer)}"
            raise RefusedInputError(f"{field}.buyers", reason)
    return Level(
        utility=number(told["utility"], f"{field}.utility"),
        buyers=tuple(buyer for buyer in buyers if isinstance(buyer, int)),
        weight_S=array(told["weights"], f"{field}.weights", (numbers,)),
        price_JR=array(told["shadow_prices"], f"{field}.shadow_prices", market.capacity_JR.shape),
    )


def _worst_gap(market: WeightMarket, levels: list[Level]) -> float:
    worst = 0.0
    settled: dict[int, float] = {}
    for level in levels:
        kept = sum(level.weight_S[s] * utility for s, utility in settled.items())
        rest = sum(weight for s, weight in enumerate(level.weight_S) if s not in settled)
        most = (_most(market, level.price_JR, level.weight_S) - kept) / rest
        worst = max(worst, most / level.utility - 1)
        settled |= dict.fromkeys(level.buyers, level.utility)
    return float(worst)


def _most(market: WeightMarket, price_JR: Array, weight_S: Array) -> float:
    """Return the dual objective Σ p·c + Σ_s D_s·max(0, weight_s − b_s)."""
    cost_SJ = np.einsum("sjr,jr->sj", market.demand_SJR, price_JR)
    spare_S = np.maximum(0.0, weight_S - np.where(market.edge_SJ, cost_SJ, np.inf).min(axis=1))
    counted_S = np.isfinite(market.limit_S)
    return float(
        np.vdot(price_JR, market.capacity_JR) + spare_S[counted_S] @ market.limit_S[counted_S]
    )
