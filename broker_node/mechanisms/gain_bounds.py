"""What a seller can infer of its buyer's trade (Train 'n Trade §4, Theorem 4.1), with the erratum.

A buys B's parameters with weight α and tells the gain Δ_a, the ratio of its squared
distances from the optimum before and after (Eq. 3). B, who bought A's with weight β, then
knows its own Δ_b to within a range. With s = √Δ_a that range is exactly the least and the
greatest over c = ±1 of

    ((1 − c·s·(1 − α)) / ((1 − β) − c·s·(1 − α − β)))²,    x/0 = ∞.

c is the cosine between A's error before and after the merge. The printed 1 − α − β + 2αβ
gives a looser lower bound, and an upper bound that is wrong wherever its denominator is
negative, which is for most draws.

If α minimises the loss on the line between both (so that Δ_a >= 1) and β the same loss, then
β = 1 − α, both merged models are one point, and Δ_b = 1 + ((1 − α)/α)²·(Δ_a − 1) exactly:
what is disclosed of (α, Δ_a) is disclosed of the other's gain. α = 0 is no purchase: then
Δ_a is 1 and tells nothing.

Nothing is allocated or paid here, and so nothing is claimed.
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
from broker_node.mechanisms.reading import amount, fraction, issues_of, number, require_keys
from broker_node.mechanisms.stated import stated

SAME_LOSS: Final = 1e-12
"""How near to 1 − α a β must be to count as the minimiser of the same loss."""
_DIRECTIONS: Final = 401


def _read(market: Market) -> tuple[float, float, float]:
    require_keys(market, ("alpha", "beta", "delta_a"))
    alpha, beta = (fraction(market[key], key) for key in ("alpha", "beta"))
    gain = amount(market["delta_a"], "delta_a")
    if alpha == 0 and gain != 1:
        raise RefusedInputError("delta_a", f"must be 1 where alpha is 0, got {gain:g}")
    return alpha, beta, gain


def gain_range(alpha: float, beta: float, delta_a: float) -> tuple[float, float]:
    """Return the least and the greatest Δ_b that α, β and Δ_a leave possible.

    The greatest may be infinite. α and β are 0 … 1; Δ_a is at least 0, and 1 where α = 0.
    """
    if beta == 0:  # B bought nothing
        return 1.0, 1.0
    if alpha == 0:  # A learned nothing of where B is
        return 0.0, math.inf
    root = math.sqrt(delta_a)
    ends = []
    for cosine in (1.0, -1.0):
        before = 1 - cosine * root * (1 - alpha)
        after = (1 - beta) - cosine * root * (1 - alpha - beta)
        ratio = math.inf if after == 0 else before / after
        ends.append(ratio * ratio)
    return min(ends), max(ends)


class GainBounds:
    """What a seller can infer of the buyer's gain: no trade, but what one would disclose."""

    name = "gain-bounds"
    claims: frozenset[Claim] = frozenset()

    def validate(self, market: Market) -> list[Issue]:
        return issues_of(_read, market)

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return lower, upper (null: infinite), and exact where β is 1 − α and Δ_a >= 1."""
        alpha, beta, gain = _read(market)
        lower, upper = gain_range(alpha, beta, gain)
        exact: Json = None
        if alpha > 0 and gain >= 1 and abs(alpha + beta - 1) <= SAME_LOSS:
            odds = (1 - alpha) / alpha
            exact = _told(1 + odds * odds * (gain - 1))
        values: dict[str, Json] = {"lower": _told(lower), "upper": _told(upper), "exact": exact}
        return Outcome(status=Status.TRADE, values=values)

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge the range by drawing the models: errors of A, of B and of their merges.

        In a plane, for directions all round: each must lie in the range, and the ends be
        reached. The exact gain is that of the drawing where α is a minimiser.
        """
        alpha, beta, gain = _read(market)
        lower, upper = (_heard(stated(outcome, key), key) for key in ("lower", "upper"))
        cosines = np.cos(np.linspace(0, math.pi, _DIRECTIONS))
        drawn = _drawn_gains(alpha, beta, gain, cosines)
        exact = stated(outcome, "exact")
        told = exact is not None
        wanted = alpha > 0 and gain >= 1 and abs(alpha + beta - 1) <= SAME_LOSS
        violations = {
            "status": float(outcome.status is not Status.TRADE),
            "lower": _apart(lower, float(drawn.min())),
            "upper": _apart(upper, float(drawn.max())),
            "exact_stated": float(told != wanted and not math.isinf(gain)),
        }
        if told and wanted:
            at_peak = _gain_of_one_point(alpha, gain)
            violations["exact"] = _apart(number(exact, "exact"), at_peak)
        return Certificate(violations=violations, tolerance=DEFAULT_TOLERANCE)


def _told(value: float) -> Json:
    return value if math.isfinite(value) else None


def _heard(value: Json, field: str) -> float:
    return math.inf if value is None else number(value, field)


def _apart(told: float, found: float) -> float:
    """Return the distance of two gains as points of a circle, on which infinity is one too.

    Near a pole of Δ_b rounding moves it by any factor, but 1/√Δ_b only by rounding.
    """
    if told < 0:
        return math.inf
    (x, y), (u, v) = (_on_circle(gain) for gain in (told, found))
    return abs(x * v - y * u)


def _on_circle(gain: float) -> tuple[float, float]:
    if math.isinf(gain):
        return 1.0, 0.0
    length = math.sqrt(1 + gain)
    return math.sqrt(gain) / length, 1 / length


def _drawn_gains(alpha: float, beta: float, gain: float, cosines: np.ndarray) -> np.ndarray:
    """Return Δ_b for each angle between A's error and that of its merged model (of length 1)."""
    if beta == 0:
        return np.ones(1)
    if alpha == 0:
        return np.array([0.0, math.inf])
    sines = np.sqrt(np.maximum(0.0, 1 - cosines**2))
    own = math.sqrt(gain) * np.stack([cosines, sines])
    merged = np.array([[1.0], [0.0]])
    theirs = merged - (1 - alpha) * own  # times α, as all that follows
    theirs_merged = beta * alpha * own + (1 - beta) * theirs
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        gains: np.ndarray = (np.hypot(*theirs) / np.hypot(*theirs_merged)) ** 2
    return gains


def _gain_of_one_point(alpha: float, gain: float) -> float:
    """Return Δ_b where the merged model is the foot of the optimum on the line of both.

    The foot is at distance 1, A at distance √(Δ_a − 1) along the line, and B, on its other
    side, at that times (1 − α)/α.
    """
    return float(np.hypot(1.0, math.sqrt(gain - 1) * (1 - alpha) / alpha) ** 2)
