"""Nash bargaining over parameters (Train 'n Trade §3.4, Eq. 1), with the errata.

Leg A: A sells its parameters a to B, for a surplus v_b(a) − v_a(a). Leg B is the mirror
image. The paper bounds P_a by [v_a(a), v_a(b)] and P_b by [v_b(b), v_b(a)], which is often
empty; what keeps both whole is P_a ∈ [v_a(a), v_b(a)] and P_b ∈ [v_b(b), v_a(b)]. Where the
seller values what it sells as the buyer does, P_a − P_b is Δ_b − Δ_a, and not its opposite.

Only the net transfer d = P_a − P_b is identified. A leg with negative surplus is dropped,
never netted against a good one; a leg with none still trades. Then individual rationality
is checked before the product is maximised: with an empty zone of agreement the product of
two losses still has a maximum.

A broker's fee (`fee`, a share of the net transfer, 0 unless given) is inside that test: who
receives is left with (1 − fee)·|d|. A swap of equals moves no money and pays none. As a fee
can make one leg alone worth more than both, the legs with the largest product are taken;
without a fee those are all that are kept. Leg prices in whole Wei, each with its fee, come
from `bargain` in `broker_node.mechanisms.price`.

The rule is efficient, individually rational and balanced, and so cannot be truthful as well
(Myerson and Satterthwaite 1983): a misreported valuation moves the price. Efficient it is among
those who can pay: two legs whose net transfer is over somebody's cash are no trade, also where
one of them alone would be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
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
from broker_node.mechanisms.reading import amount, fraction, issues_of, items, require_keys, shown
from broker_node.mechanisms.stated import misstated_status, stated, stated_number

LEGS: Final = ("a", "b")
TIE: Final = 1e-12
"""One leg replaces two only where its product is larger by more than this share of it."""
ROUNDING: Final = 8 * 2.0**-52
"""A zone of agreement that is empty by less than this share of the amounts is a point."""
_VALUES: Final = ("v_a_own", "v_a_other", "v_b_own", "v_b_other")
_OPTIONAL: Final = ("legs", "tau", "disagreement", "budget", "fee")
_SEARCH_STEPS: Final = 200
_SMALLEST: Final = Fraction(1, 10**300)
"""What amounts that are all 0 are measured by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bargain:
    a_own: float
    a_other: float
    b_own: float
    b_other: float
    legs: tuple[str, ...]
    tau: float
    disagreement: tuple[float, float]
    budget: tuple[float, float]
    fee: float | None

    @property
    def size(self) -> float:
        """Return the sum of all amounts, a scale for what is rounding."""
        values = abs(self.a_own) + abs(self.a_other) + abs(self.b_own) + abs(self.b_other)
        return values + abs(self.disagreement[0]) + abs(self.disagreement[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Deal:
    legs: list[str]
    transfer: float
    utility_a: float
    utility_b: float


def _read(market: Market) -> _Bargain:
    require_keys(market, _VALUES, _OPTIONAL)
    a_own, a_other, b_own, b_other = (amount(market[key], key, signed=True) for key in _VALUES)
    legs = items(market.get("legs", ["a", "b"]), "legs")
    if any(leg not in LEGS for leg in legs) or len({str(leg) for leg in legs}) != len(legs):
        raise RefusedInputError("legs", f"must be some of a and b, each once, got {_listed(legs)}")
    of_a, of_b = items(market.get("disagreement", [0, 0]), "disagreement", length=2)
    budget = market.get("budget")
    cash_a, cash_b = items([None, None] if budget is None else budget, "budget", length=2)
    fee = fraction(market["fee"], "fee") if "fee" in market else None
    if fee == 1:
        raise RefusedInputError("fee", "must be under 1, got 1")
    return _Bargain(
        a_own=a_own,
        a_other=a_other,
        b_own=b_own,
        b_other=b_other,
        legs=tuple(leg for leg in LEGS if leg in legs),
        tau=fraction(market.get("tau", 0.5), "tau"),
        disagreement=(
            amount(of_a, "disagreement[0]", signed=True),
            amount(of_b, "disagreement[1]", signed=True),
        ),
        budget=(_cash(cash_a, "budget[0]"), _cash(cash_b, "budget[1]")),
        fee=fee,
    )


def _cash(value: Json, field: str) -> float:
    return float("inf") if value is None else amount(value, field)


def _listed(legs: list[Json]) -> str:
    return f"[{', '.join(map(shown, legs))}]" if len(legs) < 4 else shown(legs)


# ── clearing ──


def _settle(bargain: _Bargain, legs: list[str]) -> _Deal | None:
    """Return the bargain over `legs`, or None where no transfer keeps both whole."""
    utility_a = bargain.a_other * ("b" in legs) - bargain.a_own * ("a" in legs)
    utility_b = bargain.b_other * ("a" in legs) - bargain.b_own * ("b" in legs)
    needed = bargain.disagreement[0] - utility_a
    spared = utility_b - bargain.disagreement[1]
    left = 1 - (bargain.fee or 0.0)
    low = max(needed / left if needed > 0 else needed, -bargain.budget[0])
    high = min(spared if spared > 0 else spared / left, bargain.budget[1])
    if low > high + ROUNDING * bargain.size:
        return None
    # the peak of the product on either side of d = 0, where the fee turns its slope
    to_a = (1 - bargain.tau) * (needed / left) + bargain.tau * spared
    to_b = (1 - bargain.tau) * needed + bargain.tau * (spared / left)
    peak = to_a if to_a > 0 else min(to_b, 0.0)
    transfer = min(max(peak, low), high) + 0.0  # and never a zero below zero
    received = transfer * left
    return _Deal(
        legs=legs,
        transfer=transfer,
        utility_a=utility_a + (received if transfer > 0 else transfer),
        utility_b=utility_b - (transfer if transfer > 0 else received),
    )


def _product(bargain: _Bargain, deal: _Deal) -> float:
    gain_a = max(0.0, deal.utility_a - bargain.disagreement[0])
    gain_b = max(0.0, deal.utility_b - bargain.disagreement[1])
    return float(gain_a**bargain.tau * gain_b ** (1 - bargain.tau))


def _best(bargain: _Bargain) -> _Deal | None:
    surplus = {"a": bargain.b_other - bargain.a_own, "b": bargain.a_other - bargain.b_own}
    kept = [leg for leg in bargain.legs if surplus[leg] >= 0]
    best = _settle(bargain, kept) if kept else None
    if not bargain.fee or len(kept) < len(LEGS):
        return best
    for leg in kept:
        deal = _settle(bargain, [leg])
        if deal is not None and (
            best is None or _product(bargain, deal) > (1 + TIE) * _product(bargain, best)
        ):
            best = deal
    return best


class Nash:
    """Nash bargaining of two agents: at most one leg each way, one net transfer."""

    name = "nash"
    claims = frozenset({Claim.INDIVIDUAL_RATIONALITY, Claim.BUDGET_BALANCE, Claim.PARETO})

    def validate(self, market: Market) -> list[Issue]:
        return issues_of(_read, market)

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return legs, net_transfer_to_a, utility_a, utility_b, and fee where one was given.

        Nothing here is random. The net transfer is before the fee: what its payer pays.
        """
        bargain = _read(market)
        deal = _best(bargain)
        if deal is None:
            of_a, of_b = bargain.disagreement
            deal = _Deal(legs=[], transfer=0.0, utility_a=of_a, utility_b=of_b)
        values: dict[str, Json] = {
            "legs": list(deal.legs),
            "net_transfer_to_a": deal.transfer,
            "utility_a": deal.utility_a,
            "utility_b": deal.utility_b,
        }
        if bargain.fee is not None:
            values["fee"] = bargain.fee * abs(deal.transfer)
        return Outcome(status=Status.TRADE if deal.legs else Status.NO_TRADE, values=values)

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge individual rationality, cash, the legs, and the first-order condition.

        In exact rational arithmetic, from the two agents' books and not from the formula.
        """
        bargain = _read(market)
        legs = items(stated(outcome, "legs"), "legs")
        chosen: list[str] = [leg for leg in LEGS if leg in legs]
        book = _Book(bargain, chosen)
        transfer = Fraction(stated_number(outcome, "net_transfer_to_a"))
        utilities = [stated_number(outcome, key) for key in ("utility_a", "utility_b")]
        violations: dict[str, float] = {
            "legs": float(list(chosen) != legs or any(leg not in book.good for leg in chosen)),
            "status": misstated_status(outcome, trades=bool(chosen)),
            "utilities": 0.0,
        }
        scale = book.scale
        if not chosen:
            violations["forgone"] = float(any(_Book(bargain, s).has_zone() for s in book.sets()))
            violations["transfer"] = _share(abs(transfer), scale)
            gains = (Fraction(0), Fraction(0))
        else:
            gains = book.gains(transfer)
            violations["individual_rationality"] = _share(max(Fraction(0), -min(gains)), scale)
            violations["budget"] = book.over_cash(transfer, scale)
            violations["optimality"] = _share(book.slope(transfer, scale), scale)
            violations["forgone"] = book.forgone(gains, scale)
        for told, gain, base in zip(utilities, gains, bargain.disagreement, strict=True):
            error = _share(abs(Fraction(told) - gain - Fraction(base)), scale)
            violations["utilities"] = max(violations["utilities"], error)
        if bargain.fee is not None:
            owed = Fraction(bargain.fee) * abs(transfer)
            violations["fee"] = _share(abs(Fraction(stated_number(outcome, "fee")) - owed), scale)
        return Certificate(violations=violations, tolerance=DEFAULT_TOLERANCE)


# ── checking ──


class _Book:
    """What two agents gain over their disagreement by given legs and a transfer, exactly."""

    def __init__(self, bargain: _Bargain, legs: list[str]) -> None:
        self._bargain = bargain
        self._legs = legs
        worth = {
            "a": (-Fraction(bargain.a_own), Fraction(bargain.b_other)),
            "b": (Fraction(bargain.a_other), -Fraction(bargain.b_own)),
        }
        self.good = [leg for leg in bargain.legs if sum(worth[leg]) >= 0]
        of_a, of_b = map(Fraction, bargain.disagreement)
        self._start = (
            sum((worth[leg][0] for leg in legs), -of_a),
            sum((worth[leg][1] for leg in legs), -of_b),
        )
        self._fee = Fraction(bargain.fee or 0)
        worths = sum((abs(one) for pair in worth.values() for one in pair), abs(of_a) + abs(of_b))
        self.scale = max(worths, _SMALLEST)
        """All amounts together: what a violation is a share of."""

    def sets(self) -> Iterator[list[str]]:
        """Yield the sets of legs that could trade: with a fee, also one of two."""
        if self.good:
            yield self.good
        if self._fee and len(self.good) > 1:
            yield from ([leg] for leg in self.good)

    def gains(self, transfer: Fraction) -> tuple[Fraction, Fraction]:
        """Return both gains at a transfer, whose receiver pays the fee."""
        fee = self._fee * abs(transfer)
        to_a, to_b = (fee, Fraction(0)) if transfer > 0 else (Fraction(0), fee)
        return self._start[0] + transfer - to_a, self._start[1] - transfer - to_b

    def has_zone(self) -> bool:
        """Return whether some transfer that can be paid leaves nobody worse off."""
        cash_a, cash_b = self._bargain.budget
        # more for A never hurts it: the least that it accepts must be fine with B
        short = -self._start[0]
        least = short / (1 - self._fee) if short > 0 else short
        if not math.isinf(cash_a):
            least = max(least, -Fraction(cash_a))
        payable = math.isinf(cash_b) or least <= Fraction(cash_b)
        return payable and self.gains(least)[1] >= 0

    def over_cash(self, transfer: Fraction, scale: Fraction) -> float:
        """Return by how much a payment is over its payer's cash, relative to `scale`."""
        cash = self._bargain.budget[1] if transfer > 0 else self._bargain.budget[0]
        return (
            0.0
            if math.isinf(cash)
            else _share(max(Fraction(0), abs(transfer) - Fraction(cash)), scale)
        )

    def slope(self, transfer: Fraction, scale: Fraction) -> Fraction:
        """Return the derivative of τ·log(gain_a) + (1 − τ)·log(gain_b), cleared of denominators.

        In whichever direction the product still grows and the transfer is free to move.
        """
        tau = Fraction(self._bargain.tau)
        gain_a, gain_b = (max(gain, Fraction(0)) for gain in self.gains(transfer))
        kept = 1 - self._fee
        edge = scale * Fraction(DEFAULT_TOLERANCE)
        cash_a, cash_b = self._bargain.budget
        growth = Fraction(0)
        if gain_b > edge and (math.isinf(cash_b) or transfer < Fraction(cash_b) - edge):
            for_a, for_b = (kept, Fraction(1)) if transfer >= 0 else (Fraction(1), kept)
            growth = max(growth, tau * for_a * gain_b - (1 - tau) * for_b * gain_a)
        if gain_a > edge and (math.isinf(cash_a) or transfer > -Fraction(cash_a) + edge):
            for_a, for_b = (kept, Fraction(1)) if transfer > 0 else (Fraction(1), kept)
            growth = max(growth, (1 - tau) * for_b * gain_a - tau * for_a * gain_b)
        return growth

    def forgone(self, gains: tuple[Fraction, Fraction], scale: Fraction) -> float:
        """Return by how much other legs would have a larger product, relative to `scale`."""
        if not self._fee:
            return float(self._legs != self.good)
        others = [_Book(self._bargain, legs) for legs in self.sets() if legs != self._legs]
        best = max((other.highest() for other in others), default=0.0)
        # a gain that is lost to rounding is not forgone, though 0 to however small a power is 0
        near = (gains[0] + scale * Fraction(ROUNDING), gains[1] + scale * Fraction(ROUNDING))
        return max(0.0, best - _power(near, self._bargain.tau)) / float(scale)

    def highest(self) -> float:
        """Return the largest product by search, 0 where there is no zone."""
        cash_a, cash_b = self._bargain.budget
        reach = float(self.scale / (1 - self._fee))
        low, high = max(-cash_a, -reach), min(cash_b, reach)
        tau = self._bargain.tau

        def height(transfer: float) -> float:
            gains = self.gains(Fraction(transfer))
            return float(min(gains)) if min(gains) < 0 else _power(gains, tau)

        for _ in range(_SEARCH_STEPS):
            third = (high - low) / 3
            if height(low + third) < height(high - third):
                low += third
            else:
                high -= third
        return max(0.0, height(low), height(high))


def _share(part: Fraction, whole: Fraction) -> float:
    """Return part / whole, infinite where that is no float."""
    try:
        return float(part / whole)
    except OverflowError:
        return math.inf


def _power(gains: tuple[Fraction, Fraction], tau: float) -> float:
    gain_a, gain_b = (max(0.0, _share(gain, Fraction(1))) for gain in gains)
    return float(gain_a**tau * gain_b ** (1 - tau))
