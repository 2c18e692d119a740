"""What misreports earn at TripleWin's fixed point: truthfulness measured, not asserted.

A data seller i that states κ_D + x instead of κ_D moves the price of its data for model j by

    x·(1 + SV[i,j]·W_j / (1 − σ_j W_j)),

more than x: the loop passes its claim on to the buyers, and part of what they then pay comes
back to it. Only the buyers' reserves stop it. A buyer's reserve moves no price, so stating
another one can only lose a trade that pays, or win one that does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.reading import Floats
from broker_node.mechanisms.triplewin import Coupled, solve, trading


@dataclass(frozen=True, slots=True, kw_only=True)
class Misreport:
    """One statement of one participant, and what it is worth to it beside the truth."""

    factor: float
    """What was stated, over the truth."""
    truthful: float
    stated: float
    trading: int
    """Models that trade under the statement."""

    @property
    def earned(self) -> float:
        """What the misreport earns over the truth."""
        return self.stated - self.truthful


def data_seller_utility(stated: Coupled, seller: int, true_kappa: float) -> tuple[float, int]:
    """Return Σ_j (p_D − κ) of the models that trade, and their number."""
    prices = solve(stated)
    trades = trading(stated, prices)
    return float((prices.data[seller, trades] - true_kappa).sum()), int(trades.sum())


def simulate_misreports(market: Coupled, seller: int, factors: Sequence[float]) -> list[Misreport]:
    """Return what a data seller earns by stating its κ_D times each factor, others truthful."""
    _require_index("seller", seller, len(market.kappa_d))
    truth = float(market.kappa_d[seller])
    truthful, _ = data_seller_utility(market, seller, truth)
    reports = []
    for factor in factors:
        if not 0 < factor < np.inf:
            raise RefusedInputError("factors", f"must be over 0 and finite, got {factor}")
        kappa = market.kappa_d.copy()
        kappa[seller] = truth * factor
        utility, trades = data_seller_utility(replace(market, kappa_d=kappa), seller, truth)
        reports.append(Misreport(factor=factor, truthful=truthful, stated=utility, trading=trades))
    return reports


def simulate_reserves(
    market: Coupled, model: int, buyer: int, factors: Sequence[float]
) -> list[Misreport]:
    """Return what a buyer earns by stating its reserve times each factor, others truthful.

    The reserve of `market` is what the model is worth to it, and must be finite.
    """
    _require_index("model", model, len(market.delta))
    _require_index("buyer", buyer, market.reserve.shape[1])
    worth = float(market.reserve[model, buyer])
    if not np.isfinite(worth):
        raise RefusedInputError(f"reserve[{model}][{buyer}]", "must be finite")
    truthful, _ = _buyer_utility(market, market.reserve, model, buyer)
    reports = []
    for factor in factors:
        if not 0 <= factor < np.inf:
            raise RefusedInputError("factors", f"must be at least 0 and finite, got {factor}")
        reserve = market.reserve.copy()
        reserve[model, buyer] = worth * factor
        utility, trades = _buyer_utility(market, reserve, model, buyer)
        reports.append(Misreport(factor=factor, truthful=truthful, stated=utility, trading=trades))
    return reports


def _buyer_utility(market: Coupled, reserve: Floats, model: int, buyer: int) -> tuple[float, int]:
    stated = replace(market, reserve=reserve)
    prices = solve(stated)
    trades = trading(stated, prices)
    worth = float(market.reserve[model, buyer])
    utility = worth - float(prices.buyers[model, buyer]) if trades[model] else 0.0
    return utility, int(trades.sum())


def _require_index(field: str, index: int, length: int) -> None:
    if not 0 <= index < length:
        raise RefusedInputError(field, f"must be 0 … {length - 1}, got {index}")
