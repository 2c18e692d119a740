"""Data bought under a budget: the proportional-share rule (Singer 2010; SIMT's core).

Sellers are taken by rising cost per value while c_i <= B·v_i/Σ_{k<=i} v_k. Each of the
winners W is paid its critical bid, the highest with which it would still have won:

    min(B·v_i / Σ_W v,  v_i·c_{k+1}/v_{k+1}),    k + 1 the first that did not win.

Equal ratios are taken in the order given. A seller whose data is worth nothing never wins.

It is truthful, individually rational and never over budget, and so gives up efficiency: the
value bought may be less than the best that the budget could buy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np

from broker_node.mechanisms.base import (
    DEFAULT_TOLERANCE,
    Certificate,
    Claim,
    Issue,
    Json,
    Market,
    Outcome,
    RefusedInputError,
    Status,
)
from broker_node.mechanisms.reading import amount, amounts, issues_of, require_keys
from broker_node.mechanisms.stated import misstated_status, stated_array, stated_indices
from broker_node.mechanisms.transfers import InWei, Transfers, in_proportion
from node.protocol.types import Wei

_NUDGE: Final = 1e-7
"""How far under and over its payment a winner's bid is moved when that is checked."""
_LEAST_NUDGE: Final = 1e-18
"""The same as a share of the money in the market, for payments of next to nothing."""
_SMALLEST_POWER: Final = -1074
"""Of the least float over 0."""
_CHECKED: Final = 64
_BIDS_READ: Final = 100_000
"""Each of up to 64 winners is checked by bidding again, of many fewer: as many as this allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sellers:
    """N sellers, in money and value of at most 1: whatever the sizes, quotients are numbers."""

    cost_N: np.ndarray
    """Infinite where it is over all that could be paid."""
    value_N: np.ndarray
    budget: float
    power: int
    """One unit of this money is 2**power of the market's; to change back and forth is exact."""

    @property
    def grain(self) -> float:
        """The least amount over 0 that the market's money has: what is stated is a multiple."""
        return math.ldexp(1.0, _SMALLEST_POWER - self.power)


def transfers_in_wei(market: Market, outcome: Outcome, *, unit: Wei) -> Transfers:
    """Return what the one buyer pays, and each seller receives; `unit` is what 1.0 is worth.

    The sum is rounded to nearest, a half down, and is never over the budget; of it each
    winner gets its cost, rounded down, and the rest is divided by largest remainder in
    proportion to what payments are above that. Raises `RefusedInputError` for an outcome that
    pays a loser, or a winner less than its cost, or more in all than the budget, and for
    payments over 256 bits.
    """
    require_keys(market, ("cost", "value", "budget"))
    cost, budget = amounts(market["cost"], "cost"), amount(market["budget"], "budget")
    won = set(stated_indices(outcome, "winners", len(cost)))
    payment = stated_array(outcome, "payment", (len(cost),))
    for seller, (paid, least) in enumerate(zip(payment, cost, strict=True)):
        if paid < least if seller in won else paid != 0:
            due = f"must be at least {least:g}" if seller in won else "must be 0"
            raise RefusedInputError(f"payment[{seller}]", f"{due}, got {paid:g}")
    if math.fsum(payment) > budget * (1 + DEFAULT_TOLERANCE):
        reason = f"is {math.fsum(payment):g} in all, over the budget of {budget:g}"
        raise RefusedInputError("payment", reason)
    money = InWei(unit)
    exact = [money.exact(float(paid)) for paid in payment]
    least = [money.down(float(one)) if seller in won else 0 for seller, one in enumerate(cost)]
    total = math.ceil(sum(exact) - Fraction(1, 2))
    rest = min(money.down(budget), total) - sum(least)
    if rest < 0:
        raise RefusedInputError("unit", f"{unit} is finer than the payments are exact")
    above = [paid - floor for paid, floor in zip(exact, least, strict=True)]
    shares = in_proportion(above, Wei(rest))
    received = tuple(Wei(floor + share) for floor, share in zip(least, shares, strict=True))
    return Transfers(paid=(Wei(sum(received)),), received=received)


