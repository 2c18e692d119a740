"""TripleWin: prices of data and of models that fix one another (data–model coupled markets).

Data sellers i, models j, buyers k of each model:

    p_M[j,k] = κ_M[j,k] + (1 + δ_j)·Σ_i p_D[i,j]
    p_D[i,j] = κ_D[i] + SV[i,j]/(1 + δ_j)·Q_j,        Q_j = Σ_k ω[j,k]·p_M[j,k]

It separates by model. With σ_j = Σ_i SV[i,j], W_j = Σ_k ω[j,k] and c_j = Σ_k ω[j,k] κ_M[j,k]

    Σ_i p_D[i,j] = (Σ_i κ_D[i] + σ_j c_j/(1 + δ_j)) / (1 − σ_j W_j).

The paper proves that the joint map is a standard interference function and concludes that a
fixed point exists. The conclusion is wrong: such a map has at most one, and this one has one
only where the gain of its loop, σ_j W_j, is below 1. Above, prices drive each other up without
end, and the formula gives negative numbers. The answer is then `infeasible`, with the gains
and without any price. SV >= 0 and κ > 0 are what the map needs besides, and are required.

`reserve` is [model][buyer], null for no limit: the most that buyer k pays for model j. As in
the paper's experiments it never clips a price; a fixed point is feasible where no price is
above its reserve. A buyer that declines takes its part of Q_j away, so a model trades only
where all of its buyers accept, and `feasible` says that every model does.

Nobody loses: a data seller gets κ_D and more, a buyer pays its reserve at most, and what
buyers pay for a model covers its data (each pays at least Σ_i p_D). A reserve moves no price,
so to state it wrongly never pays; a data seller that overstates κ_D gets more than it adds
(`simulate_misreports`), so no truthfulness is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from broker_node.mechanisms.base import (
    DEFAULT_TOLERANCE,
    Certificate,
    Claim,
    Issue,
    Market,
    Outcome,
    RefusedInputError,
    Status,
)
from broker_node.mechanisms.reading import (
    LARGEST,
    Floats,
    array,
    as_written,
    issues_of,
    named,
    require_at_least_zero,
    require_keys,
    require_over_zero,
    with_null,
)
from broker_node.mechanisms.stated import stated, stated_array
from node.protocol.types import UINT256_MAX, Wei

_KEYS: Final = ("shapley", "delta", "kappa_d", "kappa_m", "omega")


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupled:
    """A market of D data sellers, J models and K buyers a model."""

    shapley: Floats
    """SV (D, J), at least 0."""
    delta: Floats
    """The producers' margins (J), at least 0."""
    kappa_d: Floats
    """What each data seller needs for a use of its data (D), over 0."""
    kappa_m: Floats
    """What serving each buyer costs (J, K), over 0."""
    omega: Floats
    """How much of each buyer's payment counts towards the data (J, K), at least 0."""
    reserve: Floats
    """The most that each buyer pays (J, K), +∞ for no limit."""

    @property
    def loop_gain(self) -> Floats:
        """σ_j W_j, (J)."""
        return np.asarray(self.shapley.sum(axis=0) * self.omega.sum(axis=1), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPoint:
    """Prices of data (D, J) and of models (J, K); NaN for a model that has none."""

    data: Floats
    buyers: Floats


def closed_form(market: Coupled) -> FixedPoint:
    """Return the fixed point, all models at once; NaN where the loop gain is 1 or more."""
    gain = market.loop_gain
    margin = 1 + market.delta
    costs = (market.omega * market.kappa_m).sum(axis=1)
    exists = gain < 1
    room = np.where(exists, 1 - gain, np.nan)
    data_total = (market.kappa_d.sum() + market.shapley.sum(axis=0) * costs / margin) / room
    revenue = costs + market.omega.sum(axis=1) * margin * data_total
    return FixedPoint(
        data=market.kappa_d[:, None] + market.shapley * (revenue / margin),
        buyers=market.kappa_m + (margin * data_total)[:, None],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """Where the Jacobi iteration ended."""

    prices: FixedPoint
    steps: int
    converged: bool
    rate: float
    """The factor by which the last steps shrank: √(max σW) where there is a fixed point."""


def jacobi(market: Coupled, *, tolerance: float = 1e-12, max_steps: int = 100_000) -> Iteration:
    """Return what both sides arrive at by answering each other's last prices, from κ on.

    Stops where a step is below `tolerance` of the prices, where they overflow, or after
    `max_steps`.
    """
    margin = 1 + market.delta
    data = np.repeat(market.kappa_d[:, None], len(market.delta), axis=1)
    buyers = market.kappa_m.copy()
    changes: list[float] = []
    converged = False
    while len(changes) < max_steps and not converged:
        paid = (market.omega * buyers).sum(axis=1)
        new_buyers = market.kappa_m + (margin * data.sum(axis=0))[:, None]
        data, before = market.kappa_d[:, None] + market.shapley * (paid / margin), data
        change = max(
            float((np.abs(new_buyers - buyers) / new_buyers).max()),
            float((np.abs(data - before) / data).max()),
        )
        buyers = new_buyers
        changes.append(change)
        converged = change <= tolerance
        if not buyers.max() < 1e150:
            break
    # two steps are one trip around the loop, so only their mean is a rate
    tail = [c for c in changes if c > 1e-10]
    span = min(len(tail) - 1, 20) // 2 * 2
    rate = (tail[-1] / tail[-1 - span]) ** (1 / span) if span > 0 else 0.0
    return Iteration(
        prices=FixedPoint(data=data, buyers=buyers),
        steps=len(changes),
        converged=converged,
        rate=rate,
    )


def trading(market: Coupled, prices: FixedPoint) -> npt.NDArray[np.bool_]:
    """Return the models (J) that have prices, and whose buyers all accept them."""
    return np.asarray(np.all(prices.buyers <= market.reserve, axis=1), dtype=np.bool_)


def read(market: Market) -> Coupled:
    """Return the market of JSON inputs; raises `RefusedInputError`."""
    require_keys(market, _KEYS, ("reserve",))
    shapley = require_at_least_zero(array(market["shapley"], "shapley", (None, None)), "shapley")
    sellers, models = shapley.shape
    if not shapley.size:
        raise RefusedInputError("shapley", "has no data seller or no model")
    kappa_m = require_over_zero(array(market["kappa_m"], "kappa_m", (models, None)), "kappa_m")
    if not kappa_m.size:
        raise RefusedInputError("kappa_m", "has no buyer")
    return Coupled(
        shapley=shapley,
        delta=require_at_least_zero(array(market["delta"], "delta", (models,)), "delta"),
        kappa_d=require_over_zero(array(market["kappa_d"], "kappa_d", (sellers,)), "kappa_d"),
        kappa_m=kappa_m,
        omega=require_at_least_zero(array(market["omega"], "omega", kappa_m.shape), "omega"),
        reserve=require_at_least_zero(
            with_null(market.get("reserve"), "reserve", (models, kappa_m.shape[1])), "reserve"
        ),
    )


def solve(market: Coupled) -> FixedPoint:
    """Return the closed form; raises `RefusedInputError` where a figure is over `LARGEST`."""
    with np.errstate(over="ignore", invalid="ignore"):
        gain = market.loop_gain
        prices = closed_form(market)
        there = (prices.data <= LARGEST).all(axis=0) & (prices.buyers <= LARGEST).all(axis=1)
    if not (gain <= LARGEST).all():
        where = int(np.argmin(gain <= LARGEST))
        raise RefusedInputError(f"shapley[0][{where}]", "makes a loop gain too large to state")
    overflowing = (gain < 1) & ~there
    if overflowing.any():
        where = int(np.argmax(overflowing))
        raise RefusedInputError(named("kappa_m", [where]), "makes prices too large to state")
    return prices


class TripleWin:
    """The fixed point in closed form; nothing is random."""

    name = "triplewin"
    claims = frozenset({Claim.INDIVIDUAL_RATIONALITY, Claim.BUDGET_BALANCE})

    def validate(self, market: Market) -> list[Issue]:
        return issues_of(lambda asked: solve(read(asked)), market)

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return feasible, trades [model], p_data_to_model, p_model_to_buyer, loop_gain [model].

        `infeasible`, without prices, where any loop gain is 1 or more; `no_trade` where there
        are prices and every model has a buyer that declines.
        """
        coupled = read(market)
        prices = solve(coupled)
        gain = coupled.loop_gain
        if (gain >= 1).any():
            return _outcome(Status.INFEASIBLE, coupled, None)
        return _outcome(
            Status.TRADE if trading(coupled, prices).any() else Status.NO_TRADE, coupled, prices
        )

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge the two equations themselves, edge by edge, and who accepts."""
        coupled = read(market)
        shape = coupled.kappa_m.shape
        gain = [
            math.fsum(coupled.shapley[:, j]) * math.fsum(coupled.omega[j]) for j in range(shape[0])
        ]
        told = stated_array(outcome, "loop_gain", (shape[0],))
        feasible, trading_told = stated(outcome, "feasible"), stated(outcome, "trades")
        violations = {
            "loop_gain": max(
                abs(float(s) - g) / max(1.0, g) for s, g in zip(told, gain, strict=True)
            )
        }
        # a gain within rounding of 1 may be taken either way; the equations then decide
        without = max(gain) >= 1 if abs(max(gain) - 1) > 1e-12 else feasible is False
        if without or outcome.status is Status.INFEASIBLE:
            numbers = (stated(outcome, "p_data_to_model"), stated(outcome, "p_model_to_buyer"))
            answered = outcome.status is Status.INFEASIBLE and feasible is False
            silent = numbers == (None, None) and trading_told == [False] * shape[0]
            violations["existence"] = 0.0 if without and answered and silent else 1.0
            return Certificate(violations=violations, tolerance=DEFAULT_TOLERANCE)
        violations["existence"] = 0.0
        data = stated_array(outcome, "p_data_to_model", coupled.shapley.shape)
        buyers = stated_array(outcome, "p_model_to_buyer", shape)
        wrong_data: list[float] = []
        wrong_buyers: list[float] = []
        trades = []
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is wrong, or NaN
            for j in range(shape[0]):
                spent, revenue = data[:, j].sum(), float(coupled.omega[j] @ buyers[j])
                asked = coupled.kappa_m[j] + spent + coupled.delta[j] * spent
                due = coupled.kappa_d + coupled.shapley[:, j] * revenue / (1 + coupled.delta[j])
                wrong_buyers.append(float(np.max(np.abs(buyers[j] - asked) / np.abs(asked))))
                wrong_data.append(float(np.max(np.abs(data[:, j] - due) / np.abs(due))))
                trades.append(
                    all(p <= r for p, r in zip(buyers[j], coupled.reserve[j], strict=True))
                )
            below_cost = float(np.max(np.maximum(1 - data / coupled.kappa_d[:, None], 0)))
        status = Status.TRADE if any(trades) else Status.NO_TRADE
        violations |= {
            "model_prices": float(np.max(wrong_buyers)),
            "data_prices": float(np.max(wrong_data)),
            "below_cost": below_cost,
            "reserve": 0.0
            if trading_told == trades and feasible is all(trades) and outcome.status is status
            else 1.0,
        }
        return Certificate(violations=violations, tolerance=DEFAULT_TOLERANCE)


def _outcome(status: Status, market: Coupled, prices: FixedPoint | None) -> Outcome:
    trades = [False] * len(market.delta)
    if prices is not None:
        trades = [bool(all_accept) for all_accept in trading(market, prices)]
    return Outcome(
        status=status,
        values={
            "feasible": all(trades),
            "trades": list(trades),
            "p_data_to_model": None if prices is None else prices.data.tolist(),
            "p_model_to_buyer": None if prices is None else prices.buyers.tolist(),
            "loop_gain": market.loop_gain.tolist(),
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTransfers:
    """One model's payments: Σ paid = Σ data + producer."""

    paid: tuple[Wei, ...]
    """By each buyer, at most the price and its reserve."""
    data: tuple[Wei, ...]
    """To each data seller."""
    producer: Wei
    """What is left, at least 0."""


def transfers_in_wei(
    market: Coupled, prices: FixedPoint, *, unit: Wei
) -> Mapping[int, ModelTransfers]:
    """Return the payments of each model that trades; `unit` is what 1.0 is worth.

    Rounding: down for what buyers pay and for what data sellers get; the producer has the rest.
    A data seller whose κ_D is whole in Wei gets at least that. Raises `RefusedInputError` for
    amounts over 256 bits.
    """
    if not 0 <= unit <= UINT256_MAX:
        raise RefusedInputError("unit", f"must be 0 … 2**256 - 1, got {unit}")
    transfers = {}
    for j in np.flatnonzero(trading(market, prices)):
        paid = [math.floor(as_written(price) * unit) for price in prices.buyers[j]]
        data = [math.floor(as_written(price) * unit) for price in prices.data[:, j]]
        if sum(paid) > UINT256_MAX:
            raise RefusedInputError("unit", f"{unit} makes payments of over 256 bits")
        if sum(paid) < sum(data):  # only where rounding of the prices themselves is over a Wei
            raise RefusedInputError("unit", f"{unit} is finer than the prices are exact")
        transfers[int(j)] = ModelTransfers(
            paid=tuple(Wei(amount) for amount in paid),
            data=tuple(Wei(amount) for amount in data),
            producer=Wei(sum(paid) - sum(data)),
        )
    return transfers
