"""Nash bargaining over parameters (Train 'n Trade §3.4, Eq. 1), with the erratum.

Leg A: A sells its parameters a to B, for a surplus v_b(a) − v_a(a). Leg B is the mirror
image. The paper bounds P_a by [v_b(a), v_b(b)] and the like, which is often empty; the
bounds that keep both whole are P_a ∈ [v_a(a), v_b(a)] and P_b ∈ [v_b(b), v_a(b)].

Only the net transfer d = P_a − P_b is identified. A leg with negative surplus is dropped,
never netted against a good one; a leg with none still trades. Then individual rationality
is checked before the product is maximised: with an empty zone of agreement the product of
two losses still has a maximum.

The rule is efficient, individually rational and balanced, and so cannot be truthful as well
(Myerson and Satterthwaite 1983): a misreported valuation moves the price. Fees are none
here; `bargain`, in `broker_node.mechanisms.price`, settles one leg of the market with one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
from broker_node.mechanisms.reading import fraction, items, non_negative, number, require_keys

_VALUES: Final = ("v_a_own", "v_a_other", "v_b_own", "v_b_other")
_OPTIONAL: Final = ("legs", "tau", "disagreement", "budget")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bargain:
    a_own: float
    a_other: float
    b_own: float
    b_other: float
    legs: frozenset[str]
    tau: float
    disagreement: tuple[float, float]
    budget: tuple[float, float]

    def kept(self) -> list[str]:
        """Return the legs on the table that have no negative surplus."""
        surplus = {"a": self.b_other - self.a_own, "b": self.a_other - self.b_own}
        return [leg for leg in ("a", "b") if leg in self.legs and surplus[leg] >= 0]

    def before_transfer(self, kept: list[str]) -> tuple[float, float]:
        """Return what A and B gain by the kept legs before any money moves."""
        utility_a = self.a_other * ("b" in kept) - self.a_own * ("a" in kept)
        utility_b = self.b_other * ("a" in kept) - self.b_own * ("b" in kept)
        return utility_a, utility_b

    def range_of_transfer(self, kept: list[str]) -> tuple[float, float]:
        """Return the net transfers to A that both accept and can pay."""
        utility_a, utility_b = self.before_transfer(kept)
        low = max(self.disagreement[0] - utility_a, -self.budget[0])
        high = min(utility_b - self.disagreement[1], self.budget[1])
        return low, high


def _read(market: Market) -> _Bargain:
    require_keys(market, _VALUES, _OPTIONAL)
    a_own, a_other, b_own, b_other = (number(market[key], key) for key in _VALUES)
    legs = items(market.get("legs", ["a", "b"]), "legs")
    if any(leg not in ("a", "b") for leg in legs) or len({str(leg) for leg in legs}) != len(legs):
        raise RefusedInputError("legs", "must be some of a and b, each once")
    disagreement = items(market.get("disagreement", [0, 0]), "disagreement", length=2)
    budget = items(market.get("budget", [None, None]), "budget", length=2)
    return _Bargain(
        a_own=a_own,
        a_other=a_other,
        b_own=b_own,
        b_other=b_other,
        legs=frozenset(str(leg) for leg in legs),
        tau=fraction(market.get("tau", 0.5), "tau"),
        disagreement=(
            number(disagreement[0], "disagreement"),
            number(disagreement[1], "disagreement"),
        ),
        budget=(_cash(budget[0]), _cash(budget[1])),
    )


def _cash(value: Json) -> float:
    return float("inf") if value is None else non_negative(value, "budget")


class Nash:
    """Two agents, at most one leg each way, one net transfer."""

    name = "nash"
    claims = frozenset({Claim.INDIVIDUAL_RATIONALITY, Claim.BUDGET_BALANCE, Claim.PARETO})

    def validate(self, market: Market) -> list[Issue]:
        try:
            _read(market)
        except RefusedInputError as refused:
            return [Issue(field=refused.field, reason=refused.reason)]
        return []

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return legs, net_transfer_to_a, utility_a and utility_b; nothing here is random."""
        bargain = _read(market)
        kept = bargain.kept()
        low, high = bargain.range_of_transfer(kept)
        if not kept or low > high:
            return _outcome([], 0.0, bargain.disagreement)
        utility_a, utility_b = bargain.before_transfer(kept)
        fair = (1 - bargain.tau) * (bargain.disagreement[0] - utility_a) + bargain.tau * (
            utility_b - bargain.disagreement[1]
        )
        transfer = min(max(fair, low), high)
        return _outcome(kept, transfer, (utility_a + transfer, utility_b - transfer))

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge individual rationality, budgets, the legs, and the first-order condition."""
        bargain = _read(market)
        kept = bargain.kept()
        low, high = bargain.range_of_transfer(kept)
        transfer = number(outcome.values["net_transfer_to_a"], "net_transfer_to_a")
        scale = 1 + max(
            abs(v) for v in (bargain.a_own, bargain.a_other, bargain.b_own, bargain.b_other)
        )
        if outcome.status is Status.NO_TRADE:
            violations = {
                "forgone": 0.0 if not kept or low > high else 1.0,
                "transfer": abs(transfer),
            }
            return Certificate(violations=violations, tolerance=DEFAULT_TOLERANCE)
        utility_a, utility_b = bargain.before_transfer(kept)
        gain_a = utility_a + transfer - bargain.disagreement[0]
        gain_b = utility_b - transfer - bargain.disagreement[1]
        # the derivative of τ·log(gain_a) + (1 − τ)·log(gain_b), cleared of denominators
        slope = bargain.tau * gain_b - (1 - bargain.tau) * gain_a
        pushed = slope if transfer < high else 0.0
        pulled = -slope if transfer > low else 0.0
        return Certificate(
            violations={
                "legs": 0.0 if outcome.values["legs"] == kept else 1.0,
                "individual_rationality": max(0.0, -gain_a, -gain_b) / scale,
                "budget": max(0.0, low - transfer, transfer - high) / scale,
                "optimality": max(0.0, pushed, pulled) / scale,
                "utilities": max(
                    abs(number(outcome.values["utility_a"], "utility_a") - utility_a - transfer),
                    abs(number(outcome.values["utility_b"], "utility_b") - utility_b + transfer),
                )
                / scale,
            },
            tolerance=DEFAULT_TOLERANCE,
        )


def _outcome(legs: list[str], transfer: float, utilities: tuple[float, float]) -> Outcome:
    return Outcome(
        status=Status.TRADE if legs else Status.NO_TRADE,
        values={
            "legs": list(legs),
            "net_transfer_to_a": transfer,
            "utility_a": utilities[0],
            "utility_b": utilities[1],
        },
    )