def _read(market: Market) -> _Sellers:
    require_keys(market, ("cost", "value", "budget"))
    cost_N = amounts(market["cost"], "cost")
    value_N = amounts(market["value"], "value", length=len(cost_N))
    budget = amount(market["budget"], "budget")
    _, power = math.frexp(budget or float(cost_N.max()))
    with np.errstate(over="ignore"):
        cost_N = np.ldexp(cost_N, -power)
    return _Sellers(
        cost_N=cost_N,
        value_N=np.ldexp(value_N, -math.frexp(float(value_N.max()))[1]),
        budget=math.ldexp(budget, -power),
        power=power,
    )


class Procurement:
    """Data bought under a budget: sellers by cost per value, each paid its critical bid."""

    name = "procurement"
    claims = frozenset(
        {Claim.INDIVIDUAL_RATIONALITY, Claim.INCENTIVE_COMPATIBILITY, Claim.BUDGET_BALANCE}
    )

    def validate(self, market: Market) -> list[Issue]:
        return issues_of(_read, market)

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return winners (indices, rising) and payment (one for each seller, losers 0)."""
        sellers = _read(market)
        cost, value, budget = sellers.cost_N, sellers.value_N, sellers.budget
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            ratio = np.where(value > 0, cost / value, math.inf)
            order = np.argsort(ratio, kind="stable")
            order = order[value[order] > 0]
            # quotients of equals are equal also where they are rounded
            refused = np.flatnonzero(ratio[order] > budget / np.cumsum(value[order]))
        count = int(refused[0]) if len(refused) else len(order)
        winners = order[:count]
        payment = np.zeros(len(cost))
        if count:
            payment[winners] = budget * (value[winners] / value[winners].sum())
        if count < len(order):
            first_loser = value[winners] * ratio[order[count]]
            payment[winners] = np.minimum(payment[winners], first_loser)
        # the last winner's own ratio is under both bounds: nobody loses by rounding either
        payment[winners] = np.maximum(payment[winners], cost[winners])
        values: dict[str, Json] = {
            "winners": [int(winner) for winner in sorted(winners)],
            "payment": np.ldexp(payment, sellers.power).tolist(),
        }
        return Outcome(status=Status.TRADE if count else Status.NO_TRADE, values=values)

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge the budget, rationality, who wins, and each payment by bidding again.

        A winner that asks a little less than it was paid must still win; one that asks a
        little more must lose. Of many winners some are asked, evenly chosen.
        """
        sellers = _read(market)
        cost, value, budget = sellers.cost_N.tolist(), sellers.value_N.tolist(), sellers.budget
        winners = stated_indices(outcome, "winners", len(cost))
        told_N = stated_array(outcome, "payment", (len(cost),))
        with np.errstate(over="ignore"):
            payment = np.ldexp(told_N, -sellers.power).tolist()
        won = set(winners)
        scale = 1e-300 + max(budget, *(cost[winner] for winner in winners), 0.0)
        asked = max(1, min(_CHECKED, _BIDS_READ // len(cost)))
        checked = winners[:: max(1, -(-len(winners) // asked))]
        critical = 0.0
        for winner in checked:
            nudge = max(_NUDGE * payment[winner], _LEAST_NUDGE * scale, sellers.grain)
            less, more = (
                [*cost[:winner], max(0.0, bid), *cost[winner + 1 :]]
                for bid in (payment[winner] - nudge, payment[winner] + nudge)
            )
            if winner not in _winners_by_the_rule(
                less, value, budget
            ) or winner in _winners_by_the_rule(more, value, budget):
                critical = 1.0
        violations = {
            "status": misstated_status(outcome, trades=bool(winners)),
            "winners": float(won != _winners_by_the_rule(cost, value, budget)),
            "losers_paid": max((abs(p) for i, p in enumerate(payment) if i not in won), default=0.0)
            / scale,
            "individual_rationality": max(
                (cost[i] - payment[i] for i in winners if cost[i] > payment[i]), default=0.0
            )
            / scale,
            "budget": max(0.0, math.fsum(payment) - budget - len(won) * sellers.grain) / scale,
            "critical_bid": critical,
        }
        return Certificate(violations=violations, tolerance=DEFAULT_TOLERANCE)


def _winners_by_the_rule(cost: list[float], value: list[float], budget: float) -> set[int]:
    """Return the winners by the definition, seller by seller."""
    ranked = sorted((cost[i] / value[i], i) for i in range(len(cost)) if value[i] > 0)
    winners: set[int] = set()
    total = 0.0
    for ratio, seller in ranked:
        total += value[seller]
        if ratio > budget / total:
            break
        winners.add(seller)
    return winners
