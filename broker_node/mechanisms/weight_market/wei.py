"""An outcome of the weight market in whole Wei.

What buyer s pays seller j is x_sj·Σ_r d_sjr p_jr. A buyer's total is rounded to the nearest
Wei, a half downwards and so in favour of the buyer, and never over its budget; it is divided
among the sellers by largest remainder, ties to the first. Nothing is created: what buyers
pay is what sellers receive, and what they do not pay they keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from broker_node.mechanisms.base import Market, Outcome, RefusedInputError
from broker_node.mechanisms.stated import stated_array
from broker_node.mechanisms.transfers import in_proportion
from broker_node.mechanisms.weight_market.market import RANGES, read
from node.protocol.errors import LocalProtocolError
from node.protocol.types import UINT256_MAX, Wei


@dataclass(frozen=True, slots=True, kw_only=True)
class Payments:
    """Who pays whom; every figure is an integer of at least 0."""

    paid: tuple[tuple[Wei, ...], ...]
    """By buyer and seller."""
    kept: tuple[Wei, ...]
    """What is left of every buyer's budget."""
    received: tuple[Wei, ...]
    """By seller."""

    @property
    def transfers(self) -> tuple[int, ...]:
        """Return what buyers, then sellers, gain: their sum is 0."""
        return (*(-sum(row) for row in self.paid), *self.received)


def payments(market: Market, outcome: Outcome, budgets: Sequence[Wei]) -> Payments:
    """Return the payments of `outcome` where buyer s has `budgets[s]` Wei for its `budget`.

    Raises `RefusedInputError` for budgets that are not as many as the buyers, or not
    0 … 2**256 − 1, and for an outcome that spends more than a budget, rounding apart.
    """
    known = read(market, (RANGES,))
    buyers, sellers = known.edge_SJ.shape
    if len(budgets) != buyers:
        raise RefusedInputError("budgets", f"must have {buyers} items, got {len(budgets)}")
    for s, budget in enumerate(budgets):
        if not 0 <= budget <= UINT256_MAX:
            raise RefusedInputError("budgets", f"of buyer {s} must be 0 … 2**256 - 1, got {budget}")
    x_SJ = stated_array(outcome, "x", (buyers, sellers))
    price_JR = stated_array(outcome, "prices", known.capacity_JR.shape)
    paid = []
    for s, budget in enumerate(budgets):
        unit = Fraction(budget) / Fraction(float(known.budget_S[s]))
        exact = [
            sum(
                (
                    Fraction(float(demand)) * Fraction(float(price))
                    for demand, price in zip(known.demand_SJR[s, j], price_JR[j], strict=True)
                    if x_SJ[s, j] > 0
                ),
                Fraction(),
            )
            * Fraction(float(x_SJ[s, j]))
            * unit
            for j in range(sellers)
        ]
        spent = sum(exact, Fraction())
        if spent > budget * (1 + Fraction(1, 10**9)) or any(one < 0 for one in exact):
            raise RefusedInputError("x", f"of buyer {s} costs {float(spent):g} of {budget} Wei")
        total = min(budget, _nearest(spent))
        paid.append(in_proportion(exact, Wei(total)))
    done = Payments(
        paid=tuple(paid),
        kept=tuple(Wei(budget - sum(row)) for budget, row in zip(budgets, paid, strict=True)),
        received=tuple(Wei(sum(row[j] for row in paid)) for j in range(sellers)),
    )
    if sum(done.transfers) != 0 or any(kept < 0 for kept in done.kept):
        raise LocalProtocolError("payments do not balance")
    return done


def _nearest(amount: Fraction) -> int:
    """Return the nearest integer, a half rounded down."""
    return -((1 - 2 * amount) // 2) if amount else 0
