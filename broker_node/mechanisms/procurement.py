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
from broker_node.mechanisms.reading import amount, amounts, require_keys
from broker_node.mechanisms.stated import stated_array, stated_indices

_NUDGE: Final = 1e-7
"""How far under and over its payment a winner's bid is moved when that is checked."""
_CHECKED: Final = 64
_BIDS_READ: Final = 100_000
"""Each of up to 64 winners is checked by bidding again, of many fewer: as many as this allows."""


def _read(market: Market) -> tuple[np.ndarray, np.ndarray, float]:
    require_keys(market, ("cost", "value", "budget"))
    cost = amounts(market["cost"], "cost")
    value = amounts(market["value"], "value", length=len(cost))
    return cost, value, amount(market["budget"], "budget")


class Procurement:
    """Data bought under a budget: sellers by cost per value, each paid its critical bid."""

    name = "procurement"
    claims = frozenset(
        {Claim.INDIVIDUAL_RATIONALITY, Claim.INCENTIVE_COMPATIBILITY, Claim.BUDGET_BALANCE}
    )

    def validate(self, market: Market) -> list[Issue]:
        try:
            _read(market)
        except RefusedInputError as refused:
            return [Issue(field=refused.field, reason=refused.reason)]
        return []

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return winners (indices, rising) and payment (one for each seller, losers 0)."""
        cost, value, budget = _read(market)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            ratio = np.where(value > 0, cost / value, math.inf)
        order = np.argsort(ratio, kind="stable")
        order = order[value[order] > 0]
        shares = budget * (value[order] / np.cumsum(value[order]))
        refused = np.flatnonzero(cost[order] > shares)
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
            "payment": [float(paid) for paid in payment],
        }
        return Outcome(status=Status.TRADE if count else Status.NO_TRADE, values=values)

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge the budget, rationality, who wins, and each payment by bidding again.

        A winner that asks a little less than it was paid must still win; one that asks a
        little more must lose. Of many winners some are asked, evenly chosen.
        """
        cost_N, value_N, budget = _read(market)
        winners = stated_indices(outcome, "winners", len(cost_N))
        payment = stated_array(outcome, "payment", (len(cost_N),)).tolist()
        cost, value = cost_N.tolist(), value_N.tolist()
        won = set(winners)
        scale = 1e-300 + max(budget, *(cost[winner] for winner in winners), 0.0)
        asked = max(1, min(_CHECKED, _BIDS_READ // len(cost)))
        checked = winners[:: max(1, -(-len(winners) // asked))]
        critical = 0.0
        for winner in checked:
            less, more = (
                [*cost[:winner], payment[winner] * (1 + nudge), *cost[winner + 1 :]]
                for nudge in (-_NUDGE, _NUDGE)
            )
            if payment[winner] > 0 and (
                winner not in _winners_by_the_rule(less, value, budget)
                or winner in _winners_by_the_rule(more, value, budget)
            ):
                critical = 1.0
        violations = {
            "status": float((outcome.status is Status.TRADE) != bool(winners)),
            "winners": float(won != _winners_by_the_rule(cost, value, budget)),
            "losers_paid": max((abs(p) for i, p in enumerate(payment) if i not in won), default=0.0)
            / scale,
            "individual_rationality": max(
                (cost[i] - payment[i] for i in winners if cost[i] > payment[i]), default=0.0
            )
            / scale,
            "budget": max(0.0, math.fsum(payment) - budget) / scale,
            "critical_bid": critical,
        }
        return Certificate(violations=violations, tolerance=DEFAULT_TOLERANCE)


def _winners_by_the_rule(cost: list[float], value: list[float], budget: float) -> set[int]:
    """Return the winners by the definition, seller by seller."""
    ranked = sorted((cost[i] / value[i], i) for i in range(len(cost)) if value[i] > 0)
    winners: set[int] = set()
    total = 0.0
    for _, seller in ranked:
        total += value[seller]
        if cost[seller] > budget * (value[seller] / total):
            break
        winners.add(seller)
    return winners
